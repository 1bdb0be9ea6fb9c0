"""KubeRay's CRDs as an API server with strict field validation reads them: nulls pruned, defaults
set, unknown fields refused, list keys unique, CEL rules asked."""

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import celpy
import yaml
from celpy import celtypes
from celpy.adapter import json_to_cel
from jsonschema import Draft202012Validator, FormatChecker, ValidationError, validators

from cluster.io.errors import UserError
from k8s.checker.overlays import K8S, Object
from k8s.checker.parts import Part, join, objects
from k8s.checker.rule import Problem, rule

FOLDERS = [K8S / "crds", K8S.parent.parent / "shared" / "kuberay-crds"]
"""Where CRDs are looked for (--crds sets another); they are data, and never committed."""
NEEDS_CRDS = ("crd_schema", "crd_cel")
CEL = "x-kubernetes-validations"
RAY_KINDS = ("RayCluster", "RayJob", "RayService", "RayCronJob")

Schema = dict[str, Any]

INTEGERS = FormatChecker(formats=())
INTEGERS.checks("int32")(lambda value: not isinstance(value, int) or -(2**31) <= value < 2**31)
INTEGERS.checks("int64")(lambda value: not isinstance(value, int) or -(2**63) <= value < 2**63)


def find_folder() -> Path:
    """Return the folder with KubeRay's CRDs.

    Raises:
        UserError: where there are none, as two rules would have nothing to judge by.
    """
    for folder in FOLDERS:
        if any(folder.glob("*.yaml")):
            return folder
    raise UserError(
        f"crds is {' or '.join(map(str, FOLDERS))}: no CRDs of KubeRay are there; `make crds` "
        "fetches them, or give --crds FOLDER"
    )


@cache
def load_schemas(folder: Path) -> dict[tuple[str, str], Schema]:
    """Read the strict schema of every version and kind."""
    schemas = {}
    for file in sorted(folder.glob("*.yaml")):
        spec = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            make_strict(schema)
            # The server judges it by ObjectMeta, whatever the CRD says.
            schema["properties"]["metadata"] = {"type": "object"}
            api_version = f"{spec['group']}/{version['name']}"
            schemas[api_version, spec["names"]["kind"]] = schema
    return schemas


def make_strict(schema: Schema) -> None:
    """Refuse, below every object with fields, the fields that it does not list; let a nullable
    value be null. Changes the schema in place."""
    for child in _children(schema):
        make_strict(child)
    is_open = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if schema.get("type") == "object" and "additionalProperties" not in schema and not is_open:
        schema["additionalProperties"] = False
    if schema.get("nullable") and "type" in schema:
        schema["type"] = [schema["type"], "null"]


def _children(schema: Schema) -> Iterator[Schema]:
    yield from schema.get("properties", {}).values()
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            yield schema[keyword]


def with_defaults(value: Any, schema: Schema) -> Any:
    """Return a value as the server stores it: a null that isn't allowed counts as not given, and
    what is not given takes its default."""
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties")
    others = others if isinstance(others, dict) else {}
    stored = {}
    for key, item in value.items():
        below = properties.get(key, others)
        if item is None and below and not below.get("nullable"):
            continue
        stored[key] = with_defaults(item, below)
    for key, below in properties.items():
        if key not in stored and "default" in below:
            stored[key] = with_defaults(deepcopy(below["default"]), below)
    return stored


def unique_keys(
    validator: Any, keys: list[str], value: Any, schema: Schema
) -> Iterator[ValidationError]:
    """`x-kubernetes-list-map-keys`: no two items of the list have the same key."""
    seen = set()
    for item in value if isinstance(value, list) else ():
        key = tuple(item.get(name) for name in keys) if isinstance(item, dict) else item
        text = json.dumps(key, sort_keys=True, default=str)  # of any type
        if text in seen:
            yield ValidationError(f"two items have {', '.join(keys)} {key!r}")
        seen.add(text)


def ask_cel(
    validator: Any, rules: list[dict[str, str]], value: Any, schema: Schema
) -> Iterator[ValidationError]:
    """`x-kubernetes-validations`: rules in CEL about the value, `self`."""
    for item in rules:
        if "oldSelf" not in item["rule"] and not evaluate(item["rule"], value):  # not an update
            yield ValidationError(item.get("message", item["rule"]))


def evaluate(expression: str, value: Any) -> bool:
    """Whether a CEL expression holds for `self`."""
    return bool(compile_cel(expression).evaluate({"self": json_to_cel(value)}))


@cache
def compile_cel(expression: str) -> celpy.Runner:
    environment = celpy.Environment(annotations={"self": celtypes.MapType})
    return environment.program(environment.compile(expression))


Validator = validators.extend(
    Draft202012Validator, {"x-kubernetes-list-map-keys": unique_keys, CEL: ask_cel}
)


def find_errors(item: Object) -> tuple[ValidationError, ...]:
    """Judge an object of KubeRay's by the CRD of its kind."""
    return _find_errors(find_folder(), json.dumps(item, sort_keys=True, default=str))


@cache  # two rules ask
def _find_errors(folder: Path, text: str) -> tuple[ValidationError, ...]:
    return tuple(_judge(json.loads(text), load_schemas(folder)))


def _judge(item: Object, schemas: dict[tuple[str, str], Schema]) -> Iterator[ValidationError]:
    schema = schemas.get((item.get("apiVersion", ""), item.get("kind", "")))
    if schema is None:
        known = ", ".join(sorted(version for version, kind in schemas if kind == item["kind"]))
        yield ValidationError(
            f"apiVersion {item.get('apiVersion')!r} has no {item['kind']}: use {known}",
            path=["apiVersion"],
        )
        return
    yield from Validator(schema, format_checker=INTEGERS).iter_errors(with_defaults(item, schema))


@rule(objects(*RAY_KINDS), "KubeRay 1.7.0, CRD")
def crd_schema(part: Part) -> Iterator[Problem]:
    for error in find_errors(part.value):
        if error.validator != CEL:
            yield path_of(error), shorten(error.message)


@rule(objects(*RAY_KINDS), "KubeRay 1.7.0, CRD")
def crd_cel(part: Part) -> Iterator[Problem]:
    for error in find_errors(part.value):
        if error.validator == CEL:
            yield path_of(error), shorten(error.message)


def path_of(error: ValidationError) -> str:
    """Path of an error, in the form of the rules' paths."""
    path = ""
    for step in error.absolute_path:
        path = join(path, f"[{step}]" if isinstance(step, int) else str(step))
    return path


def shorten(message: str, length: int = 300) -> str:
    """jsonschema quotes the whole value."""
    return message if len(message) <= length else f"{message[: length - 4]} ..."
