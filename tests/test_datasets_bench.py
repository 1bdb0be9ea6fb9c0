"""`python -m datasets bench`: numbers of every stage, and what follows from them."""

import pytest

from datasets.bench import REMEDIES, bench

pytestmark = pytest.mark.ray


def test_bench_prices_every_stage_and_names_what_to_fix(
    ray_cluster: str, easy_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = bench(easy_data, policy="light", size_px=32, seconds=0.5)

    rate = costs.pop("stream")
    assert set(costs) == set(REMEDIES)
    assert all(cost > 0 for cost in costs.values())
    assert rate > 0
    shown = capsys.readouterr().out
    slowest = max(costs, key=costs.__getitem__)
    assert f"to fix  {slowest}: {REMEDIES[slowest]}" in shown
    assert f"cores   {7000 * sum(costs.values()):.1f} feed a GPU at 7000 images/s" in shown
