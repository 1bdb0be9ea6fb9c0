"""One door to every kind of storage; what needs a server is in test_datasets_s3."""

import errno
import gzip
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from pyarrow import fs

from cluster.io import filesystems, storage
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("uri", "filesystem", "path"),
    [
        ("/data/cars", fs.LocalFileSystem, "/data/cars"),
        ("file:///data/Audi S6 100%", fs.LocalFileSystem, "/data/Audi S6 100%"),
        ("gs://bucket/Audi S6/100%/", fs.GcsFileSystem, "bucket/Audi S6/100%"),
        ("gs://anonymous@bucket/cars@2x", fs.GcsFileSystem, "bucket/cars@2x"),
        ("hf://datasets/owner/cars/data", fs.PyFileSystem, "datasets/owner/cars/data"),
    ],
)
def test_a_uri_leads_to_its_file_system_and_names_are_literal(
    uri: str, filesystem: type, path: str
) -> None:
    found, found_path = filesystems.resolve(uri)

    assert isinstance(found, filesystem) and found_path == path


@pytest.mark.parametrize("name", ["my runs/a", "50%", "a%41b", "\u00e4#1?x=2&y", "plain/a-b_c.d~e"])
@pytest.mark.parametrize("place", ["file:///tmp", "gs://anonymous@cars", "s3://cars", "/tmp"])
def test_ray_is_led_to_the_same_folder(place: str, name: str) -> None:
    """It parses URIs by pyarrow, which decodes %41 and cuts at #."""
    uri = f"{place}/{name}"
    asked = filesystems.escape(uri) + ("?region=us-east-1" if place.startswith("s3") else "")
    known, found = uri.split("@")[-1].split("://")[-1], fs.FileSystem.from_uri(asked)[1]
    assert found == known
    if not place.startswith("s3"):
        assert found == filesystems.resolve(uri)[1]


@pytest.mark.parametrize(("bucket", "anonymous"), [("cars", False), ("anonymous@cars", True)])
def test_google_is_asked_anonymously_only_on_request_and_never_for_minutes(
    bucket: str, anonymous: bool
) -> None:
    filesystem, _ = filesystems.resolve(f"gs://{bucket}/train")
    (options,) = filesystem.__reduce__()[1]  # what a copy in a Ray task is made of

    assert options["anonymous"] is anonymous
    assert options["retry_time_limit"] == timedelta(seconds=60)


@pytest.mark.parametrize(
    "bucket",
    ["my bucket", "<bucket>", "{bucket}", "bücket", "b?versionId=1", "b#1", "b%20c", "b*"],
)
@pytest.mark.parametrize("scheme", ["s3", "gs", "gcs"])
def test_a_bucket_that_can_be_none_is_named(scheme: str, bucket: str) -> None:
    sentence = f"URI '{scheme}://{bucket}/cars' has the bucket '{bucket}': use {scheme}://BUCKET"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        filesystems.resolve(f"{scheme}://{bucket}/cars")


def test_hugging_face_is_read_by_its_own_package() -> None:
    from huggingface_hub import HfFileSystem

    filesystem, _ = filesystems.resolve("hf://datasets/owner/cars")

    assert isinstance(filesystem, fs.PyFileSystem)
    assert isinstance(filesystem.handler, fs.FSSpecHandler)
    assert isinstance(filesystem.handler.fs, HfFileSystem)


def test_a_missing_package_is_named_with_the_command_that_brings_it() -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from cluster.io import filesystems, storage; filesystems.resolve('hf://datasets/owner/cars')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert run.stderr.splitlines()[-1] == (
        "cluster.io.errors.UserError: URI 'hf://datasets/owner/cars' needs the package "
        "huggingface_hub: `pip install huggingface_hub` on every node"
    )


@pytest.mark.parametrize(
    "uri", ["s3://KEY:hush@bucket/cars", "s3://KEY:hu/sh@bucket/cars", "gs://hush@bucket/cars"]
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ValueError, match="holds credentials") as refused:
        filesystems.resolve(uri)

    assert "hu" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("s3://", "'s3://' names no bucket: use s3://BUCKET/PATH"),
        ("s4://bucket/cars", "'s4://bucket/cars' cannot be opened: .*s4"),
    ],
)
def test_a_uri_that_leads_nowhere_is_named(uri: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        filesystems.resolve(uri)


def test_a_local_folder_is_written_listed_and_deleted(tmp_path: Path) -> None:
    uri = storage.join(str(tmp_path), "run/", "metrics.jsonl.gz")
    content = gzip.compress(b"rows")
    storage.write_bytes(uri, b"before")
    storage.write_bytes(uri, content)

    assert storage.read_bytes(uri) == content  # as it is: no unpacking by name
    assert storage.list_names(str(tmp_path / "run")) == ["metrics.jsonl.gz"]
    storage.delete_file(uri)
    assert not storage.exists(uri) and storage.exists(str(tmp_path / "run"))
    storage.delete_folder(str(tmp_path / "run"))
    assert storage.list_names(str(tmp_path / "run")) == []
    storage.delete_folder(str(tmp_path / "run"))
    storage.delete_file(uri)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)


def test_a_local_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ValueError, match=r"config\.json' is out of reach .*; a folder of the"):
        storage.write_bytes(str(tmp_path / "file/run/config.json"), b"{}")


def test_a_local_file_keeps_its_old_content_where_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError("No space left on device")

    uri = str(tmp_path / "config.json")
    storage.write_bytes(uri, b"old")
    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(ValueError, match="No space left"):
        storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"old"


def test_a_local_file_grows_and_is_read_from_any_byte_on(tmp_path: Path) -> None:
    uri = str(tmp_path / "rows")
    storage.write_bytes(uri, b"one ")
    storage.append_bytes(uri, b"two")

    assert storage.can_append(uri) and not storage.can_append("hf://datasets/a/b")
    assert storage.read_bytes(uri) == b"one two"
    assert [storage.read_bytes(uri, start=start) for start in (4, 7, 8)] == [b"two", b"", b""]
    assert storage.size_of(uri) == 7
    for none in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError):
            storage.size_of(str(none))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "none"), start=4)


def test_what_can_not_be_added_whole_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "rows")
    storage.write_bytes(uri, b"one ")

    def fail(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ValueError, match=r"rows' is out of reach .*No space left"):
        storage.append_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"one "


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space there"),
        (errno.EROFS, "mount it for writing"),
        (errno.EACCES, "check the path and who may use it"),
    ],
)
def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_part_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    """A part that stayed would keep a full disk full."""
    file = tmp_path / "row"
    storage.write_bytes(str(file), b"old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ValueError, match=f"{os.strerror(number)}.*; {remedy}"):
        storage.write_bytes(str(file), b"new")

    assert [path.name for path in tmp_path.iterdir()] == ["row"] and file.read_bytes() == b"old"


def test_a_hub_out_of_reach_is_one_sentence() -> None:
    """The errors of Hugging Face's client are no OSErrors."""
    errors = pytest.importorskip("httpx2")
    said = r"URI 'hf://x/y' is out of reach \(no name\); .*HF_TOKEN"
    with pytest.raises(ValueError, match=said), filesystems.explaining("hf://x/y"):
        raise errors.ConnectError("no name")


def test_a_server_that_does_not_answer_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^URI 'ftp://127.0.0.1:1/x' is out of reach \("):
        storage.exists("ftp://127.0.0.1:1/x")


@pytest.mark.parametrize("uri", ["s3://", "s3:///", "s3:/bucket/cars", "gs:/", "hf://"])
def test_a_uri_without_its_place_is_no_local_folder(uri: str) -> None:
    with pytest.raises(ValueError, match=f"out is '{uri}': use {uri[:2]}://BUCKET/FOLDER"):
        storage.absolute(uri, "out")


def test_a_name_may_begin_like_a_scheme() -> None:
    assert storage.absolute("s3/cars", "out").endswith("/s3/cars")
    assert storage.absolute("s3://bucket", "out") == "s3://bucket"
