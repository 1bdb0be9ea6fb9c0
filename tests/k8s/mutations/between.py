"""What must be refused between objects, commands and clouds. Most of it is the table of settings:
each row has the value that breaks it."""

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
