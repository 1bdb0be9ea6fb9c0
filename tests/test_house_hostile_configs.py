"""Every field of every config, given what no field can mean: refused by name, in one sentence."""

import json
import math
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import cluster.__main__ as cluster_main
import datasets.__main__ as datasets_main
import trainers.__main__ as trainers_main
import tuning.__main__ as tuning_main
from cluster.config import ClusterConfig
from cluster.dispatch import load
from cluster.io.errors import holds_credentials
from cluster.io.fields import MAX_COUNT, MAX_FLOAT, build, check_fields
from trainers.config import FinetuneConfig, ScheduleConfig, TrackConfig
from trainers.tracking.config import SyncConfig
from tuning.config import TuningConfig
from tuning.options import Command

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCY"
MAY_BE_NEGATIVE = ("class_depth", "freeze_depth", "freeze_depths", "phases")
"""-2 freezes all stages but the last two; -1 is the folder that an image is in."""
POSITIONAL = ("job", "paths")
NUMBERS = ("nan", "inf", "1e39", "1e999", "2147483648", "9" * 400, "banana", "-1")
TEXTS = ("a\nb", "a\0b", "\x1b[2J", "\udc80", "x" * 5000, f"s3://AKIA:{SECRET}@bucket/cars")


@dataclass(frozen=True)
class Door:
    """A command, with what it can't do without."""

    parse: Callable[[list[str]], Any]
    arguments: tuple[str, ...]
    config: type[Any]


IMAGES = ("--images", "photos", "--out", "o")
NEEDED = {
    "prepare": ("--source", "folder", "--root", "r", "--out", "o"),
    "info": ("--data", "d"),
    "preview": ("--data", "d"),
    "audit": ("--data", "d"),
    "bench": ("--data", "d"),
    "evaluate": ("--run", "r"),
    "compare": ("--runs", "a", "b"),
    "explain": ("--run", "r"),
    "export": ("--run", "r", "--out", "o"),
    "serve": ("--run", "r"),
    "predict": (*IMAGES, "--backbone", "resnet50"),
    "features": (*IMAGES, "--backbone", "resnet50", "--stage", "layer4"),
    "promote": ("--sweep", "s"),
    "advise": ("--data", "d"),
}


def doors() -> Iterator[Door]:
    for main in (cluster_main, datasets_main, trainers_main, tuning_main):
        for name, verb in main.VERBS.items():
            config = load(verb.config)
            if config not in (SyncConfig, FinetuneConfig, Command):
                yield Door(main.parse, (name, *NEEDED.get(name, ())), config)
    yield Door(trainers_main.parse, ("finetune", "--data", "d"), FinetuneConfig)
    yield Door(tuning_main.parse, ("--data", "d"), Command)


def leaves(config: type[Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and annotations of the fields of a config and of the configs in it."""
    hints = get_type_hints(config)
    for field in fields(config):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from leaves(hint, f"{path}{field.name}.")  # type: ignore[arg-type]
        else:
            yield path + field.name, hint


def kinds(hint: Any) -> set[Any]:
    """Plain types that an annotation is made of; Literal for any choice of texts."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType, tuple):
        return {kind for part in get_args(hint) if part is not ... for kind in kinds(part)}
    return {origin if origin is Literal else hint} - {types.NoneType}


def hostile_words(name: str, hint: Any) -> list[list[str]]:
    """What to write behind the option."""
    found = kinds(hint)
    if bool in found:
        return []
    if name == "phases":  # its rate; freeze depths, which stages' names are too, are tried alone
        found = {float}
    words = list(TEXTS if str in found else NUMBERS if found & {int, float} else ["banana"])
    if name in ("freeze_depth", "freeze_depths"):  # numbers as well; banana may be a stage
        words += [word for word in NUMBERS if word != "banana"]
    if float in found and str not in found:
        words.remove("2147483648")  # a rate as good as another
    if name in MAY_BE_NEGATIVE and "-1" in words:
        words.remove("-1")
    if name == "phases":
        return [["all", "4", word] for word in words] + [["all", "2147483648", "0.1"]]
    return [[word] * 2 if name == "learning_rate_range" else [word] for word in words]


DOORS = list(doors())


@pytest.mark.parametrize("door", DOORS, ids=lambda door: " ".join(door.arguments[:1]))
def test_the_command_line_refuses_what_no_field_can_mean(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    num_refused = 0
    for path, hint in leaves(door.config):
        name = path.rpartition(".")[2]
        for words in hostile_words(name, hint):
            with pytest.raises((ValueError, SystemExit)) as caught:
                option = [] if name in POSITIONAL else [f"--{name.replace('_', '-')}"]
                door.parse([*door.arguments, *option, *words])
            message = capsys.readouterr().err
            if isinstance(caught.value, SystemExit):
                assert caught.value.code == 2, (path, words)
            else:
                message = str(caught.value)
                assert "\n" not in message, (path, words)
            message = re.sub("[-.]", "_", re.sub(r"[│\s]+", " ", message))
            assert name in message, (path, words, message)
            assert SECRET.replace("-", "_") not in message, (path, words)
            num_refused += 1
    assert num_refused > 0 or not any(kinds(h) - {bool} for _, h in leaves(door.config))


@pytest.mark.parametrize("word", TEXTS)
def test_the_folder_of_track_is_text(word: str) -> None:
    with pytest.raises(ValueError, match=r"run (is|holds)"):
        trainers_main.parse(["track", "sync", word])


@pytest.mark.parametrize("room", [datasets_main, trainers_main, tuning_main])
def test_an_unknown_option_is_refused(room: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verbs = {datasets_main: ("info", "--data", "d"), tuning_main: ("--data", "d")}
    with pytest.raises(SystemExit) as caught:
        room.parse([*verbs.get(room, ("--data", "d")), "--learning-rates-of-change", "3"])
    assert caught.value.code == 2 and "learning-rates-of-change" in capsys.readouterr().err


HOSTILE_JSON: tuple[Any, ...] = (
    None, [], {}, [[]], [{}], True, "banana", "1", 1.5, -1, -1.0, 2**31, 10**400, 1e39,
    math.nan, math.inf, -math.inf, [math.nan], [-1], "a\0b", "a\nb", "\ud800", "x" * 5000,
    f"s3://AKIA:{SECRET}@bucket/cars",
)  # fmt: skip


def may_be(value: Any, hint: Any, name: str) -> bool:
    """Whether a field could mean a value at all; its own limits may still refuse it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(may_be(value, part, name) for part in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, list):
            return False
        parts = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        pairs = zip(value, parts, strict=False)
        return len(parts) == len(value) and all(may_be(v, h, name) for v, h in pairs)
    if hint is types.NoneType:
        return value is None
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is str:
        is_text = (
            isinstance(value, str) and len(value) < 4097 and not re.search(r"[\0\n\ud800]", value)
        )
        return is_text and not holds_credentials(value)
    if not isinstance(value, int if hint is int else int | float):
        return False
    least = -MAX_COUNT if name in MAY_BE_NEGATIVE else 0
    return least <= value <= (MAX_COUNT if hint is int else MAX_FLOAT)


@pytest.mark.parametrize(
    "config",
    [
        FinetuneConfig(data="d", schedule=ScheduleConfig(phases=(("all", 2, 0.1),))),
        TuningConfig(base=FinetuneConfig(data="d")),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_config_from_json_refuses_what_no_field_can_mean(config: Any) -> None:
    text = json.dumps(config.to_dict())
    assert type(config).from_dict(json.loads(text)) == config
    for path, hint in leaves(type(config)):
        *sections, name = path.split(".")
        for value in HOSTILE_JSON:
            values = place = json.loads(text)
            for section in sections:
                place = place[section]
            place[name] = value
            try:
                type(config).from_dict(values)
            except ValueError as error:
                assert name in str(error) or may_be(value, hint, name), (path, value, error)
                assert "\n" not in str(error) and SECRET not in str(error), (path, value)
            else:
                assert may_be(value, hint, name), f"{path} took {value!r}"
    sections = [""] + [f.name for f in fields(config) if is_dataclass(getattr(config, f.name))]
    for section in sections:
        for unknown in ("learning_rates_of_change", "__class__", "a\nb"):
            values = json.loads(text)
            (values[section] if section else values)[unknown] = 1
            with pytest.raises(ValueError, match="is unknown to this version of Thaw") as caught:
                type(config).from_dict(values)
            assert "\n" not in str(caught.value)
        for other in (None, [], "x", 3):
            values = json.loads(text)
            with pytest.raises(ValueError, match=section or "it is"):
                type(config).from_dict(values | {section: other} if section else other)


def test_sections_are_named_and_configs_are_looked_through() -> None:
    with pytest.raises(ValueError, match=r"^cluster\.max_failures is 2147483648: use"):
        check_fields(FinetuneConfig(data="d", cluster=ClusterConfig(max_failures=2**31)))
    with pytest.raises(ValueError, match=r"^track\.tags is 'a\\x00': use text without"):
        check_fields(FinetuneConfig(data="d", track=TrackConfig(tags=("fine", "a\0"))))


def test_a_missing_field_has_its_default_or_is_named() -> None:
    values = FinetuneConfig(data="d").to_dict()
    del values["track"], values["optim"]["momentum"]
    assert FinetuneConfig.from_dict(values) == FinetuneConfig(data="d")
    del values["data"]
    with pytest.raises(ValueError, match=r"^data is missing$"):
        FinetuneConfig.from_dict(values)


@pytest.mark.parametrize(
    ("uri", "is_secret"),
    [
        ("s3://AKIA:secret@bucket/x", True),
        ("s3://AKIA:sec/ret@bucket/x", True),
        ("https://token@host/x", True),
        ("https://host/x?X-Amz-Signature=abc", True),
        ("s3://bucket/x?secret_key=abc", True),
        ("ray://user:word@host:10001", True),
        ("s3://bucket/a:b@2x", False),
        ("gs://anonymous@bucket/x", False),
        ("hf://datasets/user/cars@main", False),
        ("http://host:8265/a@b", False),
        ("10.0.0.1:6379", False),
        ("runs/cars@home", False),
    ],
)
def test_credentials_in_a_uri_are_seen(uri: str, is_secret: bool) -> None:
    assert holds_credentials(uri) == is_secret


def test_a_secret_in_a_list_is_not_shown_either() -> None:
    for value in ([f"s3://AKIA:{SECRET}@bucket"], {"a": f"https://x?token={SECRET}"}):
        with pytest.raises(ValueError, match=r"^num_workers is a (list|dict) with cred") as caught:
            build(ClusterConfig, {"num_workers": value})
        assert SECRET not in str(caught.value)


def test_an_absurd_value_is_shown_in_a_few_words() -> None:
    for value in ("x" * 10**6, list(range(10**5)), 10**5000, [10**5000], {"a": "b" * 10**5}):
        with pytest.raises(ValueError) as caught:
            build(ClusterConfig, {"num_workers": value})
        assert len(str(caught.value)) < 400
