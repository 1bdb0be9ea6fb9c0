"""Build overlays, judge them by every rule, print what is wrong.

`python -m cluster check-k8s --json` prints one object:

    schema_version  1; it changes when a field goes or gets another meaning
    ok              whether no rule found anything
    crds            folder of KubeRay's CRDs
    num_rules       how many rules judged
    overlays        name -> number of objects that were judged
    not_judged      list of sentences: kinds of other operators, without a schema here
    findings        list of objects: overlay, kind, name, path, rule, source, message

Exit code 0: no findings. 1: findings. 2: the command is wrong, or an overlay does not build.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from cluster.io.errors import require
from cluster.io.json_output import print_json
from cluster.manifests import CheckK8sConfig
from k8s.checker import crds
from k8s.checker.judge import RULES, check
from k8s.checker.overlays import (
    Overlay,
    build,
    find_overlays,
    list_overlays,
    overlay_of,
    read_objects,
)
from k8s.checker.rule import Finding


def run(config: CheckK8sConfig) -> None:
    """Raises SystemExit with 1 where a rule finds something."""
    if config.crds is not None:
        crds.FOLDERS[:] = [Path(config.crds)]
    crds.find_folder()  # before anything is built
    overlays = list(build_all(config.paths))
    findings = [finding for overlay in overlays for finding in check(overlay)]
    (print_object if config.json else print_lines)(overlays, findings)
    if findings:
        raise SystemExit(1)


def build_all(paths: Sequence[str]) -> Iterator[Overlay]:
    if not paths:
        yield from map(build, list_overlays())
    for path in map(Path, paths):
        require(path.exists(), "path", str(path), "there is no such file or folder")
        if path.is_file():
            yield overlay_of(name=str(path), objects=read_objects(path))
            continue
        names = find_overlays(path)
        require(
            bool(names),
            "path",
            str(path),
            "no kustomization.yaml is in it or below; to check other YAML, give the files",
        )
        yield from (build(name, path) for name in names)


def print_lines(overlays: Sequence[Overlay], findings: Sequence[Finding]) -> None:
    alike: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for item in findings:
        alike[item.overlay, item.rule, item.message].append(item)
    for (overlay, name, message), (item, *more) in alike.items():
        print(f"{overlay}  {item.kind} {item.name}  {name} ({RULES[name].source})")
        print(f"    {item.path}: {message}")
        if more:
            print(f"    and at {len(more)} other places, such as {more[-1].kind} {more[-1].name}")
    for line in describe_others(overlays):
        print(f"not judged, as this checker has no schema: {line}")
    num_objects = sum(len(overlay.objects) for overlay in overlays)
    print(
        f"{len(overlays)} overlays, {num_objects} objects, {len(RULES)} rules: "
        f"{len(findings) or 'no'} finding{'s' * (len(findings) != 1)}"
    )


def describe_others(overlays: Sequence[Overlay]) -> list[str]:
    """Write which kinds of other operators no rule knows."""
    kinds = Counter(
        f"{item['kind']} of {item.get('apiVersion')}"
        for overlay in overlays
        for item in overlay.others
    )
    return [f"{kind} ({count} objects)" for kind, count in sorted(kinds.items())]


def print_object(overlays: Sequence[Overlay], findings: Sequence[Finding]) -> None:
    found = [{**asdict(item), "source": RULES[item.rule].source} for item in findings]
    report = {
        "schema_version": 1,
        "ok": not findings,
        "crds": str(crds.find_folder()),
        "num_rules": len(RULES),
        "overlays": {overlay.name: len(overlay.objects) for overlay in overlays},
        "not_judged": describe_others(overlays),
        "findings": found,
    }
    print_json(report)
