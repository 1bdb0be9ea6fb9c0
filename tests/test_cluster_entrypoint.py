"""What is refused before anything is sent: secrets, size, paths, commands that are none."""

import ast
import base64
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from cluster import __main__ as cluster_main
from cluster.config import DoctorConfig, SubmitConfig
from cluster.entry import run_room
from cluster.jobs.config import LogsConfig
from cluster.jobs.entrypoint import check_command
from cluster.jobs.package import list_files, pack
from cluster.secrets import find_secret, refuse_secrets_in_files, refuse_secrets_in_words
from tests.conftest import ROOT

SECRET = "s3cr3t-" + "z" * 20
# Put together here, or this file would be refused.
TOKENS = {
    "an AWS access key": "AKIA" + "ABCDEFGHIJKLMNOP",
    "a Hugging Face token": "hf_" + "a1" * 17,
    "a GitHub token": "ghp_" + "b2" * 18,
    "a Google API key": "AIza" + "c3d" * 11 + "e4",
    "a Slack token": "xoxb-" + "5" * 24,
    "a private key": f"-----BEGIN {'PRIVATE'} KEY-----\n" + "M" * 64,
}


def submit(*words: str) -> None:
    """Run `python -m cluster submit ...` to where it would connect."""
    cluster_main.main(["submit", "--address", "http://127.0.0.1:1", *words])


@pytest.mark.parametrize(
    "word",
    [
        "--project=" + TOKENS["a Hugging Face token"],
        "WANDB_API_KEY=" + "0" * 40,
        "--api-key=abc",
        "https://me:" + "hush@host/x",
        f"--group=before-{SECRET}-after",
    ],
)
def test_a_secret_in_the_command_is_refused_and_not_repeated(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUCKET_PASSWORD", SECRET)
    with pytest.raises(
        ValueError, match=r"command: word 4 .*which anyone could read; give secrets"
    ) as told:
        submit("--", "python", "-m", "tuning", word)

    assert word not in str(told.value)
    value = word.rpartition("=")[2]
    with pytest.raises(ValueError, match=r"env(: word 1| holds credentials)"):
        submit("--env", f"THE_KEY={value}", "--", "python", "-m", "tuning")


@pytest.mark.parametrize("kind", TOKENS)
def test_a_secret_in_a_file_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tuning").mkdir()
    file = tmp_path / "tuning" / "notes.py"
    file.write_text(f"# {TOKENS[kind]}\n")
    with pytest.raises(ValueError, match=f"tuning/notes.py holds {kind}; take it out") as told:
        refuse_secrets_in_files(list_files(tmp_path), tmp_path, {})
    assert TOKENS[kind] not in str(told.value)

    file.write_text(SECRET)
    refuse_secrets_in_files([file], tmp_path, {})
    with pytest.raises(ValueError, match="holds the value of WANDB_API_KEY"):
        refuse_secrets_in_files([file], tmp_path, {"WANDB_API_KEY": SECRET})


def test_a_word_of_our_code_is_no_secret_in_it(tmp_path: Path) -> None:
    known = {"MYSQL_PASSWORD": "password", "SORT_KEY": "mobilenet_v2"}
    file = tmp_path / "code.py"
    file.write_text("password = None")
    refuse_secrets_in_files([file], tmp_path, known)
    refuse_secrets_in_words(["--out", "s3://bucket/password-cars"], "command", known)
    for word in ("password", "--group=password"):
        with pytest.raises(ValueError, match="holds the value of MYSQL_PASSWORD"):
            refuse_secrets_in_words([word], "command", known)
    file.write_text("mobilenet_v2")  # has a digit
    with pytest.raises(ValueError, match=r"SORT_KEY; take it out .* no secret, unset the variable"):
        refuse_secrets_in_files([file], tmp_path, known)


def test_files_of_editors_are_left_out_and_links_to_nothing_named(tmp_path: Path) -> None:
    """As Ray does with `ray job submit --working-dir .`, by .rayignore."""
    from ray._private.runtime_env.packaging import create_package

    shutil.copy(ROOT / ".rayignore", tmp_path)
    room = tmp_path / "cluster"
    (room / ".git").mkdir(parents=True)
    for name in ("a.py", ".a.py.swp", ".x", ".git/c"):
        (room / name).write_text(name)
    (room / ".#config.py").symlink_to("me@host.1:2")
    assert list_files(tmp_path) == [room / "a.py"]
    refuse_secrets_in_files(list_files(tmp_path), tmp_path, {})
    create_package(str(tmp_path), tmp_path / "rays.zip", include_gitignore=True)
    assert zipfile.ZipFile(tmp_path / "rays.zip").namelist() == ["cluster/a.py"]

    (room / "b.py").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"cluster/b\.py is no file, or a link to nothing; delete"):
        list_files(tmp_path)
    (room / "b.py").unlink()
    with pytest.raises(ValueError, match=r"b\.py' can't be read \(No such file"):
        refuse_secrets_in_files([room / "b.py"], tmp_path, {})


def test_words_that_only_look_like_secrets_pass() -> None:
    words = "python -m tuning --data s3://bucket/cars --seed 3 --monkey=1 --learning-rates 1e-3"
    refuse_secrets_in_words(words.split(), "command", {"A_KEY": "tuning", "PATH": "s3://bucket"})
    assert find_secret(base64.b64encode(os.urandom(3)) + b"d" * 40, {}) is None


def test_this_folder_holds_no_secret_and_is_what_ray_would_send(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    refuse_secrets_in_files(list_files(), ROOT, {})
    package = pack(tmp_path / "ours.zip", max_mib=16)
    create_package(str(ROOT), tmp_path / "rays.zip", include_gitignore=True)

    with zipfile.ZipFile(package.path) as ours, zipfile.ZipFile(tmp_path / "rays.zip") as rays:
        names = set(ours.namelist())
        assert names == {name for name in rays.namelist() if not name.endswith("/")}
        assert (
            ours.read("cluster/jobs/package.py") == (ROOT / "cluster/jobs/package.py").read_bytes()
        )
    assert {name.split("/")[0] for name in names} == {
        "cluster", "datasets", "trainers", "tuning",
    }  # fmt: skip


def test_the_same_files_make_the_same_package(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "tuning" / "runs").mkdir(parents=True)
    (root / "runs").mkdir()
    (root / "tuning" / ".git").mkdir()
    (root / "tuning" / "wandb").mkdir()
    for name in ("tuning/a.py", "tuning/runs/b", "tuning/.git/c", "runs/d", "tuning/wandb/e.py"):
        (root / name).write_text(name)
    first = pack(tmp_path / "1.zip", root=root, max_mib=1)
    os.utime(root / "tuning" / "a.py", (1, 1))
    second = pack(tmp_path / "2.zip", root=root, max_mib=1)

    assert first.path.read_bytes() == second.path.read_bytes()
    assert zipfile.ZipFile(first.path).namelist() == ["tuning/a.py", "tuning/wandb/e.py"]


def test_a_folder_too_large_is_refused_with_its_largest_files(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "weights.bin").write_bytes(os.urandom(3 * 2**20))
    (tmp_path / "datasets" / "small.py").touch()
    with pytest.raises(ValueError, match=r"max_mib is 2: .* datasets/weights\.bin \(3\.0 MiB\)"):
        pack(tmp_path / "thaw.zip", root=tmp_path, max_mib=2)
    with pytest.raises(ValueError, match="none of cluster, datasets"):
        pack(tmp_path / "thaw.zip", root=tmp_path / "datasets", max_mib=2)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("", "command is '': submit one of Thaw's"),
        ("rm -rf /", "submit one of Thaw's"),
        ("python train.py --data /d", "submit one of Thaw's"),
        (
            "python -m tuning --data /d --out /o --backbones lenet5=w.pth",
            "model.weights is 'w.pth': a job runs in a folder that is thrown away",
        ),
        (
            "python -m tuning --data /d --out /o --axis model.weights /a.pth b.pth",
            "model.weights is 'b.pth'",
        ),
        ("python -m http.server --bind 0", r"command is `python -m http\.server`: choose from"),
        ("python -m tuning", "say what it should do"),
        (
            "python -m tuning --data cars --out /o",
            "base.data is 'cars': .* give --data an absolute",
        ),
        ("python -m tuning --data /nfs/cars", "out is 'runs/sweep': a job runs in a folder that"),
        ("python -m tuning --data /d --out=~/o", "command has '--out=~/o': ~ is another folder"),
        ("python -m tuning --data /d --out /o --cache c", "cache is 'c'"),
        ("python -m tuning --from-advice runs/a --out /o", "from_advice is 'runs/a'"),
        ("python -m trainers --data /d --out /o --init file --weights w.pth", "model.weights is"),
        ("python -m trainers evaluate --run runs/a", "run is 'runs/a'"),
        ("python -m trainers trnsfer --data /d", "recipe is 'trnsfer': choose from"),
        ("python -m datasets prepare --source folder --root photos --out /o", "root is 'photos'"),
        ("python -m trainers evaluate --run /r --hierarchy l.csv", "hierarchy is 'l.csv'"),
        (
            "python -m trainers predict --images /i --run /r --out /o --hierarchy a/l.csv",
            "hierarchy is 'a/",
        ),
        ("python -m tuning advise --data /d --out /o --backbones lenet5=w.pth@half", "is 'w.pth'"),
        ("python -m tuning demo --out /o --weights w.pth", "weights is 'w.pth'"),
        ("python -m cluster check-k8s k8s/base", "a job has no k8s/, .* run it here"),
        ("python -m cluster doctor --out runs/x", "out is 'runs/x'"),
        ("python -m cluster fly", "verb is 'fly'"),
    ],
)
def test_commands_that_would_fail_are_refused_before_anything_is_sent(
    command: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        submit("--", *command.split())


@pytest.mark.parametrize(
    "command",
    [
        "python -m tuning --data s3://bucket/cars --out s3://bucket/sweep",
        "python3.11 -m tuning transfer --from-advice /nfs/advice --out /nfs/sweep",
        "python -m trainers staged --data /nfs/cars --out /nfs/run --num-workers 2",
        "python -m datasets prepare --source synthetic --out /nfs/cars",
        "python -m tuning --data /nfs/cars --out /nfs/sweep --quiet",
        "python -m cluster doctor --out s3://bucket/sweep",
        "python -m trainers evaluate --run /r --hierarchy names",
        "python -m trainers evaluate --run /r --hierarchy s3://bucket/levels.csv",
        "python -m tuning advise --data /d --out /o --backbones lenet5=/w.pth@half resnet50=he all",
    ],
)
def test_commands_that_mean_the_same_anywhere_pass(command: str) -> None:
    assert check_command(command.split()) is not None


def test_a_word_its_room_does_not_know_is_told_by_the_room(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        submit("--", "python", "-m", "tuning", "--data", "/d", "--learning-rat", "1")

    assert stopped.value.code == 2 and "learning-rat" in capsys.readouterr().err


def test_every_field_that_holds_a_uri_says_so() -> None:
    """`submit` looks at the fields marked as URI; `URI of` or Run folder is in docstrings there."""
    found = dict[str, str]()
    for room in ("cluster", "datasets", "trainers", "tuning"):
        for file in (ROOT / room).rglob("*.py"):
            for config in ast.walk(ast.parse(file.read_text())):
                if isinstance(config, ast.ClassDef) and (
                    config.name.endswith(("Config", "Verb")) or config.name == "Command"
                ):
                    found |= uri_fields(config)
    assert {"data", "out", "run", "weights"} <= {name.partition(".")[2] for name in found}
    assert all(hint.startswith("Annotated[") and ", URI" in hint for hint in found.values()), found


def uri_fields(config: ast.ClassDef) -> dict[str, str]:
    """Names of the fields described as URIs, with their annotations."""
    names = {}
    for field, docstring in zip(config.body, config.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(docstring, ast.Expr):
            assert isinstance(field.target, ast.Name)
            if re.search("URI of|Run folder|State dict", ast.literal_eval(docstring.value)):
                names[f"{config.name}.{field.target.id}"] = ast.unparse(field.annotation)
    return names


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--max-mib", "0"], "max_mib is 0.0"),
        (["--max-mib", "600"], "max_mib is 600.0"),
        (["--reconnect-s", "nan"], "reconnect_s is nan"),
        (["--submission-id", "a b"], "submission_id is 'a b'"),
        (["--env", "novalue"], "env: word 1 is not NAME=VALUE; write one"),
    ],
)
def test_options_name_field_value_and_remedy(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cluster_main.parse(["submit", *options, "--", "python", "-m", "tuning"])

    assert stopped.value.code == 2
    assert sentence in re.sub(r"[│\s]+", " ", capsys.readouterr().err)  # tyro puts it into a box


@pytest.mark.parametrize("address", ["head:6379", "ray://head:10001"])
def test_the_job_server_has_a_url(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cluster", "status", "--address", address])
    with pytest.raises(SystemExit) as stopped:
        run_room(cluster_main.main)

    assert stopped.value.code == 2
    assert f"error: address is '{address}': the job server has a URL" in capsys.readouterr().err


def test_verbs_parse() -> None:
    submission = cluster_main.parse(["submit", "--no-wait", "--", "python", "-m", "tuning"])
    assert submission.config == SubmitConfig(wait=False)
    assert submission.command == ("python", "-m", "tuning")
    assert cluster_main.parse(["logs", "job", "--follow"]) == LogsConfig(job="job", follow=True)
    assert cluster_main.parse(["doctor", "--json"]) == DoctorConfig(json=True)


@pytest.mark.parametrize("verb", cluster_main.VERBS)
def test_help_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cluster_main.main([verb, "--help"])
    assert f"python -m cluster {verb}" in capsys.readouterr().out

    cluster_main.main([])
    assert verb in capsys.readouterr().out
