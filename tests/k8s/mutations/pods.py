"""What Kubernetes, its Pod Security and the house must refuse of objects and pods."""

import base64

from tests.k8s.mutations.drafts import Draft, breaks

KEY = "0123456789abcdef" * 2 + "01234567"
"""Of the form of a W&B key."""


@breaks("kubernetes_schema")
def misspelt_field_of_a_claim(draft: Draft) -> None:
    spec = draft.one("PersistentVolumeClaim")["spec"]
    spec["accessMode"] = spec.pop("accessModes")


@breaks("kubernetes_schema")
def policy_of_an_old_api(draft: Draft) -> None:
    draft.one("NetworkPolicy")["apiVersion"] = "extensions/v1beta1"


@breaks("kubernetes_schema")
def kind_that_nobody_knows(draft: Draft) -> None:
    draft.objects.append({"apiVersion": "v1", "kind": "Sercet", "metadata": {"name": "keys"}})


@breaks("kubernetes_schema")
def port_written_as_text_of_a_list(draft: Draft) -> None:
    draft.one("NetworkPolicy", "thaw-metrics")["spec"]["ingress"][0]["ports"] = {"port": 8080}


@breaks("pod_schema")
def toleration_that_is_none(draft: Draft) -> None:
    draft.worker_pod["tolerations"] = [{"key": "spot", "effects": "NoSchedule"}]


@breaks("pod_schema")
def mount_without_a_path(draft: Draft) -> None:
    del draft.head_pod["containers"][0]["volumeMounts"][0]["mountPath"]


@breaks("pod_schema")
def field_newer_than_the_oldest_kubernetes(draft: Draft) -> None:
    draft.worker_pod["hostnameOverride"] = "worker"


@breaks("metadata_schema")
def misspelt_metadata(draft: Draft) -> None:
    draft.rayjob["metadata"]["label"] = {"team": "cars"}


@breaks("metadata_schema")
def annotation_that_is_a_bool(draft: Draft) -> None:
    draft.rayjob["metadata"]["annotations"] = {"cars": True}


@breaks("object_name")
def object_name_with_an_underscore(draft: Draft) -> None:
    draft.one("PersistentVolumeClaim")["metadata"]["name"] = "thaw_data"


@breaks("object_name")
def same_object_twice(draft: Draft) -> None:
    draft.objects.append(draft.one("ServiceAccount"))


@breaks("object_labels")
def object_label_too_long(draft: Draft) -> None:
    draft.rayjob["metadata"].setdefault("labels", {})["team"] = "x" * 64


@breaks("pod_labels")
def pod_label_with_a_slash(draft: Draft) -> None:
    draft.job["submitterPodTemplate"]["metadata"]["labels"]["image"] = "thaw/cpu"


@breaks("container_name")
def container_name_in_capitals(draft: Draft) -> None:
    draft.head_pod["containers"][0]["name"] = "RayHead"


@breaks("runs_as_non_root")
def worker_as_anyone(draft: Draft) -> None:
    del draft.worker_pod["securityContext"]["runAsNonRoot"]


@breaks("runs_as_non_root")
def submitter_as_root(draft: Draft) -> None:
    draft.submitter_pod["securityContext"]["runAsUser"] = 0


@breaks("no_privilege_escalation")
def submitter_of_the_operator(draft: Draft) -> None:
    del draft.job["submitterPodTemplate"]


@breaks("no_privilege_escalation")
def autoscaler_without_a_security_context(draft: Draft) -> None:
    draft.autoscale()
    del draft.cluster["autoscalerOptions"]["securityContext"]


@breaks("no_privilege_escalation")
def submitter_beside_the_head(draft: Draft) -> None:
    draft.job["submissionMode"] = "SidecarMode"
    del draft.job["submitterPodTemplate"]


@breaks("no_privilege_escalation")
def privileged_worker(draft: Draft) -> None:
    draft.worker_pod["containers"][0]["securityContext"]["privileged"] = True


@breaks("drops_capabilities")
def init_container_without_a_security_context(draft: Draft) -> None:
    size = {"cpu": "100m", "memory": "64Mi"}
    container = {"name": "fetch", "image": "busybox:1.37", "command": ["true"]}
    container["resources"] = {"requests": size, "limits": size}
    draft.worker_pod["initContainers"] = [container]


@breaks("drops_capabilities")
def capability_added(draft: Draft) -> None:
    draft.head_pod["containers"][0]["securityContext"]["capabilities"]["add"] = ["SYS_PTRACE"]


@breaks("seccomp_profile")
def unconfined_worker(draft: Draft) -> None:
    draft.worker_pod["securityContext"]["seccompProfile"] = {"type": "Unconfined"}


@breaks("no_way_to_the_host")
def port_of_the_host(draft: Draft) -> None:
    draft.head_pod["containers"][0]["ports"] = [{"containerPort": 8265, "hostPort": 8265}]


@breaks("no_host_namespaces")
def network_of_the_host(draft: Draft) -> None:
    draft.worker_pod["hostNetwork"] = True


@breaks("volume_types")
def folder_of_the_host(draft: Draft) -> None:
    draft.worker_pod["volumes"].append({"name": "data", "hostPath": {"path": "/data"}})


@breaks("namespace_restricted", "namespace")
def namespace_that_enforces_the_baseline(draft: Draft) -> None:
    labels = draft.one("Namespace")["metadata"]["labels"]
    labels["pod-security.kubernetes.io/enforce"] = "baseline"


@breaks("one_namespace")
def job_in_another_namespace(draft: Draft) -> None:
    draft.rayjob["metadata"]["namespace"] = "default"


@breaks("one_namespace")
def job_in_no_namespace(draft: Draft) -> None:
    del draft.rayjob["metadata"]["namespace"]


@breaks("requests_equal_limits")
def more_memory_than_requested(draft: Draft) -> None:
    draft.worker_pod["containers"][0]["resources"]["limits"]["memory"] = "64Gi"


@breaks("requests_equal_limits")
def submitter_without_a_limit(draft: Draft) -> None:
    del draft.submitter_pod["containers"][0]["resources"]["limits"]["cpu"]


@breaks("requests_equal_limits")
def autoscaler_that_may_grow(draft: Draft) -> None:
    draft.autoscale()
    draft.cluster["autoscalerOptions"]["resources"]["limits"] = {"cpu": "1", "memory": "512Mi"}


@breaks("image_pinned")
def latest_image(draft: Draft) -> None:
    draft.worker_pod["containers"][0]["image"] = "registry:5000/thaw:latest"


@breaks("image_pinned")
def image_without_a_tag(draft: Draft) -> None:
    draft.submitter_pod["containers"][0]["image"] = "registry:5000/thaw"


@breaks("image_matches_ray_version")
def ray_version_left_behind(draft: Draft) -> None:
    draft.cluster["rayVersion"] = "2.59.0"


@breaks("image_matches_ray_version")
def worker_image_of_another_ray(draft: Draft) -> None:
    draft.worker_pod["containers"][0]["image"] = "thaw:2.6-cpu"


@breaks("image_matches_ray_version")
def submitter_image_of_another_ray(draft: Draft) -> None:
    draft.submitter_pod["containers"][0]["image"] = "thaw:2.59.0-cpu"


@breaks("mount_has_volume")
def mount_of_no_volume(draft: Draft) -> None:
    draft.head_pod["volumes"] = draft.head_pod["volumes"][1:]


@breaks("mount_has_volume")
def path_mounted_twice(draft: Draft) -> None:
    mounts = draft.worker_pod["containers"][0]["volumeMounts"]
    mounts.append(dict(mounts[1], mountPath=mounts[0]["mountPath"]))


@breaks("variables_once")
def variable_set_twice(draft: Draft) -> None:
    draft.set_env("NCCL_DEBUG", "INFO")
    draft.set_env("NCCL_DEBUG", "WARN")


@breaks("head_takes_no_work")
def head_that_works(draft: Draft) -> None:
    draft.head["rayStartParams"]["num-cpus"] = "2"


@breaks("probes_left_to_operator")
def probe_of_ones_own(draft: Draft) -> None:
    draft.worker_pod["containers"][0]["livenessProbe"] = {"exec": {"command": ["true"]}}


@breaks("ray_version_is_the_pinned_one")
def newer_ray_than_installed(draft: Draft) -> None:
    draft.cluster["rayVersion"] = "2.61.0"


@breaks("token_auth")
def dashboard_open_to_all(draft: Draft) -> None:
    draft.cluster["authOptions"]["mode"] = "disabled"


@breaks("no_key_written")
def key_in_an_annotation(draft: Draft) -> None:
    draft.rayjob["metadata"].setdefault("annotations", {})["wandb"] = KEY


@breaks("no_key_written")
def password_in_a_url(draft: Draft) -> None:
    draft.set_env("PIP_INDEX_URL", "https://me:sesame@pypi.example.org/simple")


@breaks("no_key_written")
def aws_key_in_the_entrypoint(draft: Draft) -> None:
    draft.job["entrypoint"] += " --project AKIA" + "ABCDEFGHIJKLMNOP"


@breaks("variable_by_reference")
def key_written_into_a_variable(draft: Draft) -> None:
    draft.set_env("HF_TOKEN", "sesame")


@breaks("runtime_env_without_keys")
def key_in_the_runtime_env(draft: Draft) -> None:
    draft.job["runtimeEnvYAML"] = "env_vars:\n  WANDB_API_KEY: sesame\n"


@breaks("entrypoint_without_keys")
def key_in_the_command(draft: Draft) -> None:
    draft.job["entrypoint"] = f"bash -c 'WANDB_API_KEY=sesame {draft.job['entrypoint']}'"


@breaks("secret_is_an_example")
def secret_with_a_value(draft: Draft) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}}
    draft.objects.append(secret | {"data": {"key": base64.b64encode(b"sesame").decode()}})
