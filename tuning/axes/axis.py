"""An axis: a field of a training's config, the values it takes, and when it applies."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Any, get_args

from cluster.io.errors import require
from cluster.io.fields import hint_at, read_value
from cluster.io.markers import RESUMABLE, flatten, marked
from trainers.config import FinetuneConfig

AxisValue = None | bool | int | float | str
Number = int | float

BACKBONE = "model.backbone"
INIT = "model.init"
WEIGHTS = "model.weights"
NORMALIZATION = "model.normalization"
FREEZE_DEPTH = "model.freeze_depth"
LEARNING_RATE = "optim.learning_rate"
CLIPNORM = "optim.clipnorm"
SAME_FOR_ALL = ("data", "fold", "train_on", "epochs", "schedule.phases", "model.head")
"""Fields that no trial may have for itself, beside those that change no result: trials are compared
epoch by epoch, on the same images."""
RANGE, LOG, WHEN = "..", "log", "when"
"""Words of an axis on the command line: `optim.learning_rate 1e-4..1e-2 log when FIELD=VALUE`."""
NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
FORM = re.compile(r"(?!.*\.\.\.)" + NUMBER + re.escape(RANGE) + NUMBER)  # 1e-4...1e-2 is a typo


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Another axis has one of some values."""

    field: str
    values: tuple[AxisValue, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _read_values(self.field, self.values))

    def holds(self, point: Mapping[str, object]) -> bool:
        return self.field in point and any(is_same(point[self.field], of) for of in self.values)

    def describe(self) -> str:
        return f"{self.field}={','.join(map(show, self.values))}"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A field of FinetuneConfig by its dotted path, and the values that trials choose from."""

    field: str
    values: tuple[AxisValue, ...] = ()
    """To choose from; none where there is a range."""
    range: tuple[Number, Number] | None = None
    """Draw a number between these two; whole numbers where both are and the field takes them."""
    log: bool = False
    """Draw uniformly in the logarithm of the range."""
    when: tuple[Condition, ...] = ()
    """Conditions that all have to hold; else the field has the value of the base."""

    def __post_init__(self) -> None:
        hint = hint_at(FinetuneConfig, self.field)
        _require_field(self.field)
        require(
            self.field not in SAME_FOR_ALL
            and self.field not in marked(FinetuneConfig, RESUMABLE)
            and tuple not in map(_origin, (hint, *get_args(hint))),
            "space.axes",
            self.field,
            "all trials of a sweep share this field; choose another one",
        )
        require(
            bool(self.values) != (self.range is not None),
            self.field,
            self.values,
            "give values, such as 0 0.05, or a range, such as 1e-4..1e-2",
        )
        object.__setattr__(self, "values", _read_values(self.field, self.values))
        distinct = {(type(value), value) for value in self.values}
        require(len(distinct) == len(self.values), self.field, self.values, "give each value once")
        if self.range is not None:
            self._check_range(self.range)
        require(
            not self.log or self.range is not None,
            self.field,
            self.values,
            f"{LOG} is for a range, such as 1e-4..1e-2",
        )

    def _check_range(self, bounds: tuple[Number, Number]) -> None:
        hint = hint_at(FinetuneConfig, self.field)
        kinds = {hint, *get_args(hint)}
        require(
            float in kinds or int in kinds,
            self.field,
            self.describe_values(),
            "only a number can be drawn from a range; list values instead",
        )
        require(
            float in kinds or self.is_whole,
            self.field,
            self.describe_values(),
            "give whole numbers, such as 1..4",
        )
        low, high = bounds
        require(
            isfinite(low) and isfinite(high) and low < high and (low > 0 or not self.log),
            self.field,
            self.describe_values(),
            "give the smaller bound first" + ", both above zero" * self.log,
        )

    @property
    def is_whole(self) -> bool:
        """Whether the range has whole numbers alone."""
        hint = hint_at(FinetuneConfig, self.field)
        takes_int = int in {hint, *get_args(hint)}
        return self.range is not None and takes_int and all(type(b) is int for b in self.range)

    def applies(self, point: Mapping[str, object]) -> bool:
        """Whether the axis applies to a point that has the values of the axes before it."""
        return all(condition.holds(point) for condition in self.when)

    def describe_values(self) -> str:
        if self.range is None:
            return ", ".join(map(show, self.values))
        low, high = map(show, self.range)
        return f"{low}{RANGE}{high}" + f" {LOG}" * self.log

    def describe(self) -> str:
        """Write the axis as the command line takes it."""
        values = self.describe_values().replace(",", "")
        conditions = "".join(f" {WHEN} {condition.describe()}" for condition in self.when)
        return f"{self.field} {values}{conditions}"


def read_axis(words: Sequence[str]) -> Axis:
    """Read an axis from the words of the command line: FIELD VALUE..., or FIELD LOW..HIGH, then
    `log` and `when FIELD=VALUE,VALUE`.

    Raises:
        UserError: for words of another form, and as Axis.
    """
    words, conditions = list(words), list[Condition]()
    while WHEN in words:
        at = len(words) - 1 - words[::-1].index(WHEN)
        conditions += map(_read_condition, words[at + 1 :] or [""])
        del words[at:]
    require(len(words) >= 2, "axis", " ".join(words), "give a field and its values")
    field, *texts = words
    is_log = texts[-1] == LOG and len(texts) > 1
    texts = texts[:-1] if is_log else texts
    bounds = _read_range(field, texts)
    return Axis(
        field=field,
        values=() if bounds else tuple(texts),
        range=bounds,
        log=is_log,
        when=tuple(reversed(conditions)),
    )


def read_axes(tables: object, origin: str) -> tuple[Axis, ...]:
    """Read the tables `[[axis]]` of a TOML file.

    Raises:
        UserError: for tables of another form, and as Axis.
    """
    require(isinstance(tables, list), "axis", tables, f"{origin} needs tables [[axis]]")
    assert isinstance(tables, list)
    return tuple(_read_table(table, origin) for table in tables)


def _read_table(table: Any, origin: str) -> Axis:
    known = {"field", "values", "range", "log", "when"}
    require(
        isinstance(table, dict) and "field" in table and known >= table.keys(),
        "axis",
        table,
        f"a table of {origin} has field, values or range, and if needed log and when",
    )
    field, bounds, conditions = table["field"], table.get("range"), table.get("when", {})
    values, is_log = table.get("values", []), table.get("log", False)
    require(isinstance(field, str), "field", field, "give a dotted path")
    require(isinstance(values, list), field, values, "give a list of values")
    require(isinstance(is_log, bool), f"log of {field}", is_log, "use true or false")
    require(isinstance(conditions, dict), f"when of {field}", conditions, "give fields and values")
    if bounds is not None:
        is_pair = isinstance(bounds, list) and len(bounds) == 2
        require(
            is_pair and all(type(bound) in (int, float) for bound in bounds),
            field,
            bounds,
            "give a range as two numbers, such as [1e-4, 1e-2]",
        )
    return Axis(
        field=field,
        values=tuple(values),
        range=None if bounds is None else tuple(bounds),
        log=is_log,
        when=tuple(
            Condition(field=name, values=tuple(given) if isinstance(given, list) else (given,))
            for name, given in conditions.items()
        ),
    )


def _read_condition(text: str) -> Condition:
    field, _, values = text.partition("=")
    require(
        bool(field and values), WHEN, text, "use FIELD=VALUE or FIELD=VALUE,VALUE of another axis"
    )
    return Condition(field=field, values=tuple(values.split(",")))


def _read_values(field: str, values: Sequence[object]) -> tuple[Any, ...]:
    _require_field(field)
    hint = hint_at(FinetuneConfig, field)
    return tuple(read_value(value, hint, field) for value in values)


def _require_field(field: str) -> None:
    """Refuse what is no field of a training, and name those that it may stand for."""
    if hint_at(FinetuneConfig, field) is not None:
        return
    known, section = list(flatten(FinetuneConfig(data="").to_dict())), field.partition(".")[0]
    near = (
        [path for path in known if path.endswith(f".{field}")]
        or get_close_matches(field, known, n=1, cutoff=0.8)
        or [path for path in known if path.startswith(f"{section}.")]
    )
    remedy = f"use {' or '.join(near)}" if near else "give one of a training, such as optim.decay"
    require(False, "space.axes", field, f"no such field; {remedy}")


def _read_range(field: str, texts: Sequence[str]) -> tuple[Number, Number] | None:
    """Read LOW..HIGH; None where the words are values."""
    if not any(RANGE in text and _starts_number(text) for text in texts):
        return None
    found = FORM.fullmatch(texts[0]) if len(texts) == 1 else None
    require(
        found is not None,
        field,
        " ".join(texts),
        "give a range of two finite numbers as one word, such as 1e-4..1e-2, and "
        f"nothing or `{LOG}` after it",
    )
    assert found is not None
    low, high = (float(part) if set(part) & set(".eE") else int(part) for part in found.groups())
    return low, high


def _starts_number(text: str) -> bool:
    """Whether a word with `..` means numbers, as paths such as ../weights.pth do not."""
    return not set(text.lower()) - set("0123456789.e+-infa")


def _origin(hint: Any) -> Any:
    return getattr(hint, "__origin__", hint)


def is_same(value: object, other: object) -> bool:
    """Whether two values are equal and of one type: 1 stage is not a share of 1.0."""
    return type(value) is type(other) and value == other


def show(value: object) -> str:
    """Write a value: a number with the digits that somebody typed, or three of one that was
    drawn."""
    if value is None:
        return "none"
    if not isinstance(value, float):
        return str(value)
    typed = f"{value:.6g}"
    return typed if float(typed) == value else f"{value:.3g}"
