"""Ask every node of the connected cluster at once, and wait for none longer than a limit.

One actor a node takes the questions in threads of its own: one that hangs, such as a look at a dead
network file system, holds up neither the others nor the answer to them.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.doctor.results import shorten
from cluster.io.errors import StorageError, UserError

THREADS = 16
"""Questions a node answers at the same time, more than there are."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that is alive."""

    node_id: str
    name: str
    """Its address, and a part of its id where another node has the same one."""
    address: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class ProbeError:
    """In place of an answer: why there is none."""

    reason: str

    def __str__(self) -> str:
        return self.reason


Replies = dict[str, Any]
"""Name of a node -> what it answered, or the trouble."""


def find_nodes() -> list[Node]:
    """List the nodes that are alive, by name."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    sharing = Counter(node["NodeManagerAddress"] for node in alive)
    nodes = []
    for node in alive:
        address = node["NodeManagerAddress"]
        name = address if sharing[address] == 1 else f"{address} ({node['NodeID'][:6]})"
        nodes.append(
            Node(node_id=node["NodeID"], name=name, address=address, resources=node["Resources"])
        )
    return sorted(nodes, key=lambda node: node.name)


class _Examiner:
    def answer(self, question: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        return question(*arguments)


class NodeProbes:
    """An actor on each node; leave the `with` block, and they are gone."""

    def __init__(self, nodes: Sequence[Node], timeout_s: float) -> None:
        self.nodes = list(nodes)
        self._timeout_s = timeout_s
        actor: Any = ray.remote(_Examiner)
        self._actors = {
            node.name: actor.options(
                num_cpus=0, max_concurrency=THREADS, scheduling_strategy=on_node(node)
            ).remote()
            for node in nodes
        }

    def __enter__(self) -> "NodeProbes":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for actor in self._actors.values():
            ray.kill(actor)

    def ask(self, question: Callable[..., Any], *arguments: Any) -> "PendingReplies":
        """Put a question to every node, and don't wait for the answers."""
        return self.ask_each(question, {node.name: arguments for node in self.nodes})

    def ask_each(
        self, question: Callable[..., Any], arguments: Mapping[str, Sequence[Any]]
    ) -> "PendingReplies":
        """Put a question to some nodes, to each with its own arguments."""
        refs = {
            name: self._actors[name].answer.remote(question, of_node)
            for name, of_node in arguments.items()
        }
        return PendingReplies(refs, self._timeout_s)

    def leave_out(self, names: Sequence[str]) -> None:
        """Ask these nodes nothing more."""
        self.nodes = [node for node in self.nodes if node.name not in names]


class PendingReplies:
    """Replies that are on their way."""

    def __init__(self, refs: Mapping[str, Any], timeout_s: float) -> None:
        self._refs = refs
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s

    def answers(self) -> Replies:
        """Wait for all nodes until the limit, counted from the question; late ones are trouble."""
        left_s = max(0.0, self._deadline_s - time.monotonic())
        refs = list(self._refs.values())
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=left_s) if refs else ([], [])
        return {
            name: receive(ref) if ref in done else ProbeError(f"no answer in {self._timeout_s:g} s")
            for name, ref in self._refs.items()
        }


def receive(ref: Any) -> Any:
    """Return the answer that is there, or the trouble there was."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError | StorageError):
            return ProbeError(shorten(cause))
        return ProbeError(shorten(f"{type(cause).__name__}: {cause}"))
    except RayError as error:  # its process died, or can't read the question
        first_line = str(error).partition("\n")[0]  # a traceback follows
        return ProbeError(shorten(f"{type(error).__name__}: {first_line}"))


def on_node(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.node_id, soft=False)
