"""Names in files that lead elsewhere: refused by field; nothing there is read or written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from cluster.io import filesystems, storage
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest, write_manifest
from datasets.passes.features import Part, View, read_view, write_view
from tests.support.data import WriteData, find_shard
from tests.support.sweeps import write_sweep
from trainers.run import checkpoint
from trainers.run import folder as run_folder
from trainers.tracking import local_runs
from tuning.record.leaderboard import read_leaderboard
from tuning.record.states import read_trials

NAMES = {
    "parent": "../../../etc/passwd",
    "parent within": "train/../../secret.parquet",
    "absolute": "/etc/passwd",
    "URI": "s3://bucket/x",
    "NUL": "train/a\0b.parquet",
    "newline": "train/a\nb.parquet",
    "escape": "train/\x1b[2J.parquet",
    "very long": "train/" + "x" * 300,
    "dot": "train/.",
    "dots": "train/..",
    "empty": "",
    "folder": "train/",
    "backslash": "train\\..\\..\\secret",
    "surrogate": "train/\ud800",
    "deep": "train/a/b.parquet",
}


def rewrite(file: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("kind", NAMES)
def test_a_manifest_names_files_below_it_alone(kind: str, write_data: WriteData) -> None:
    data = Path(write_data(train=3, val=3, test=3))

    def change(manifest: dict[str, Any]) -> None:
        manifest["splits"]["train"]["shards"][0]["path"] = NAMES[kind]

    rewrite(data / "manifest.json", change)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged.*path is .*: use SPLIT/NAME"):
        read_manifest(str(data))


@pytest.mark.parametrize("linked", ["train", "train/part-00000-*.parquet"])
def test_a_data_set_has_no_link_out_of_it(
    linked: str, write_data: WriteData, tmp_path: Path
) -> None:
    data = Path(write_data(train=3, val=3, test=3))
    (place,) = data.glob(linked)
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{place} is a link out of the data set, to {tmp_path}"):
        read_manifest(str(data))


def test_a_data_set_may_lie_behind_a_link_and_link_within(
    write_data: WriteData, tmp_path: Path
) -> None:
    data = Path(write_data(train=3, val=3, test=3))
    shard = find_shard(data, "train")
    shard.rename(data / "train/moved.parquet")
    shard.symlink_to("moved.parquet")
    (tmp_path / "cars").symlink_to(data)
    assert read_manifest(str(tmp_path / "cars")).split("train").num_images == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["splits"]["val"]["class_counts"].pop(), r"val\.class_counts has 2 numbers"),
        (lambda m: m["splits"]["val"].update(class_counts=[9, 9, 9]), "its row groups hold 3"),
        (lambda m: m["splits"]["val"].update(class_counts=[-1, 2, 2]), "zero or more"),
        (lambda m: m["splits"]["val"]["shards"][0].update(row_groups=[-3, 6]), "zero or more"),
        (lambda m: m["splits"].update(other=m["splits"]["val"]), r"splits\.other is unknown"),
        (lambda m: m["splits"]["val"].update(num_pixels="9"), r"splits\.val\.num_pixels is '9'"),
        (lambda m: m.update(extra=1), "extra is unknown to this version"),
        (lambda m: m.pop("classes"), "classes is missing"),
    ],
)
def test_a_manifest_whose_values_do_not_fit_is_refused(
    change: Callable[[Any], object], message: str, write_data: WriteData
) -> None:
    data = Path(write_data(train=3, val=3, test=3))
    rewrite(data / "manifest.json", change)
    with pytest.raises(ValueError, match=rf"{data}/manifest\.json is damaged.*{message}"):
        read_manifest(str(data))


def test_what_is_written_is_read(write_data: WriteData, tmp_path: Path) -> None:
    manifest = read_manifest(write_data())
    assert isinstance(manifest, Manifest)
    write_manifest(str(tmp_path), manifest)
    assert read_manifest(str(tmp_path)) == manifest


@pytest.mark.parametrize("kind", NAMES)
def test_trials_lie_below_their_sweep(kind: str, tmp_path: Path) -> None:
    sweep = Path(write_sweep(tmp_path / "sweep", trials=3))
    rewrite(sweep / "trials.json", lambda v: v["trials"][0].update(trial_id=NAMES[kind]))
    with pytest.raises(ValueError, match=r"trials\.json is damaged.*trial_id is .*no path"):
        read_trials(str(sweep))
    rewrite(sweep / "leaderboard.json", lambda v: v["trials"][0].update(trial_id=NAMES[kind]))
    with pytest.raises(ValueError, match=r"leaderboard\.json is damaged.*trial_id is .*no path"):
        read_leaderboard(str(sweep))


def test_the_runs_of_a_leaderboard_are_those_beside_it(tmp_path: Path) -> None:
    sweep = Path(write_sweep(tmp_path / "sweep", trials=3))
    rewrite(sweep / "leaderboard.json", lambda v: v["trials"][0].update(run="/etc"))
    known = read_leaderboard(str(sweep))
    assert known is not None
    assert all(row.run == f"{sweep}/trials/{row.trial_id}" for row in known[0])


RESULT = {
    "epochs": 1, "global_step": 7, "best_epoch": 1, "val/top1": 0.5, "val/best_top1": 0.5,
    "time/total_s": 1.0, "diverged": None, "lost": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["/etc/step-00000007", "../../step-00000007", "s3://other/step-00000007"]
)
def test_the_checkpoint_of_a_result_is_in_its_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(RESULT | {"checkpoint": name}))
    found = run_folder.read_result(str(tmp_path))
    assert found["checkpoint"] == checkpoint.folder(str(tmp_path), 7)


@pytest.mark.parametrize("name", ["/etc/passwd", "..", "", "step-1/..", "step-0000000\n", "step-x"])
def test_what_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(RESULT | {"checkpoint": name}))
    with pytest.raises(
        ValueError, match=r"result\.json is damaged.*its checkpoint is not that of a run"
    ):
        run_folder.read_result(str(tmp_path))


@pytest.mark.parametrize("kind", NAMES)
def test_features_lie_in_their_folder(kind: str, tmp_path: Path) -> None:
    view = View(f"{tmp_path}/view-0000", (2,), (Part("part-0.parquet", 0, (3,), 10),))
    write_view(view, {})
    assert read_view(str(tmp_path), 0) == view
    index = tmp_path / "view-0000" / "index.json"
    rewrite(index, lambda v: v["parts"][0].update(name=NAMES[kind]))
    with pytest.raises(ValueError, match=r"index\.json is damaged.*parts\.name is .*no path"):
        read_view(str(tmp_path), 0)


def test_a_bucket_whose_keys_lead_elsewhere_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object's key may be any text."""

    class Keys:
        def get_file_info(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
            return [fs.FileInfo("bucket/run/../../escaped", type=fs.FileType.File)]

    monkeypatch.setattr(filesystems, "resolve", lambda uri: (Keys(), "bucket/run"))
    monkeypatch.setattr(storage, "read_bytes", lambda uri: b"x")
    scratch = tmp_path / "a" / "b"
    scratch.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds '\.\./\.\./escaped', which is no name"):
        local_runs.local_copy("s3://bucket/run", str(scratch))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"../../x", b"a/b", b"*", b"a\0b", b"\xff", b"x" * 200])
def test_an_id_of_wandb_is_no_path(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "wandb_id").write_bytes(content)
    with pytest.raises(ValueError, match="wandb_id is damaged"):
        local_runs.read_id(str(tmp_path))


@pytest.mark.parametrize("uri", ["a\0b", "a\nb", "s3://AKIA:secret1@bucket/x", "x" * 5000])
def test_no_such_place_is_touched(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (storage.read_bytes, storage.exists, storage.list_names, storage.delete_folder):
        with pytest.raises(ValueError, match=r"a URI (is|holds)") as caught:
            use(uri)
        assert "secret1" not in str(caught.value)
    with pytest.raises(ValueError, match=r"a URI (is|holds)"):
        storage.write_bytes(uri, b"x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128])
def test_a_name_too_long_for_the_disk_is_one_sentence(name: str, tmp_path: Path) -> None:
    assert not storage.is_name(name) and storage.is_name(name[:127])
    with pytest.raises(ValueError, match=r"is out of reach .*[Ff]ile name too long"):
        storage.write_bytes(f"{tmp_path}/{name}/x", b"")


def test_an_empty_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^out is '': give a path or a URI$"):
        storage.absolute("", "out")
