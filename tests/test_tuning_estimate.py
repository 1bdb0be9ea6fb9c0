"""How long a sweep will take, from rates of its steps."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cluster.runtime import Resources
from datasets.manifest_file import read_manifest
from tests.test_tuning_prefixes import sweep_of
from trainers.config import ScheduleConfig
from tuning.axes.axis import Axis
from tuning.budget import rates as module
from tuning.budget.config import BudgetConfig
from tuning.budget.estimate import (
    Forecast,
    as_planned,
    plans_trials,
    with_epochs,
)
from tuning.budget.rates import Rates
from tuning.config import SpaceConfig, TuningConfig
from tuning.point import training_of
from tuning.sharing.asha import simulate_epochs
from tuning.sharing.keys import Key, prefix_key
from tuning.sharing.plan import PrefixPlan, SharingPlan
from tuning.space import models

RESOURCES = Resources(
    num_cpus=2.0, num_gpus=0, num_nodes=1, memory_gib=8.0, object_store_gib=2.0, started_here=True
)


@pytest.fixture
def config(easy_data: str, tmp_path: Path) -> TuningConfig:
    """Two trials of the head and two of the whole network, of 3 epochs without pruning."""
    found = sweep_of("lenet5", easy_data, tmp_path, epochs=3)
    space = SpaceConfig(
        freeze_depths=("all", 0), learning_rates=(1e-2, 1e-3), clipnorms=(None,), inits=("file",)
    )
    return replace(found, space=space, grace_epochs=3)


def keys_of(config: TuningConfig) -> tuple[Key, Key]:
    """The head and the whole network."""
    head, whole = (prefix_key(training_of(config.base, model)) for model in models(config.space))
    return head, whole


def plan_of(config: TuningConfig) -> SharingPlan:
    network, depth = keys_of(config)[0]
    head = PrefixPlan(
        network=network,
        name="file",
        depth=depth,
        stage="dense",
        num_trials=2,
        num_views=2,
        shape=(84,),
        num_bytes=1,
        flops=1.0,
    )
    return SharingPlan(prefixes=(head,), without=1.0, with_sharing=0.5)


def forecast(config: TuningConfig, resources: Resources = RESOURCES) -> Forecast:
    head, whole = keys_of(config)
    rates = Rates(
        train_s={head: 0.001, whole: 0.1},
        eval_s={head: 0.0005, whole: 0.02},
        pass_s={head[0]: 0.01},
        read_s=0.002,
    )
    manifest = read_manifest(config.base.data)
    return Forecast(manifest=manifest, plan=plan_of(config), rates=rates, resources=resources)


def test_the_parts_of_a_sweep(config: TuningConfig) -> None:
    """Images are read by the CPUs that compute; features are not read."""
    found = forecast(config).estimate(config)
    sizes = {n: s.num_images for n, s in read_manifest(config.base.data).splits.items()}
    train, val, test = sizes["train"], sizes["val"], sizes["test"]
    head_s = 0.3 + 3 * (train * 0.001 + val * 0.0005)
    whole_s = 0.3 + 3 * (train * 0.101 + val * 0.021)
    assert found.trials_s == pytest.approx(2 * head_s + 2 * whole_s)
    assert found.pass_s == pytest.approx((2 * train + val + test) * 0.011)
    assert found.test_s == pytest.approx(test * 0.021)
    # Four members, three soups and two interpolations; each of the five has other statistics.
    statistics = train
    combined_s = (9 * val + 5 * statistics) * 0.02 + (val + statistics) * (0.001 + 0.01)
    assert found.combine_s == pytest.approx(combined_s)
    assert found.end_s == found.test_s + found.combine_s
    assert found.seconds > found.trials_s + found.pass_s + found.end_s, "processes start"


def test_features_in_the_cache_are_not_computed_again(config: TuningConfig) -> None:
    without = forecast(config)
    (head,) = without.plan.prefixes

    for share in (0.25, 0.0):
        plan = replace(without.plan, prefixes=(replace(head, missing_share=share),))
        found, full = replace(without, plan=plan).estimate(config), without.estimate(config)

        assert found.pass_s == pytest.approx(share * full.pass_s) and full.pass_s > 0
        assert (found.trials_s, found.end_s) == (full.trials_s, full.end_s)


def test_combining_that_is_not_wanted_or_has_one_network_takes_no_time(
    config: TuningConfig,
) -> None:
    assert not forecast(config).estimate(replace(config, combine=False)).combine_s
    heads = replace(
        config, space=replace(config.space, freeze_depths=("all",), learning_rates=(1e-2,))
    )
    assert not forecast(config).estimate(heads).combine_s


def test_several_machines_share_the_trials(config: TuningConfig) -> None:
    one = forecast(config).estimate(config)
    four = replace(RESOURCES, num_cpus=8.0, num_nodes=4)
    assert forecast(config, four).estimate(config).trials_s == pytest.approx(one.trials_s / 4)


def test_money(config: TuningConfig) -> None:
    priced = replace(config, budget=BudgetConfig(cost=20, price_per_hour=3.5))
    found = replace(
        forecast(priced).estimate(priced), start_s=0, pass_s=0, test_s=0, combine_s=0, trials_s=7200
    )
    assert found.describe() == "estimate: 2 h 00 min (trials 2 h 00 min), 7.00 at 3.5 per hour"


def test_a_budget_decides_how_many_trials_are_drawn(config: TuningConfig) -> None:
    drawn = replace(config, search="random", budget=BudgetConfig(time="1m"))
    assert plans_trials(drawn)
    assert not plans_trials(replace(drawn, trials=3)) and not plans_trials(config)
    found = forecast(drawn)
    assert found.fit_trials(drawn, 1e6) == 4, "all points"
    assert found.fit_trials(drawn, 1.0) == 1
    two_s = found.estimate(replace(drawn, trials=2)).seconds
    assert found.fit_trials(drawn, two_s + 0.01) == 2


def test_trials_are_shorter_where_a_budget_has_no_time_for_each_freeze_depth(
    config: TuningConfig,
) -> None:
    drawn = replace(
        config,
        base=replace(config.base, epochs=12, schedule=ScheduleConfig(warmup_epochs=5.0)),
        search="random",
        grace_epochs=12,
        budget=BudgetConfig(time="1m"),
        full_epochs=12,
    )
    found = forecast(drawn)
    whole_s, short_s = (
        found.estimate(with_epochs(replace(drawn, trials=2), epochs)).seconds for epochs in (12, 6)
    )
    assert found.fit(drawn, whole_s + 0.01) == replace(drawn, trials=2), "the head, and everything"
    planned = found.fit(drawn, short_s + 0.01)
    assert (planned.trials, planned.base.epochs, planned.base.schedule.warmup_epochs) == (2, 6, 3.0)
    assert "epochs: 6 in place of 12" in found.describe(planned, budget_s=short_s)[1]
    least = found.fit(drawn, 0.1)
    assert (least.trials, least.base.epochs) == (1, 3)
    as_given = found.fit(replace(drawn, full_epochs=None), short_s)
    assert (as_given.trials, as_given.base.epochs) == (1, 12)

    assert as_planned(drawn, planned) == planned, "of a sweep that is resumed"
    given = replace(drawn, full_epochs=None)
    assert as_planned(given, planned) == replace(given, trials=2)
    unlimited = replace(drawn, budget=BudgetConfig())
    assert as_planned(unlimited, planned).trials == 2, "without the budget as well"
    assert as_planned(drawn, unlimited).trials is None, "its trials were drawn without a budget"
    with pytest.raises(ValueError, match="full_epochs is 3: use 12 or more"):
        replace(drawn, full_epochs=3)


def test_early_trials_of_asha_go_further(config: TuningConfig) -> None:
    pruned = replace(config, base=replace(config.base, epochs=9), grace_epochs=1, search="random")
    assert simulate_epochs(replace(pruned, trials=1)) == 9, "it is compared with nothing"
    few, many = (simulate_epochs(replace(pruned, trials=n)) for n in (2, 4))
    assert 1 < many < few < 9
    assert simulate_epochs(config) == 3, "no rung below the last epoch"


def test_heads_that_are_compared_with_all_others_stop_earlier(config: TuningConfig) -> None:
    base = replace(config.base, epochs=9)
    pruned = replace(config, base=base, grace_epochs=1, search="random", trials=4)
    least = (4 * 1 + 1 * 2 + 1 * 6) / 4  # the best of four continues, and the second now and then
    assert least < simulate_epochs(pruned, together=True) < simulate_epochs(pruned)


def test_a_step_that_is_held_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps warm up, and of the three that are timed one takes a second."""
    seconds, now = iter([9.0, 9.0, 0.1, 1.0, 0.1]), [0.0]

    def step() -> torch.Tensor:
        now[0] += next(seconds)
        return torch.zeros(())

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert module._time(step) == pytest.approx(0.1)


def test_rates_are_those_of_real_steps(
    config: TuningConfig, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMED_S", 0.2)
    manifest = read_manifest(config.base.data)
    rates = module._measure(config, manifest, plan_of(config), 1, False)
    head, whole = keys_of(config)
    assert rates.train_s.keys() == rates.eval_s.keys() == {head, whole}
    assert 0 < rates.train_s[head] < rates.train_s[whole]
    assert rates.pass_s[head[0]] > 0 and rates.read_s > 0


def test_a_network_between_the_bounds_of_a_range_is_estimated(config: TuningConfig) -> None:
    """Three seeds of four, of which two are bounds; and a depth that mixup makes 0."""
    seeds = Axis(field="seed", range=(0, 3))
    blends = Axis(field="loss.mixup_alpha", range=(0.1, 0.4))
    for axis in (seeds, blends):
        space = replace(config.space, axes=(axis,))
        drawn = replace(config, space=space, search="random", trials=8)
        assert forecast(drawn).estimate(drawn).trials_s > 0

    head, _ = keys_of(config)
    rates = forecast(config).rates
    other = replace(head[0], seed=7)
    assert rates.find((other, head[1])) == (0.001, 0.0005)
    assert rates.find((other, 1)) == (0.1, 0.02), "the depth counts more than the seed"
