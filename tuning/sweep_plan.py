"""What a sweep runs, and how much of the cluster each of its trials has."""

from dataclasses import dataclass, field, replace
from math import ceil

from cluster.runtime import Resources
from cluster.scaling import in_process, max_concurrent_trials, plan_workers
from datasets.manifest import Manifest
from trainers import prepare
from trainers.config import FinetuneConfig
from trainers.networks.freezing import is_head_only
from trainers.tracking.where import describe_tracking
from tuning.axes.axis import BACKBONE
from tuning.budget.estimate import Forecast, measure_forecast, plans_trials
from tuning.budget.gpu_memory import measure_gpu_memory
from tuning.config import TuningConfig
from tuning.point import training_of
from tuning.search import can_restore, count_trials
from tuning.sharing.keys import Key
from tuning.sharing.plan import SharingPlan
from tuning.sharing.prefixes import PrefixStore
from tuning.space import corners, left_out, models


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A checked sweep on the connected cluster."""

    config: TuningConfig
    """With as many trials as the budget allows, where it decides."""
    manifest: Manifest
    resources: Resources
    num_trials: int
    num_concurrent: int
    """Trials side by side, at most."""
    fractions: dict[Key, int] = field(default_factory=dict)
    """Trials side by side by network and frozen stages, where they share GPUs."""
    gpus: str | None = None
    """How trials share the GPUs, or why they don't; None where there is one for each."""
    num_workers: int = 0
    """DDP workers of a trial that trains more than a head; 0 trains in the trial's process."""
    sharing: SharingPlan = field(default_factory=SharingPlan)
    ingest: tuple[bool, str] = (False, "")
    """As `prepare.plan_ingest` returns it."""
    forecast: Forecast | None = None
    """Where the sweep has a budget or is only explained."""
    budget_s: float | None = None

    def describe(self) -> list[str]:
        """Write the plan in lines."""
        config = self.config
        space, base = config.space, config.base
        names = ", ".join(map(str, space.values_of(BACKBONE))) or base.model.backbone
        workers = f"{self.num_workers} DDP workers" if self.num_workers else "their own process"
        lines = [
            *(axis.describe() for axis in space.all_axes),
            left_out(space),
            f"{self.num_concurrent} at a time; head-only trials in one process each, the others in "
            f"{workers}",
            self.gpus,
            f"ingest by {self.ingest[1]}; precision {base.compute.precision}",
            f"stored in {config.out}",
            f"tracked {describe_tracking(base.track)}",
            *self.sharing.describe(),
        ]
        if can_restore(config):
            lines.append("resuming: trials that have ended are reused, the others continue")
        if self.forecast is not None:
            lines += self.forecast.describe(config, budget_s=self.budget_s)
        return [
            f"Sweep of {self.num_trials} trials of {names}, {config.search} search, "
            f"{base.epochs} epochs at most",
            *(f"  {line}" for line in lines if line is not None),
        ]


def plan_sweep(
    config: TuningConfig,
    manifest: Manifest,
    resources: Resources,
    store: PrefixStore,
    *,
    budget_s: float | None = None,
    explain: bool = False,
    resumes: bool = False,
) -> SweepPlan:
    """Plan a sweep, whose precision is chosen; what doesn't fit raises here.

    Args:
        budget_s: as `BudgetClock` has it; then, and to explain, some real steps are timed.
        resumes: its trials were drawn when it began; a budget draws no others.
    """
    config = without_lone_workers(config, resources)
    sharing, forecast = store.plan(config), None
    if explain or budget_s is not None:
        forecast = measure_forecast(config, manifest, sharing, resources)
        if plans_trials(config) and budget_s is not None and not resumes:
            config = forecast.fit(config, budget_s)
            sharing = store.plan(config)
    num_trials = count_trials(config)
    num_concurrent = min(count_concurrent(config, resources, sharing), num_trials)
    num_deeper = min(num_concurrent, max_concurrent_trials(resources, config.base.cluster))
    workers = prepare.plan_training(config.base, resources, num_concurrent=num_deeper)
    fractions, gpus = share_gpus(config, manifest, resources, sharing, num_trials)
    return SweepPlan(
        config=config,
        manifest=manifest,
        resources=resources,
        num_trials=num_trials,
        num_concurrent=max([num_concurrent, *fractions.values()]),
        fractions=fractions,
        gpus=gpus,
        num_workers=workers.num_workers,
        sharing=sharing,
        ingest=prepare.plan_ingest(
            config.base,
            manifest,
            resources,
            workers,
            num_concurrent=num_deeper,
            num_trainings=num_trials,
        ),
        forecast=forecast,
        budget_s=budget_s,
    )


def without_lone_workers(config: TuningConfig, resources: Resources) -> TuningConfig:
    """Let trials whose DDP group would have one worker train in the trial's process."""
    cluster = config.base.cluster
    num_concurrent = max_concurrent_trials(resources, cluster)
    plan = plan_workers(resources, cluster, num_concurrent=num_concurrent)
    if cluster.num_workers is not None or plan.num_workers > 1:
        return config
    return replace(config, base=replace(config.base, cluster=in_process(cluster)))


def trains_in_process(config: FinetuneConfig) -> bool:
    """Whether a trial trains in its own process, not in DDP workers."""
    return config.cluster.num_workers == 0 or is_head_only(config.model)


def share_gpus(
    config: TuningConfig,
    manifest: Manifest,
    resources: Resources,
    sharing: SharingPlan,
    num_trials: int,
) -> tuple[dict[Key, int], str | None]:
    """Return how many trials of each network run side by side, where they share GPUs, and a line
    about it; None where each has one."""
    num_gpus, trainings = (
        resources.num_gpus,
        [training_of(config.base, m) for m in models(config.space)],
    )
    use_gpu = plan_workers(resources, in_process(config.base.cluster)).use_gpu
    if not use_gpu or num_trials <= num_gpus:
        return {}, None
    if not all(map(trains_in_process, trainings)):
        return {}, "whole GPUs, as some trials have DDP workers"
    if not config.fractional_gpus:
        return {}, "a GPU for each trial (--no-fractional-gpus)"
    memory = measure_gpu_memory(config, manifest, sharing, resources)
    most = min(num_trials, int(resources.num_cpus))
    found = {key: min(most, num_gpus * memory.count_trials(key)) for key in memory.used_bytes}
    per_gpu = sorted({ceil(number / num_gpus) for number in found.values()})
    span = " to ".join(map(str, dict.fromkeys((per_gpu[0], per_gpu[-1]))))
    return found, f"fractional GPUs: {span} trials on each; {memory.describe()}"


def count_concurrent(config: TuningConfig, resources: Resources, sharing: SharingPlan) -> int:
    """Trials side by side: heads on features take a CPU each, the others share the cluster."""
    trainings = [training_of(config.base, point) for point in corners(config.space)]
    if resources.num_gpus == 0 and all(
        is_head_only(training.model) and sharing.find(training) for training in trainings
    ):
        return int(resources.num_cpus)
    return max_concurrent_trials(resources, config.base.cluster)
