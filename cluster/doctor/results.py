"""What a check finds: a line for people, an object for machines."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warn", "fail"]

SCHEMA_VERSION = 1
"""Of `to_json`: changes when a field goes or gets another meaning, not when one is added."""

MAX_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One line of a report."""

    check: str
    level: Level
    text: str
    remedy: str | None = None
    """What to do about it; None where all is well."""
    nodes: tuple[str, ...] = ()
    """The nodes it is about; none where it is about the cluster as a whole, or this process."""

    def __str__(self) -> str:
        text = f"{list_names(self.nodes)}: {self.text}" if self.nodes else self.text
        return f"{self.level:<5} {self.check:<11} {text}" + (
            f"; {self.remedy}" if self.remedy else ""
        )


def ok(check: str, text: str) -> CheckResult:
    return CheckResult(check=check, level="ok", text=text)


def warn(check: str, text: str, remedy: str, nodes: Sequence[str] = ()) -> CheckResult:
    return CheckResult(check=check, level="warn", text=text, remedy=remedy, nodes=tuple(nodes))


def fail(check: str, text: str, remedy: str, nodes: Sequence[str] = ()) -> CheckResult:
    return CheckResult(check=check, level="fail", text=text, remedy=remedy, nodes=tuple(nodes))


def group(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Return text -> nodes that have it, so that a hundred nodes with one trouble are one line."""
    groups: dict[str, list[str]] = {}
    for node, text in texts.items():
        groups.setdefault(text, []).append(node)
    return groups


def list_names(names: Sequence[str]) -> str:
    """Write the first names: `a, b, c and 5 more`."""
    shown = ", ".join(names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown} and {len(names) - MAX_NAMES} more"


def shorten(error: object) -> str:
    """Write an exception in one line that can stand in a report."""
    return textwrap.shorten(str(error), 300, placeholder=" ...")


def has_failed(findings: Sequence[CheckResult]) -> bool:
    return any(finding.level == "fail" for finding in findings)


def summarize(findings: Sequence[CheckResult]) -> str:
    """Write the last line of a report."""
    counts = {
        level: sum(finding.level == level for finding in findings)
        for level in ("ok", "warn", "fail")
    }
    return f"{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failed"


def to_json(address: str | None, findings: Sequence[CheckResult]) -> dict[str, Any]:
    """Return the report of the doctor for machines, as its docstring describes it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "address": address,
        "ok": not has_failed(findings),
        "findings": [asdict(finding) for finding in findings],
    }
