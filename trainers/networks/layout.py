"""The layout of a feature map: maps_BCHW, or maps_BHWC. Images are square, so maps are."""

from typing import Any

from torch import Tensor


def is_channels_last(output: Any, *, otherwise: bool = False) -> bool:
    """Whether a module's output is maps_BHWC.

    Args:
        otherwise: the answer for maps with as many channels as rows.
    """
    if not isinstance(output, Tensor) or output.ndim != 4:
        return False
    _, first, second, third = output.shape
    return otherwise if first == second == third else first == second
