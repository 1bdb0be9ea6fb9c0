"""Options of a sweep's budget (standard library only)."""

import re
from dataclasses import dataclass
from math import inf

from cluster.io.errors import require, require_positive

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What the sessions of a sweep have spent."""

    seconds: float = 0.0
    """Without those of promotions."""
    end_s: float | None = None
    """Seconds that the last session kept for its end."""
    promoted_s: float = 0.0
    gpu_s: float | None = 0.0
    """Seconds of each session, promotions included, times the GPUs of its cluster; None where an
    older Thaw has not written them."""
    cost: float | None = 0.0
    """With promotions; None where the price of a session is not known."""
    promoted_gpu_s: float | None = 0.0
    """The part of promotions."""
    promoted_cost: float | None = 0.0


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Limits of a sweep, over all its sessions; the smallest limit counts."""

    time: str | None = None
    """Time limit of the sweep, such as 45m, 2h or 1h30m. It includes the winner's test and the
    combinations of the best trials."""
    gpu_hours: float | None = None
    """Limit of GPU hours. All GPUs of the cluster count, busy or not."""
    cost: float | None = None
    """Limit of cost, in the currency of the price per hour."""
    price_per_hour: float | None = None
    """Price of the whole cluster per hour."""

    def __post_init__(self) -> None:
        if self.time is not None:
            parse_duration_s("budget.time", self.time)
        for name in ("gpu_hours", "cost", "price_per_hour"):
            require_positive(f"budget.{name}", getattr(self, name))
        require(
            self.cost is None or self.price_per_hour is not None,
            "budget.cost",
            self.cost,
            "give the price of the cluster, such as --price-per-hour 3.5",
        )

    def left_s(
        self, num_gpus: int, spent: Spent | None = None, *, share: float = 1.0
    ) -> float | None:
        """Return the seconds that are left on this cluster, negative where more was spent than the
        limits allow; None without a budget.

        Args:
            num_gpus: of the cluster now, whose price is the price per hour.
            spent: before; earlier sessions whose GPUs or price are not known count as on this
                cluster.
            share: of each limit, for all but promotions, which have the rest; for these too, no
                more is left than of the whole.

        Raises:
            UserError: where GPU hours are given and the cluster has no GPU.
        """
        spent, left = spent or Spent(), list[float]()
        before_s = spent.seconds + spent.promoted_s

        def add(limit: float, rate: float, used: float | None, promoted: float | None) -> None:
            """Add what is left of a limit, of which this cluster uses `rate` a second."""
            used = rate * before_s if used is None else used
            promoted = rate * spent.promoted_s if promoted is None else promoted
            left.append(min(limit - used, share * limit - (used - promoted)) / rate)

        if self.time is not None:
            add(parse_duration_s("budget.time", self.time), 1.0, before_s, spent.promoted_s)
        if self.gpu_hours is not None:
            require(
                num_gpus > 0,
                "budget.gpu_hours",
                self.gpu_hours,
                "the cluster has no GPU: use --budget 45m",
            )
            add(self.gpu_hours * 3600, num_gpus, spent.gpu_s, spent.promoted_gpu_s)
        if self.cost is not None and self.price_per_hour is not None:
            add(self.cost, self.price_per_hour / 3600, spent.cost, spent.promoted_cost)
        return min(left, default=None)


def parse_duration_s(field: str, text: str) -> float:
    """Return the seconds of a duration such as 45m, 2h, 1h30m or 90s.

    Raises:
        UserError: for any other text, and for no time at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    seconds = sum(float(number) * UNITS_S[unit] for number, unit in parts)
    is_whole = "".join(map("".join, parts)) == text
    require(is_whole and 0 < seconds < inf, field, text, "give a time such as 45m, 2h or 1h30m")
    return seconds
