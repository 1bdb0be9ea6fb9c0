"""Nodes with GPUs: whether their torch has CUDA, and their driver is new enough for it."""

import importlib.util
import re
from pathlib import Path

from cluster.doctor.checks import LOOK_AT_NODE, separate
from cluster.doctor.nodes import Node, Replies
from cluster.doctor.results import CheckResult, fail, group, ok

DRIVER = Path("/proc/driver/nvidia/version")
OLDEST_DRIVER = {"11": 450, "12": 525, "13": 580}
"""Major version of CUDA -> the driver that it needs (NVIDIA, CUDA Compatibility, table 2)."""


def find_cuda() -> tuple[str | None, str | None]:
    """Return the CUDA of this node's torch, and the version of its driver; torch is not imported,
    since Ray hides the GPUs from a process that did not ask for one."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    text = file.read_text() if file is not None and file.is_file() else ""
    cuda = re.search(r"^cuda\b[^=]*= '([\d.]+)'", text, re.MULTILINE)
    driver = re.search(r"Module .*?(\d+(?:\.\d+)+)", DRIVER.read_text() if DRIVER.exists() else "")
    return cuda and cuda[1], driver and driver[1]


def judge_gpus(answers: Replies, nodes: list[Node]) -> list[CheckResult]:
    """Judge the nodes with GPUs; there may be none, and then there is no line."""
    with_gpus = {node.name for node in nodes if node.resources.get("GPU")}
    asked = {node: answer for node, answer in answers.items() if node in with_gpus}
    good, findings = separate("gpus", asked, LOOK_AT_NODE)
    without = [node for node, (cuda, _) in good.items() if cuda is None]
    if without:
        remedy = "use the image with CUDA there (build argument DEVICE=gpu)"
        findings.append(fail("gpus", "torch has no CUDA, and the node has GPUs", remedy, without))
    old = {}
    for node, (cuda, driver) in good.items():
        oldest = OLDEST_DRIVER.get((cuda or "").partition(".")[0], 0)
        if driver is not None and int(driver.partition(".")[0]) < oldest:
            old[node] = f"driver {driver} is too old for CUDA {cuda}, which needs {oldest}"
    remedy = "install a newer driver, or build the image for an older CUDA (CUDA=cu126)"
    findings += [fail("gpus", text, remedy, where) for text, where in group(old).items()]
    if good and not findings:
        cudas, drivers = (sorted({of[i] or "unknown" for of in good.values()}) for i in (0, 1))
        text = f"CUDA {', '.join(cudas)}, driver {', '.join(drivers)}"
        findings.append(ok("gpus", f"{text}, on {len(good)} node{'s' * (len(good) > 1)}"))
    return findings
