"""Files that others' tools write, read as kubectl reads them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.checker.command import build_all, describe_others
from k8s.checker.documents import parse
from k8s.checker.judge import check
from k8s.checker.overlays import read_objects
from k8s.checker.rules.entrypoints import Command
from k8s.checker.rules.entrypoints import parse as parse_command

CONFIG_MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: thaw}\n"
HEAD = {"template": {"spec": {"containers": [{"name": "ray", "image": None}]}}}
RAY_CLUSTER = {
    "apiVersion": "ray.io/v1",
    "kind": "RayCluster",
    "metadata": {"name": "x", "namespace": "thaw"},
    "spec": {"headGroupSpec": {"rayStartParams": {}, **HEAD}},
}


def test_text_that_yaml_1_1_takes_for_something_else_stays_text() -> None:
    (found,) = parse("a: 22:22\nb: 2026-01-01\nc: !!binary aGVs\nd: 0x10\n1: x\ntrue: y\nf: null")
    assert found == {"a": "22:22", "b": "2026-01-01", "c": "aGVs", "d": 16, "1": "x", "true": "y"}
    (merged,) = parse("base: &base {x: 1, y: 2}\nown: {<<: *base, x: 3}")
    assert merged["own"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: A\nkind: B", "the key 'kind' is there twice"),
        ("? [a, b]\n: 1", "a key must be text"),
        ("a: &a [*a]", "more than 1000000 values"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + "\n".join(f"{n}: &{n} [{','.join([f'*{o}'] * 10)}]" for o, n in ("ab", "bc", "cd")),
            None,
        ),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + "\n".join(
                f"{n}: &{n} [{','.join([f'*{o}'] * 10)}]"
                for o, n in ("ab", "bc", "cd", "de", "ef", "fg")
            ),
            "more than 1000000 values",
        ),
    ],
)
def test_what_kubectl_refuses_is_no_yaml(text: str, message: str | None) -> None:
    if message is None:
        assert len(list(parse(text))) == 1
        return
    with pytest.raises(yaml.YAMLError, match=message):
        list(parse(text))


def test_objects_of_a_list_are_judged_one_by_one(tmp_path: Path) -> None:
    item = yaml.safe_load(CONFIG_MAP)
    lists = [
        {"apiVersion": "v1", "kind": "List", "items": [item, item]},
        {"apiVersion": "ray.io/v1", "kind": "RayClusterList", "items": [RAY_CLUSTER]},
        {"apiVersion": "v1", "kind": "List", "items": None},
    ]
    file = tmp_path / "all.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump_all(lists).replace("\n", "\r\n").encode())
    assert [found["kind"] for found in read_objects(file)] == ["ConfigMap"] * 2 + ["RayCluster"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ if .Values.x }}\nkind: A\n{{ end }}", "give what `helm template` writes"),
        ("metadata: x\nkind: ConfigMap", "use a file of Kubernetes objects, each with"),
        ("kind: [ConfigMap]", "use a file of Kubernetes objects"),
        ("kind: List\nitems: [3]", "use a file of Kubernetes objects"),
        ("# nothing\n---\n", "use a file of Kubernetes objects"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_objects(tmp_path / "x.yaml")


def overlay_of(tmp_path: Path, *objects: dict[str, Any]) -> Any:
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    (overlay,) = build_all([str(file)])
    return overlay


def test_kinds_of_other_operators_are_named_and_not_judged(tmp_path: Path) -> None:
    def made(api_version: str, kind: str) -> dict[str, Any]:
        metadata = {"name": "x", "namespace": "thaw"}
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata}

    overlay = overlay_of(
        tmp_path,
        made("argoproj.io/v1alpha1", "Application"),
        made("batch.volcano.sh/v1alpha1", "Job"),
        made("networking.gke.io/v1", "ManagedCertificate"),
        made("app/v1", "Deployment"),
    )
    assert describe_others([overlay]) == [
        "Application of argoproj.io/v1alpha1 (1 objects)",
        "Job of batch.volcano.sh/v1alpha1 (1 objects)",
        "ManagedCertificate of networking.gke.io/v1 (1 objects)",
    ]
    (finding,) = check(overlay)
    assert finding.message.endswith("there is no Deployment of app/v1"), "a group misspelt"


@pytest.mark.shared
def test_a_null_is_what_is_not_given(tmp_path: Path, shared_dir: Path) -> None:
    found = {finding.rule for finding in check(overlay_of(tmp_path, RAY_CLUSTER))}
    assert {"image_pinned", "image_matches_ray_version"} <= found


def test_a_command_may_name_files_that_are_not_here() -> None:
    options = ["--data", "/mnt/d", "--out", "/mnt/o"]
    for more in (["--space", "/mnt/space.toml"], ["--from-advice", "/mnt/advice"]):
        parsed = parse_command(Command(room="tuning", arguments=(*options, *more)))
        assert (parsed.data, parsed.out) == ("/mnt/d", "/mnt/o")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("ClusterQueue", {"metadata": {"name": "q", "labels": "x"}}),
        ("ClusterQueue", {"spec": {"resourceGroups": 3}}),
        ("ClusterQueue", {"spec": {"resourceGroups": [{"flavors": ["x"]}]}}),
        ("RayJob", {"spec": {"rayClusterSpec": {"workerGroupSpecs": 3}}}),
        ("RayService", {"spec": {}}),
    ],
)
def test_values_of_another_type_are_findings(
    tmp_path: Path, shared_dir: Path, kind: str, change: dict[str, Any]
) -> None:
    group = "kueue.x-k8s.io/v1beta1" if kind == "ClusterQueue" else "ray.io/v1"
    made = {"apiVersion": group, "kind": kind, "metadata": {"name": "x"}, "spec": {}} | change
    assert check(overlay_of(tmp_path, made))
