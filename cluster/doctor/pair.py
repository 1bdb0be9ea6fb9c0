"""Time an all-reduce of two workers on two nodes, as a training does one per step."""

import socket
import time
from collections.abc import Sequence

import ray

from cluster.doctor.nodes import Node, NodeProbes, ProbeError, on_node, receive
from cluster.doctor.results import CheckResult, fail, ok, warn

OPEN_PORTS = (
    "open all ports between the nodes (firewall, NetworkPolicy), or name their network in "
    "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
)


def check_all_reduce(probes_of_nodes: NodeProbes, timeout_s: float) -> list[CheckResult]:
    """Time an all-reduce of 32 MiB: with GPUs by NCCL, between nodes and inside one, where there
    are two; else by gloo."""
    nodes = probes_of_nodes.nodes
    pair, use_gpu = choose_pair(nodes)
    pairs = [pair]
    inside = next((node for node in nodes if node.resources.get("GPU", 0) >= 2), None)
    if use_gpu and inside is not None and pair[0] is not pair[1]:
        pairs.append([inside, inside])
    return [_check_pair(probes_of_nodes, pair, use_gpu, timeout_s) for pair in pairs]


def _check_pair(
    probes_of_nodes: NodeProbes, pair: Sequence[Node], use_gpu: bool, timeout_s: float
) -> CheckResult:
    began_s = time.monotonic()
    port = probes_of_nodes.ask_each(find_free_port, {pair[0].name: ()}).answers()[pair[0].name]
    names = list(dict.fromkeys(node.name for node in pair))
    if isinstance(port, ProbeError):
        return fail("all-reduce", str(port), OPEN_PORTS, names)
    task = ray.remote(num_cpus=0, num_gpus=int(use_gpu), max_retries=0)(_time_all_reduce)  # pyright: ignore
    refs = [
        task.options(scheduling_strategy=on_node(node)).remote(
            rank, 2, f"{pair[0].address}:{port}", use_gpu=use_gpu, timeout_s=timeout_s
        )
        for rank, node in enumerate(pair)
    ]
    left_s = max(0.0, timeout_s - (time.monotonic() - began_s))
    done, late = ray.wait(refs, num_returns=2, timeout=left_s)
    for ref in late:
        ray.cancel(ref, force=True)
    backend = "NCCL" if use_gpu else "gloo"
    answers = [receive(ref) for ref in done]
    if troubles := [str(answer) for answer in answers if isinstance(answer, ProbeError)]:
        remedy = f"let both have the same torch, and {OPEN_PORTS}"
        return fail("all-reduce", f"{backend}: {troubles[0]}", remedy, names)
    if late:
        remedy = f"free two GPUs, or {OPEN_PORTS}" if use_gpu else OPEN_PORTS
        text = f"{backend}: two workers didn't meet in {timeout_s:g} s"
        return fail("all-reduce", text, remedy, names)
    where = "between 2 nodes" if len(names) == 2 else "inside 1 node"
    transports = sorted({transport for _, transport in answers if transport})
    by = f" by {', '.join(transports)}" if transports else ""
    speed = f"{min(speed for speed, _ in answers) / 2**20:.0f} MiB/s"
    return judge_transport(f"{backend}: 32 MiB {where} at {speed}{by}", transports, names)


def judge_transport(text: str, transports: Sequence[str], names: Sequence[str]) -> CheckResult:
    """Inside a node NCCL copies from GPU to GPU (P2P), else through shared memory or sockets."""
    if len(names) == 1 and transports and not any("P2P" in name for name in transports):
        remedy = "no NVLink or peer access between these GPUs: look at `nvidia-smi topo -m`"
        return warn("all-reduce", text, remedy, names)
    return ok("all-reduce", text)


def _time_all_reduce(
    rank: int, world_size: int, address: str, *, use_gpu: bool, timeout_s: float
) -> tuple[float, str | None]:
    from cluster.doctor.all_reduce import time_all_reduce  # imports torch, on the nodes only

    return time_all_reduce(rank, world_size, address, use_gpu=use_gpu, timeout_s=timeout_s)


def choose_pair(nodes: Sequence[Node]) -> tuple[list[Node], bool]:
    """Return the nodes of the two workers, and whether each of them gets a GPU.

    Nodes that take work come first: a head without CPUs trains nothing.
    """
    gpus = [node for node in nodes for _ in range(int(node.resources.get("GPU", 0)))]
    if len(gpus) >= 2:
        other = next((node for node in gpus if node is not gpus[0]), gpus[1])
        return [gpus[0], other], True
    ranked = sorted(nodes, key=lambda node: node.resources.get("CPU", 0.0) == 0)
    return [ranked[0], ranked[1 % len(ranked)]], False


def find_free_port() -> int:
    with socket.create_server(("", 0)) as probe:
        return probe.getsockname()[1]
