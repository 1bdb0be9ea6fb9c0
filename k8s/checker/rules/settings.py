"""Settings between objects, commands and clouds, as one table. Each row is a rule, and a value that
breaks it: tests put it into an overlay."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from k8s.checker.parts import (
    Part,
    Select,
    containers,
    dig,
    gpus_of,
    groups_of,
    is_of,
    objects,
    pods,
    ray_jobs,
)
from k8s.checker.quantities import parse_quantity
from k8s.checker.rule import Problem, rule

Path = tuple[str | int, ...]

COMPONENT = ("metadata", "labels", "app.kubernetes.io/component")
COMPONENTS = (
    *("admin", "setup", "storage", "files", "doctor", "prepare", "train", "sweep"),
    *("cluster", "serve", "cron"),
)
"""Labels by which the pages of k8s/ apply objects."""
ROLES = ("head", "worker", "submitter", "files")
RAY_KINDS = ("RayJob", "RayCluster", "RayCronJob")
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A rule about one field."""

    name: str
    select: Select
    """Parts whose field it is."""
    path: Path
    accepts: Callable[[Any], bool]
    message: str
    wrong: Any
    """A value that it must notice; None removes the field."""
    overlay: str = "base"
    """An overlay with such a part."""

    def check(self, part: Part) -> Iterator[Problem]:
        value = reach(part.value, self.path)
        if not self.accepts(value):
            yield ".".join(map(str, self.path)), f"is {value!r}: {self.message}"


def reach(value: Any, path: Path) -> Any:
    """The value at a path, None where a step is missing."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def only(select: Select, condition: Callable[[Part], bool]) -> Select:
    return lambda overlay: (part for part in select(overlay) if condition(part))


def is_ray_pod(pod: Part) -> bool:
    return any(is_of(pod, role) for role in ("head", "worker", "submitter"))


def is_own(part: Part) -> bool:
    return not part.overlay.is_shipped


def has_gpus(job: Part) -> bool:
    return any(gpus_of(group) for group in groups_of(job.at("rayClusterSpec")))


def shares_node(job: Part) -> bool:
    """Whether a claim keeps the pods of the job on one node."""
    claims = job.overlay.named("PersistentVolumeClaim").values()
    return any("ReadWriteMany" not in dig(claim, "spec.accessModes", []) for claim in claims)


def has_pods_with_gpus(pod: Part) -> bool:
    return is_of(pod, "worker") and bool(gpus_of(pod.up("worker")))


def is_beside_spot(pod: Part) -> bool:
    """Whether this is a head or submitter of a job whose workers are on spot nodes."""
    if not (is_of(pod, "head") or is_of(pod, "submitter")):
        return False
    cluster = pod.up("job").at("rayClusterSpec") if is_of(pod, "submitter") else pod.up("cluster")
    return any("spot" in str(dig(group.value, AFFINITY)) for group in groups_of(cluster))


AFFINITY = "template.spec.affinity.nodeAffinity"


def is_on_other_nodes(affinity: Any) -> bool:
    terms = dig(affinity, "requiredDuringSchedulingIgnoredDuringExecution", [])
    return any(term.get("topologyKey") == "kubernetes.io/hostname" for term in terms)


def are_soon(tolerations: Any) -> bool:
    soon = {
        item.get("key", "").rpartition("/")[2]
        for item in tolerations or ()
        if item.get("effect") == "NoExecute" and item.get("tolerationSeconds", 300) <= 60
    }
    return {"not-ready", "unreachable"} <= soon


def is_at_most(limit: float) -> Callable[[Any], bool]:
    return lambda value: value is not None and parse_quantity(value) <= limit


ray_pods = only(pods, is_ray_pod)
DISK = ("spec", "containers", 0, "resources", "requests", "ephemeral-storage")

SETTINGS = (
    Setting(
        name="object_is_applied",
        select=objects(),
        path=COMPONENT,
        accepts=lambda value: value in COMPONENTS,
        message=f"no `kubectl apply -l` of the pages applies it; use {', '.join(COMPONENTS)}",
        wrong=None,
        overlay="components/kueue",
    ),
    Setting(
        name="claim_is_kept",
        select=objects("PersistentVolumeClaim"),
        path=COMPONENT,
        accepts=lambda value: value == "storage",
        message="use storage, a label of its own, or taking down the setup deletes all data",
        wrong="setup",
    ),
    Setting(
        name="pod_has_role",
        select=pods,
        path=("metadata", "labels", "thaw/role"),
        accepts=lambda value: value in ROLES,
        message=f"no NetworkPolicy means this pod; use one of {', '.join(ROLES)}",
        wrong=None,
    ),
    Setting(
        name="submitter_tries_again",
        select=only(ray_jobs, lambda job: job.value.get("submissionMode") != "HTTPMode"),
        path=("submitterConfig", "backoffLimit"),
        accepts=lambda value: value is not None and value >= 10,
        message="a broken log stream ends a submitter, and the last one the job; use 50",
        wrong=2,
    ),
    *(
        Setting(
            name=f"pod_is_not_moved_by_{who}",
            select=ray_pods,
            path=("metadata", "annotations", annotation),
            accepts=lambda value, good=good: value == good,
            message=f'this pod is moved to save a node, and its work is lost; use "{good}"',
            wrong=None,
            overlay=overlay,
        )
        for who, annotation, good, overlay in (
            ("autoscaler", "cluster-autoscaler.kubernetes.io/safe-to-evict", "false", "base"),
            ("karpenter", "karpenter.sh/do-not-disrupt", "true", "cluster"),
        )
    ),
    Setting(
        name="lost_node_is_replaced",
        select=only(pods, lambda pod: is_of(pod, "head") or is_of(pod, "worker")),
        path=("spec", "tolerations"),
        accepts=are_soon,
        message="pods of a lost node are replaced after 5 minutes; tolerate not-ready and "
        "unreachable for 30 s",
        wrong=[],
    ),
    Setting(
        name="pod_fits_default_disk",
        select=only(ray_pods, lambda pod: not has_pods_with_gpus(pod)),
        path=DISK,
        accepts=is_at_most(12 * GIB),
        message="nodes have disks of 20 GiB by default, the image among it; use 12Gi or less",
        wrong="20Gi",
    ),
    Setting(
        name="gpu_pod_fits_disk",
        select=only(pods, has_pods_with_gpus),
        path=DISK,
        accepts=is_at_most(64 * GIB),
        message="pages ask for disks of 100 GiB on GPU nodes, the image among it; use 64Gi or less",
        wrong="200Gi",
        overlay="components/gpu",
    ),
    Setting(
        name="gpus_are_on_other_nodes",
        select=only(pods, has_pods_with_gpus),
        path=("spec", "affinity", "podAntiAffinity"),
        accepts=is_on_other_nodes,
        message="two pods of one node have no NVLink between them; keep them on different nodes, "
        "and give a pod all GPUs of its node (component gpu-node)",
        wrong=None,
        overlay="components/gpu",
    ),
    Setting(
        name="gpus_are_released",
        select=only(ray_jobs, has_gpus),
        path=("ttlSecondsAfterFinished",),
        accepts=lambda value: value is not None and value <= 120,
        message="GPUs idle for so long after each job; use 120 or less",
        wrong=600,
        overlay="components/gpu",
    ),
    Setting(
        name="next_job_fits",
        select=only(ray_jobs, shares_node),
        path=("ttlSecondsAfterFinished",),
        accepts=lambda value: value is not None and value <= 60,
        message="the next job waits so long for the node that this one keeps; use 60 or less",
        wrong=600,
        overlay="overlays/cpu-smoke",
    ),
    Setting(
        name="queue_suspends",
        select=only(
            objects(*RAY_KINDS),
            lambda part: KUEUE_QUEUE in dig(part.value, "metadata.labels", {}),
        ),
        path=("spec", "suspend"),
        accepts=lambda value: value is None,
        message="Kueue sets it itself, and a second `kubectl apply` would stop the running job; "
        "leave it out",
        wrong=True,
        overlay="components/kueue",
    ),
    Setting(
        name="head_avoids_spot",
        select=only(pods, is_beside_spot),
        path=("spec", "affinity", "nodeAffinity"),
        accepts=lambda value: "NotIn" in str(value),
        message="the workers are on spot nodes; keep head and submitter off them",
        wrong=None,
        overlay="components/spot",
    ),
    Setting(
        name="policy_leaves_others",
        select=only(
            objects("NetworkPolicy"),
            lambda part: any(item["kind"] in RAY_KINDS for item in part.overlay.objects),
        ),
        path=("spec", "podSelector"),
        accepts=bool,
        message="it would cut off all pods of a namespace that others use; select thaw/role",
        wrong={},
    ),
    Setting(
        name="image_is_pulled",
        select=only(containers, is_own),
        path=("image",),
        accepts=lambda value: "/" in str(value),
        message="no node has it and no registry; put `images:` with newName into the overlay",
        wrong="thaw:2.60.0-gpu",
        overlay="deploy/eks",
    ),
    Setting(
        name="storage_class_is_named",
        select=only(objects("PersistentVolumeClaim"), is_own),
        path=("spec", "storageClassName"),
        accepts=bool,
        message="few default classes let many nodes write; name one that does",
        wrong=None,
        overlay="deploy/eks",
    ),
    Setting(
        name="bucket_is_named",
        select=only(
            objects("ConfigMap"),
            lambda part: is_own(part) and "THAW_BUCKET" in part.value.get("data", {}),
        ),
        path=("data", "THAW_BUCKET"),
        accepts=lambda value: "YOUR-BUCKET" not in value,
        message="patch ConfigMap thaw-bucket with your bucket",
        wrong="s3://YOUR-BUCKET",
        overlay="deploy/gke",
    ),
)

for _setting in SETTINGS:
    rule(_setting.select, name=_setting.name)(_setting.check)
