"""Rules and what they find: data. A rule is a small function over the parts it selects."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from k8s.checker.overlays import Overlay, name_of
from k8s.checker.parts import Part, Select, join

Problem = tuple[str, str]
"""Path below the part, and one sentence."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong in one object of one overlay."""

    overlay: str
    kind: str
    name: str
    path: str
    rule: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A check under its own name."""

    name: str
    source: str
    """Who asks for it: a function of KubeRay 1.7.0, a Kubernetes standard, or `thaw`."""
    select: Select
    check: Callable[[Part], Iterable[Problem]]

    def find(self, overlay: Overlay) -> Iterator[Finding]:
        """Judge every part of an overlay that this rule is about."""
        for part in self.select(overlay):
            for path, message in self.check(part):
                yield Finding(
                    overlay=overlay.name,
                    kind=str(part.owner.get("kind", "")),
                    name=name_of(part.owner),
                    path=join(part.path, path),
                    rule=self.name,
                    message=message,
                )


RULES: dict[str, Rule] = {}


def rule(
    select: Select, source: str = "thaw", name: str | None = None
) -> Callable[[Callable[[Part], Iterable[Problem]]], Callable[[Part], Iterable[Problem]]]:
    """Register a function as a rule for the parts that `select` yields; default: of its name."""

    def register(check: Callable[[Part], Iterable[Problem]]) -> Callable[[Part], Iterable[Problem]]:
        known_as = name or check.__name__
        assert known_as not in RULES, f"two rules are called {known_as}"
        RULES[known_as] = Rule(name=known_as, source=source, select=select, check=check)
        return check

    return register
