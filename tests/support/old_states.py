"""Folders that older states of this repository wrote: tests/fixtures/states/COMMIT.tar.xz.

usage: python -m tests.support.old_states COMMIT ...    write them again, by the code of the commit

    data               48 images of three classes, prepared
    lenet5.safetensors weights that compress well: each is -0.125, 0 or 0.125
    finished           a training of two epochs
    interrupted        a training that got SIGTERM after a checkpoint
    sweep, cache       a grid of two trials that share features
    stopped-sweep      a sweep that got SIGTERM after a checkpoint
"""

import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import torch

from tests.conftest import ROOT
from trainers.networks.backbones import build

STATES = {"a49bd9a": "2026-11-28", "6681f9a": "2026-11-26", "49c3c7b": "2026-11-25"}
"""Commits, the last ones of their days: there are no tags."""
FOLDER = ROOT / "tests" / "fixtures" / "states"
PATH_LENGTH = 140
"""Of the folder they were written in: in a folder whose path is as long, pickles stay valid."""
CLASSES = ("audi", "bmw", "fiat")
OPTIONS = "--size-px 32 --global-batch-size 8 --wandb off --num-workers 0 --backbone lenet5"


def training_options(folder: Path, out: str, epochs: int) -> str:
    return (
        f"transfer --data {folder}/data --out {folder}/{out} --epochs {epochs} {OPTIONS} "
        f"--init file --weights {folder}/lenet5.safetensors --freeze-depth all --policy light "
        "--precision fp32 --log-every-steps 1"
    )


def sweep_options(folder: Path, out: str, epochs: int) -> str:
    return (
        f"transfer --data {folder}/data --out {folder}/{out} --cache {folder}/cache {OPTIONS} "
        f"--inits file --weights {folder}/lenet5.safetensors --freeze-depths all --policy none "
        f"--learning-rates 1e-2 1e-3 --clipnorms none --search grid "
        f"--epochs {epochs} --grace-epochs {epochs}"
    )


def unpack(state: str, below: Path) -> Path:
    """Unpack a state in a folder of its own, as if it had been written there."""
    written, folder = _folder_of(state, Path("/tmp")), _folder_of(state, below)
    with tarfile.open(FOLDER / f"{state}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    old, new = str(written).encode(), str(folder).encode()
    for file in folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes().replace(old, new)
            file.write_bytes(content.replace(old.hex().encode(), new.hex().encode()))
    return folder


def _folder_of(state: str, below: Path) -> Path:
    folder = Path(str(below / f"thaw-{state}-").ljust(PATH_LENGTH, "x"))
    assert len(str(folder)) == PATH_LENGTH, f"{below} is too long"
    return folder


def write_state(state: str) -> None:
    """Write a state's folders by its own code, and pack them."""
    folder = _folder_of(state, Path("/tmp"))
    folder.mkdir()
    _write_weights(folder / "lenet5.safetensors")
    with tempfile.TemporaryDirectory() as scratch:
        photos, code = Path(scratch, "photos"), Path(scratch, "code")
        _write_photos(photos)
        subprocess.run(["git", "worktree", "add", "--detach", str(code), state], check=True)
        try:
            command = f"datasets prepare --source folder --root {photos} --out {folder}/data"
            _run(code, command)
            _run(code, f"trainers {training_options(folder, 'finished', 2)}")
            _interrupt(code, f"trainers {training_options(folder, 'interrupted', 60)}",
                       lambda: _has_checkpoint(folder / "interrupted"))  # fmt: skip
            _run(code, f"tuning {sweep_options(folder, 'sweep', 2)}")
            _interrupt(code, f"tuning {sweep_options(folder, 'stopped-sweep', 60)}",
                       lambda: _has_checkpoint(folder / "stopped-sweep"))  # fmt: skip
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(code)], check=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tarfile.open(FOLDER / f"{state}.tar.xz", "w:xz") as archive:
        archive.add(folder, arcname=".")


def _run(code: Path, arguments: str) -> None:
    subprocess.run([sys.executable, "-m", *arguments.split()], cwd=code, check=True)


def _interrupt(code: Path, arguments: str, is_time: Callable[[], bool]) -> None:
    process = subprocess.Popen([sys.executable, "-m", *arguments.split()], cwd=code)
    while not is_time():
        time.sleep(0.05)
        assert process.poll() is None, "it ended before its checkpoint"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM


def _has_checkpoint(folder: Path) -> bool:
    return any(file.parent.parent.name == "checkpoints" for file in folder.rglob("progress.json"))


def _write_photos(photos: Path) -> None:
    for label, name in enumerate(CLASSES):
        (photos / name).mkdir(parents=True)
        for number in range(16):
            dice = np.random.default_rng((label, number))
            image_HWC = np.full((32, 40, 3), 40, np.uint8)
            image_HWC[..., label] += dice.integers(0, 40, (32, 40), dtype=np.uint8)
            cv2.rectangle(image_HWC, (0, 4 + 8 * label), (40, 10 + 8 * label), (230,) * 3, -1)
            cv2.imwrite(str(photos / name / f"{number:02d}.jpg"), image_HWC)


def _write_weights(file: Path) -> None:
    dice = torch.Generator().manual_seed(0)
    state = build("lenet5", len(CLASSES)).state_dict()
    safetensors.torch.save_file(
        {
            name: torch.randint(-1, 2, tensor.shape, generator=dice) * 0.125
            for name, tensor in state.items()
        },
        file,
    )


if __name__ == "__main__":
    for state in sys.argv[1:]:
        write_state(state)
