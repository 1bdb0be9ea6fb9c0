"""S3, against a server that speaks its protocol on loopback (moto), and a whole journey on it.

Credentials and endpoint come from the environment alone, as a user of MinIO, Ceph or R2 gives them.
"""

import hashlib
import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from cluster.io import filesystems, storage
from cluster.io.errors import UserError
from datasets.__main__ import main as run_datasets
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from datasets.prepare import prepare as prepare_module
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import Listing
from datasets.prepare.prepare import prepare
from datasets.prepare.sources import SOURCES
from tests.conftest import ROOT
from tests.support.archives import pack
from tests.support.data import draw_image
from tests.support.s3_server import SECRET, Proxy, environment, serve_s3
from trainers.config import FinetuneConfig
from trainers.run.folder import find_config, read_config, read_result
from trainers.run.rows import read_rows

LARGE = 24 * 2**20  # several parts of an upload
CLASSES = ("Audi S6 Sedan 2011", "BMW M3 100%", "smart fortwo?")  # names no URI likes


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with serve_s3(tmp_path_factory.mktemp("moto") / "log") as port:
        yield port


@contextmanager
def admit(port: int, num_requests: float) -> Iterator[None]:
    """Have the server take so many more requests; then it checks keys, and knows nobody's."""

    def tell(number: float) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/moto-api/reset-auth",
            data=str(number).encode(),
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(request).close()

    tell(num_requests)
    try:
        yield
    finally:
        tell(math.inf)


@pytest.fixture(scope="module", autouse=True)
def bucket(port: int) -> Iterator[Any]:
    """The bucket s3://thaw, as boto3 sees it: another client than the one under test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in environment(port).items():
            patch.setenv(name, value)
        filesystems._open_bucket.cache_clear()
        s3: Any = boto3.resource("s3")
        bucket = s3.Bucket("thaw")
        bucket.create(CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        yield bucket
    filesystems._open_bucket.cache_clear()


def keys(bucket: Any, prefix: str) -> set[str]:
    """Objects below a prefix, without the empty ones that stand for folders."""
    found = (item.key for item in bucket.objects.filter(Prefix=prefix))
    return {key.removeprefix(prefix) for key in found if not key.endswith("/")}


def test_files_are_written_read_listed_and_deleted(bucket: Any) -> None:
    folder = "s3://thaw/box/50% of Ü?"
    uri = storage.join(folder, "a b#1.json")
    assert not storage.exists(uri) and storage.list_names(folder) == []
    storage.write_bytes(uri, b"old")
    storage.write_bytes(uri, b"new")
    storage.write_bytes(storage.join(folder, "below/c"), b"")

    assert keys(bucket, "box/") == {"50% of Ü?/a b#1.json", "50% of Ü?/below/c"}
    assert storage.read_bytes(uri) == b"new"
    assert storage.exists(uri) and storage.exists(folder) and storage.exists(folder + "/")
    assert storage.list_names(folder) == ["a b#1.json", "below"]

    storage.delete_file(uri)
    storage.delete_file(uri)
    assert not storage.exists(uri)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)
    storage.delete_folder(folder)
    storage.delete_folder(folder)
    assert keys(bucket, "box/") == set() and storage.list_names(folder) == []


def test_archives_and_a_table_of_local_paths_and_uris_are_read_from_a_bucket(
    tmp_path: Path,
) -> None:
    for name in ("cars.zip", "cars.tar.gz"):
        pack(tmp_path / name, {"audi/1.jpg": b"1", "bmw/2 %.jpg": b"2"})
        storage.write_bytes(f"s3://thaw/packed/{name}", (tmp_path / name).read_bytes())
        config = PrepareConfig(source="folder", root=f"s3://thaw/packed/{name}", out="/unused")
        listing = SOURCES["folder"](config)
        assert listing.classes == ("audi", "bmw")
        assert list(listing.read(listing.references)) == [b"1", b"2"]

    storage.write_bytes("s3://thaw/mixed/here/3.jpg", b"3")
    (tmp_path / "4.jpg").write_bytes(b"4")
    storage.write_bytes("s3://thaw/mixed/test/5.jpg", b"5")
    names = ["here/3.jpg", f"{tmp_path}/4.jpg", "s3://thaw/packed/cars.zip/audi/1.jpg",
             "s3://thaw/mixed/test/5.jpg"]  # fmt: skip
    text = "".join(f"{name},{label}\n" for name, label in zip(names, "abab", strict=True))
    storage.write_bytes("s3://thaw/mixed/cars.csv", f"image,label\n{text}".encode())
    config = PrepareConfig(source="table", root="s3://thaw/mixed/cars.csv", out="/unused")
    listing = SOURCES["table"](config)
    assert list(listing.read(listing.references)) == [b"3", b"4", b"1", b"5"]
    assert listing.references["split"].to_pylist() == ["train", "train", "train", "test"]
    assert not listing.unused


def test_a_large_object_arrives_whole() -> None:
    content = os.urandom(2**20) * 23
    storage.write_bytes("s3://thaw/large", content)

    assert storage.read_bytes("s3://thaw/large") == content


def test_a_writer_killed_in_an_upload_leaves_the_old_object(port: int, bucket: Any) -> None:
    storage.write_bytes("s3://thaw/kill/it", b"old")
    code = (
        "from cluster.io import filesystems, storage\n"
        f"storage.write_bytes('s3://thaw/kill/it', bytes({LARGE}))"
    )
    client = bucket.meta.client
    with Proxy(port, seed=0) as slow:
        slow.bytes_per_s = 2**20  # the upload would take 24 s
        writer = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment(slow.port)
        )
        while not list(client.list_multipart_uploads(Bucket="thaw").get("Uploads", [])):
            assert writer.poll() is None
        writer.kill()
        writer.wait()

    assert storage.read_bytes("s3://thaw/kill/it") == b"old"
    assert storage.list_names("s3://thaw/kill") == ["it"]


def test_a_part_the_server_refuses_leaves_the_old_object(port: int) -> None:
    storage.write_bytes("s3://thaw/refuse", b"old")
    with (
        admit(port, 2),  # the start of the upload and its first part
        pytest.raises(ValueError, match=r"'s3://thaw/refuse' is out of .*KEY_ID.*UploadPart"),
    ):
        storage.write_bytes("s3://thaw/refuse", bytes(LARGE))

    assert storage.read_bytes("s3://thaw/refuse") == b"old"


def test_what_is_staged_outlives_a_write_that_the_server_refuses(
    port: int, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of staging, which the same command continues."""
    config = PrepareConfig(source="synthetic", out="s3://thaw/refused")

    def stage(config: PrepareConfig, listing: Listing, staging: str) -> None:
        storage.write_bytes(storage.join(staging, "part-0"), b"images")
        with admit(port, 0):
            storage.write_bytes(storage.join(staging, "part-1"), b"images")

    monkeypatch.setattr(prepare_module, "stage", stage)
    with pytest.raises(UserError, match="part-1' is out of reach"):
        prepare_module._write(config, SOURCES["synthetic"](config))
    (staged,) = keys(bucket, "refused/.staging/")
    assert staged.endswith("/part-0")


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_in_a_write_makes_no_part_of_an_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pyarrow would make an empty object of a stream that Ctrl-C closes before its first byte."""
    filesystem, path = filesystems.resolve("s3://thaw/interrupt")

    def open_and_interrupt(*arguments: Any, **options: Any) -> Any:
        stream = filesystem.open_output_stream(*arguments, **options)
        main = threading.main_thread().ident  # a signal to the process may reach another thread
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
        return stream

    interrupting = SimpleNamespace(open_output_stream=open_and_interrupt)
    monkeypatch.setattr(filesystems, "resolve", lambda _: (interrupting, path))
    with pytest.raises(KeyboardInterrupt):
        storage.write_bytes("s3://thaw/interrupt", b"whole")
    monkeypatch.undo()
    while not storage.exists("s3://thaw/interrupt"):
        time.sleep(0.01)

    assert storage.read_bytes("s3://thaw/interrupt") == b"whole"


@pytest.fixture
def proxy(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What stands between this process and the server, and can answer 503 in its place."""
    with Proxy(port, seed=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", environment(proxy.port)["AWS_ENDPOINT_URL"])
        filesystems._open_bucket.cache_clear()
        yield proxy
    filesystems._open_bucket.cache_clear()


def test_a_server_that_is_too_busy_for_a_moment_is_asked_again(proxy: Proxy) -> None:
    proxy.share = 0.4
    for number in range(10):
        storage.write_bytes(f"s3://thaw/busy/{number}", b"%d" % number)
    read = [storage.read_bytes(f"s3://thaw/busy/{number}") for number in range(10)]

    assert read == [b"%d" % number for number in range(10)]
    assert len(storage.list_names("s3://thaw/busy")) == 10
    assert proxy.num_refused >= 5


@pytest.mark.extended  # 12 s each way
def test_a_slow_link_is_waited_for(proxy: Proxy) -> None:
    content = bytes(1_200_000)
    storage.exists("s3://thaw/slow")
    proxy.bytes_per_s = 100_000
    storage.write_bytes("s3://thaw/slow", content)

    assert storage.read_bytes("s3://thaw/slow") == content
    assert proxy.num_bytes < 2.2 * len(content), "it was sent twice"


def test_a_server_that_stays_too_busy_ends_in_a_sentence(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FIRST_RETRY_S", 0.01)
    storage.write_bytes("s3://thaw/gone/it", b"old")
    proxy.share = 1.0
    with pytest.raises(ValueError, match=r"'s3://thaw/gone/it' is out of reach .*; check the"):
        storage.write_bytes("s3://thaw/gone/it", b"new")
    with pytest.raises(OSError, match="is out of reach"):  # not a file that isn't there
        storage.read_bytes("s3://thaw/gone/it")
    proxy.share = 0.0

    assert storage.read_bytes("s3://thaw/gone/it") == b"old"


NO_BUCKET = (
    "URI 's3://elsewhere/cars/{}': there is no bucket 'elsewhere'; create it, or check its name "
    "and where AWS_ENDPOINT_URL points"
)


def test_a_bucket_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError) as read:
        run_datasets(["info", "--data", "s3://elsewhere/cars"])
    with pytest.raises(ValueError) as prepared:
        prepare(PrepareConfig(source="synthetic", out="s3://elsewhere/cars"))
    with pytest.raises(ValueError) as trained:
        config = FinetuneConfig(data="s3://thaw/cars", out="s3://elsewhere/cars")
        find_config(config.out)
    with pytest.raises(ValueError, match=r"NO_SUCH_BUCKET.*check the bucket"):
        storage.write_bytes("s3://elsewhere/cars/config.json", b"{}")

    assert str(read.value) == NO_BUCKET.format("manifest.json")
    assert str(prepared.value) == NO_BUCKET.format("manifest.json")
    assert str(trained.value) == NO_BUCKET.format("config.json")


def test_a_data_set_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="data is 's3://thaw/none': no prepared data set there"):
        read_manifest("s3://thaw/none")


def test_refused_credentials_are_named_and_the_secret_is_not(port: int) -> None:
    calls = {
        "info": lambda: run_datasets(["info", "--data", "s3://thaw/cars"]),
        "exists": lambda: storage.exists("s3://thaw/cars"),
        "list": lambda: storage.list_names("s3://thaw/cars"),
        "write": lambda: storage.write_bytes("s3://thaw/cars/config.json", b"{}"),
        "delete": lambda: storage.delete_folder("s3://thaw/cars"),
    }
    said = {}
    with admit(port, 0):
        for name, call in calls.items():
            with pytest.raises(ValueError) as refused:
                call()
            said[name] = str(refused.value)
        with pytest.raises(OSError, match="ACCESS_DENIED"):  # not a file that isn't there
            storage.read_bytes("s3://thaw/cars/progress.json")

    for sentence in said.values():
        assert "s3://thaw/cars" in sentence and SECRET not in sentence
        assert "ACCESS_DENIED" in sentence or "INVALID_ACCESS_KEY_ID" in sentence
        assert "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL" in sentence


# One driver runs these command lines, so that Ray starts once.
DRIVER = """
import json, sys
from datasets.__main__ import main as datasets
from trainers.__main__ import main as trainers

if __name__ == "__main__":
    for room, *arguments in json.loads(sys.argv[1]):
        {"datasets": datasets, "trainers": trainers}[room](arguments)
"""
RUN = "s3://thaw/50% of run#1 \u00e4?"  # a folder's name, also for Ray
KEY = RUN.removeprefix("s3://thaw/")
PREPARE = "datasets prepare --val-fraction 0.25 --row-group-size 4"
TRAIN = (
    f"trainers scratch --data s3://thaw/cars --out '{RUN}' --backbone mobilenet_v2 "
    "--init he --size-px 32 --global-batch-size 8 --precision fp32"
)
JOURNEY = f"""\
{PREPARE} --source folder --root PHOTOS --out s3://thaw/cars
{PREPARE} --source folder --root s3://thaw/photos --out s3://thaw/cars2
{PREPARE} --source folder --root s3://thaw/photos --out s3://thaw/cars2
{PREPARE} --source parquet --root s3://thaw/hub --out s3://thaw/cars3
datasets info --data s3://thaw/cars2
{TRAIN} --epochs 2 --num-workers 1
{TRAIN} --epochs 3 --num-workers 0 --wandb off
trainers evaluate --run '{RUN}' --split val
"""


def jpeg(label: int, number: int) -> bytes:
    return cv2.imencode(".jpg", draw_image(label, number)[..., ::-1])[1].tobytes()


def write_hub_layout(bucket: Any) -> None:
    """Upload a data set as Hugging Face's own `push_to_hub` lays it out."""
    feature = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": feature}})},
    )
    for split, start, end in (("train", 0, 12), ("train", 12, 24), ("test", 24, 30)):
        rows = [
            {"image": {"bytes": jpeg(n % 3, n), "path": f"{n}.jpg"}, "label": n % 3}
            for n in range(start, end)
        ]
        part, parts = (0, 1) if split == "test" else (start // 12, 2)
        content = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), content, row_group_size=5)
        key = f"hub/data/{split}-{part:05d}-of-{parts:05d}.parquet"
        bucket.put_object(Key=key, Body=content.getvalue())


@pytest.fixture(scope="module")
def journey(bucket: Any, own_ray: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run the command lines in a process and on a Ray of their own; return what they print."""
    work = tmp_path_factory.mktemp("journey")
    for label, name in enumerate(CLASSES):
        (work / "photos" / name).mkdir(parents=True)
        for number in range(8):
            (work / "photos" / name / f"{number}.jpg").write_bytes(jpeg(label, number))
            key = f"photos/{name}/{number}.jpg"
            bucket.put_object(Key=key, Body=jpeg(label, number))
    write_hub_layout(bucket)
    (work / "driver.py").write_text(DRIVER)
    lines = JOURNEY.replace("PHOTOS", str(work / "photos")).splitlines()
    run = subprocess.run(
        [sys.executable, "driver.py", json.dumps([shlex.split(line) for line in lines])],
        cwd=work,
        env={**os.environ, **own_ray, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_data_set_is_the_same_from_a_local_folder_and_from_a_bucket(
    journey: str, bucket: Any
) -> None:
    here, there = read_manifest("s3://thaw/cars"), read_manifest("s3://thaw/cars2")

    assert here.classes == CLASSES and here.fingerprint == there.fingerprint
    assert "s3://thaw/cars2: reused" in journey  # the third command, and its files' times
    assert all(name in journey for name in CLASSES) and there.fingerprint in journey  # info
    for name, manifest in (("cars/", here), ("cars2/", there)):
        shards = {shard.path for split in manifest.splits.values() for shard in split.shards}
        assert keys(bucket, name) == shards | {"manifest.json", "quarantine.parquet"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_hugging_face_layout_is_read_from_a_bucket(journey: str) -> None:
    manifest = read_manifest("s3://thaw/cars3")

    assert manifest.classes == CLASSES and manifest.num_quarantined == 0
    assert {name: split.num_images for name, split in manifest.splits.items()} == {
        "train": 18,
        "val": 6,
        "test": 6,
    }
    assert contents(manifest) == {
        hashlib.sha256(jpeg(number % 3, number)).hexdigest() for number in range(30)
    }


def contents(manifest: Manifest) -> set[str]:
    """Hashes of every image of s3://thaw/cars3."""
    return {
        hashlib.sha256(image.as_py()).hexdigest()
        for split in manifest.splits.values()
        for shard in split.shards
        for image in pq.read_table(
            pa.BufferReader(storage.read_bytes(f"s3://thaw/cars3/{shard.path}")), columns=["image"]
        )["image"]
    }


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_lives_in_a_bucket_and_resumes_there(journey: str, bucket: Any) -> None:
    result, rows = read_result(RUN), read_rows(RUN)
    steps = [row["global_step"] for row in rows]

    assert read_config(RUN).epochs == result["epochs"] == 3
    assert steps == sorted(set(steps)) and {row["epoch"] for row in rows} == {1, 2, 3}
    assert journey.count("epoch 1/") == 1 and journey.count("epoch 3/3") == 1  # nothing twice
    kept = {int(name.removeprefix("step-")) for name in storage.list_names(f"{RUN}/checkpoints")}
    steps_per_epoch = result["global_step"] // 3
    assert kept == {steps_per_epoch * epoch for epoch in (2, 3, result["best_epoch"])}
    assert storage.exists(f"{result['checkpoint']}/model.safetensors")
    evaluation = json.loads(storage.read_bytes(f"{RUN}/evaluation_val.json"))
    assert evaluation["val/top1"] == pytest.approx(result["val/best_top1"])
    (offline,) = storage.list_names(f"{RUN}/wandb")  # of the first sitting
    assert any(name.endswith(".wandb") for name in keys(bucket, f"{KEY}/wandb/{offline}/"))


@pytest.mark.ray
@pytest.mark.slow
def test_no_secret_is_left_anywhere(journey: str, bucket: Any) -> None:
    texts = [item.get()["Body"].read() for item in bucket.objects.filter(Prefix=f"{KEY}/")]

    assert SECRET not in journey
    assert not any(SECRET.encode() in text for text in texts)


def test_the_connection_is_kept() -> None:
    first, _ = filesystems.resolve("s3://thaw/a")

    assert isinstance(first, fs.S3FileSystem) and filesystems.resolve("s3://thaw/b")[0] is first
