"""Check that OUT is the same folder and DATA the same data set on all nodes."""

import uuid
from collections.abc import Iterator
from typing import Any

from cluster.doctor.checks import LOOK_AT_NODE, separate
from cluster.doctor.nodes import NodeProbes, PendingReplies, ProbeError, Replies
from cluster.doctor.results import CheckResult, fail, group, ok, shorten
from cluster.io import storage
from cluster.io.errors import StorageError, UserError
from cluster.io.fields import take_object
from cluster.io.records import read_object
from cluster.io.uris import parent_of

SHARE = (
    "use storage that every node mounts at the same path, or a bucket such as s3://bucket/folder"
)


def ask_out(probes_of_nodes: NodeProbes, out: str) -> list[CheckResult]:
    """Have each node write a file, read the one of its neighbour, and delete its own.

    Neighbours form a ring: wherever storage is not the same for all, it breaks.
    """
    mark, names = uuid.uuid4().hex[:8], [node.name for node in probes_of_nodes.nodes]
    files = {
        name: f"{out.rstrip('/')}/.thaw-doctor-{mark}-{number}" for number, name in enumerate(names)
    }
    written = probes_of_nodes.ask_each(
        _write, {name: (file, name) for name, file in files.items()}
    ).answers()
    good, findings = separate("out", written, "give every node the right to write there")
    ring = list(good)
    neighbours = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    read = probes_of_nodes.ask_each(
        _read, {name: (files[neighbour],) for name, neighbour in neighbours.items()}
    ).answers()
    blind = {
        name: f"doesn't see what {neighbours[name]} wrote to {out}"
        for name, content in read.items()
        if isinstance(content, ProbeError) or content != neighbours[name]
    }
    findings += [fail("out", text, SHARE, nodes) for text, nodes in group(blind).items()]
    deleted = probes_of_nodes.ask_each(
        storage.delete_file, {name: (files[name],) for name in ring}
    ).answers()
    _, undeleted = separate("out", deleted, "give every node the right to delete there")
    findings += undeleted
    if not findings:
        seen = (
            "written and read by 1 node" if len(ring) == 1 else f"one place for {len(ring)} nodes"
        )
        findings.append(ok("out", f"{out}: {seen}"))
    return findings


def ask_data(probes_of_nodes: NodeProbes, data: str) -> PendingReplies:
    """Have each node look at a prepared data set."""
    return probes_of_nodes.ask(_find_fingerprint, data)


def judge_data(answers: Replies, data: str) -> list[CheckResult]:
    """The data set must be there for every node, and be the same one."""
    good, findings = separate("data", answers, LOOK_AT_NODE)
    unreadable = {name: found.error for name, found in good.items() if isinstance(found, Unread)}
    findings += [fail("data", text, SHARE, nodes) for text, nodes in group(unreadable).items()]
    kinds = group({name: found for name, found in good.items() if isinstance(found, str)})
    if len(kinds) > 1:
        findings += [
            fail("data", f"{data} has fingerprint {fingerprint}, elsewhere another", SHARE, nodes)
            for fingerprint, nodes in kinds.items()
        ]
    return findings or [ok("data", f"{data}: the same on {len(good)} of {len(answers)} nodes")]


class Unread:
    """Why a node can't read the data set."""

    def __init__(self, error: str) -> None:
        self.error = error


def _write(uri: str, content: str) -> None:
    try:
        storage.write_bytes(uri, content.encode())
    except (StorageError, UserError) as error:  # in the same words on every node, for `group`
        raise type(error)(str(error).replace(uri, parent_of(uri))) from None


def _read(uri: str) -> str:
    return storage.read_bytes(uri).decode()


def _find_fingerprint(data: str) -> "str | Unread":
    """Read the manifest, which is of another room, and look for the first and last shards."""
    try:
        manifest = read_object(
            storage.join(data, "manifest.json"), {"fingerprint": str, "splits": dict[str, Any]}
        )
        for path in _list_ends(manifest["splits"]):
            if not storage.exists(storage.join(data, path)):
                return Unread(f"{data} lacks {path}")
    except FileNotFoundError:
        return Unread(f"data is {data!r}: no prepared data set there (manifest.json is missing)")
    except (UserError, StorageError) as error:  # it has its own remedy
        return Unread(shorten(error))
    return manifest["fingerprint"]


def _list_ends(splits: dict[str, Any]) -> Iterator[str]:
    """Yield the paths of the first and the last shard of each split."""
    for split in splits.values():
        shards = take_object(split, {"shards": [{"path": str}]})["shards"]
        yield from (shard["path"] for shard in shards[:1] + shards[-1:])
