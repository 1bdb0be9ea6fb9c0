"""Every overlay of k8s/ builds and no rule finds anything; every rule finds what breaks it."""

import os
from pathlib import Path

import pytest
import yaml

from cluster.io.errors import UserError
from k8s.checker.crds import NEEDS_CRDS
from k8s.checker.judge import RULES, check
from k8s.checker.overlays import (
    K8S,
    ON_CLUSTER,
    REFUSES_CLUSTER,
    build,
    find_overlays,
    list_overlays,
    name_of,
)
from tests.k8s.mutations import MUTATIONS

OVERLAYS = list_overlays()


def test_every_folder_that_is_applied_is_checked() -> None:
    folders = {file.parent for file in K8S.rglob("kustomization.yaml")}
    pieces = {folder for folder in folders if folders & set(folder.parents)}

    assert {K8S / name.removeprefix(ON_CLUSTER) for name in OVERLAYS} == folders - pieces


@pytest.mark.parametrize("name", REFUSES_CLUSTER)
def test_component_for_jobs_alone_does_not_build_on_a_cluster(name: str) -> None:
    with pytest.raises(UserError, match="does not build"):
        build(f"{ON_CLUSTER}{name}")


@pytest.mark.extended  # `make check-k8s` judges all of them
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_has_no_findings(name: str, shared_dir: Path) -> None:
    assert check(build(name)) == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_noticed(name: str, request: pytest.FixtureRequest) -> None:
    mutation = MUTATIONS[name]
    if mutation.rule in NEEDS_CRDS:
        request.getfixturevalue("shared_dir")
    valid = build(mutation.overlay)
    broken = mutation.apply(valid)

    assert check(valid, [mutation.rule]) == []
    findings = check(broken, [mutation.rule])
    assert findings
    for finding in findings:
        assert finding.overlay == mutation.overlay
        assert finding.name in map(name_of, broken.objects)
        assert finding.path and finding.message


@pytest.mark.shared
@pytest.mark.extended  # 20 s
@pytest.mark.parametrize("name", MUTATIONS)
def test_all_rules_together_notice_a_mutation(name: str, shared_dir: Path) -> None:
    """None of them stumbles over what another is there for."""
    assert check(MUTATIONS[name].apply(build(MUTATIONS[name].overlay)))


def test_every_rule_has_a_mutation() -> None:
    assert {mutation.rule for mutation in MUTATIONS.values()} == set(RULES)


@pytest.mark.parametrize("file", ["kustomization.yaml", "kustomization.yml", "Kustomization"])
def test_overlays_elsewhere_are_found_and_built(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "deploy/team"
    folder.mkdir(parents=True)
    text = yaml.safe_dump({"resources": [os.path.relpath(K8S / "base", folder)]})
    (folder / file).write_text(text)
    (folder / "piece").mkdir()
    (folder / "piece" / file).write_text("")
    (tmp_path / "deploy/notes.yaml").write_text("no kustomization")
    assert find_overlays(tmp_path) == ["deploy/team"]
    built = build("deploy/team", tmp_path)
    assert built.objects == build("base").objects
    assert not built.is_shipped and build("base").is_shipped
