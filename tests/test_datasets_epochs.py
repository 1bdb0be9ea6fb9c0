"""The stream: same pixels anywhere, each image once in evaluation, equal steps in training."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from pyarrow import fs
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.data._internal.stats import STATS_ACTOR_NAME, STATS_ACTOR_NAMESPACE
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.ray_internals import find_session_folder
from datasets import epochs, ray_internals
from datasets.config import IngestConfig
from datasets.epochs import Batch, execute_chunks, stream
from datasets.manifest_file import read_manifest
from datasets.memory import Memory, open_memory
from datasets.plan import Chunk, Plan, RowGroup, plan_epochs
from datasets.sources import BatchSource, MemorySource, ReadLimits, ShardSource
from tests.support.waiting import wait_until

pytestmark = pytest.mark.ray
INGEST = IngestConfig(size_px=32, policy="cars", interleave=2, task_images=16)
LIMITS = ReadLimits(task_cpus=0.5)


def plan(
    data: str, *, rank: int = 0, world_size: int = 1, train: bool = True, **options: int
) -> Plan:
    return plan_epochs(
        data,
        read_manifest(data),
        INGEST,
        split="train" if train else "val",
        num_epochs=options.pop("num_epochs", 2),
        global_batch_size=8 if train else 3 * world_size,
        seed=7,
        train=train,
        rank=rank,
        world_size=world_size,
        **options,
    )


def source(planned: Plan, memory: Memory | None = None) -> BatchSource:
    facts = {"ingest": INGEST, "seed": planned.seed, "train": planned.train}
    return MemorySource(**facts, memory=memory) if memory else ShardSource(**facts)


def read(data: str, *, memory: Memory | None = None, **options: int) -> list[Batch]:
    return list(stream(planned := plan(data, **options), source(planned, memory), LIMITS))


@pytest.fixture(scope="module")
def alone(ray_cluster: str, easy_data: str) -> list[Batch]:
    return read(easy_data)


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    for batch, other in zip(batches, others, strict=True):
        for key in ("image", "label", "image_id"):
            np.testing.assert_array_equal(batch[key], other[key])


def test_pixels_and_order_are_the_same_on_any_number_of_readers(
    alone: list[Batch], easy_data: str
) -> None:
    by_rank = [read(easy_data, rank=rank, world_size=4) for rank in range(4)]

    assert {len(batches) for batches in by_rank} == {len(alone)}
    for batch, *shares in zip(alone, *by_rank, strict=True):
        for key in ("image", "label", "image_id"):
            np.testing.assert_array_equal(
                batch[key], np.concatenate([share[key] for share in shares])
            )


def test_resume_continues_with_the_next_unseen_image(alone: list[Batch], easy_data: str) -> None:
    assert_same(alone[6 + 2 :], read(easy_data, start_epoch=1, start_step=2))


def test_many_executions_are_one_stream(
    alone: list[Batch], easy_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "EXECUTION_TASKS", 3)
    monkeypatch.setattr(epochs, "AHEAD_TASKS", 1)

    assert_same(alone, read(easy_data))


def test_memory_shows_the_same_pixels_and_needs_the_shards_once(
    alone: list[Batch], write_data
) -> None:
    data = write_data()  # the same images as easy_data, to be deleted
    memory = open_memory(read_manifest(data), shared=False)["train"]

    first = read(data, memory=memory, num_epochs=1)
    wait_until(partial(keeps, memory, 48), "all images are kept")
    fs.LocalFileSystem().delete_dir_contents(f"{data}/train")
    second = read(data, memory=memory, start_epoch=1)

    assert_same(alone, first + second)
    assert not any(batch["unreadable"] for batch in second)


def test_train_and_val_as_one_split_share_the_memory_of_both(
    ray_cluster: str, easy_data: str
) -> None:
    manifest = read_manifest(easy_data)
    memories = open_memory(manifest, shared=False)
    both = partial(
        plan_epochs, easy_data, manifest, INGEST, split="train+val", global_batch_size=13, seed=7
    )
    planned = both(num_epochs=2, train=True)
    plain = list(stream(planned, source(planned), LIMITS))
    kept = list(stream(planned, source(planned, memories["train+val"]), LIMITS))
    assert_same(plain, kept)
    ids = [batch["image_id"] for batch in kept[:5]]
    assert len(set(np.concatenate(ids))) == 48 + 17

    stored = np.concatenate([batch["image_id"] for batch in read(easy_data, train=False)[:6]])
    wait_until(partial(keeps, memories["val"], 17), "all images of val are kept")
    found = memories["val"].find(np.arange(17))
    assert [found[row][1] for row in range(17)] == stored.tolist()


def keeps(memory: Memory, num_images: int) -> bool:
    return len(memory.find(np.arange(num_images))) == num_images


def restarted(memory: Memory) -> bool:
    try:
        ray.get(memory.index.find.remote(np.zeros(1, int)))
    except ray.exceptions.ActorUnavailableError:
        return False
    return True


def test_a_memory_that_is_lost_is_filled_again(alone: list[Batch], easy_data: str) -> None:
    memory = open_memory(read_manifest(easy_data), shared=False)["train"]
    read(easy_data, memory=memory, num_epochs=1)
    ray.kill(memory.index, no_restart=False)

    # Ray Data starts an epoch's tasks while the index restarts: those neither wait nor add to it.
    assert_same(alone[6:], read(easy_data, memory=memory, start_epoch=1))
    wait_until(partial(restarted, memory), "the index restarts")
    read(easy_data, memory=memory, num_epochs=1)
    wait_until(partial(keeps, memory, 48), "all images are kept")


def test_tasks_end_while_nothing_is_read(ray_cluster: str, easy_data: str) -> None:
    """A task that waited for its reader would keep its CPU from the training's validation."""
    planned = plan(easy_data, num_epochs=20)
    read_from = source(planned)
    task_bytes = epochs.TASK_CHUNKS * INGEST.task_images * read_from.bytes_per_image
    limits = ReadLimits(task_cpus=1, stream_cpus=1, store_bytes=2 * task_bytes)
    batches = stream(planned, read_from, limits)
    next(batches)

    all_cpus = ray.cluster_resources()["CPU"]
    wait_until(lambda: ray.available_resources().get("CPU") == all_cpus, "all tasks end")
    batches.close()


@ray.remote
class Owner:
    """Owns an object, which is lost with it."""

    def make(self) -> tuple[int, list[ray.ObjectRef]]:
        return os.getpid(), [ray.put(np.zeros(2**20))]


def is_lost(piece: ray.ObjectRef) -> bool:
    try:
        ray.get(piece, timeout=1)
    except ray.exceptions.GetTimeoutError:
        return False
    except ray.exceptions.ObjectLostError:
        return True
    return False


def test_pieces_that_are_lost_are_kept_again(alone: list[Batch], easy_data: str) -> None:
    memory = open_memory(read_manifest(easy_data), shared=False)["train"]
    owner = Owner.remote()
    pid, pieces = ray.get(owner.make.remote())
    ray.get(memory.index.add.remote(np.arange(48), pieces))
    ray.kill(owner)
    # Whoever gets it while its owner lives has a copy, which is not lost.
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the owner is gone")
    wait_until(partial(is_lost, pieces[0]), "the piece is lost")
    time.sleep(1)  # until the other nodes know as well

    assert_same(alone[6:], read(easy_data, memory=memory, start_epoch=1))
    wait_until(partial(keeps, memory, 48), "all images are kept")


@ray.remote(num_cpus=0)
class Reader:
    """Keeps images, as a read task does."""

    def keep(self, memory: Memory) -> None:
        memory.keep(np.arange(2), [(label, 0, np.ones((4, 4, 3), np.uint8)) for label in (5, 6)])


def piece_actors() -> set[str]:
    from ray._private.state import actors  # the public API asks the dashboard, if there is one

    found = actors(actor_state_name="ALIVE")
    return {key for key, actor in found.items() if actor["ActorClassName"].startswith("Piece")}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_pieces_outlive_the_readers_that_made_them(
    ray_nodes: Cluster, easy_data: str, elsewhere: bool
) -> None:
    """A training's readers end with it, and other trainings of the sweep need its images."""
    before = piece_actors()
    memory = open_memory(read_manifest(easy_data), shared=True)["val"]
    there = ray_nodes.worker_nodes if elsewhere else {ray_nodes.head_node}
    (node, *_) = there
    reader = Reader.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    ).remote()
    ray.get(reader.keep.remote(memory))
    wait_until(partial(keeps, memory, 2), "two images are kept")

    ray.kill(reader)
    time.sleep(1)

    found = memory.find(np.arange(3))
    assert {row: label for row, (label, _, _) in found.items()} == {0: 5, 1: 6}
    started = piece_actors() - before
    assert started
    del memory, found
    wait_until(lambda: not started & piece_actors(), "they end with their memory")


@pytest.mark.parametrize("num_chunks", [1, 2, 26, 512])
def test_tasks_have_few_chunks_at_the_beginning_and_the_end(num_chunks: int) -> None:
    chunks = [
        Chunk(epoch=n, row_groups=(), group_N=np.zeros(64), row_N=np.zeros(64))
        for n in range(num_chunks)
    ]
    divide = partial(epochs.divide_chunks, chunks, bytes_per_image=100, num_parallel=2)

    tasks = divide(store_bytes=2**30)
    sizes = [len(task) for task in tasks]
    assert [chunk for task in tasks for chunk in task] == chunks
    assert sizes[:2] == [1] * min(2, num_chunks) and sizes[-1] == 1
    assert max(sizes) == {1: 1, 2: 1, 26: 3, 512: 4}[num_chunks]
    # 2 tasks of 2 blocks of 6,400 bytes are half of the store.
    assert max(map(len, divide(store_bytes=8 * 6_400))) == min(2, max(sizes))


def test_an_epoch_has_each_training_image_once_in_another_order_and_other_pixels(
    alone: list[Batch],
) -> None:
    first, second = (
        np.concatenate([batch["image_id"] for batch in epoch]) for epoch in (alone[:6], alone[6:])
    )

    assert len(set(first)) == len(first) == 48
    assert set(first) == set(second)
    assert (first != second).any()
    assert not np.array_equal(*(find(epoch, first[0]) for epoch in (alone[:6], alone[6:])))


def find(batches: list[Batch], image_id: int) -> np.ndarray:
    return next(
        image
        for batch in batches
        for image, found in zip(batch["image"], batch["image_id"], strict=True)
        if found == image_id
    )


def test_evaluation_sees_each_image_once_on_three_readers_of_a_prime_count(
    ray_cluster: str, easy_data: str
) -> None:
    seen = np.concatenate(
        [
            batch["image_id"]
            for rank in range(3)
            for batch in read(easy_data, rank=rank, world_size=3, train=False)
        ]
    )

    ids, counts = np.unique(seen, return_counts=True)
    assert len(ids) == read_manifest(easy_data).split("val").num_images == 17
    assert set(counts) == {2}  # two epochs


def test_blocks_are_uint8_and_labels_follow_their_images(alone: list[Batch]) -> None:
    for batch in alone:
        assert batch["image"].dtype == np.uint8
        assert batch["image"].shape == (8, 32, 32, 3)
        # A class is the height of a bright bar, so brightness by row must tell classes apart.
    rows = {
        label: np.mean(
            [
                i.mean((1, 2))
                for b in alone
                for i, at in zip(b["image"], b["label"], strict=True)
                if at == label
            ],
            0,
        )
        for label in range(3)
    }
    assert rows[0].argmax() < rows[1].argmax() < rows[2].argmax()


@dataclass
class MadeBlocks:
    """Has nothing to read: says where a block was made."""

    mib: int
    seconds: float
    in_tasks = True

    @property
    def bytes_per_image(self) -> int:
        return self.mib * 2**20

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        time.sleep(self.seconds)
        node = ray.get_runtime_context().get_node_id()
        number = chunk.row_groups[0].first_row
        yield pa.table(
            {"node": [node], "number": [number], "pixels": [bytes(self.bytes_per_image)]}
        )


def execute(
    num_blocks: int,
    *,
    mib: int = 1,
    seconds: float = 0.0,
    stream_cpus: float | None = None,
    made_by: Callable[[int, float], BatchSource] | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield number and node of each block, of an execution bounded to 256 MiB."""
    chunks = [
        Chunk(
            epoch=0,
            row_groups=(RowGroup(uri="", index=0, num_rows=1, first_row=number),),
            group_N=np.zeros(1, np.int32),
            row_N=np.zeros(1, np.int32),
        )
        for number in range(num_blocks)
    ]
    for block in execute_chunks(
        chunks,
        source=(made_by or MadeBlocks)(mib, seconds),
        limits=ReadLimits(store_bytes=256 * 2**20, stream_cpus=stream_cpus),
    ):
        yield block["number"][0].as_py(), block["node"][0].as_py()


def test_blocks_are_made_where_they_are_used(ray_cluster: str) -> None:
    """All of them where this node is free; a third of them if Ray had no wish to go by."""
    here = ray.get_runtime_context().get_node_id()
    all_cpus = ray.cluster_resources()["CPU"]
    wait_until(lambda: ray.available_resources().get("CPU") == all_cpus, "all CPUs are free")

    nodes = [node for _, node in execute(20, stream_cpus=1.0)]  # a task at a time

    assert nodes.count(here) > 10


@dataclass
class SpreadBlocks(MadeBlocks):
    """From the 20th on, none is made before another node has begun one, `node` where it is given:
    where a node has no idle processes, the first of them takes seconds to start."""

    begun: Path
    node: str | None = None

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        (self.begun / ray.get_runtime_context().get_node_id()).touch()
        if chunk.row_groups[0].first_row >= 20:
            wait_until(self._is_spread, "a block begins on another node", 240)
        yield from super().read(chunk)

    def _is_spread(self) -> bool:
        nodes = {file.name for file in self.begun.iterdir()}
        return self.node in nodes if self.node else len(nodes) > 1


def test_other_nodes_help_when_this_one_is_busy(ray_cluster: str, tmp_path: Path) -> None:
    made_by = partial(SpreadBlocks, begun=tmp_path)
    nodes = [node for _, node in execute(80, seconds=0.2, made_by=made_by)]

    assert len(set(nodes)) >= 2
    assert nodes.count(ray.get_runtime_context().get_node_id()) >= 20


@pytest.fixture
def node_to_kill(ray_nodes: Cluster) -> Iterator[Node]:
    """A node with its worker processes up, which the test may kill."""
    node = ray_nodes.add_node(num_cpus=4, object_store_memory=2**28)
    there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    warm = ray.remote(lambda: time.sleep(1)).options(num_cpus=1, scheduling_strategy=there)
    ray.get([warm.remote() for _ in range(4)])
    yield node
    if node in ray_nodes.worker_nodes:
        ray_nodes.remove_node(node, allow_graceful=False)


def test_a_node_that_dies_in_mid_epoch_costs_no_block(
    ray_nodes: Cluster, node_to_kill: Node, tmp_path: Path
) -> None:
    numbers, killed = [], False
    made_by = partial(SpreadBlocks, begun=tmp_path, node=node_to_kill.node_id)
    for number, node in execute(100, seconds=0.2, made_by=made_by):
        numbers.append(number)
        if node == node_to_kill.node_id and not killed:
            ray_nodes.remove_node(node_to_kill, allow_graceful=False)
            killed = True

    assert killed
    assert numbers == list(range(100))


def test_the_store_stays_bounded_at_many_times_its_size(ray_cluster: str) -> None:
    """2.5 GiB through a store of 2 GiB whose stream may fill 256 MiB, with a reader that rests."""
    total = ray.cluster_resources()["object_store_memory"]
    numbers, used = [], []
    for number, _ in execute(160, mib=16):
        if number in (40, 100):
            time.sleep(1)
        numbers.append(number)
        used.append(total - ray.available_resources()["object_store_memory"])

    assert numbers == list(range(160))
    assert max(used) < 512 * 2**20


@dataclass
class SlowStart(MadeBlocks):
    """The first block waits for all others, which wait for it in order."""

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        time.sleep(3 if chunk.row_groups[0].first_row == 0 else 0)
        yield from super().read(chunk)


def test_the_store_stays_bounded_while_the_first_block_is_slow(ray_cluster: str) -> None:
    total = ray.cluster_resources()["object_store_memory"]
    blocks = execute(60, mib=16, made_by=SlowStart)

    next(blocks)

    assert total - ray.available_resources()["object_store_memory"] < 272 * 2**20


@dataclass
class TimedBlocks:
    """Says when each block was made: in 0.3 s, the first no sooner than another has begun."""

    begun: Path
    bytes_per_image = 0
    in_tasks = True

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        began_s = time.time()
        (self.begun / f"{began_s}").touch()
        wait_until(lambda: len(list(self.begun.iterdir())) > 1, "a second block begins")
        time.sleep(0.3)
        yield pa.table(
            {"began_s": [began_s] * chunk.num_images, "ended_s": [time.time()] * len(chunk.row_N)}
        )


def test_a_stream_uses_the_share_it_was_given_and_asks_nobody_for_one(
    ray_cluster: str, easy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data's own way would give it all 6 CPUs of the cluster, or none beside enough others."""

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("Ray Data's coordinator was asked")

    monkeypatch.setattr(ray_internals, "create_cluster_autoscaler", refuse)
    blocks = execute_chunks(
        list(plan(easy_data, num_epochs=4).chunks()),
        source=TimedBlocks(tmp_path),
        limits=ReadLimits(task_cpus=0.5, stream_cpus=1.0, store_bytes=2**26),
    )
    spans = [(block["began_s"][0].as_py(), block["ended_s"][0].as_py()) for block in blocks]
    at_once = [sum(began <= at < ended for began, ended in spans) for at, _ in spans]

    assert len(spans) == 13
    assert max(at_once) == 2


def test_a_stream_sends_no_statistics_and_logs_nothing(ray_cluster: str, easy_data: str) -> None:
    """Ray's agents would keep some 200 gauges of each data set; its log has no end."""

    def find_kept() -> tuple[set[str], dict[str, int]]:
        try:
            actor: Any = ray.get_actor(STATS_ACTOR_NAME, STATS_ACTOR_NAMESPACE)
        except ValueError:  # there is none
            known = set()
        else:
            known = {*ray.get(actor.get_datasets.remote())}
        logs = Path(find_session_folder(), "logs/ray-data").glob("*")
        return known, {file.name: file.stat().st_size for file in logs}

    before = find_kept()

    assert len(read(easy_data)) == 12
    assert find_kept() == before


def test_another_version_of_ray_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ray Data's private names may have changed."""
    monkeypatch.setattr(ray, "__version__", "2.61.0")
    ray_internals.check_version.cache_clear()

    ray_internals.check_version()

    assert "ray is 2.61.0, and Thaw was tested with 2.60" in caplog.text


def test_threads_of_closed_streams_are_waited_for() -> None:
    ended: list[bool] = []

    def fetch() -> None:
        time.sleep(0.3)
        ended.append(True)

    threading.Thread(target=fetch, name=ray_internals.STREAM_THREAD, daemon=True).start()
    ray_internals.end_threads()
    assert ended
