"""Kubernetes quantities: `500m`, `2Gi`, `1e3`."""

import re
from decimal import Decimal

BINARY = {
    suffix: 1024**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)
}
DECIMAL = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "E": 10**18,
}
FORM = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([numkMGTPE]|[KMGTPE]i)?")


def parse_quantity(text: object) -> Decimal:
    """Read a quantity exactly.

    Raises:
        ValueError: for what is none.
    """
    match = FORM.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a quantity")
    number, suffix = match.groups()
    return Decimal(number) * {**BINARY, **DECIMAL}.get(suffix or "", 1)
