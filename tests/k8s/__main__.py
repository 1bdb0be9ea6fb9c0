"""python -m tests.k8s [FOLDER ...]: build every overlay of k8s/, or at and below other folders,
judge it by every rule, print what is wrong."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.k8s import crds
from tests.k8s.checker import RULES, check, needs_missing_crds
from tests.k8s.overlays import build, find_overlays, list_overlays


def main(folders: Sequence[str] = ()) -> int:
    overlays = [build(name) for name in list_overlays()]
    for place in map(Path, folders):
        names = find_overlays(place)
        if not names:
            print(f"{place}: no kustomization.yaml there or below", file=sys.stderr)
            return 2
        built = [build(name, place) for name in names]
        overlays += [replace(overlay, name=f"{place / overlay.name}") for overlay in built]
    left_out = needs_missing_crds()
    findings = [finding for overlay in overlays for finding in check(overlay)]
    for item in findings:
        print(f"{item.overlay}  {item.kind} {item.name}  {item.rule} ({RULES[item.rule].source})")
        print(f"    {item.path}: {item.message}")
    num_objects = sum(len(overlay.objects) for overlay in overlays)
    num_rules = len(RULES) - len(left_out)
    print(
        f"{len(overlays)} overlays, {num_objects} objects, {num_rules} rules: "
        f"{len(findings) or 'no'} finding{'s' * (len(findings) != 1)}"
    )
    if left_out:
        print(f"left out: {', '.join(left_out)}, for {crds.CRD_FOLDER} is not there")
    must_not_skip = bool(os.environ.get("THAW_REQUIRE_SHARED")) and left_out
    return 1 if findings or must_not_skip else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
