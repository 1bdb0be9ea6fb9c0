"""What Thaw asks of every pod: resources that are guaranteed, images that are pinned and match Ray,
mounts that exist, and a head that takes no work."""

import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache

from cluster.entry import ROOT
from k8s.checker import parts
from k8s.checker.parts import Part, containers, dig, is_of, ray_clusters, ray_containers, ray_groups
from k8s.checker.quantities import parse_quantity
from k8s.checker.rule import Problem, rule

PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


@rule(containers)
def requests_equal_limits(part: Part) -> Iterator[Problem]:
    """A pod that may be given less than it counts on is throttled or evicted in mid-epoch."""
    asked, most = (dig(part.value, f"resources.{kind}", {}) for kind in ("requests", "limits"))
    for resource in sorted({"cpu", "memory"} | set(asked) | set(most)):
        here = f"resources.requests.{resource}"
        if resource not in asked or resource not in most:
            yield here, "must be requested and limited"
            continue
        try:
            if parse_quantity(asked[resource]) != parse_quantity(most[resource]):
                yield here, f"is {asked[resource]}, its limit {most[resource]}: use one value"
        except ValueError as error:
            yield here, str(error)


@rule(containers)
def image_pinned(part: Part) -> Iterator[Problem]:
    image = str(part.value.get("image", ""))
    tag = tag_of(image)
    if "@sha256:" not in image and tag in ("", "latest"):
        yield "image", f"is {image!r}: name a version"


def tag_of(image: str) -> str:
    """Tag of an image; a registry's port is none."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[2]


@rule(containers)
def image_matches_ray_version(part: Part) -> Iterator[Problem]:
    """Driver, workers, submitter and autoscaler must speak the same Ray; `images:` of Kustomize
    changes only the image."""
    pod = part.up("pod")
    if runs_ray(part) and (cluster := cluster_of(pod)) is not None:
        version, tag = str(cluster.value.get("rayVersion", "")), tag_of(part.value.get("image", ""))
        if not version or (tag != version and not tag.startswith(f"{version}-")):
            yield "image", f"has the tag {tag!r}: begin with rayVersion, {version!r}"


def runs_ray(container: Part) -> bool:
    """Whether it is a Ray container, the autoscaler or what submits the job."""
    pod = container.up("pod")
    is_first = container.path.endswith(f"containers[{parts.RAY_CONTAINER}]")
    in_ray = is_of(pod, "head") or is_of(pod, "worker") or is_of(pod, "submitter")
    return container.role == "autoscaler" or (is_first and in_ray and container.role == "container")


def cluster_of(pod: Part) -> Part | None:
    """The Ray cluster that a pod belongs to, or that its job makes."""
    if is_of(pod, "submitter"):
        job = pod.up("job")
        return job.at("rayClusterSpec") if job.value.get("rayClusterSpec") else None
    return pod.up("cluster")


@rule(containers)
def mount_has_volume(part: Part) -> Iterator[Problem]:
    pod = part.up("pod")
    volumes = {volume.get("name") for volume in dig(pod.value, "spec.volumes", ())}
    mounts = part.value.get("volumeMounts") or []
    for index, mount in enumerate(mounts):
        if mount.get("name") not in volumes:
            yield f"volumeMounts[{index}].name", f"{mount.get('name')!r} is no volume of the pod"
    for path, count in Counter(mount.get("mountPath") for mount in mounts).items():
        if count > 1:
            yield "volumeMounts", f"{path} is mounted {count} times"


@rule(containers)
def variables_once(part: Part) -> Iterator[Problem]:
    for name, count in Counter(item.get("name") for item in part.value.get("env") or ()).items():
        if count > 1:
            yield "env", f"{name} is set {count} times: the last one wins"


@rule(ray_groups)
def head_takes_no_work(part: Part) -> Iterator[Problem]:
    """A trial that fills the head's memory takes the whole cluster down."""
    if part.role == "head" and dig(part.value, "rayStartParams.num-cpus") != "0":
        yield "rayStartParams.num-cpus", 'must be "0": work belongs on workers'


@rule(ray_containers)
def probes_left_to_operator(part: Part) -> Iterator[Problem]:
    for probe in PROBES:
        if part.value.get(probe) is not None:
            yield probe, "replaces the operator's own, which knows Ray: leave it out"


@rule(ray_clusters)
def ray_version_is_the_pinned_one(part: Part) -> Iterator[Problem]:
    """What the image installs, which is what the tests run on."""
    version = part.value.get("rayVersion")
    if version != pinned_ray():
        yield "rayVersion", f"is {version!r}: pyproject.toml has {pinned_ray()}"


@cache
def pinned_ray() -> str:
    text = (ROOT / "pyproject.toml").read_text()
    return next(
        word.partition("==")[2]
        for word in tomllib.loads(text)["project"]["dependencies"]
        if word.startswith("ray[")
    )


@rule(ray_clusters)
def token_auth(part: Part) -> Iterator[Problem]:
    """Whoever reaches the dashboard's port may run code, unless a token is asked."""
    if dig(part.value, "authOptions.mode") != "token":
        yield "authOptions.mode", "must be token"
