"""What answers of nodes mean: tables of answers, and what is made of them."""

import io
import queue
import resource
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster import memory_watch
from cluster.doctor import checks, gpus, hosts, machine, probes
from cluster.doctor.all_reduce import find_transport
from cluster.doctor.nodes import Node, ProbeError
from cluster.doctor.pair import choose_pair, judge_transport
from cluster.doctor.results import CheckResult, fail, list_names
from cluster.doctor.storage_checks import judge_data
from cluster.doctor.wandb_reach import check_wandb
from tests.support.wandb.server import KEY, WandbServer

GIB = 2**30


def node(name: str, **resources: float) -> Node:
    return Node(node_id=name, name=name, address=name, resources=resources)


def levels(findings: list[CheckResult]) -> list[str]:
    return [finding.level for finding in findings]


def test_nodes_with_one_trouble_are_one_line() -> None:
    answers = {f"n{number}": ProbeError("no answer in 5 s") for number in range(5)} | {"n5": None}
    (finding,) = checks.judge_datasets(answers)

    assert str(finding).startswith(
        "fail  datasets    n0, n1, n2 and 2 more: no answer in 5 s; look at its logs"
    )
    assert list_names(["a"]) == "a"


def test_a_cluster_without_cpus_or_with_dead_nodes() -> None:
    head = node("head", CPU=0.0)
    assert levels(checks.judge_nodes({"head": 0.0}, [head], 0)) == ["ok", "fail"]
    assert levels(checks.judge_nodes({"head": 0.0}, [node("head", CPU=2.0)], 3)) == ["ok", "warn"]


def test_one_cpu_is_a_warning() -> None:
    assert levels(checks.judge_nodes({"a": 0.0}, [node("a", CPU=1.0)], 0)) == ["ok", "warn"]


PLENTY = {"RAY_memory_usage_threshold": "2"}
"""Of memory, however much of it other processes use."""


def refuse_name(*arguments: object) -> None:
    raise socket.gaierror(-2, "Name or service not known")


@pytest.mark.parametrize(
    ("environment", "level", "words"),
    [
        ({"http_proxy": "http://me:secret@127.0.0.1:9"}, "warn", "the proxy in http_proxy"),
        ({"HTTPS_PROXY": "127.0.0.1:9"}, "warn", "HTTPS_PROXY does not answer (Connection refused"),
        ({"ALL_PROXY": "me:secret"}, "warn", "ALL_PROXY does not answer (no host and port)"),
        ({"TORCH_HOME": "/proc/x/y"}, "warn", "/proc/x/y can't be written"),
        ({"HF_HOME": "/proc/x"}, "warn", "no weights can be downloaded"),
        ({"RAY_memory_usage_threshold": "0.0001"}, "fail", "Ray kills tasks from 0%"),
        ({"no_proxy": "x", "RAY_memory_usage_threshold": "much"}, None, ""),
        (
            {"RAY_memory_usage_threshold": "0.0001", "RAY_memory_monitor_refresh_ms": "0"},
            None,
            "",
        ),
    ],
)
def test_what_variables_do_to_a_machine(environment, level, words, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    problems = machine.find_machine_problems(PLENTY | environment)
    found = machine.judge_machine({"a": problems}, started_here=False)
    assert [finding.level for finding in found] == [level or "ok"]
    assert words in found[0].text and "secret" not in str(found)


def test_memory_is_watched(monkeypatch) -> None:
    shares, said = iter([0.97, 0.5, 0.96, 0.98]), queue.Queue[str]()
    monkeypatch.setattr(memory_watch, "find_memory_share", lambda: next(shares))
    monkeypatch.setattr(memory_watch, "CHECK_EVERY_S", 0.01)
    memory_watch.watch_memory(said.put)
    assert said.get(timeout=60).startswith("98% of this machine's memory is used, and Ray kills")
    assert next(shares, None) is None and said.empty()


def test_limits_of_a_machine(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert machine.find_machine_problems(PLENTY) == []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(socket, "getaddrinfo", refuse_name)
    problems = machine.find_machine_problems(PLENTY)
    answers = {"a": problems, "b": problems, "c": [], "d": ProbeError("no answer in 5 s")}
    found = machine.judge_machine(answers, started_here=False)
    assert [(finding.level, finding.nodes) for finding in found] == [
        ("fail", ("d",)),
        ("fail", ("a", "b")),
        ("warn", ("a", "b")),
    ]
    assert found[1].text == "ulimit -n is 256" and "does not resolve" in found[2].text


def test_a_folder_for_ray_that_is_not_used_is_named(monkeypatch) -> None:
    monkeypatch.setattr(machine, "find_session_folder", lambda: "/tmp/ray/session")
    monkeypatch.setenv("TMPDIR", f"/tmp/{'x' * 90}")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    (found,) = machine.judge_machine({"a": []}, started_here=True)
    assert "bytes too long for Ray's sockets, so Ray's session is in /tmp/ray" in found.text


def test_a_clock_that_jumps_is_named() -> None:
    before = {"a": 100.0, "b": 100.0, "c": ProbeError("no answer in 5 s")}
    after = {"a": 3700.0, "b": 100.4, "c": 100.0}
    (found,) = machine.judge_jumps(before, after)
    assert found.nodes == ("a",) and "jumped by 3600 s" in found.text


def test_every_node_needs_this_process_versions() -> None:
    ours = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.14.1", "wandb": "0.31.0"}
    ours = ours | {"python": "3.11.7", "torch": "2.14.1"}
    same = ours | {"python": "3.11.14", "torch": "2.14.1+cpu"}  # as people mean it
    assert levels(checks.judge_versions({"a": same}, ours)) == ["ok"]
    other = checks.judge_versions({"a": ours, "b": ours | {"torch": "2.13.0"}}, ours)

    assert levels(checks.judge_versions({"a": ours}, ours)) == ["ok"]
    assert [(found.text, found.nodes) for found in other] == [
        ("torch 2.13.0 (here 2.14.1)", ("b",))
    ]
    missing = checks.judge_versions({}, ours | {"wandb": "missing"})
    assert missing[0].text == "not installed: wandb"


@pytest.mark.parametrize(
    ("cuda", "driver", "level", "text"),
    [
        ("13.0", "580.65.06", "ok", "CUDA 13.0, driver 580.65.06, on 1 node"),
        ("13.0", "535.183.01", "fail", "driver 535.183.01 is too old for CUDA 13.0"),
        ("12.6", "535.183.01", "ok", "CUDA 12.6"),
        (None, "580.65.06", "fail", "torch has no CUDA"),
        ("13.0", None, "ok", "CUDA 13.0, driver unknown"),
    ],
)
def test_cuda_and_driver(cuda: str | None, driver: str | None, level: str, text: str) -> None:
    nodes = [node("gpu", GPU=8.0), node("cpu")]

    (finding,) = gpus.judge_gpus({"gpu": (cuda, driver), "cpu": (None, None)}, nodes)

    assert finding.level == level and finding.text.startswith(text)
    assert gpus.judge_gpus({"cpu": (None, None)}, nodes) == []


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Rel", "580.65.06"),
        ("", None),
    ],
)
def test_cuda_is_that_of_torch_and_the_driver_that_of_the_kernel(
    text: str, driver: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "version")

    assert gpus.find_cuda() == (torch.version.cuda, driver)


def test_hosts_are_asked_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", refuse)
    unreachable = hosts.find_unreachable_hosts({})
    (finding,) = hosts.judge_hosts({"a": unreachable, "b": unreachable})

    assert asked == [(host, 443) for host in hosts.HOSTS]
    assert finding.level == "warn" and finding.nodes == ("a", "b")
    assert finding.text.startswith("download.pytorch.org is out of reach (timed out), hugg")
    assert hosts.find_unreachable_hosts({"HTTPS_PROXY": "http://proxy"}) == {}
    assert levels(hosts.judge_hosts({"a": {}})) == ["ok"]


NCCL_LOG = """host:1:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via {0}
host:1:9 [0] NCCL INFO Channel 01/0 : 1[1] -> 0[0] via {0} comm 0x5 nRanks 02
"""


@pytest.mark.parametrize(
    ("transport", "names", "level"),
    [
        ("P2P/CUMEM", ["a"], "ok"),
        ("SHM/direct/direct", ["a"], "warn"),
        ("NET/Socket/0", ["a", "b"], "ok"),
    ],
)
def test_transport_is_read_from_the_log_of_nccl(
    transport: str, names: list[str], level: str
) -> None:
    found = find_transport(NCCL_LOG.format(transport))

    assert found == transport
    assert judge_transport(f"NCCL: by {found}", [found], names).level == level
    assert find_transport("NCCL INFO Bootstrap: Using eth0") is None


@pytest.mark.parametrize(
    ("shm_gib", "free", "level", "text"),
    [
        (4, 0.5, "ok", "object store of 2.0 GiB or more in /dev/shm"),
        (None, 0.5, "ok", "object store"),
        (0.0625, 0.5, "warn", "/dev/shm has 0.1 GiB, the object store 2.0 GiB"),
        (4, 0.10, "warn", "the disk is 90% full"),
        (4, 0.04, "fail", "the disk has 4.0 GiB left: Ray spills no object"),
    ],
)
def test_space(shm_gib: float | None, free: float, level: str, text: str) -> None:
    space = {
        "shm_total": None if shm_gib is None else shm_gib * GIB,
        "disk_total": 100 * GIB,
        "disk_free": free * 100 * GIB,
    }
    (finding,) = checks.judge_space({"a": space}, [node("a", object_store_memory=2 * GIB)])

    assert finding.level == level and finding.text.startswith(text)


def test_nodes_without_glibc_are_named() -> None:
    (found,) = checks.judge_allocator({"a": "2.36", "b": "2.41", "c": "2.36"})
    assert (found.level, found.text) == ("ok", "glibc 2.36, 2.41 keeps freed memory on 3 nodes")
    (found,) = checks.judge_allocator({"a": "2.36", "b": None})
    assert (found.level, found.nodes) == ("warn", ("b",))


def test_decoders_decode_and_broken_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probes.find_broken_decoders() == {}
    other = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(other, "JPEG")
    monkeypatch.setattr(probes, "JPEG", other.getvalue())
    broken = probes.find_broken_decoders()

    assert set(broken) == {"simplejpeg", "cv2", "PIL"}
    (finding,) = checks.judge_decoders({"a": broken})
    assert finding.level == "fail" and "simplejpeg (decodes [0, 0, 0] in place of" in finding.text


@pytest.mark.parametrize(
    ("modes", "address", "level"),
    [
        (("token", "token"), "10.0.0.1", "ok"),
        (("disabled", "disabled"), "127.0.0.1", "ok"),
        (("disabled", "disabled"), "10.0.0.1", "warn"),
        (("token", "disabled"), "10.0.0.1", "fail"),
    ],
)
def test_auth(modes: tuple[str, str], address: str, level: str) -> None:
    nodes = [Node(node_id=name, name=name, address=address, resources={}) for name in "ab"]
    (finding,) = checks.judge_auth(dict(zip("ab", modes, strict=True)), nodes)

    assert finding.level == level


@pytest.mark.parametrize(
    ("offset_s", "level"), [(0.01, "ok"), (-1.9, "ok"), (-3, "warn"), (400, "fail")]
)
def test_clock(offset_s: float, level: str) -> None:
    assert levels(checks.judge_clock({"a": 0.0, "b": offset_s})) == [level]


def test_data_that_differs_between_nodes_fails() -> None:
    assert levels(judge_data({"a": "f00", "b": "f00"}, "/nfs/cars")) == ["ok"]
    findings = judge_data({"a": "f00", "b": "ba2"}, "/nfs/cars")
    assert [found.nodes for found in findings] == [("a",), ("b",)]


def test_the_pair_takes_two_gpus_of_two_nodes_where_there_are() -> None:
    head, cpu = node("head", CPU=0.0), node("cpu", CPU=4.0)
    one, two = node("one", CPU=4.0, GPU=1.0), node("two", CPU=4.0, GPU=2.0)

    def names(*nodes: Node) -> tuple[list[str], bool]:
        pair, use_gpu = choose_pair(nodes)
        return [node.name for node in pair], use_gpu

    assert names(head, cpu) == (["cpu", "head"], False)
    assert names(cpu) == (["cpu", "cpu"], False)
    assert names(head, cpu, one) == (["cpu", "one"], False)
    assert names(head, two) == (["two", "two"], True)
    assert names(one, two) == (["one", "two"], True)


def test_wandb_is_asked_who_we_are() -> None:
    with WandbServer() as server:
        known = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        assert levels(check_wandb(known)) == ["ok"]
        (refused,) = check_wandb(known | {"WANDB_API_KEY": "x" * 40})
        assert refused.level == "fail" and "x" * 40 not in str(refused)
        server.fail_with(503)
        assert levels(check_wandb(known)) == ["warn"]
    (gone,) = check_wandb(known)
    assert gone.level == "warn" and "out of reach" in gone.text
    for environment in ({}, known | {"WANDB_MODE": "offline"}):
        (offline,) = check_wandb(environment)
        assert offline.level == "ok" and offline.text.startswith("offline")


def test_a_finding_is_one_line() -> None:
    assert str(fail("out", "no", "yes", ["a", "b"])) == "fail  out         a, b: no; yes"
