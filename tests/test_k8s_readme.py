"""The pages of k8s/ to the letter: commands parse, overlays and labels exist, shown overlays are
those shipped or have no findings; and components go together."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from cluster.io.errors import UserError
from k8s.checker.crds import NEEDS_CRDS
from k8s.checker.judge import RULES, check
from k8s.checker.overlays import K8S, build, list_overlays
from k8s.checker.parts import dig
from k8s.checker.rule import Finding
from k8s.checker.rules.builds import PART_OF, WORKLOADS
from k8s.checker.rules.entrypoints import parse_entrypoint
from k8s.checker.rules.settings import COMPONENTS

PAGES = {page.stem: page.read_text() for page in K8S.glob("*.md")}
COMPONENT = "app.kubernetes.io/component"
WITHOUT_CRDS = [name for name in RULES if name not in NEEDS_CRDS]


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def lines(page: str) -> list[str]:
    """Lines of a page's commands, continuation lines joined, comments cut off."""
    joined = "".join(blocks("bash", page)).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in joined]


def commands(start: str) -> list[str]:
    return [line[line.index(start) :] for page in PAGES for line in lines(page) if start in line]


@pytest.mark.parametrize("command", commands("python -m "))
def test_command_parses(command: str) -> None:
    for part in command.split(" -- "):
        assert parse_entrypoint(part, "K8sJobMode")


@pytest.mark.parametrize("page", PAGES)
def test_applied_objects_are_there(page: str) -> None:
    """Each overlay builds, each label has objects; no command touches a whole overlay of jobs."""
    overlay = "k8s/deploy/team"
    for line in lines(page):
        overlay = line.partition("OVERLAY=")[2] or overlay
        words = shlex.split(line.replace("$OVERLAY", overlay))
        if words[:2] not in (["kubectl", "apply"], ["kubectl", "delete"]) or "-k" not in words:
            continue
        folder = words[words.index("-k") + 1]
        if folder.startswith("https:") or folder.endswith("team-staged"):
            continue
        if page == "your-cluster":  # where images of overlays/ can't be pulled
            assert folder.startswith("k8s/deploy/") or folder == "k8s/namespace"
        name = folder.removeprefix("k8s/").replace("deploy/team-cluster", "cluster")
        name = name.replace("deploy/team", "deploy/eks")
        assert name in list_overlays()
        assert "-l" in words or name == "namespace"
        if "-l" in words:
            key, value = words[words.index("-l") + 1].split("=")
            chosen = [dig(item, "metadata.labels", {}).get(key) for item in build(name).objects]
            assert key == COMPONENT and value in chosen


def test_every_label_is_on_the_pages() -> None:
    named = set(re.findall(r"`(\w+)`", PAGES["README"]))

    assert set(COMPONENTS) <= named


@pytest.mark.parametrize("page", PAGES)
def test_log_is_read_after_the_job_has_started(page: str) -> None:
    """The submitter, whose log it is, is made when all pods are up."""
    started = set()
    for line in lines(page):
        if found := re.search(r"wait rayjob/(\S+) .*=Running", line):
            started.add(found[1])
        elif found := re.search(r"logs -f .*job/(\S+)", line):
            assert found[1] in started


def test_images_of_the_pages_can_be_pulled() -> None:
    """On kind the image is loaded; everywhere else the overlay names a registry."""
    assert "kind load docker-image thaw:2.60.0-cpu" in PAGES["kind"]
    for line in lines("your-cluster"):
        if "docker build" in line:
            assert "-t $IMAGE:" in line


@pytest.mark.parametrize("name", ["eks", "gke", "onprem"])
def test_example_of_the_page_is_the_one_shipped(name: str) -> None:
    shown = f"# k8s/deploy/{name}/kustomization.yaml\n"
    (text,) = [block for block in blocks("yaml", "your-cluster") if block.startswith(shown)]

    assert text.removeprefix(shown) == (K8S / f"deploy/{name}/kustomization.yaml").read_text()


def build_beside(text: str | dict[str, object], folder: str, tmp_path: Path) -> list[Finding]:
    """Build a kustomization in a copy of k8s/; return the findings."""
    shutil.copytree(K8S, tmp_path / "k8s", ignore=shutil.ignore_patterns("checker", "*.md"))
    place = tmp_path / folder
    place.mkdir(parents=True)
    text = text if isinstance(text, str) else yaml.safe_dump(text)
    (place / "kustomization.yaml").write_text(text)
    return check(build(folder, tmp_path), WITHOUT_CRDS)


@pytest.mark.parametrize(
    ("folder", "kind", "name"),
    [
        ("k8s/deploy/team-staged", "RayJob", "thaw-train-staged"),  # alone: setup was applied
        ("k8s/deploy/team-cluster", "RayCluster", "thaw"),
    ],
)
def test_overlay_of_the_page_has_no_findings(
    folder: str, kind: str, name: str, tmp_path: Path
) -> None:
    shown = f"# {folder}/kustomization.yaml\n"
    (text,) = [block for block in blocks("yaml", "your-cluster") if block.startswith(shown)]

    assert build_beside(text, folder, tmp_path) == []
    assert build(folder, tmp_path).named(kind).keys() == {name}


@pytest.mark.parametrize("scheduler", ["kueue", "volcano"])
@pytest.mark.parametrize("last", ["no-volume", "cron", "http"])  # cron's command names the volume
def test_components_go_together(scheduler: str, last: str, tmp_path: Path) -> None:
    chosen = ["gpu", "spot", "logs", "monitoring", "openshift", "pull-secret", scheduler, last]
    chosen = [name for name in chosen if (name, last) != ("logs", "no-volume")]
    kustomization = {
        "resources": ["../k8s/base"],
        "components": [f"../k8s/components/{name}" for name in chosen],
        "images": [{"name": "thaw", "newName": "registry.example.org/thaw"}],
        "patches": [
            {
                "target": {"kind": kind, "name": name},
                "patch": yaml.safe_dump([{"op": "add", "path": path, "value": value}]),
            }
            for kind, name, path, value in (
                ("PersistentVolumeClaim", "thaw", "/spec/storageClassName", "nfs"),
                ("ConfigMap", "thaw-bucket", "/data/THAW_BUCKET", "s3://cars"),
            )
        ],
    }

    assert build_beside(kustomization, "all", tmp_path) == []


def test_logs_need_the_volume(tmp_path: Path) -> None:
    components = ["../k8s/components/no-volume", "../k8s/components/logs"]

    with pytest.raises(UserError, match="does not build"):
        build_beside({"resources": ["../k8s/base"], "components": components}, "all", tmp_path)


def test_folders_are_those_of_the_readme() -> None:
    folders = {path.name for path in K8S.iterdir() if path.is_dir()} - {"crds", "__pycache__"}

    assert folders == set(re.findall(r"^    (\w+)/ ", PAGES["README"], re.MULTILINE))
    for folder in (K8S / "components").iterdir():
        assert f"| **{folder.name}** |" in PAGES["your-cluster"], folder
    for folder in (K8S / "overlays").iterdir():
        assert folder.name in PAGES["README"]


def test_operator_is_told_to_wait_for_a_lost_node() -> None:
    """A node's pods are replaced after 30 to 340 s; by default KubeRay gives up after 300."""
    values = yaml.safe_load((K8S / "operator/values.yaml").read_text())
    variables = {item["name"]: item["value"] for item in values["env"]}

    assert int(variables["RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS"]) >= 900
    for page in ("kind", "your-cluster"):
        (install,) = [line for line in lines(page) if "helm install" in line]
        assert "-f k8s/operator/values.yaml" in install


def test_everything_is_deleted_before_its_volume() -> None:
    """All that runs, of every overlay: a claim is not deleted while a pod uses it."""
    delete, wait, *_, last = lines_below("## Delete everything")
    kinds = re.findall(r" delete (\S+) ", delete)[0].split(",")

    assert sorted(kinds) == sorted(f"{kind.lower()}s" for kind in WORKLOADS)
    assert delete.endswith(f" -l {PART_OF}=thaw")
    assert "wait pods -l thaw/role --for=delete" in wait
    assert last.endswith(f"-l {COMPONENT}=storage")


def lines_below(heading: str) -> list[str]:
    """Lines of commands of one section of your-cluster.md."""
    (section,) = re.findall(rf"^{heading}\n(.*?)^## ", PAGES["your-cluster"], re.S | re.M)
    block = re.findall(r"```bash\n(.*?)```", section, re.S)[0]
    return [line.partition("  #")[0].strip() for line in block.splitlines()]
