"""Copies of a valid overlay to be broken, and the register of the ways to break it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from k8s.checker.overlays import Object, Overlay, build, name_of

Mutate = Callable[["Draft"], None]


class Draft:
    """A copy of an overlay's objects and of its image's recipe, to be changed."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self.objects = deepcopy(list(overlay.objects))
        self.dockerfile = overlay.dockerfile

    def to_overlay(self) -> Overlay:
        objects = tuple(self.objects)
        return replace(self._overlay, objects=objects, dockerfile=self.dockerfile)

    def replace_by(self, name: str) -> None:
        """Have what another build has."""
        self.objects = deepcopy(list(build(name).objects))

    def one(self, kind: str, name: str | None = None) -> Object:
        """The object of this kind and name, or the first of this kind."""
        found = [
            item for item in self.objects if item["kind"] == kind and name in (None, name_of(item))
        ]
        assert found, f"{self._overlay.name} has no {kind} {name or ''}"
        return found[0]

    @property
    def rayjob(self) -> Object:
        return self.one("RayJob", "thaw-train")

    @property
    def job(self) -> Object:
        return self.rayjob["spec"]

    @property
    def cluster(self) -> Object:
        return self.job["rayClusterSpec"]

    @property
    def head(self) -> Object:
        return self.cluster["headGroupSpec"]

    @property
    def workers(self) -> Object:
        return self.cluster["workerGroupSpecs"][0]

    @property
    def head_pod(self) -> Object:
        return self.head["template"]["spec"]

    @property
    def worker_pod(self) -> Object:
        return self.workers["template"]["spec"]

    @property
    def submitter_pod(self) -> Object:
        return self.job["submitterPodTemplate"]["spec"]

    def set_env(self, name: str, value: str) -> None:
        """Set a variable of the head's Ray container."""
        self.head_pod["containers"][0].setdefault("env", []).append({"name": name, "value": value})

    def autoscale(self, **options: Any) -> None:
        """Switch the autoscaler on, as safely as the pods around it."""
        size = {"cpu": "500m", "memory": "512Mi"}
        self.cluster["enableInTreeAutoscaling"] = True
        self.cluster["autoscalerOptions"] = {
            "version": "v2",
            "resources": {"requests": size, "limits": size},
            "securityContext": deepcopy(self.head_pod["containers"][0]["securityContext"]),
            **options,
        }

    def delete_by_rules(self, *rules: tuple[str, str, int]) -> None:
        """Clean up by rules of (policy, job status, seconds)."""
        for field in ("shutdownAfterJobFinishes", "ttlSecondsAfterFinished"):
            self.job.pop(field, None)
        self.job["deletionStrategy"] = {
            "deletionRules": [
                {"policy": policy, "condition": {"jobStatus": status, "ttlSeconds": ttl}}
                for policy, status, ttl in rules
            ]
        }

    def add_cron(self, schedule: str, **spec: Any) -> None:
        """Run the job by a schedule."""
        self.objects.append(
            {
                "apiVersion": "ray.io/v1",
                "kind": "RayCronJob",
                "metadata": {"name": "thaw-nightly", "namespace": "thaw"},
                "spec": {"schedule": schedule, "jobTemplate": deepcopy(self.job), **spec},
            }
        )


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A change that makes a valid overlay wrong."""

    name: str
    rule: str
    """The rule that must notice."""
    overlay: str
    change: Mutate

    def apply(self, overlay: Overlay) -> Overlay:
        draft = Draft(overlay)
        self.change(draft)
        return draft.to_overlay()


REGISTERED: list[Mutation] = []


def breaks(rule: str, overlay: str = "base") -> Callable[[Mutate], Mutate]:
    """Register a function as a mutation that a rule must notice."""

    def register(change: Mutate) -> Mutate:
        mutation = Mutation(name=change.__name__, rule=rule, overlay=overlay, change=change)
        REGISTERED.append(mutation)
        return change

    return register
