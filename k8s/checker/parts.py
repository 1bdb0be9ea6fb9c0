"""The parts of an overlay that rules look at: objects, Ray jobs and clusters, pods, containers.

Pods and containers include those that nobody wrote: the submitter that the operator starts for a
RayJob, and the autoscaler beside the head. Paths begin at the object.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from k8s.checker.overlays import Object, Overlay

Select = Callable[[Overlay], Iterator["Part"]]

TEMPLATES = {
    "Pod": "",
    "Deployment": "spec.template",
    "StatefulSet": "spec.template",
    "DaemonSet": "spec.template",
    "Job": "spec.template",
    "CronJob": "spec.jobTemplate.spec.template",
}
"""Where Kubernetes' own kinds have their pod; a Pod is its own template."""
CONTAINER_LISTS = {
    "containers": "container",
    "initContainers": "init",
    "ephemeralContainers": "ephemeral",
}
RAY_CONTAINER = 0
"""KubeRay runs Ray in the first container of a pod."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of an object, and its path."""

    overlay: Overlay
    owner: Object
    path: str
    value: dict[str, Any]
    role: str = ""
    """head, worker, submitter, pod; container, init, ephemeral, autoscaler."""
    within: "Part | None" = field(default=None, repr=False)

    def at(self, path: str, *, role: str = "", value: dict[str, Any] | None = None) -> "Part":
        """The part below this one, with the value there or `value`."""
        found = dig(self.value, path) if value is None else value
        return Part(
            overlay=self.overlay,
            owner=self.owner,
            path=join(self.path, path),
            value=found if isinstance(found, dict) else {},
            role=role,
            within=self,
        )

    def up(self, role: str) -> "Part":
        """The nearest part around this one that has a role."""
        part = self
        while part.role != role:
            assert part.within is not None, f"{self.path} is in no {role}"
            part = part.within
        return part


def dig(value: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path, or `default` if a step is missing or null."""
    for step in path.split(".") if path else ():
        if not isinstance(value, dict) or value.get(step) is None:
            return default
        value = value[step]
    return value


def join(path: str, below: str) -> str:
    """Join two paths; an index needs no dot."""
    if not path or not below:
        return path or below
    return f"{path}{below}" if below.startswith("[") else f"{path}.{below}"


def items(part: Part, path: str, *, role: str) -> Iterator[Part]:
    """The parts of a list below this one."""
    found = dig(part.value, path, [])
    for index, value in enumerate(found if isinstance(found, list) else []):
        yield part.at(f"{path}[{index}]", role=role, value=value)


def objects(*kinds: str) -> Select:
    """Select whole objects, of all kinds where none is given."""

    def select(overlay: Overlay) -> Iterator[Part]:
        for item in overlay.objects:
            if not kinds or item.get("kind") in kinds:
                yield Part(overlay=overlay, owner=item, path="", value=item, role="object")

    return select


def ray_jobs(overlay: Overlay) -> Iterator[Part]:
    """Specs of RayJobs, also those that a RayCronJob makes."""
    for item in objects("RayJob", "RayCronJob")(overlay):
        path = "spec" if item.owner["kind"] == "RayJob" else "spec.jobTemplate"
        yield item.at(path, role="job")


def ray_clusters(overlay: Overlay) -> Iterator[Part]:
    """Specs of Ray clusters, also those that a job or service makes."""
    for job in ray_jobs(overlay):
        if dig(job.value, "rayClusterSpec") is not None:
            yield job.at("rayClusterSpec", role="cluster")
    for item in objects("RayCluster")(overlay):
        yield item.at("spec", role="cluster")
    for item in objects("RayService")(overlay):
        yield item.at("spec.rayClusterConfig", role="cluster")


def ray_groups(overlay: Overlay) -> Iterator[Part]:
    """Head groups and worker groups."""
    for cluster in ray_clusters(overlay):
        yield from groups_of(cluster)


def groups_of(cluster: Part) -> Iterator[Part]:
    yield cluster.at("headGroupSpec", role="head")
    yield from items(cluster, "workerGroupSpecs", role="worker")


def gpus_of(group: Part) -> int:
    """GPUs of one pod of a group."""
    first = (dig(group.value, "template.spec.containers") or [{}])[RAY_CONTAINER]
    limits = dig(first, "resources.limits", {})
    return sum(int(value) for name, value in limits.items() if name.endswith("gpu"))


def pods(overlay: Overlay) -> Iterator[Part]:
    """Pod templates: Ray's head and workers, the job's submitter, Kubernetes' own."""
    for group in ray_groups(overlay):
        yield group.at("template", role="pod")
    for job in ray_jobs(overlay):
        if dig(job.value, "submissionMode", "K8sJobMode") == "K8sJobMode":
            template = dig(job.value, "submitterPodTemplate") or default_submitter(job)
            submitter = job.at("submitterPodTemplate", role="submitter", value=template)
            yield submitter.at("", role="pod")
    for item in objects(*TEMPLATES)(overlay):
        yield item.at(TEMPLATES[item.owner["kind"]], role="pod")


def containers(overlay: Overlay) -> Iterator[Part]:
    """Containers of all pods, init containers and injected ones too."""
    for pod in pods(overlay):
        for name, role in CONTAINER_LISTS.items():
            yield from items(pod, f"spec.{name}", role=role)
        if is_of(pod, "head"):
            yield from injected_in_head(pod.up("cluster"), pod)


def ray_containers(overlay: Overlay) -> Iterator[Part]:
    """The containers that run Ray: the first of the head and of each worker group."""
    for container in containers(overlay):
        if container.role == "container" and container.path.endswith(f"[{RAY_CONTAINER}]"):
            pod = container.up("pod")
            if is_of(pod, "head") or is_of(pod, "worker"):
                yield container


def is_of(pod: Part, role: str) -> bool:
    """Whether a pod is a head's, a worker's or a submitter's."""
    return pod.within is not None and pod.within.role == role


def ray_image(cluster: Part) -> str:
    """Image of the head's Ray container."""
    first = dig(cluster.value, "headGroupSpec.template.spec.containers", [{}])[:1]
    return str(first[0].get("image", "")) if first else ""


def default_submitter(job: Part) -> dict[str, Any]:
    """The pod that submits a job which has no template for it (common/job.go,
    GetDefaultSubmitterTemplate)."""
    return {"spec": {"restartPolicy": "Never", "containers": [_default_submitter_container(job)]}}


def _default_submitter_container(job: Part) -> dict[str, Any]:
    return {
        "name": "ray-job-submitter",
        "image": ray_image(job.at("rayClusterSpec")),
        "resources": {
            "requests": {"cpu": "500m", "memory": "200Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
    }


def injected_in_head(cluster: Part, pod: Part) -> Iterator[Part]:
    """What the operator adds to a head: the autoscaler (common/pod.go, BuildAutoscalerContainer),
    and the submitter in SidecarMode, which nothing can configure."""
    if dig(cluster.value, "enableInTreeAutoscaling"):
        options = dig(cluster.value, "autoscalerOptions", {})
        container = {
            "name": "autoscaler",
            "image": options.get("image") or ray_image(cluster),
            "resources": options.get("resources")
            or {kind: {"cpu": "500m", "memory": "512Mi"} for kind in ("requests", "limits")},
            **{key: options[key] for key in ("env", "securityContext") if key in options},
            "volumeMounts": options.get("volumeMounts") or [],
        }
        yield Part(
            overlay=pod.overlay,
            owner=pod.owner,
            path=join(cluster.path, "autoscalerOptions"),
            value=container,
            role="autoscaler",
            within=pod,
        )
    job = cluster.within
    if job is not None and dig(job.value, "submissionMode") == "SidecarMode":
        yield Part(
            overlay=pod.overlay,
            owner=pod.owner,
            path=join(job.path, "submissionMode"),
            value=_default_submitter_container(job),
            role="container",
            within=pod,
        )
