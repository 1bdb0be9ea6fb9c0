"""`python -m datasets bench`: numbers of every stage, and what follows from them."""

from collections.abc import Callable

import pytest

from datasets.bench import REMEDIES, bench
from tests.support.data import find_shard, flip_byte

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


def test_bench_times_no_data_that_is_lost(ray_cluster: str, write_data: Callable[..., str]) -> None:
    data = write_data()
    flip_byte(find_shard(data, "train"), 11, at=300)

    with pytest.raises(ValueError, match=r"row group 1 row 3.*prepare it again"):
        bench(data, policy="light", size_px=32, seconds=0.5)
