"""Check a cluster before anything runs on it: all nodes at once, with a time limit.

`python -m cluster doctor --json` prints one object:

    schema_version  1; it changes when a field goes or gets another meaning
    address         HOST:PORT of the cluster, null where none answered
    ok              whether nothing failed
    findings        list of objects, in the order of the checks:
        check       cluster | nodes | clock | machine | versions | gpus | space | decoders |
                    allocator | datasets | auth | out | data | hosts | wandb | all-reduce
        level       ok | warn | fail
        text        what was found
        remedy      what to do about it, null where all is well
        nodes       names of the nodes it is about; empty where it is about the whole cluster

Exit code 0: nothing failed (warnings may be there). 1: something failed. 2: the command is wrong.
"""

from collections.abc import Iterator
from math import inf

import ray

from cluster import runtime
from cluster.config import DoctorConfig
from cluster.doctor import probes
from cluster.doctor.checks import (
    judge_allocator,
    judge_auth,
    judge_clock,
    judge_datasets,
    judge_decoders,
    judge_nodes,
    judge_space,
    judge_versions,
)
from cluster.doctor.gpus import find_cuda, judge_gpus
from cluster.doctor.hosts import find_unreachable_hosts, judge_hosts
from cluster.doctor.machine import (
    find_machine_problems,
    judge_jumps,
    judge_machine,
    read_clock_lead,
)
from cluster.doctor.nodes import NodeProbes, ProbeError, Replies, find_nodes
from cluster.doctor.pair import check_all_reduce
from cluster.doctor.results import CheckResult, fail, has_failed, summarize, to_json
from cluster.doctor.storage_checks import ask_data, ask_out, judge_data
from cluster.doctor.wandb_reach import check_wandb
from cluster.io import storage
from cluster.io.json_output import print_json
from cluster.memory_allocator import glibc_version
from cluster.session_folder import MachineError

CLOCK_ROUNDS = 3


def run_doctor(config: DoctorConfig) -> None:
    """Print what was found; exit with 1 where something failed.

    Raises:
        UserError: where the address is no address, or a URI is relative in a job.
    """
    findings = []
    for finding in examine(config):
        findings.append(finding)
        if not config.json:
            print(finding, flush=True)
    if config.json:
        address = ray.get_runtime_context().gcs_address if ray.is_initialized() else None
        print_json(to_json(address, findings))
    else:
        print(f"\n{summarize(findings)}")
    if has_failed(findings):
        raise SystemExit(1)


def examine(config: DoctorConfig) -> Iterator[CheckResult]:
    """Connect, and yield what each check finds, one check after the other.

    Raises:
        UserError: as `run_doctor`.
    """
    out = storage.absolute(config.out, "out") if config.out else None
    data = storage.absolute(config.data, "data") if config.data else None
    try:
        if not ray.is_initialized():
            runtime.open_session(config.address)
    except (runtime.Unreachable, MachineError) as error:
        text, _, remedy = str(error).partition("; ")
        yield fail("cluster", text, remedy)
        return
    nodes = find_nodes()
    started_here = runtime.find_resources().started_here
    if started_here:  # before any task, as Ray may kill it
        yield from judge_machine({nodes[0].name: find_machine_problems()}, started_here)
    num_dead = len(ray.nodes()) - len(nodes)
    with NodeProbes(nodes, config.timeout_s) as probes_of_nodes:
        ready = probes_of_nodes.ask(probes.read_clock).answers()
        yield from judge_nodes(ready, nodes, num_dead)
        probes_of_nodes.leave_out(
            [name for name, answer in ready.items() if isinstance(answer, ProbeError)]
        )
        if probes_of_nodes.nodes:
            yield from _examine_nodes(probes_of_nodes, config, out, data, not started_here)
    yield from check_wandb()


def _examine_nodes(
    probes_of_nodes: NodeProbes,
    config: DoctorConfig,
    out: str | None,
    data: str | None,
    asks_machine: bool,
) -> Iterator[CheckResult]:
    nodes = probes_of_nodes.nodes
    yield from judge_clock(
        _measure_clocks(probes_of_nodes)
    )  # first: the others keep the nodes busy
    clocks = probes_of_nodes.ask(read_clock_lead).answers()
    machine = probes_of_nodes.ask(find_machine_problems) if asks_machine else None
    versions = probes_of_nodes.ask(probes.find_versions)
    cudas = probes_of_nodes.ask(find_cuda)
    hosts = probes_of_nodes.ask(find_unreachable_hosts)
    space = probes_of_nodes.ask(probes.find_space)
    decoders = probes_of_nodes.ask(probes.find_broken_decoders)
    allocators = probes_of_nodes.ask(glibc_version)
    foreign = probes_of_nodes.ask(probes.find_datasets)
    auth = probes_of_nodes.ask(probes.find_auth_mode)
    fingerprints = ask_data(probes_of_nodes, data) if data else None
    if machine is not None:
        yield from judge_machine(machine.answers(), False)
    yield from judge_versions(versions.answers(), probes.find_versions())
    yield from judge_gpus(cudas.answers(), nodes)
    yield from judge_space(space.answers(), nodes)
    yield from judge_decoders(decoders.answers())
    yield from judge_allocator(allocators.answers())
    yield from judge_datasets(foreign.answers())
    yield from judge_auth(auth.answers(), nodes)
    if out:
        yield from ask_out(probes_of_nodes, out)
    if data and fingerprints:
        yield from judge_data(fingerprints.answers(), data)
    yield from check_all_reduce(probes_of_nodes, config.timeout_s)
    yield from judge_hosts(hosts.answers())  # last: a name that does not resolve takes seconds
    yield from judge_jumps(clocks, probes_of_nodes.ask(read_clock_lead).answers())


def _measure_clocks(probes_of_nodes: NodeProbes) -> Replies:
    return {node.name: _measure_clock(probes_of_nodes, node.name) for node in probes_of_nodes.nodes}


def _measure_clock(probes_of_nodes: NodeProbes, node: str) -> float | ProbeError:
    """Return by how many seconds a node's clock is ahead, by the fastest of some replies."""
    soonest = (inf, 0.0)
    for _ in range(CLOCK_ROUNDS):
        asked_s = probes.read_clock()
        answer = probes_of_nodes.ask_each(probes.read_clock, {node: ()}).answers()[node]
        answered_s = probes.read_clock()
        if isinstance(answer, ProbeError):
            return answer
        soonest = min(soonest, (answered_s - asked_s, answer - (asked_s + answered_s) / 2))
    return soonest[1]
