"""Fetch the wheels of wheels.txt: python -m tests.bench.gpu.wheels --python 3.12 --out wheels.

Here, with a registry. On the machine with the GPU, in the same checkout:

  python3 -m pip install --no-index --no-deps --target site wheels/*.whl
  PYTHONPATH=site python3 -m tests.bench.gpu
"""

import argparse
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIST = Path(__file__).with_name("wheels.txt")
MAX_MIB = 60
PLATFORMS = ("2_39", "2_35", "2_34", "2_31", "2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
_LINE = re.compile(r"(?P<requirement>\S+)(?:\s+#\s*without: (?P<without>.+))?")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A line of wheels.txt."""

    name: str
    requirement: str
    without: tuple[str, ...] = ()
    """Paths to leave out of the wheel; `data` is a wheel's folder of data files."""


def read_wanted(text: str) -> list[Wanted]:
    """Parse wheels.txt."""
    wanted = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        assert match is not None, f"wheels.txt: {line!r} is no NAME[==VERSION] [# without: ...]"
        requirement = match["requirement"]
        without = tuple((match["without"] or "").split())
        name = requirement.partition("==")[0]
        wanted.append(Wanted(name=name, requirement=requirement, without=without))
    return wanted


def pin(wanted: Wanted) -> str:
    """The version named, else the one installed here, else the newest."""
    if wanted.requirement != wanted.name:
        return wanted.requirement
    try:
        return f"{wanted.name}=={version(wanted.name)}"
    except PackageNotFoundError:
        return wanted.name


def strip_wheel(wheel: Path, without: tuple[str, ...]) -> None:
    """Leave paths out of a wheel, and out of its RECORD."""
    stripped = wheel.with_suffix(".stripped")

    def is_kept(name: str) -> bool:
        inside = re.sub(r"^[^/]+\.data/", "", name)
        is_data = "data" in without and inside != name
        return not is_data and not any(f"{name}/".startswith(f"{path}/") for path in without)

    with (
        zipfile.ZipFile(wheel) as source,
        zipfile.ZipFile(stripped, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target,
    ):
        for info in source.infolist():
            if not is_kept(info.filename):
                continue
            content = source.read(info)
            if info.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines()
                kept = (line for line in lines if is_kept(line.split(",")[0].strip('"')))
                content = "".join(f"{line}\n" for line in kept).encode()
            target.writestr(info, content, zipfile.ZIP_DEFLATED, 9)
    stripped.replace(wheel)


def fetch(out: Path, python: str) -> float:
    """Download and strip the wheels; return their size in MiB."""
    wanted = read_wanted(LIST.read_text())
    platforms = [f"--platform=manylinux_{glibc}_x86_64" for glibc in PLATFORMS]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--only-binary=:all:", "--implementation=cp",
            f"--python-version={python}", *platforms, "--dest", str(out), *map(pin, wanted),
        ],
        check=True,
    )  # fmt: skip
    for one in wanted:
        (wheel,) = out.glob(f"{re.sub('[-.]', '_', one.name)}-[0-9]*.whl")
        if one.without:
            strip_wheel(wheel, one.without)
    return sum(file.stat().st_size for file in out.glob("*.whl")) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="an empty or new folder")
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    options = parser.parse_args()
    if options.out.is_dir() and any(options.out.iterdir()):
        raise SystemExit(f"error: out is {str(options.out)!r}: it is not empty; give a new folder")
    mib = fetch(options.out, options.python)
    print(f"{len(list(options.out.glob('*.whl')))} wheels, {mib:.1f} MiB of at most {MAX_MIB}")
    if mib > MAX_MIB:
        raise SystemExit("error: they are too large; leave out more in wheels.txt")


if __name__ == "__main__":
    main()
