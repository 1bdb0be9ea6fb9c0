"""Which prefixes a sweep builds, and what the plan says of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from datasets.config import IngestConfig
from datasets.manifest_file import read_manifest
from trainers.config import FinetuneConfig, LossConfig, ModelConfig
from tuning.config import SpaceConfig, TuningConfig
from tuning.record.savings import Savings
from tuning.sharing.flops import count_flops
from tuning.sharing.plan import SharingPlan, plan_sharing

GIB = 2**30


def sweep(data: str, **changes: Any) -> TuningConfig:
    base = FinetuneConfig(
        data=data,
        epochs=4,
        global_batch_size=12,
        ingest=IngestConfig(size_px=64, policy="light"),
        model=ModelConfig(backbone="mobilenet_v2"),
    )
    values: dict[str, Any] = {
        "base": base,
        "space": SpaceConfig(freeze_depths=("all", 6, 0), learning_rates=(1e-2, 1e-3)),
        "search": "grid",
        "grace_epochs": 4,
    }
    return TuningConfig(**{**values, **changes})


def plan(
    config: TuningConfig,
    *,
    free_gib: float = 1.0,
    present: bool = False,
    epochs_at: Callable[[int], float] | None = None,
) -> SharingPlan:
    return plan_sharing(
        config,
        read_manifest(config.base.data),
        free_bytes=lambda: free_gib * GIB,
        missing_bytes=lambda prefix: 0 if present else prefix.num_bytes,
        epochs_at=epochs_at,
    )


def test_flops_are_those_of_the_published_network() -> None:
    """MobileNetV2 at 224 px has 300 million multiply-adds (Sandler et al. 2018, table 4)."""
    base = FinetuneConfig(data="", model=ModelConfig(backbone="mobilenet_v2"))
    total, by_depth = count_flops(base, [1, 7])
    assert total / 2 == pytest.approx(300e6, rel=0.01)
    assert by_depth[7][0] == pytest.approx(total, rel=0.01)
    assert by_depth[1][0] < 0.2 * total
    assert by_depth[7][1] == (1280,)


def test_the_arithmetic_of_a_plan(easy_data: str) -> None:
    """He initialization, and depth 0 of the pretrained network, have nothing frozen."""
    config = sweep(easy_data)
    total, by_depth = count_flops(config.base, [6, 7])
    planned = plan(config)

    assert [(p.name, p.depth, p.num_trials, p.problem) for p in planned.prefixes] == [
        ("imagenet", 7, 4, ""),
        ("imagenet", 6, 4, ""),
    ]
    assert planned.shared[0].num_bytes == (4 * 48 + 17 + 13) * 1280 * 2
    whole = 4 * (48 * 3 * total + 17 * total)
    rests = {depth: total - by_depth[depth][0] for depth in (6, 7)}
    images = {d: 4 * (48 * (total + 2 * r) + 17 * total) for d, r in rests.items()}
    features = {d: 4 * (48 * 3 * r + 17 * r) for d, r in rests.items()}
    passes = (4 * 48 + 17 + 13) * by_depth[7][0]  # one pass for both depths
    assert planned.without == pytest.approx(8 * whole + 4 * images[6] + 4 * images[7])
    assert planned.with_sharing == pytest.approx(
        8 * whole + 4 * features[6] + 4 * features[7] + passes
    )
    lines = planned.describe()
    assert lines[0].startswith("imagenet up to stage6 (freeze depth 7): computed once for 4 trials")
    assert lines[-1].startswith("expected: ") and lines[-1].endswith("% less")


def test_what_is_there_already_costs_nothing(easy_data: str) -> None:
    config = sweep(easy_data)
    assert plan(config, present=True).with_sharing < plan(config).with_sharing
    assert len(plan(config, present=True, free_gib=0).shared) == 2
    assert "(freeze depth 7): read from the cache for 4" in plan(config, present=True).describe()[0]


def test_over_budget_trials_train_on_images_and_it_is_said(easy_data: str) -> None:
    planned = plan(sweep(easy_data), free_gib=0.0006)
    assert [bool(prefix.problem) for prefix in planned.prefixes] == [False, True]
    assert "from images, as its features take" in "\n".join(planned.describe())
    assert "--feature-cache-gib" in "\n".join(planned.describe())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"share": False}, "--no-share"), ({"mixup": 0.1}, "mixup and CutMix blend pixels")],
)
def test_nothing_is_shared_for_a_reason(easy_data: str, changes: dict, reason: str) -> None:
    config = sweep(easy_data)
    if "mixup" in changes:
        base = replace(config.base, loss=LossConfig(mixup_alpha=changes["mixup"]))
        config = replace(config, base=base)
    else:
        config = replace(config, **changes)
    (line,) = plan(config).describe()
    assert line.startswith("nothing is shared: ") and reason in line


def test_a_lone_trial_that_ends_early_gains_nothing(easy_data: str) -> None:
    one = SpaceConfig(freeze_depths=("all",), learning_rates=(1e-3,), clipnorms=(None,))
    config = sweep(easy_data, space=replace(one, inits=("imagenet",)))
    (prefix,) = plan(config, epochs_at=lambda depth: 2.0).prefixes
    assert prefix.problem == "as computing it once saves next to nothing"
    few = replace(config.base, ingest=replace(config.base.ingest, views=1))
    assert plan(replace(config, base=few), epochs_at=lambda depth: 2.0).shared
    assert plan(config).shared, "ASHA compares it with nothing, and validation images have one view"


def test_a_network_that_can_not_be_cut_streams(easy_data: str) -> None:
    base = replace(
        sweep(easy_data).base,
        model=ModelConfig(backbone="inception_v3"),
        ingest=IngestConfig(size_px=128),
    )
    config = sweep(easy_data, base=base)
    config = replace(config, space=replace(config.space, freeze_depths=("all", 3)))
    uncut, cut = plan(config).prefixes
    assert "inception_v3 can't be cut behind mixed7" in uncut.problem and not cut.problem


def test_prefixes_that_pay_together_share_one_pass(easy_data: str) -> None:
    """Each image has four views, and a trial ends after two or three epochs."""
    space = SpaceConfig(
        freeze_depths=("all", 6), learning_rates=(1e-3,), clipnorms=(None,), inits=("imagenet",)
    )
    both = sweep(easy_data, space=space)
    alone = replace(both, space=replace(space, freeze_depths=("all",)))
    assert len(plan(both, epochs_at=lambda depth: 2.0).shared) == 2
    assert not plan(alone, epochs_at=lambda depth: 2.0).shared
    # Twice the trials at depth 4 pay for a pass up to there, those at depth 7 for none behind it.
    space = replace(space, learning_rates=(1e-3, 1e-4), freeze_depths=("all", 4))
    planned = plan(replace(both, space=space), epochs_at=lambda depth: {4: 3.0, 7: 0.2}[depth])
    assert [prefix.depth for prefix in planned.shared] == [4]


def test_savings_are_told_from_what_was_measured() -> None:
    savings = Savings(
        expected=3.0,
        num_on_features=4,
        num_passes=4000,
        num_computed=1000,
        computed_s=10.0,
        num_copied=2,
        copied_s=33.0,
    )
    assert savings.describe() == [
        "4 trials trained on features: 1000 passes through frozen stages in place of 4000; 10 s, "
        "which saved about 30 s",
        "2 trials copied from a recorded training, 33 s of work",
    ]
    assert replace(savings, num_on_features=0, num_copied=0).describe() == []
