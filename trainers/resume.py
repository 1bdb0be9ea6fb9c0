"""What a resumed run does otherwise than before: said before it trains."""

from collections.abc import Iterator

from cluster.io import storage
from trainers.config import FinetuneConfig
from trainers.prepare import Run
from trainers.run.folder import list_changes, read_config
from trainers.step.optim import learning_rate_at

UNSAID = ("out", "cluster.address")
"""Where the folder and the cluster are changes nothing else."""


def describe_changes(run: Run) -> Iterator[str]:
    """Yield a line for each setting that changed since the run was started or last resumed, and
    one for a jump of the learning rate."""
    config = run.config
    if run.resume is None or not storage.exists(storage.join(config.out, "config.json")):
        return
    before = read_config(config.out)
    changed = {
        name: pair for name, pair in list_changes(before, config).items() if name not in UNSAID
    }
    if run.result is not None:
        for name, (old, new) in changed.items():
            if not name.startswith("track."):
                yield f"{name} is {new!r}: not used, the run has ended with {old!r}"
        return
    for name, (old, new) in changed.items():
        yield f"Resume: {name} is {new!r}, it was {old!r}"
    step = run.resume.global_step
    if step == 0:
        return
    num_images = run.manifest.split(config.train_on).num_images
    steps_per_epoch = num_images // config.global_batch_size
    last, planned, rate = (
        rate_of_step(of, at, steps_per_epoch)
        for of, at in ((before, step - 1), (before, step), (config, step))
    )
    if changed and abs(rate - planned) > 1e-6 * max(rate, planned):
        direction = "up" if rate > last else "down"
        yield (
            f"Resume: the learning rate goes from {last:.2g} {direction} to {rate:.2g} at step "
            f"{step + 1}, as the {config.schedule.schedule} schedule now ends after "
            f"{config.num_epochs} epochs; use another --out and --init file --weights of this run "
            "for a schedule of its own"
        )


def rate_of_step(config: FinetuneConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0; the last one's beyond the end."""
    step = min(step, config.num_epochs * steps_per_epoch - 1)
    epoch = step // steps_per_epoch
    phase = next(phase for phase in config.phases if epoch < phase.end_epoch)
    return learning_rate_at(
        step - phase.start_epoch * steps_per_epoch,
        phase.learning_rate,
        config.optim,
        config.schedule,
        steps_per_epoch=steps_per_epoch,
        num_epochs=phase.num_epochs,
    )
