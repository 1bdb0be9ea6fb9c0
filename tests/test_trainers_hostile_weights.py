"""Weights and checkpoints that somebody made to do harm: refused by name, nothing runs, little is
taken."""

import hashlib
import io
import json
import pickle
import resource
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.conftest import ROOT
from tests.support.small import with_head
from trainers.config import FinetuneConfig, ModelConfig
from trainers.networks.weights.files import MAX_WEIGHTS_BYTES, read_weights
from trainers.networks.weights.initialization import initialize
from trainers.networks.weights.tensors import load_weights, parse_pickle, parse_safetensors
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.folder import load_best_model

GIB = 2**30
Weights = dict[str, Tensor]


class RunsCode:
    """Would leave a canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.canary,)


def model() -> nn.Module:
    return with_head(nn.Linear(4, 3), stem=nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


@pytest.fixture
def weights() -> Weights:
    return model().state_dict()


def saved(values: object) -> bytes:
    content = io.BytesIO()
    torch.save(values, content)
    return content.getvalue()


def zip_bomb(num_bytes: int) -> bytes:
    """What torch.save wrote, its zeros compressed: torch.load would unpack them."""
    plain, bomb = io.BytesIO(saved({"fc.weight": torch.zeros(num_bytes // 4)})), io.BytesIO()
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w") as target:
        for record in source.infolist():
            kind = zipfile.ZIP_DEFLATED if record.file_size > 2**20 else zipfile.ZIP_STORED
            target.writestr(record.filename, source.read(record), kind, compresslevel=1)
    return bomb.getvalue()


def header(length: int, rest: bytes = b"{}") -> bytes:
    return length.to_bytes(8, "little") + rest


def giant_header() -> bytes:
    """One that is really there: 16 MiB of JSON."""
    text = json.dumps({"__metadata__": {"x": "y" * 2**24}}).encode()
    return header(len(text), text)


def grows(code: str) -> bytes:
    """A pickle of forty bytes that torch.load would let call `bytearray`."""
    return b"\x80\x02c" + code.encode() + b"\nbytearray\nJ\xff\xff\xff\x7f\x85R."


def by_name(make: Callable[[Weights, Path], bytes], name: str, message: str) -> tuple:
    return pytest.param(make, name, message, id=f"{make.__name__}-{message[:24]}")


def renamed_pickle(weights: Weights, canary: Path) -> bytes:
    return saved(weights)


def renamed_code(weights: Weights, canary: Path) -> bytes:
    return pickle.dumps({"fc.weight": RunsCode(canary)})


def renamed_safetensors(weights: Weights, canary: Path) -> bytes:
    return safetensors.torch.save(weights)


def code(weights: Weights, canary: Path) -> bytes:
    return saved({**weights, "fc.bias": RunsCode(canary)})


def bare_code(weights: Weights, canary: Path) -> bytes:
    return pickle.dumps(RunsCode(canary))


def os_system(weights: Weights, canary: Path) -> bytes:
    return f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()


def bomb(weights: Weights, canary: Path) -> bytes:
    return zip_bomb(2**23)


def growing(weights: Weights, canary: Path) -> bytes:
    return grows("builtins")


def growing_2(weights: Weights, canary: Path) -> bytes:
    return grows("__builtin__")


def claimed_header(weights: Weights, canary: Path) -> bytes:
    return header(2**62)


def real_header(weights: Weights, canary: Path) -> bytes:
    return giant_header()


def empty(weights: Weights, canary: Path) -> bytes:
    return b""


def cut_pickle(weights: Weights, canary: Path) -> bytes:
    return saved(weights)[:700]


def cut_safetensors(weights: Weights, canary: Path) -> bytes:
    return safetensors.torch.save(weights)[:-1]


def wrong_shapes(weights: Weights, canary: Path) -> bytes:
    return saved({**weights, "stem.0.weight": torch.ones(4, 3, 5, 5)})


def virtual(weights: Weights, canary: Path) -> bytes:
    """A terabyte of one number."""
    return saved({**weights, "stem.0.weight": torch.ones(1).expand(2**38)})


def not_a_number(weights: Weights, canary: Path) -> bytes:
    return saved({**weights, "stem.0.bias": torch.full((4,), float("nan"))})


def infinite(weights: Weights, canary: Path) -> bytes:
    return saved({**weights, "stem.1.running_var": torch.full((4,), float("inf"))})


def sparse(weights: Weights, canary: Path) -> bytes:
    return saved({**weights, "stem.0.bias": torch.eye(4)[0].to_sparse()})


def others(weights: Weights, canary: Path) -> bytes:
    return saved({"another.weight": torch.ones(3)})


def no_dict(weights: Weights, canary: Path) -> bytes:
    return saved([1, 2, 3])


KINDS = [
    by_name(renamed_pickle, "w.safetensors", "a pickle, not the safetensors file"),
    by_name(renamed_code, "w.safetensors", "a pickle, not the safetensors file"),
    by_name(renamed_safetensors, "w.pth", "a safetensors file; rename it to end in"),
    by_name(code, "w.pth", "a pickle that would run code, which is refused"),
    by_name(bare_code, "w.pth", "a pickle that would run code, which is refused"),
    by_name(os_system, "w.pth", "a pickle that would run code, which is refused"),
    by_name(bomb, "w.pth", r"it would unpack from \d+ to \d+ bytes"),
    by_name(growing, "w.pth", "a pickle that would run code, which is refused"),
    by_name(growing_2, "w.pth", "a pickle that would run code, which is refused"),
    by_name(claimed_header, "w.safetensors", "its header would be 4611686018427387904 bytes"),
    by_name(real_header, "w.safetensors", "its header would be 16777"),
    by_name(empty, "w.safetensors", "the file is empty; fetch or save it again"),
    by_name(empty, "w.pth", "the file is empty; fetch or save it again"),
    by_name(cut_pickle, "w.pth", "damaged"),
    by_name(cut_safetensors, "w.safetensors", "damaged, or no safetensors file"),
    by_name(wrong_shapes, "w.pth", r"its stem\.0\.weight has shape \(4, 3, 5, 5\)"),
    by_name(virtual, "w.pth", r"its stem\.0\.weight has shape \(274877906944,\)"),
    by_name(not_a_number, "w.pth", r"its stem\.0\.bias has values that are NaN or infinite"),
    by_name(infinite, "w.pth", r"its stem\.1\.running_var has values that are NaN or inf"),
    by_name(sparse, "w.pth", r"its stem\.0\.bias is not a dense tensor"),
    by_name(others, "w.pth", "none of its 1 tensors belongs to"),
    by_name(no_dict, "w.pth", "not a state dict"),
]


@pytest.mark.parametrize(("make", "name", "message"), KINDS)
def test_hostile_weights_are_refused_by_name(
    make: Callable[[Weights, Path], bytes],
    name: str,
    message: str,
    weights: Weights,
    toy_backbone: str,
    tmp_path: Path,
) -> None:
    canary, file, network = tmp_path / "canary", tmp_path / name, model()
    file.write_bytes(make(weights, canary))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = ModelConfig(backbone=toy_backbone, init="file", weights=str(file))

    with pytest.raises(ValueError, match=rf"^model\.weights is '{file}': .*{message}") as caught:
        initialize(network, config, seed=0)

    assert "\n" not in str(caught.value) or "Error" in str(caught.value)
    assert not canary.exists()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_a_file_has_too_much_or_lacks_is_told_by_name(
    weights: Weights, toy_backbone: str, tmp_path: Path
) -> None:
    del weights["stem.0.bias"]
    torch.save({**weights, "intruder": torch.ones(1)}, tmp_path / "w.pth")
    config = ModelConfig(backbone=toy_backbone, init="file", weights=str(tmp_path / "w.pth"))
    report = initialize(model(), config, seed=0)
    assert report.unexpected == ("intruder",) and report.missing == ("stem.0.bias",)
    assert "1 unexpected (intruder)" in str(report)


def test_counters_that_old_files_lack_are_not_missing(
    weights: Weights, toy_backbone: str, tmp_path: Path
) -> None:
    del weights["stem.1.num_batches_tracked"]
    torch.save(weights, tmp_path / "w.pth")
    config = ModelConfig(backbone=toy_backbone, init="file", weights=str(tmp_path / "w.pth"))
    report = initialize(network := model(), config, seed=0)
    assert report.missing == report.replaced == () and set(report.loaded) == set(weights)
    assert torch.equal(network.state_dict()["stem.1.weight"], weights["stem.1.weight"])


def test_a_file_larger_than_any_network_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    with open(file, "wb") as stream:
        stream.truncate(MAX_WEIGHTS_BYTES + 1)
    with pytest.raises(ValueError, match=f"{file} has {MAX_WEIGHTS_BYTES + 1} bytes, more than"):
        read_weights(str(file))


def test_memory_and_time_are_bounded(tmp_path: Path) -> None:
    """What would become gigabytes, in a process that may have little more than it has."""
    (tmp_path / "bomb").write_bytes(zip_bomb(GIB // 4))
    (tmp_path / "grows").write_bytes(grows("builtins"))
    (tmp_path / "header").write_bytes(giant_header())
    script = """
        import resource, sys, time
        from pathlib import Path
        from trainers.networks.weights.tensors import parse_pickle, parse_safetensors
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        for name, parse in (("bomb", parse_pickle), ("grows", parse_pickle),
                            ("header", parse_safetensors)):
            try:
                parse(Path(sys.argv[1], name).read_bytes(), name)
            except ValueError as error:
                print(error)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(after - before, time.process_time() - started)
    """
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (4 * GIB, 4 * GIB)),
    ).stdout.splitlines()
    *sentences, last = printed
    assert [sentence.split(":")[0] for sentence in sentences] == ["bomb", "grows", "header"]
    grown_kib, seconds = map(float, last.split())
    assert grown_kib < 100 * 1024 and seconds < 30


def run_with(tmp_path: Path, contents: dict[str, bytes], backbone: str, **facts: object) -> str:
    """A run folder with a checkpoint whose hashes fit, whatever is in it."""
    config = FinetuneConfig(data="d", out=str(tmp_path), model=ModelConfig(backbone=backbone))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    progress = TrainingProgress(
        epoch=1, global_step=7, val_top1=0.5, best_step=7, classes=("a", "b", "c")
    )
    checkpoint.save(str(tmp_path), contents, progress)
    place = tmp_path / "checkpoints" / "step-00000007" / "progress.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | facts))
    return str(tmp_path)


@pytest.fixture
def builds_toy(toy_backbone: str, monkeypatch: pytest.MonkeyPatch) -> str:
    from trainers.run import folder as run_folder

    monkeypatch.setattr(run_folder, "build", lambda *arguments: model())
    return toy_backbone


CHECKPOINTS = {
    "extra key": (lambda w: {**w, "intruder": torch.ones(1)}, "has 'intruder'"),
    "missing key": (lambda w: {k: v for k, v in w.items() if k != "fc.bias"}, r"lacks 'fc\.bias'"),
    "wrong shape": (lambda w: {**w, "fc.bias": torch.ones(9)}, r"fc\.bias has shape \(9,\)"),
    "NaN": (lambda w: {**w, "fc.bias": torch.full((3,), float("nan"))}, r"fc\.bias has values"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_of_another_network_is_refused(
    kind: str, weights: Weights, builds_toy: str, tmp_path: Path
) -> None:
    change, message = CHECKPOINTS[kind]
    content = safetensors.torch.save(change(weights))
    run = run_with(tmp_path, {"model.safetensors": content}, builds_toy)
    with pytest.raises(ValueError, match=rf"step-00000007.*{message}"):
        load_best_model(run)


def test_a_checkpoint_that_is_a_pickle_is_refused(
    builds_toy: str, weights: Weights, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    content = pickle.dumps(RunsCode(canary))
    run = run_with(tmp_path, {"model.safetensors": content}, builds_toy)
    with pytest.raises(ValueError, match=r"model\.safetensors: a pickle, not the safetensors"):
        load_best_model(run)
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "..", "a/b", "a\0b", "a\nb", "x" * 300, ""]
)
@pytest.mark.parametrize("field", ["files", "prefix"])
def test_a_checkpoint_names_files_beside_it_alone(
    name: str, field: str, builds_toy: str, weights: Weights, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    content = safetensors.torch.save(weights)
    facts = {"bytes": 1, "sha256": hashlib.sha256(b"").hexdigest()}
    value = {"files": {name: facts, "model.safetensors": facts}, "prefix": name}[field]
    run = run_with(tmp_path, {"model.safetensors": content}, builds_toy, **{field: value})
    with pytest.raises(ValueError, match="it has no whole checkpoint of an epoch"):
        load_best_model(run)
    assert "files or prefix is" in caplog.text and "no path" in caplog.text


def test_a_progress_of_another_step_is_passed_over(
    builds_toy: str, weights: Weights, tmp_path: Path
) -> None:
    content = safetensors.torch.save(weights)
    run = run_with(tmp_path, {"model.safetensors": content}, builds_toy, global_step=9)
    assert checkpoint.latest_progress(run) is None and checkpoint.read_latest(run) is None


@pytest.mark.parametrize(
    "name",
    [
        "step-",
        "step-x",
        "step-1",
        "step--0000001",
        "step-\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0661",
        "step-" + "9" * 30,
    ],
)
def test_another_folder_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoint.latest_progress(str(tmp_path)) is None


def test_what_fits_is_loaded(weights: Weights) -> None:
    network = model()
    load_weights(network, weights, "w")
    assert all(torch.equal(t, weights[n]) for n, t in network.state_dict().items())
    assert parse_pickle(saved(weights), "w").keys() == weights.keys()
    assert parse_safetensors(safetensors.torch.save(weights), "w").keys() == weights.keys()
