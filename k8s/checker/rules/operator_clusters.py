"""What KubeRay's operator refuses of names, clusters and groups: checks that stand in no schema.

They are written in Go (ray-operator/controllers/ray/utils/validation.go, 1.7.0); a rule's source
names the function. Feature gates are as they come (ray-operator/pkg/features/features.go):
RayJobDeletionPolicy on, RayClusterNetworkPolicy, RayClusterMTLS, RayClusterHistoryServer and
GCSFaultToleranceEmbeddedStorage off.
"""

import re
from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from k8s.checker.overlays import name_of
from k8s.checker.parts import Part, dig, groups_of, objects, ray_clusters, ray_groups
from k8s.checker.rule import Problem, rule

NAME_LIMITS = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
"""Characters of a name, so that those of services and pods derived from it stay valid."""
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_NAME = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
LABEL_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
AUTOSCALER_V2_VAR = "RAY_enable_autoscaler_v2"
FT_ANNOTATION = "ray.io/ft-enabled"
GATED = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}
"""Field of a cluster -> the feature gate that is off and would have to be on."""
OLDEST_RAY = {"token": Version("2.52"), "k8s_token": Version("2.55"), "priority": Version("2.56")}


@rule(objects(*NAME_LIMITS), "ValidateRayJobMetadata, ValidateRayClusterMetadata")
def ray_name(part: Part) -> Iterator[Problem]:
    name, kind = name_of(part.owner), part.owner["kind"]
    if len(name) > NAME_LIMITS[kind]:
        yield "metadata.name", f"has {len(name)} characters: a {kind} may have {NAME_LIMITS[kind]}"
    if kind != "RayCronJob" and not DNS_LABEL.fullmatch(name):
        yield "metadata.name", f"{name!r} is no DNS label: a-z first, then a-z, 0-9 and -"


@rule(ray_groups, "ValidateRayClusterSpec")
def group_has_container(part: Part) -> Iterator[Problem]:
    if not dig(part.value, "template.spec.containers"):
        yield "template.spec.containers", "is empty: the first container runs Ray"


@rule(ray_groups, "validateRayGroupResources")
def group_resources_once(part: Part) -> Iterator[Problem]:
    params = dig(part.value, "rayStartParams", {})
    both = [name for name in START_RESOURCES if params.get(name)]
    if both and dig(part.value, "resources"):
        yield "resources", f"are given here and in rayStartParams ({', '.join(both)}): keep one"


@rule(ray_groups, "validateRayGroupLabels")
def group_labels(part: Part) -> Iterator[Problem]:
    if "labels" in dig(part.value, "rayStartParams", {}):
        yield "rayStartParams.labels", "is not supported: use the group's labels"
    for key, value in dig(part.value, "labels", {}).items():
        if not is_label_key(key):
            yield f"labels.{key}", f"{key!r} is no label key"
        if len(str(value)) > 63 or not LABEL_NAME.fullmatch(str(value)):
            yield f"labels.{key}", f"{value!r} is no label value"


def is_label_key(key: str) -> bool:
    """Whether this is a qualified name: `name` or `domain/name`."""
    prefix, slash, name = key.rpartition("/")
    if slash and not (len(prefix) <= 253 and LABEL_PREFIX.fullmatch(prefix)):
        return False
    return 0 < len(name) <= 63 and LABEL_NAME.fullmatch(name) is not None


@rule(ray_groups, "ValidateRayClusterSpec")
def group_replicas(part: Part) -> Iterator[Problem]:
    if part.role == "head":
        return
    least, most = (part.value.get(field) for field in ("minReplicas", "maxReplicas"))
    for field, number in (("minReplicas", least), ("maxReplicas", most)):
        if number is not None and number < 0:
            yield field, f"is {number}: use 0 or more"
    if least is not None and most is not None and least > most:
        yield "minReplicas", f"is {least}, above maxReplicas {most}"


@rule(ray_groups, "validateWorkerGroupIdleTimeout, validateWorkerGroupPriority")
def group_needs_autoscaler_v2(part: Part) -> Iterator[Problem]:
    cluster = part.up("cluster")
    timeout, priority = part.value.get("idleTimeoutSeconds"), part.value.get("priority") or 0
    if timeout is not None and timeout < 0:
        yield "idleTimeoutSeconds", f"is {timeout}: use 0 or more"
    for field, is_set in (("idleTimeoutSeconds", timeout is not None), ("priority", priority)):
        if is_set and not has_autoscaler_v2(cluster):
            yield field, "needs autoscalerOptions.version v2"
    if priority and not is_ray_at_least(cluster, "priority"):
        yield "priority", f"needs rayVersion {OLDEST_RAY['priority']} or later"


def has_autoscaler_v2(cluster: Part) -> bool:
    is_v2 = dig(cluster.value, "autoscalerOptions.version") == "v2"
    return is_v2 or head_env(cluster).get(AUTOSCALER_V2_VAR) in ("1", "true")


def head_env(cluster: Part) -> dict[str, str]:
    """Variables of the head's Ray container."""
    first = dig(cluster.value, "headGroupSpec.template.spec.containers", [])[:1]
    variables = first[0].get("env") or [] if first else []
    return {item.get("name", ""): item.get("value", "") for item in variables}


def is_ray_at_least(cluster: Part, what: str) -> bool:
    try:
        return Version(str(cluster.value.get("rayVersion", ""))) >= OLDEST_RAY[what]
    except InvalidVersion:
        return False


@rule(ray_clusters, "ValidateRayClusterSpec")
def gcs_fault_tolerance(part: Part) -> Iterator[Problem]:
    options, env = dig(part.value, "gcsFaultToleranceOptions"), head_env(part)
    params = dig(part.value, "headGroupSpec.rayStartParams", {})
    annotations = dig(part.owner, "metadata.annotations", {})
    if options is not None:
        here = "gcsFaultToleranceOptions"
        for annotation in (FT_ANNOTATION, "ray.io/external-storage-namespace"):
            if annotations.get(annotation):
                yield here, f"and the annotation {annotation} are both set: keep this one"
        if options.get("storage") and options.get("backend", "redis") == "redis":
            yield f"{here}.storage", "is for the backend rocksdb"
        taken = [name for name in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS") if name in env]
        taken += ["redis-password"] if params.get("redis-password") else []
        if taken:
            yield here, f"has its own place for {', '.join(taken)}"
    elif "RAY_REDIS_ADDRESS" in env and annotations.get(FT_ANNOTATION) != "true":
        yield "headGroupSpec", "RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"
    if params.get("redis-username") or "REDIS_USERNAME" in env:
        yield "headGroupSpec", "the Redis user belongs into gcsFaultToleranceOptions.redisUsername"


@rule(ray_clusters, "ValidateRayClusterSpec, validateGcsFaultToleranceBackend")
def gated_field(part: Part) -> Iterator[Problem]:
    for field, gate in GATED.items():
        if part.value.get(field) is not None:
            yield field, f"needs the feature gate {gate}, which is off"
    if dig(part.value, "gcsFaultToleranceOptions.backend") == "rocksdb":
        gate = "GCSFaultToleranceEmbeddedStorage"
        yield "gcsFaultToleranceOptions.backend", f"needs the feature gate {gate}, which is off"


@rule(ray_clusters, "ValidateRayClusterSpec")
def autoscaler_and_suspend(part: Part) -> Iterator[Problem]:
    if not dig(part.value, "enableInTreeAutoscaling"):
        return
    for group in groups_of(part):
        if group.value.get("suspend"):
            path = group.path.removeprefix(part.path).lstrip(".")
            yield f"{path}.suspend", "a worker group can't be suspended beside the autoscaler"


@rule(ray_clusters, "ValidateRayClusterSpec")
def autoscaler_version_once(part: Part) -> Iterator[Problem]:
    variable = head_env(part).get(AUTOSCALER_V2_VAR)
    if dig(part.value, "enableInTreeAutoscaling"):
        if dig(part.value, "autoscalerOptions.version") and variable is not None:
            yield (
                "autoscalerOptions.version",
                f"and {AUTOSCALER_V2_VAR} are both set: keep this one",
            )
    elif variable in ("1", "true"):
        yield "headGroupSpec", f"{AUTOSCALER_V2_VAR} needs enableInTreeAutoscaling: true"


@rule(ray_clusters, "ValidateRayClusterSpec")
def autoscaler_restart_policy(part: Part) -> Iterator[Problem]:
    is_v2 = dig(part.value, "autoscalerOptions.version") == "v2"
    if not (is_v2 and dig(part.value, "enableInTreeAutoscaling")):
        return
    for group in groups_of(part):
        if dig(group.value, "template.spec.restartPolicy", "Never") != "Never":
            path = group.path.removeprefix(part.path).lstrip(".")
            yield f"{path}.template.spec.restartPolicy", "must be Never with autoscaler v2"


@rule(ray_clusters, "ValidateRayClusterSpec")
def autoscaler_options(part: Part) -> Iterator[Problem]:
    options = dig(part.value, "autoscalerOptions", {})
    if (options.get("idleTimeoutSeconds") or 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds", "is negative: use 0 or more"
    for item in options.get("env") or []:
        if item.get("name") == "KUBERAY_GEN_AUTOSCALER_START_CMD":
            yield "autoscalerOptions.env", f"{item['name']} is the operator's own"


@rule(ray_clusters, "ValidateRayClusterSpec, IsK8sAuthEnabled")
def token_auth_version(part: Part) -> Iterator[Problem]:
    mode = dig(part.value, "authOptions.mode")
    if mode == "token" and not is_ray_at_least(part, "token"):
        yield (
            "rayVersion",
            (
                f"is {part.value.get('rayVersion')!r}: authOptions.mode token needs "
                f"{OLDEST_RAY['token']} or later"
            ),
        )
    if dig(part.value, "authOptions.enableK8sTokenAuth"):
        here = "authOptions.enableK8sTokenAuth"
        if part.owner["kind"] != "RayCluster":
            yield here, f"is not supported for a {part.owner['kind']}"
        if mode != "token":
            yield here, "needs authOptions.mode token"
        if not is_ray_at_least(part, "k8s_token"):
            yield here, f"needs rayVersion {OLDEST_RAY['k8s_token']} or later"
        if dig(part.value, "authOptions.secretName"):
            yield here, "and authOptions.secretName are both set: keep one"


@rule(ray_clusters, "ValidateRayClusterUpgradeOptions")
def upgrade_strategy_alone(part: Part) -> Iterator[Problem]:
    if dig(part.value, "upgradeStrategy.type") and part.owner["kind"] != "RayCluster":
        yield "upgradeStrategy", f"is for a cluster of its own, not a {part.owner['kind']}'s"
