"""Whole builds: what an overlay has beside what, and what a component does to it."""

from collections.abc import Iterator

from k8s.checker.overlays import ON_CLUSTER, Overlay, build, name_of
from k8s.checker.parts import Part, dig, objects, ray_jobs
from k8s.checker.rule import Problem, rule
from k8s.checker.rules.entrypoints import configs_of
from k8s.checker.rules.settings import RAY_KINDS, only


@rule(objects("Namespace"))
def namespace_is_apart(part: Part) -> Iterator[Problem]:
    """`namespace: team-a` would rename it, and `kubectl delete -k` all that is in it."""
    if others := {item["kind"] for item in part.overlay.objects} - {"Namespace", "NetworkPolicy"}:
        listed = ", ".join(sorted(others))
        yield "kind", f"is beside {listed}: apply k8s/namespace once, or use the namespace you have"


WORKLOADS = (*RAY_KINDS, "RayService", "Pod")
"""Kinds that have pods, of those that Thaw uses."""
PART_OF = "app.kubernetes.io/part-of"


@rule(objects(*WORKLOADS))
def workload_is_deleted(part: Part) -> Iterator[Problem]:
    """Whoever deletes everything should not pay for a job that is left, or wait for its volume."""
    if dig(part.value, "metadata.labels", {}).get(PART_OF) != "thaw":
        message = "is not thaw: `Delete everything` of k8s/your-cluster.md leaves it running"
        yield f"metadata.labels.{PART_OF}", message


FIXED = ("accessModes", "storageClassName", "volumeMode", "resources")


@rule(objects("PersistentVolumeClaim"), "Kubernetes, ValidatePersistentVolumeClaimUpdate")
def claim_is_the_same_everywhere(part: Part) -> Iterator[Problem]:
    """What a claim asks for can't be changed, so one name must mean one claim in all of k8s/."""
    base = build("base").named("PersistentVolumeClaim").get(name_of(part.owner))
    if not part.overlay.is_shipped or base is None:
        return
    for field in FIXED:
        if dig(part.value, f"spec.{field}") != dig(base, f"spec.{field}"):
            yield f"spec.{field}", "differs from the base's, and can't be changed: name another"


def first(overlay: Overlay) -> Iterator[Part]:
    """One object: rules about the whole build."""
    yield from list(objects()(overlay))[:1]


@rule(only(first, lambda part: "components/" in part.overlay.name))
def component_has_effect(part: Part) -> Iterator[Problem]:
    """A component that takes no notice of a RayCluster would leave it half changed, without a
    word. One that is for RayJobs alone must not build there."""
    name = "cluster" if part.overlay.name.startswith(ON_CLUSTER) else "base"
    adds_job = bool(part.overlay.named("RayCronJob"))
    if not adds_job and all(item in part.overlay.objects for item in build(name).objects):
        yield "kind", f"changes nothing of k8s/{name}: patch it as well, or refuse it"


def first_job(overlay: Overlay) -> Iterator[Part]:
    if overlay.named("ServiceAccount"):  # jobs alone, such as a second training, need no doctor
        yield from list(ray_jobs(overlay))[:1]


@rule(first_job)
def doctor_comes_first(part: Part) -> Iterator[Problem]:
    """Thirty seconds that find what would end a training after hours of waiting for nodes."""
    for job in ray_jobs(part.overlay):
        for command, _ in configs_of(job):
            if command.room == "cluster" and command.arguments[:1] == ("doctor",):
                return
    yield "entrypoint", "no job runs `python -m cluster doctor`: add the base's"
