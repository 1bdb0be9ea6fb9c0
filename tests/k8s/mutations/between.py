"""What must be refused between objects, commands and clouds. Most of it is the table of settings:
each row has the value that breaks it."""

from k8s.checker.overlays import Object
from k8s.checker.rules.settings import SETTINGS, Setting
from tests.k8s.mutations.drafts import REGISTERED, Draft, Mutation, breaks


def breaking(setting: Setting) -> Mutation:
    """Put a row's wrong value into the first part that has the field."""

    def change(draft: Draft) -> None:
        part = next(iter(setting.select(draft.to_overlay())))
        *above, last = setting.path
        owner = part.value
        for step in above:
            owner = owner[step]
        if setting.wrong is None:
            del owner[last]
        else:
            owner[last] = setting.wrong

    return Mutation(
        name=f"wrong_{setting.name}", rule=setting.name, overlay=setting.overlay, change=change
    )


REGISTERED.extend(map(breaking, SETTINGS))


@breaks("namespace_is_apart")
def namespace_beside_jobs(draft: Draft) -> None:
    draft.objects.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-a"}})


@breaks("claim_is_the_same_everywhere", "overlays/cpu-smoke")
def smaller_claim_of_the_same_name(draft: Draft) -> None:
    draft.one("PersistentVolumeClaim")["metadata"]["name"] = "thaw"


@breaks("claim_for_many_nodes", "overlays/cpu-smoke")
def worker_on_another_node_than_its_volume(draft: Draft) -> None:
    del draft.worker_pod["affinity"]["podAffinity"]


@breaks("component_has_effect", "cluster+components/gpu")
def component_for_jobs_alone(draft: Draft) -> None:
    draft.replace_by("cluster")


@breaks("doctor_comes_first")
def no_doctor(draft: Draft) -> None:
    draft.objects.remove(draft.one("RayJob", "thaw-doctor"))


@breaks("entrypoint_variables_are_set", "components/no-volume")
def bucket_that_the_submitter_does_not_know(draft: Draft) -> None:
    del draft.submitter_pod["containers"][0]["envFrom"]


@breaks("pull_secret_exists")
def pull_secret_that_is_not_there(draft: Draft) -> None:
    draft.one("ServiceAccount")["imagePullSecrets"] = [{"name": "registry"}]


@breaks("needed_traffic_flows")
def names_of_the_node_s_cache_alone(draft: Draft) -> None:
    """As an egress that fits kind."""
    rule = draft.one("NetworkPolicy", "thaw-dns")["spec"]["egress"][0]
    rule["to"] = [peer for peer in rule["to"] if "10.0.0.0" not in str(peer)]


@breaks("needed_traffic_flows", "components/bucket")
def credentials_out_of_reach(draft: Draft) -> None:
    draft.objects.remove(draft.one("NetworkPolicy", "thaw-cloud-identity"))


@breaks("workload_is_deleted", "components/cron")
def schedule_that_starts_trainings_for_ever(draft: Draft) -> None:
    del draft.one("RayCronJob")["metadata"]["labels"]["app.kubernetes.io/part-of"]


@breaks("workload_is_deleted", "serve")
def service_of_its_own(draft: Draft) -> None:
    draft.one("RayService")["metadata"]["labels"]["app.kubernetes.io/part-of"] = "cars"


@breaks("job_fits_kind", "overlays/cpu-smoke")
def workers_of_a_whole_cpu(draft: Draft) -> None:
    """As they were: 4.3 CPUs with all that runs beside them."""
    for kind in ("requests", "limits"):
        draft.worker_pod["containers"][0]["resources"][kind]["cpu"] = "1"


@breaks("job_fits_kind", "overlays/cpu-smoke")
def one_worker_more_than_fits(draft: Draft) -> None:
    draft.workers["replicas"] = 3


@breaks("job_fits_kind", "overlays/cpu-smoke")
def submitter_with_much_memory(draft: Draft) -> None:
    draft.submitter_pod["containers"][0]["resources"]["requests"]["memory"] = "4Gi"


def anti_affinity(draft: Draft) -> Object:
    terms = draft.worker_pod["affinity"]["podAntiAffinity"]
    return terms["requiredDuringSchedulingIgnoredDuringExecution"][0]


@breaks("gpus_avoid_each_other_alone", "components/gpu")
def worker_with_a_gpu_that_waits_for_those_without(draft: Draft) -> None:
    anti_affinity(draft)["labelSelector"] = {"matchLabels": {"thaw/role": "worker"}}


@breaks("gpus_avoid_each_other_alone", "components/gpu")
def worker_with_a_gpu_that_waits_for_all_of_ray(draft: Draft) -> None:
    anti_affinity(draft)["labelSelector"] = {"matchLabels": {"ray.io/node-type": "worker"}}


@breaks("gpus_avoid_each_other_alone", "components/gpu-node")
def worker_with_gpus_beside_another(draft: Draft) -> None:
    del draft.workers["template"]["metadata"]["labels"]["thaw/gpu"]


@breaks("image_has_probe", "serve")
def image_without_what_the_probe_calls(draft: Draft) -> None:
    draft.dockerfile = draft.dockerfile.replace("--no-install-recommends wget", "curl")


@breaks("image_has_probe", "serve")
def image_that_has_it_for_gpus_alone(draft: Draft) -> None:
    draft.dockerfile = draft.dockerfile.replace(
        "RUN apt-get update", 'RUN [ "$DEVICE" = cpu ] || apt-get update'
    )


@breaks("image_has_probe", "serve")
def image_that_has_it_where_it_is_built(draft: Draft) -> None:
    """The last stage takes over Python's packages alone."""
    draft.dockerfile += "FROM python\nCOPY --from=build /install /usr/local\n"
