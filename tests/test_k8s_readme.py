"""k8s/README.md to the letter: its commands parse, its overlays and labels are there, the overlay
that it shows has no findings; and components go together."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from cluster.entry import ROOT
from k8s.checker.crds import NEEDS_CRDS
from k8s.checker.judge import RULES, check
from k8s.checker.overlays import K8S, build, list_overlays
from k8s.checker.parts import dig
from k8s.checker.rules.entrypoints import parse_entrypoint

README = (K8S / "README.md").read_text()
COMPONENT = "app.kubernetes.io/component"
WITHOUT_CRDS = [name for name in RULES if name not in NEEDS_CRDS]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(start: str) -> list[str]:
    """Lines of README's commands that hold this, continuation lines joined, comments cut off."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [
        line[line.index(start) :].partition("  #")[0].strip() for line in lines if start in line
    ]


@pytest.mark.parametrize("command", commands("python -m "))
def test_command_parses(command: str) -> None:
    assert parse_entrypoint(command, "K8sJobMode")


@pytest.mark.parametrize("command", commands("kubectl apply -k "))
def test_applied_objects_are_there(command: str) -> None:
    overlay = re.search(r"OVERLAY=k8s/(\S+)", README)
    assert overlay
    words = shlex.split(command.replace("$OVERLAY", f"k8s/{overlay[1]}"))
    name = str(Path(words[words.index("-k") + 1]).relative_to("k8s"))

    assert name in list_overlays()
    if "-l" in words:
        key, value = words[words.index("-l") + 1].split("=")
        assert key == COMPONENT
        chosen = [dig(item, "metadata.labels", {}).get(key) for item in build(name).objects]
        assert value in chosen
        assert None not in chosen, "an object that no `-l` would apply"


def test_overlay_of_ones_own_has_no_findings(tmp_path: Path) -> None:
    """The one that README shows, beside a copy of k8s/."""
    (text,) = blocks("yaml")
    place = re.match(r"# (\S+)/kustomization.yaml", text)
    assert place
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / place[1]).mkdir(parents=True)
    (tmp_path / place[1] / "kustomization.yaml").write_text(text)

    overlay = build(place[1], tmp_path)

    assert check(overlay, WITHOUT_CRDS) == []


@pytest.mark.parametrize("scheduler", ["kueue", "volcano"])
@pytest.mark.parametrize("last", ["s3", "cron"])  # cron's command names the volume
def test_components_go_together(scheduler: str, last: str, tmp_path: Path) -> None:
    chosen = ["gpu", "spot", "monitoring", scheduler, last]
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "all").mkdir()
    kustomization = {
        "resources": ["../k8s/base"],
        "components": [f"../k8s/components/{name}" for name in chosen],
    }
    (tmp_path / "all" / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))

    overlay = build("all", tmp_path)

    assert check(overlay, WITHOUT_CRDS) == []


def test_folders_are_those_of_the_readme() -> None:
    folders = {path.name for path in K8S.iterdir() if path.is_dir()}

    assert folders == set(re.findall(r"^    (\w+)/ ", README, re.MULTILINE))
    for kind in ("overlays", "components"):
        for folder in (K8S / kind).iterdir():
            assert f"- **{folder.name}**" in README, f"README does not tell of {kind}/{folder.name}"
    assert (ROOT / "k8s" / "Dockerfile").is_file()
