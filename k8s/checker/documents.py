"""YAML as kubectl reads it: a stream of objects, those of a List one by one."""

from collections.abc import Iterator
from typing import Any

import yaml
from yaml.constructor import ConstructorError

MAX_VALUES = 1_000_000
"""In a stream, with those that aliases repeat: a few lines of YAML can stand for billions."""

AS_TEXT = ("timestamp", "binary")
"""Scalars that are text to Kubernetes, and objects to Python."""

Object = dict[str, Any]


class Loader(yaml.CSafeLoader):
    """Refuses keys that are there twice, of which PyYAML keeps the last; keys are text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(problem="a key must be text", problem_mark=key.start_mark)
            if key.value in seen:
                text = f"the key {key.value!r} is there twice"
                raise ConstructorError(problem=text, problem_mark=key.start_mark)
            seen.add(key.value)
        self.flatten_mapping(node)  # what `<<` brings may be there again
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


def _construct_int(loader: Loader, node: yaml.ScalarNode) -> Any:
    """22:22 is text: only YAML 1.1 counts in sixties."""
    return node.value if ":" in node.value else loader.construct_yaml_int(node)


def _construct_text(loader: Loader, node: yaml.ScalarNode) -> str:
    return node.value


Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
for _name in AS_TEXT:
    Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _construct_text)


def parse(text: str) -> Iterator[Object]:
    """Parse a stream of YAML documents, leaving out empty ones, and nulls, which say the same as
    what is not given.

    Raises:
        YAMLError: where it is none.
    """
    documents = list(yaml.load_all(text, Loader=Loader))
    _count(documents)
    for document in documents:
        for item in _list_items(document):
            yield _without_nulls(item)


def _list_items(document: Any) -> Iterator[Any]:
    """Objects in a document: `kubectl get -o yaml` and others write several into a List."""
    is_list = (
        isinstance(document, dict)
        and str(document.get("kind")).endswith("List")
        and isinstance(document.get("items", 0), list | None)
    )
    if not is_list:
        yield from filter(None, [document])
        return
    for item in document["items"] or ():
        yield from _list_items(item)


def _count(documents: list[Any]) -> None:
    left, num_values = list(documents), 0
    while left:
        value = left.pop()
        num_values += 1
        if num_values > MAX_VALUES:
            raise yaml.YAMLError(f"with its aliases it has more than {MAX_VALUES} values")
        if isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(item) for k, item in value.items() if item is not None}
    return list(map(_without_nulls, value)) if isinstance(value, list) else value
