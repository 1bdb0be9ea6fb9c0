"""What the house must refuse of references, entrypoints, workers and storage."""

from tests.k8s.mutations.drafts import Draft, breaks


@breaks("service_account_exists")
def account_that_is_not_there(draft: Draft) -> None:
    draft.worker_pod["serviceAccountName"] = "ray"


@breaks("priority_class_exists")
def priority_class_that_is_not_there(draft: Draft) -> None:
    draft.worker_pod["priorityClassName"] = "urgent"


@breaks("volume_source_exists")
def claim_that_is_not_there(draft: Draft) -> None:
    draft.worker_pod["volumes"][0]["persistentVolumeClaim"]["claimName"] = "photos"


@breaks("volume_source_exists")
def config_map_that_is_not_there(draft: Draft) -> None:
    draft.head_pod["volumes"].append({"name": "config", "configMap": {"name": "config"}})


@breaks("variable_source_exists")
def secret_that_is_not_there(draft: Draft) -> None:
    variable = draft.head_pod["containers"][0]["env"][0]
    variable["valueFrom"]["secretKeyRef"]["name"] = "thaw-key"


@breaks("variable_source_exists")
def misspelt_key_of_a_secret(draft: Draft) -> None:
    variable = draft.head_pod["containers"][0]["env"][0]
    variable["valueFrom"]["secretKeyRef"]["key"] = "WANDB_KEY"


@breaks("auth_secret_exists")
def token_secret_that_is_not_there(draft: Draft) -> None:
    draft.cluster["authOptions"]["secretName"] = "ray-token"


@breaks("selected_cluster_exists")
def cluster_that_is_not_there(draft: Draft) -> None:
    del draft.job["rayClusterSpec"]
    draft.job.update(clusterSelector={"ray.io/cluster": "elsewhere"}, backoffLimit=0)


@breaks("queue_exists")
def queue_that_is_not_there(draft: Draft) -> None:
    labels = draft.rayjob["metadata"].setdefault("labels", {})
    labels["kueue.x-k8s.io/queue-name"] = "cars"


@breaks("queued_job_returns_its_quota", "components/kueue")
def queued_job_that_keeps_its_quota(draft: Draft) -> None:
    draft.job["shutdownAfterJobFinishes"] = False


@breaks("binding_exists")
def binding_of_a_role_that_is_not_there(draft: Draft) -> None:
    draft.objects.append(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "thaw", "namespace": "thaw"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "ray"},
            "subjects": [{"kind": "ServiceAccount", "name": "thaw", "namespace": "thaw"}],
        }
    )


@breaks("other_traffic_stops")
def traffic_allowed_by_default(draft: Draft) -> None:
    draft.objects.remove(draft.one("NetworkPolicy", "thaw-default-deny"))


@breaks("needed_traffic_flows")
def submitter_that_is_not_let_out(draft: Draft) -> None:
    draft.objects.remove(draft.one("NetworkPolicy", "thaw-submitter"))


@breaks("needed_traffic_flows")
def submitter_without_its_label(draft: Draft) -> None:
    draft.job["submitterPodTemplate"]["metadata"]["labels"] = {}


@breaks("needed_traffic_flows")
def workers_that_are_kept_apart(draft: Draft) -> None:
    draft.objects.remove(draft.one("NetworkPolicy", "thaw-ray-nodes"))


@breaks("needed_traffic_flows")
def names_that_nobody_resolves(draft: Draft) -> None:
    ports = draft.one("NetworkPolicy", "thaw-dns")["spec"]["egress"][0]["ports"]
    ports[:] = [port for port in ports if port["protocol"] == "TCP"]


@breaks("needed_traffic_flows")
def operator_that_is_kept_out(draft: Draft) -> None:
    (rule,) = draft.one("NetworkPolicy", "thaw-dashboard")["spec"]["ingress"]
    rule["from"] = [peer for peer in rule["from"] if "namespaceSelector" not in peer]


@breaks("other_traffic_stops")
def dashboard_for_every_namespace(draft: Draft) -> None:
    (rule,) = draft.one("NetworkPolicy", "thaw-dashboard")["spec"]["ingress"]
    rule["from"].append({"namespaceSelector": {}})


@breaks("other_traffic_stops")
def metrics_for_everyone(draft: Draft) -> None:
    (rule,) = draft.one("NetworkPolicy", "thaw-metrics")["spec"]["ingress"]
    del rule["from"]


@breaks("other_traffic_stops")
def web_at_every_port(draft: Draft) -> None:
    (rule,) = draft.one("NetworkPolicy", "thaw-https")["spec"]["egress"]
    del rule["ports"]


@breaks("cluster_queue_admits_namespace", "components/kueue")
def queue_in_another_namespace(draft: Draft) -> None:
    draft.one("LocalQueue")["metadata"]["namespace"] = "team-a"


@breaks("cluster_queue_admits_namespace", "components/kueue")
def queue_that_admits_no_namespace(draft: Draft) -> None:
    del draft.one("ClusterQueue")["spec"]["namespaceSelector"]


@breaks("cluster_queue_admits_namespace", "components/kueue")
def queue_that_admits_labelled_namespaces(draft: Draft) -> None:
    tests = [{"key": "team", "operator": "Exists"}]
    draft.one("ClusterQueue")["spec"]["namespaceSelector"] = {"matchExpressions": tests}


@breaks("selector_operator", "components/kueue")
def selector_that_compares(draft: Draft) -> None:
    tests = [{"key": "team", "operator": "Gt", "values": ["1"]}]
    draft.one("ClusterQueue")["spec"]["namespaceSelector"] = {"matchExpressions": tests}


@breaks("quotas_are_quantities", "components/kueue")
def quota_that_is_no_number(draft: Draft) -> None:
    (group,) = draft.one("ClusterQueue")["spec"]["resourceGroups"]
    group["flavors"][0]["resources"][0]["nominalQuota"] = "lots"


@breaks("quotas_are_quantities", "components/kueue")
def quota_forgotten(draft: Draft) -> None:
    (group,) = draft.one("ClusterQueue")["spec"]["resourceGroups"]
    del group["flavors"][0]["resources"][0]["nominalQuota"]


@breaks("quotas_are_quantities", "components/volcano")
def capability_that_is_no_number(draft: Draft) -> None:
    draft.one("Queue")["spec"]["capability"]["cpu"] = "4 cores"


@breaks("devices_are_whole", "components/gpu")
def half_a_gpu(draft: Draft) -> None:
    for kind in ("requests", "limits"):
        draft.worker_pod["containers"][0]["resources"][kind]["nvidia.com/gpu"] = "0.5"


@breaks("ray_counts_are_numbers")
def cpus_that_are_no_number(draft: Draft) -> None:
    draft.workers["rayStartParams"] = {"num-cpus": "many"}


@breaks("addresses_are_cidrs")
def address_without_a_mask(draft: Draft) -> None:
    draft.one("NetworkPolicy")["spec"]["egress"] = [{"to": [{"ipBlock": {"cidr": "10.0.0.1"}}]}]


@breaks("quota_holds_job", "components/kueue")
def quota_without_memory(draft: Draft) -> None:
    (group,) = draft.one("ClusterQueue")["spec"]["resourceGroups"]
    group["coveredResources"].remove("memory")


@breaks("quota_holds_job", "components/kueue")
def job_larger_than_its_quota(draft: Draft) -> None:
    draft.workers.update(replicas=20, minReplicas=20, maxReplicas=20)


@breaks("quota_holds_job", "components/volcano")
def job_larger_than_its_queue(draft: Draft) -> None:
    draft.one("Queue")["spec"]["capability"]["cpu"] = "4"


@breaks("entrypoint_parses")
def misspelt_option(draft: Draft) -> None:
    draft.job["entrypoint"] += " --learning-rat 1e-3"


@breaks("entrypoint_parses")
def recipe_that_is_none(draft: Draft) -> None:
    draft.job["entrypoint"] = draft.job["entrypoint"].replace("finetune", "finetunes")


@breaks("entrypoint_parses")
def value_out_of_range(draft: Draft) -> None:
    draft.job["entrypoint"] += " --size-px 8"


@breaks("entrypoint_parses")
def second_command_left_to_the_submitter(draft: Draft) -> None:
    draft.job["entrypoint"] += " && python -m trainers evaluate --run /mnt/thaw/runs/train"


@breaks("entrypoint_parses")
def quotation_without_an_end(draft: Draft) -> None:
    draft.job["entrypoint"] = f"bash -c '{draft.job['entrypoint']}"


@breaks("entrypoint_parses")
def script_of_ones_own(draft: Draft) -> None:
    draft.job["entrypoint"] = "python train.py --data /mnt/thaw/cars"


@breaks("entrypoint_parses")
def entrypoint_forgotten(draft: Draft) -> None:
    del draft.job["entrypoint"]


@breaks("workers_fit_max_replicas")
def more_workers_than_cpus(draft: Draft) -> None:
    draft.job["entrypoint"] = draft.job["entrypoint"].replace("--num-workers 2", "--num-workers 16")


@breaks("workers_fit_max_replicas")
def gpus_asked_of_nodes_without(draft: Draft) -> None:
    draft.job["entrypoint"] += " --device gpu"


@breaks("workers_are_there_at_start")
def workers_that_the_autoscaler_would_bring(draft: Draft) -> None:
    draft.autoscale()
    draft.workers.update(replicas=0, minReplicas=0)


@breaks("storage_is_shared")
def run_folder_in_a_container(draft: Draft) -> None:
    draft.job["entrypoint"] = draft.job["entrypoint"].replace("/mnt/thaw/runs", "/tmp/runs")


@breaks("storage_is_shared")
def run_folder_beside_the_code(draft: Draft) -> None:
    draft.job["entrypoint"] = draft.job["entrypoint"].replace("/mnt/thaw/runs", "runs")


@breaks("storage_is_shared")
def mount_forgotten_on_workers(draft: Draft) -> None:
    del draft.worker_pod["containers"][0]["volumeMounts"][0]


@breaks("claim_for_many_nodes")
def claim_for_one_node(draft: Draft) -> None:
    draft.one("PersistentVolumeClaim")["spec"]["accessModes"] = ["ReadWriteOnce"]
