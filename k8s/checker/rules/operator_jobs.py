"""What KubeRay's operator refuses of jobs: their clean-up, modes and schedules (validation.go of
KubeRay 1.7.0, as in `operator_clusters`)."""

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from k8s.checker.parts import Part, dig, objects, ray_jobs
from k8s.checker.rule import Problem, rule

SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
CRON_FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    (
        "month",
        1,
        12,
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    ),
    ("day of week", 0, 6, ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
)
CRON_WORDS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
CRON_EVERY = re.compile(r"@every ([0-9.]+(ns|us|µs|ms|s|m|h))+")
CRON_RANGE = re.compile(r"(?:([*?])|(\w+)(?:-(\w+))?)(?:/([0-9]+))?")


@rule(ray_jobs, "ValidateRayJobSpec")
def suspend_needs_shutdown(part: Part) -> Iterator[Problem]:
    if part.value.get("suspend") and not part.value.get("shutdownAfterJobFinishes"):
        yield "suspend", "needs shutdownAfterJobFinishes: true"


@rule(ray_jobs, "validateDeletionConfiguration")
def ttl_needs_shutdown(part: Part) -> Iterator[Problem]:
    ttl = part.value.get("ttlSecondsAfterFinished") or 0
    if ttl < 0:
        yield "ttlSecondsAfterFinished", f"is {ttl}: use 0 or more"
    if ttl > 0 and not part.value.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished", "needs shutdownAfterJobFinishes: true"


@rule(ray_jobs, "validateDeletionConfiguration, validateLegacyDeletionPolicies")
def one_way_of_deletion(part: Part) -> Iterator[Problem]:
    strategy = part.value.get("deletionStrategy")
    if strategy is None:
        return
    rules = strategy.get("deletionRules")
    legacy = [strategy[key] for key in ("onSuccess", "onFailure") if strategy.get(key) is not None]
    if rules and part.value.get("shutdownAfterJobFinishes"):
        yield "deletionStrategy.deletionRules", "and shutdownAfterJobFinishes exclude each other"
    if rules and legacy:
        yield "deletionStrategy", "has both deletionRules and onSuccess/onFailure: keep the rules"
    if not rules and len(legacy) < 2:
        yield "deletionStrategy", "needs deletionRules, or both onSuccess and onFailure"
    policies = [policy.get("policy") for policy in legacy]
    if None in policies:
        yield "deletionStrategy", "onSuccess and onFailure each need a policy"
    if "DeleteNone" in policies and part.value.get("shutdownAfterJobFinishes"):
        yield "deletionStrategy", "DeleteNone and shutdownAfterJobFinishes exclude each other"
    yield from _unsupported_policies(part, "deletionStrategy", policies)


@rule(ray_jobs, "validateDeletionRules, validateDeletionCondition")
def deletion_rule(part: Part) -> Iterator[Problem]:
    seen = set()
    for index, item in enumerate(dig(part.value, "deletionStrategy.deletionRules", [])):
        here, condition = f"deletionStrategy.deletionRules[{index}]", item.get("condition") or {}
        kinds = [kind for kind in ("jobStatus", "jobDeploymentStatus") if condition.get(kind)]
        if len(kinds) != 1:
            yield f"{here}.condition", "needs one of jobStatus and jobDeploymentStatus"
        if (condition.get("ttlSeconds") or 0) < 0:
            yield f"{here}.condition.ttlSeconds", "is negative: use 0 or more"
        yield from _unsupported_policies(part, here, [item.get("policy")])
        key = (item.get("policy"), *(condition[kind] for kind in kinds))
        if key in seen:
            yield here, f"is the second rule for {' at '.join(map(str, key))}"
        seen.add(key)


def _unsupported_policies(part: Part, here: str, policies: list[Any]) -> Iterator[Problem]:
    if part.value.get("clusterSelector") and {"DeleteCluster", "DeleteWorkers"} & set(policies):
        yield here, "a job on another's cluster can't delete it or its workers"
    if dig(part.value, "rayClusterSpec.enableInTreeAutoscaling") and "DeleteWorkers" in policies:
        yield here, "DeleteWorkers is not supported beside the autoscaler"


@rule(ray_jobs, "validateTTLConsistency")
def deletion_order(part: Part) -> Iterator[Problem]:
    ttls: dict[str, dict[str, int]] = defaultdict(dict)
    for item in dig(part.value, "deletionStrategy.deletionRules", []):
        condition = item.get("condition") or {}
        status = condition.get("jobStatus") or condition.get("jobDeploymentStatus")
        ttls[str(status)][item.get("policy", "")] = condition.get("ttlSeconds") or 0
    for status, by_policy in ttls.items():
        ordered = [(policy, by_policy[policy]) for policy in DELETION_ORDER if policy in by_policy]
        for (before, early), (after, late) in pairwise(ordered):
            if late < early:
                yield (
                    "deletionStrategy.deletionRules",
                    (f"at {status}, {after} after {late} s comes before {before} after {early} s"),
                )


@rule(ray_jobs, "ValidateRayJobSpec")
def cluster_or_selector(part: Part) -> Iterator[Problem]:
    selector = part.value.get("clusterSelector")
    if not selector:
        if part.value.get("rayClusterSpec") is None:
            yield "rayClusterSpec", "is missing: give it, or a clusterSelector"
        return
    if not selector.get("ray.io/cluster"):
        yield "clusterSelector", "names no cluster: set ray.io/cluster"
    if part.value.get("suspend"):
        yield "clusterSelector", "and suspend exclude each other"
    if part.value.get("submissionMode") == "SidecarMode":
        yield "clusterSelector", "and SidecarMode exclude each other"
    if (part.value.get("backoffLimit") or 0) > 0:
        yield "clusterSelector", "and backoffLimit exclude each other"


@rule(ray_jobs, "rayjob_controller.go, Reconcile")
def submission_mode(part: Part) -> Iterator[Problem]:
    """The CRD takes any string, and the operator submits nothing in a mode that it doesn't know."""
    mode = part.value.get("submissionMode", SUBMISSION_MODES[0])
    if mode not in SUBMISSION_MODES:
        yield "submissionMode", f"is {mode!r}: choose from {', '.join(SUBMISSION_MODES)}"


@rule(ray_jobs, "ValidateRayJobSpec")
def mode_and_its_fields(part: Part) -> Iterator[Problem]:
    mode = part.value.get("submissionMode")
    if mode == "InteractiveMode" and (part.value.get("backoffLimit") or 0) > 0:
        yield "backoffLimit", "and InteractiveMode exclude each other"
    if mode == "SidecarMode":
        for field in ("submitterPodTemplate", "submitterConfig"):
            if part.value.get(field) is not None:
                yield field, "and SidecarMode exclude each other"
        path = "rayClusterSpec.headGroupSpec.template.spec.restartPolicy"
        if dig(part.value, path, "Never") != "Never":
            yield path, "must be Never in SidecarMode"


@rule(ray_jobs, "UnmarshalRuntimeEnvYAML")
def runtime_env_parses(part: Part) -> Iterator[Problem]:
    text = part.value.get("runtimeEnvYAML")
    if not text:
        return
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        yield "runtimeEnvYAML", f"is no YAML: {' '.join(str(error).split())}"
        return
    if not isinstance(parsed, dict):
        yield "runtimeEnvYAML", f"is a {type(parsed).__name__}: use fields of a runtime environment"


@rule(ray_jobs, "ValidateRayJobSpec")
def job_limits(part: Part) -> Iterator[Problem]:
    for field, least in (
        ("activeDeadlineSeconds", 1),
        ("preRunningDeadlineSeconds", 1),
        ("backoffLimit", 0),
    ):
        number = part.value.get(field)
        if number is not None and number < least:
            yield field, f"is {number}: use {least} or more"


@rule(objects("RayCronJob"), "ValidateRayCronJobSpec")
def cron_schedule(part: Part) -> Iterator[Problem]:
    schedule = str(dig(part.value, "spec.schedule", ""))
    if "TZ" in schedule:
        yield "spec.schedule", "names a time zone: use timeZone"
    elif (problem := find_cron_problem(schedule)) is not None:
        yield "spec.schedule", f"is {schedule!r}: {problem}"
    zone = dig(part.value, "spec.timeZone")
    try:
        if zone is not None:
            ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        yield "spec.timeZone", f"is {zone!r}: use a name such as Europe/Berlin"


@rule(objects("RayCronJob"), "raycronjob_controller.go, constructRayJob")
def scheduled_job_starts(part: Part) -> Iterator[Problem]:
    """The jobs it makes carry none of its labels, so no queue would ever let them go."""
    if dig(part.value, "spec.jobTemplate.suspend"):
        yield "spec.jobTemplate.suspend", "must not be true: no queue knows these jobs"


def find_cron_problem(schedule: str) -> str | None:
    """What is wrong with a schedule of five fields or one of cron's words."""
    if schedule in CRON_WORDS or CRON_EVERY.fullmatch(schedule):
        return None
    fields = schedule.split()
    if len(fields) != len(CRON_FIELDS):
        return f"{len(fields)} fields instead of {len(CRON_FIELDS)}"
    for text, (name, least, most, names) in zip(fields, CRON_FIELDS, strict=True):
        numbers = {word: str(least + place) for place, word in enumerate(names)}
        for choice in text.split(","):
            match = CRON_RANGE.fullmatch(choice)
            if match is None:
                return f"{name} can't be {choice!r}"
            _, first, last, step = match.groups()
            ends = [numbers.get(end.lower(), end) for end in (first, last) if end is not None]
            if not all(end.isdigit() and least <= int(end) <= most for end in ends):
                return f"{name} goes from {least} to {most}, not {choice!r}"
            if (len(ends) == 2 and int(ends[0]) > int(ends[1])) or step == "0":
                return f"{name} can't be {choice!r}"
    return None
