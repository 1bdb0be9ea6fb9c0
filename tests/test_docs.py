"""README and docs/: commands parse, options and links exist, sample outputs are those printed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cluster.__main__ as cluster_main
import datasets.__main__ as datasets_main
import trainers.__main__ as trainers_main
import tuning.__main__ as tuning_main
import tuning.commands
from cluster.io.errors import UserError
from datasets.manifest_file import read_manifest
from k8s.checker.judge import RULES
from k8s.checker.overlays import list_overlays
from tests.conftest import ROOT
from tests.test_house_hostile_configs import DOORS, leaves
from trainers.run.folder import read_result
from tuning.point import AXES
from tuning.record.leaderboard import COLUMNS
from tuning.record.record import SweepRecord

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_README_LINES = 200
MAX_WIDTH = 100
PARSE = {
    "cluster": cluster_main.parse,
    "datasets": datasets_main.parse,
    "trainers": trainers_main.parse,
    "tuning": tuning_main.parse,
}


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a language; "" is the language of sample outputs."""
    pairs = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [content for found, content in pairs if found == language]


def commands() -> list[str]:
    """Every `python -m ROOM ...` of the pages, continuation lines joined. A command that is an
    argument of another command is listed too."""
    text = "".join(block for page in PAGES for block in blocks(page, "bash"))
    lines = text.replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split(" -- ")]
    return sorted({part for part in parts if re.search(r"python -m (?!tests)", part)})


@pytest.mark.parametrize("command", commands())
def test_a_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real command lines, which exit with 2 at an unknown word."""
    if "--from-advice" in command:  # whose folder is not there
        monkeypatch.setattr(tuning.commands, "parse_sweep", tuning.commands.parse_without_advice)
    words = shlex.split(command, comments=True)
    room, arguments = words[words.index("-m") + 1], words[words.index("-m") + 2 :]

    assert PARSE[room](arguments) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_targets_and_links_exist(page: Path) -> None:
    text = page.read_text()
    fields = {path.rpartition(".")[2] for door in DOORS for path, _ in leaves(door.config)}
    options = {f"--{name.replace('_', '-')}" for name in fields} | {"--help", "--quiet"}
    options |= {f"--no-{option[2:]}" for option in options}
    makefile = (ROOT / "Makefile").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)

    used = set(re.findall(r"`(--[a-z0-9-]+)", text)) - NOT_OURS
    assert used <= options, used - options
    for target in re.findall(r"(?:`|^)make ([a-z0-9-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in links:
        assert (page.parent / link).exists(), link


NOT_OURS = {"--working-dir", "--build-arg"}
"""Options of `ray job submit` and of `docker build`."""


def test_readme_is_short() -> None:
    lines = README.read_text().splitlines()

    assert len(lines) <= MAX_README_LINES
    assert [line for line in lines if len(line) > MAX_WIDTH and "](" not in line] == []


def test_every_page_is_in_the_index_of_readme() -> None:
    index = README.read_text().partition("## Documentation")[2]

    assert [page.name for page in PAGES[2:] if f"(docs/{page.name})" not in index] == []


def test_readme_lists_every_sub_package() -> None:
    tree = README.read_text().partition("## Where things are")[2].partition("\n## ")[0]
    rooms = ("cluster", "datasets", "trainers", "tuning")
    packages = [file.parent.name for room in rooms for file in ROOT.glob(f"{room}/*/__init__.py")]

    assert [name for name in packages if f" {name}/ " not in tree] == []


def test_the_leaderboard_of_the_pages_has_the_columns_of_a_sweep() -> None:
    tables = [
        line.split()
        for page in (README, ROOT / "docs" / "sweeps.md")
        for line in page.read_text().splitlines()
        if line.startswith("rank ")
    ]

    columns = ["rank", *AXES.values(), *COLUMNS]
    assert tables == [columns, [*columns, "trial"]]


def test_errors_of_the_pages_are_those_raised() -> None:
    shown = re.search(
        r"^\$ python -m trainers (.*)\nerror: (.*)$",
        (ROOT / "docs" / "reliability.md").read_text(),
        re.MULTILINE,
    )
    assert shown
    with pytest.raises(UserError, match=f"^{re.escape(shown[2])}$"):
        trainers_main.parse(shown[1].split())


def test_the_counts_of_check_k8s_are_those_of_the_page() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()

    assert re.search(
        rf"^{len(list_overlays())} overlays, \d+ objects, {len(RULES)} rules: no",
        text,
        re.MULTILINE,
    )


@pytest.mark.ray
def test_prepare_prints_the_line_of_readme(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cars"
    arguments = "--num-classes 2 --train-per-class 8 --test-per-class 2 --render-px 48"
    datasets_main.main(["prepare", "--source", "synthetic", "--out", str(out), *arguments.split()])

    (shown,) = [
        line for block in blocks(README, "") for line in block.splitlines() if "train," in line
    ]
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    pattern = re.sub(r"\d+", r"\\d+", re.escape(shown)).replace("runs/cars", re.escape(str(out)))
    assert re.fullmatch(pattern, printed), (shown, printed)


@pytest.mark.slow
def test_the_python_of_the_docs_runs(own_ray: dict[str, str], tmp_path: Path) -> None:
    """All code of docs/python-api.md as one script, in the order of the page."""
    script = tmp_path / "script.py"
    code = [*blocks(ROOT / "docs" / "python-api.md", "python"), "print(len(predictions.label_N))"]
    script.write_text("\n".join(code))
    variables = {**os.environ, **own_ray, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=550,
    )  # fmt: skip

    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.endswith("\n12\n"), run.stdout
    runs = tmp_path / "runs"
    assert read_manifest(str(runs / "cars")).split("test").num_images == 12
    assert read_result(str(runs / "mine"))["epochs"] == 2
    assert len(SweepRecord.read(str(runs / "sweep")).trials) == 2
    assert (runs / "sweep" / "review.html").stat().st_size > 1_000_000
