"""Fixtures of all rooms: one real Ray cluster of several raylets, small data sets, ../shared."""

import hashlib
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from cluster.io import storage
from datasets import shards
from datasets.prepare.staging import write_images

if TYPE_CHECKING:
    from torch import nn

    from tests.support.job_server import TokenCluster
    from trainers.config import FinetuneConfig

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def pytest_configure() -> None:
    """Give each of xdist's processes a folder of Ray's: the state API of a process finds its
    cluster by a file there."""
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ.pop("RAY_TMPDIR"), ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests on the session's cluster one process of xdist's, which has that cluster, and
    those that start Ray in processes of theirs another, one after the other."""
    for item in items:
        if "ray_nodes" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("cluster"))
        elif item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("own_cluster"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """../shared with the photographs and weights; its absence skips, which `.ci/run` forbids."""
    if not SHARED.is_dir():
        assert not os.environ.get("THAW_REQUIRE_SHARED"), f"{SHARED} must be there"
        pytest.skip(f"{SHARED} is not there")
    return SHARED


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Cluster]:
    """Start three raylets of 2 logical CPUs, and connect to them."""
    import ray

    from cluster import runtime

    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": True,
            "dashboard_port": None,  # any, where another Ray of this machine has 8265
            "object_store_memory": 2**30,
        },
    )
    for _ in range(2):
        nodes.add_node(num_cpus=2, object_store_memory=2**29)
    runtime.connect(nodes.address, quiet=True)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="session")
def ray_cluster(ray_nodes: Cluster) -> str:
    """Address of the running cluster of `ray_nodes`."""
    return ray_nodes.address


@pytest.fixture(scope="module")
def own_ray() -> Iterator[dict[str, str]]:
    """Variables for a process that starts a Ray of its own, in another folder than this one's."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield {"RAY_TMPDIR": folder}


@pytest.fixture(scope="session")
def token_cluster() -> "Iterator[TokenCluster]":
    """A cluster of other processes, with a job server that asks for a token."""
    from tests.support.job_server import start_token_cluster

    with (
        tempfile.TemporaryDirectory(prefix="tc", ignore_cleanup_errors=True) as folder,
        start_token_cluster(Path(folder)) as cluster,
    ):
        yield cluster


def living_workers() -> list[int]:
    """Processes of Ray Train's workers in the connected cluster."""
    from ray._private.state import actors  # the public API asks the dashboard, if there is one

    found = actors(actor_state_name="ALIVE").values()
    pids = [actor["Pid"] for actor in found if "TrainWorker" in actor["ActorClassName"]]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def draw_image(label: int, number: int, size_px: int = 48) -> np.ndarray:
    """Draw uint8 `[size_px, size_px + 16, 3]`: dark, with a bright bar whose place is its class."""
    image_HWC = np.random.default_rng((label, number)).integers(
        0, 60, (size_px, size_px + 16, 3), np.uint8
    )
    cv2.rectangle(image_HWC, (0, 6 + 10 * label), (size_px + 16, 14 + 10 * label), (230,) * 3, -1)
    return image_HWC


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch compute on one core: small tensors are fastest there, and where others are busy,
    ten times so."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


WriteData = Callable[..., str]


def write_shards(
    uri: str,
    *,
    train: int = 48,
    val: int = 17,
    test: int = 13,
    classes: int = 3,
    row_group_size: int = 8,
) -> None:
    """Write a data set of easy images, straight to shards."""
    splits = {}
    for split, num_images in (("train", train), ("val", val), ("test", test)):
        rows = []
        for number in range(num_images):
            label = number % classes
            image = draw_image(label, hash_seed(split, number))
            content = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
            image_id = hash_seed(split, number) << 20 | number
            rows.append(
                {
                    "image": content,
                    "label": label,
                    "image_id": image_id,
                    "crc32": shards.checksum(content, label, image_id),
                    "path": f"{split}/{number}.jpg",
                }
            )
        path = f"{split}/part-00000.parquet"
        os.makedirs(os.path.join(uri, split))
        write_images(
            storage.join(uri, path),
            pa.Table.from_pylist(rows, schema=shards.SHARD_SCHEMA),
            row_group_size,
        )
        metadata = pq.read_metadata(storage.join(uri, path))
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        splits[split] = shards.Split(
            shards=(shards.Shard(path=path, row_groups=tuple(groups), num_bytes=1),),
            class_counts=tuple(
                sum(row["label"] == label for row in rows) for label in range(classes)
            ),
            num_pixels=num_images * 48 * 64,
        )
    manifest = shards.Manifest(
        classes=tuple(f"class {label}" for label in range(classes)),
        splits=splits,
        num_quarantined=0,
        fingerprint=f"{train}-{val}-{test}-{classes}",
        options={"short_side_px": 48},
    )
    shards.write_manifest(uri, manifest)


@pytest.fixture(scope="session")
def write_data(tmp_path_factory: pytest.TempPathFactory) -> WriteData:
    """Return a function that writes a data set as `write_shards` does, and returns its URI."""

    def write(**sizes: int) -> str:
        uri = str(tmp_path_factory.mktemp("data"))
        write_shards(uri, **sizes)
        return uri

    return write


def join_gloo(rank: int, folder: str, world_size: int = 2) -> None:
    """Meet the other processes in a folder."""
    from torch import distributed

    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )


def small_training(data: str, out: str, **changes: Any) -> "FinetuneConfig":
    """A training at 32 px: each step of 16 images leaves a row, every other one a checkpoint."""
    from datasets.config import IngestConfig
    from trainers.config import FinetuneConfig, TrackConfig

    values: dict[str, Any] = {
        "global_batch_size": 16,
        "checkpoint_every_steps": 2,
        "ingest": IngestConfig(size_px=32, policy="light"),
        "track": TrackConfig(log_every_steps=1),
    }
    return FinetuneConfig(data=data, out=out, **{**values, **changes})


def with_head(head: "nn.Module", stem: "nn.Module | None" = None) -> "nn.Module":
    """A network of the backbone `toy`: a stem, which is its only stage, and a head."""
    from torch import nn

    return nn.Sequential(OrderedDict(stem=stem or nn.Identity(), fc=head))


@pytest.fixture
def toy_backbone(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a backbone of one stage, whose networks `with_head` makes."""
    from trainers.networks.backbones import BACKBONES

    toy = replace(BACKBONES["resnet50"], stages=(("stem", ("stem",)),), head="fc")
    monkeypatch.setitem(BACKBONES, "toy", toy)
    return "toy"


def flip_byte(shard: Path, image: int, *, at: int) -> None:
    """Change one byte of a stored JPEG, counted from its start, or its end if negative."""
    jpeg = pq.read_table(shard)["image"][image].as_py()
    content = bytearray(shard.read_bytes())
    place = content.find(jpeg) + at % len(jpeg)
    content[place] ^= 0x55
    shard.write_bytes(content)


@pytest.fixture(scope="session")
def easy_data(write_data: WriteData) -> str:
    """48 training, 17 validation and 13 test images of 3 classes; 17 and 13 are prime."""
    return write_data()


def hash_seed(split: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{split}/{number}".encode()).digest()[:4], "big")
