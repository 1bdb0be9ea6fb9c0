"""What rules are made of: shells, quantities, schedules, keys, and the door of the checker."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

import cluster.__main__ as cluster_main
from cluster.io.errors import UserError
from k8s.checker import crds
from k8s.checker.judge import check
from k8s.checker.overlays import K8S, Overlay, build, find_kubectl
from k8s.checker.parts import containers
from k8s.checker.quantities import parse_quantity
from k8s.checker.rules.entrypoints import find_commands, job_line, parse_entrypoint
from k8s.checker.rules.keys import KEY_FORMS, SECRET_NAME
from k8s.checker.rules.network import WEB, Peer, allows, selects
from k8s.checker.rules.operator_jobs import find_cron_problem
from k8s.checker.rules.pods import tag_of
from tests.k8s.mutations import MUTATIONS

PREPARE = "python -m datasets prepare --source synthetic --out /mnt/cars"
TRAIN = "python -m trainers head --data /mnt/cars"


@pytest.mark.parametrize(
    ("entrypoint", "line"),
    [
        (PREPARE, PREPARE),
        (f"bash -c '{PREPARE} && {TRAIN}'", f'bash -c "{PREPARE} && {TRAIN}"'),
        (f"{PREPARE} \\\n  --seed 1", f"{PREPARE} --seed 1"),
        (
            "python -m datasets info --data '/mnt/my cars'",
            'python -m datasets info --data "/mnt/my cars"',
        ),
    ],
)
def test_submitter_hands_one_command_on(entrypoint: str, line: str) -> None:
    assert job_line(entrypoint) == line


@pytest.mark.parametrize("joint", [" && ", " ; ", "; ", " || ", " | ", "\n", " & "])
def test_submitter_would_keep_the_second_command(joint: str) -> None:
    with pytest.raises(ValueError, match="the submitter's own shell would run 'python -m trainers"):
        job_line(PREPARE + joint + TRAIN)

    assert job_line(PREPARE + joint + TRAIN, "HTTPMode") == PREPARE + joint + TRAIN


def test_commands_are_found_behind_shells_and_assignments() -> None:
    script = f'set -e; NCCL_DEBUG=INFO {PREPARE}\nexec {TRAIN} --out "$OUT"'

    found = list(find_commands(f"bash -euc '{script}'"))

    assert [command.room for command in found] == ["datasets", "trainers"]
    assert found[1].arguments == ("head", "--data", "/mnt/cars", "--out", "$OUT")


@pytest.mark.parametrize(
    "other", ["ray status", "bash train.sh", "python -m pip install x", "curl x"]
)
def test_foreign_command_is_refused(other: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        list(find_commands(other))


def test_real_command_line_parses_and_says_what_it_refuses() -> None:
    ((command, config),) = parse_entrypoint(f"{PREPARE} --num-classes 4", "K8sJobMode")

    assert (command.room, config.synthetic.num_classes) == ("datasets", 4)
    with pytest.raises(ValueError, match=r"is refused: .*--num-clases"):
        parse_entrypoint(f"{PREPARE} --num-clases 4", "K8sJobMode")
    with pytest.raises(ValueError, match=r"synthetic\.num_classes is 1: use 2 to 196"):
        parse_entrypoint(f"{PREPARE} --num-classes 1", "K8sJobMode")


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", "0.5"), ("2", "2"), ("1Gi", str(2**30)), ("1.5G", "1500000000"), ("1e3", "1000")],
)
def test_quantity_is_read_exactly(text: str, number: str) -> None:
    assert parse_quantity(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "3 GB", "1gi", "one", "1GiB"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


@pytest.mark.parametrize(
    "schedule",
    ["0 2 * * *", "*/15 8-18 1,15 jan-mar MON-FRI", "@daily", "@every 1h30m", "0 0 ? * 0"],
)
def test_schedule_is_one(schedule: str) -> None:
    assert find_cron_problem(schedule) is None


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ("0 2 * *", "4 fields instead of 5"),
        ("60 2 * * *", "minute goes from 0 to 59, not '60'"),
        ("0 5-2 * * *", "hour can't be '5-2'"),
        ("*/0 2 * * *", r"minute can't be '\*/0'"),
        ("0 2 * * 7", "day of week goes from 0 to 6, not '7'"),
        ("0 2 * * caturday", "day of week goes from 0 to 6"),
        ("@nightly", "1 fields"),
    ],
)
def test_schedule_that_is_none_has_its_reason(schedule: str, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        assert find_cron_problem(schedule) is None, find_cron_problem(schedule)


@pytest.mark.parametrize(
    ("image", "tag"),
    [
        ("thaw", ""),
        ("registry:5000/thaw", ""),
        ("registry:5000/cars/thaw:2.60.0-cpu", "2.60.0-cpu"),
        ("thaw:2.60.0@sha256:0123", "2.60.0"),
    ],
)
def test_tag_of_an_image(image: str, tag: str) -> None:
    assert tag_of(image) == tag


@pytest.mark.parametrize(
    "text",
    [
        "f4c1a9e2" * 5,
        "ghp_" + "a1B2" * 9,
        "hf_" + "aB3" * 11,
        "AKIA" + "Q" * 16,
        "https://me:sesame@example.org",
        "-----BEGIN RSA PRIVATE KEY-----",
        "aB3/+" * 8,
    ],
)
def test_key_is_known_by_its_form(text: str) -> None:
    assert any(form.search(f"export X={text} ") for form in KEY_FORMS.values())


@pytest.mark.parametrize(
    "text",
    [
        "ghcr.io/cars/thaw:2.60.0-cpu@sha256:" + "f4c1a9e2" * 8,
        "https://github.com/cars/thaw/commit/" + "f4c1a9e2" * 5,
        "karpenter.sh/do-not-disrupt",
        "s3://YOUR-BUCKET/thaw/runs/a-very-long-folder-name-for-one-run-of-a-sweep",
        "python -m tuning finetune --data /mnt/thaw/cars --out /mnt/thaw/runs/sweep",
        "{{ $labels.ray_io_cluster }} has lost a node: rate(ray_node_disk_free[5m]) > 0.5",
    ],
)
def test_usual_text_is_no_key(text: str) -> None:
    assert not any(form.search(text) for form in KEY_FORMS.values())


def test_names_of_keys_are_known() -> None:
    names = (
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "HF_TOKEN",
        "DB_PASSWORD",
    )

    assert all(map(SECRET_NAME.search, names))
    assert not any(map(SECRET_NAME.search, ("WANDB_DIR", "NCCL_DEBUG", "TOKENIZERS_PARALLELISM")))


def test_containers_that_nobody_wrote_are_seen() -> None:
    """The submitter and the autoscaler of the operator; `restricted` would reject both."""
    alone = MUTATIONS["submitter_of_the_operator"].apply(build("base"))
    beside = MUTATIONS["autoscaler_without_a_security_context"].apply(build("base"))

    def seen(overlay: Overlay) -> set[str]:
        return {part.value["name"] for part in containers(overlay)}

    assert "ray-job-submitter" in seen(alone) - seen(build("base"))
    assert "autoscaler" in seen(beside) - seen(build("base"))
    paths = {finding.path for finding in check(beside, ["no_privilege_escalation"])}
    assert paths == {
        "spec.rayClusterSpec.autoscalerOptions.securityContext.allowPrivilegeEscalation"
    }


@pytest.mark.parametrize(
    ("selector", "is_meant"),
    [
        ({}, True),
        ({"matchLabels": {"role": "head"}}, True),
        ({"matchLabels": {"role": "head", "team": "b"}}, False),
        ({"matchExpressions": [{"key": "team", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "role", "operator": "In", "values": ["worker"]}]}, False),
        ({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["x"]}]}, True),
    ],
)
def test_selector_means_labels(selector: dict[str, Any], is_meant: bool) -> None:
    assert selects(selector, {"role": "head", "team": "a"}) is is_meant


@pytest.mark.parametrize(
    ("rule", "port", "gets_through"),
    [
        ({}, 80, True),
        ({"ports": [{"port": 8000, "endPort": 8010}]}, 8010, True),
        ({"ports": [{"port": 8000, "endPort": 8010}]}, 8011, False),
        ({"ports": [{"port": 53, "protocol": "UDP"}]}, 53, False),
        ({"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}, 80, True),
        (
            {"to": [{"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.0/29"]}}]},
            80,
            False,
        ),
        ({"to": [{"ipBlock": {"cidr": "::/0"}}]}, 80, False),
        ({"to": [{"podSelector": {}}]}, 80, False),
    ],
)
def test_policy_lets_out_what_it_says(rule: dict[str, Any], port: int, gets_through: bool) -> None:
    pod = Peer(label="a pod", namespace="thaw")
    policy = {
        "kind": "NetworkPolicy",
        "metadata": {"name": "out", "namespace": "thaw"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]},
    }

    assert allows(Overlay(name="one", objects=(policy,)), pod, WEB, port) is gets_through
    assert allows(Overlay(name="none", objects=()), pod, WEB, port)
    assert allows(Overlay(name="one", objects=(policy,)), WEB, pod, port), "ingress is open"


def check_k8s(*arguments: str) -> int:
    """Run `python -m cluster check-k8s`; return its exit code."""
    try:
        cluster_main.main(["check-k8s", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_command_says_that_all_is_well(
    capsys: pytest.CaptureFixture[str], shared_dir: Path
) -> None:
    """Of one overlay: test_k8s_overlays and `make check` look at all of them."""
    assert check_k8s(str(K8S / "base")) == 0
    assert capsys.readouterr().out.endswith(" rules: no findings\n")


def test_command_prints_findings_and_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shared_dir: Path
) -> None:
    """Of a file that another tool has written, as lines and as JSON."""
    broken = MUTATIONS["head_that_works"].apply(build("base"))
    file = tmp_path / "built.yaml"
    file.write_text(yaml.safe_dump_all(broken.objects))

    assert check_k8s(str(file)) == 1
    printed = capsys.readouterr().out.splitlines()
    assert f"{file}  RayJob thaw-train  head_takes_no_work (thaw)" in printed
    assert check_k8s(str(file), "--json") == 1
    report = json.loads(capsys.readouterr().out)
    (finding,) = [item for item in report["findings"] if item["rule"] == "head_takes_no_work"]
    assert finding["path"] == "spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus"
    assert not report["ok"] and report["overlays"] == {str(file): len(broken.objects)}


def test_missing_crds_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(crds, "FOLDERS", list(crds.FOLDERS))

    with pytest.raises(UserError, match="no CRDs of KubeRay are there; `make crds` fetches them"):
        check_k8s("--crds", str(tmp_path))


@pytest.mark.parametrize("name", ["missing", "notes.yaml", "."])
def test_path_without_manifests_is_an_error(name: str, tmp_path: Path, shared_dir: Path) -> None:
    (tmp_path / "notes.yaml").write_text("a: [1")

    with pytest.raises(
        UserError, match=r"^path is .*: (there is no|it is no YAML|no kustomization)"
    ):
        check_k8s(str(tmp_path / name))


def test_overlay_that_does_not_build_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "kustomization.yaml").write_text("resources: [missing.yaml]\n")

    with pytest.raises(ValueError, match=r"broken does not build: .*missing\.yaml"):
        build("broken", tmp_path)


def test_kubectl_is_the_pinned_one() -> None:
    assert find_kubectl().endswith("/.venv/bin/kubectl")
