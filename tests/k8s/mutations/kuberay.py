"""What the CRDs, their CEL rules and the operator's Go must refuse."""

from tests.k8s.mutations.drafts import Draft, breaks


@breaks("crd_schema")
def misspelt_field(draft: Draft) -> None:
    draft.job["backofLimit"] = draft.job.pop("backoffLimit")


@breaks("crd_schema")
def misspelt_field_deep_in_a_pod(draft: Draft) -> None:
    draft.worker_pod["containers"][0]["volumeMount"] = []


@breaks("crd_schema")
def number_written_as_text(draft: Draft) -> None:
    draft.workers["maxReplicas"] = "2"


@breaks("crd_schema")
def text_written_as_number(draft: Draft) -> None:
    draft.head["rayStartParams"]["num-cpus"] = 0


@breaks("crd_schema")
def number_beyond_int32(draft: Draft) -> None:
    draft.job["activeDeadlineSeconds"] = 2**31


@breaks("crd_schema")
def group_without_a_name(draft: Draft) -> None:
    del draft.workers["groupName"]


@breaks("crd_schema")
def group_without_a_template(draft: Draft) -> None:
    draft.workers["template"] = None


@breaks("crd_schema")
def unknown_auth_mode(draft: Draft) -> None:
    draft.cluster["authOptions"]["mode"] = "tokens"


@breaks("crd_schema")
def memory_that_is_no_quantity(draft: Draft) -> None:
    draft.worker_pod["containers"][0]["resources"]["limits"]["memory"] = "3 GB"


@breaks("crd_schema")
def old_api_version(draft: Draft) -> None:
    draft.rayjob["apiVersion"] = "ray.io/v2"


@breaks("crd_schema")
def cluster_spec_a_level_too_high(draft: Draft) -> None:
    draft.job.update(draft.job.pop("rayClusterSpec"))


@breaks("crd_cel")
def foreign_manager(draft: Draft) -> None:
    draft.job["managedBy"] = "someone/else"


@breaks("crd_cel")
def deletion_condition_of_two_kinds(draft: Draft) -> None:
    draft.delete_by_rules(("DeleteCluster", "SUCCEEDED", 0))
    condition = draft.job["deletionStrategy"]["deletionRules"][0]["condition"]
    condition["jobDeploymentStatus"] = "Failed"


@breaks("crd_cel")
def empty_deletion_strategy(draft: Draft) -> None:
    draft.job["deletionStrategy"] = {}


@breaks("ray_name")
def job_name_too_long(draft: Draft) -> None:
    draft.rayjob["metadata"]["name"] = "thaw-" + "x" * 43


@breaks("ray_name")
def job_name_begins_with_a_digit(draft: Draft) -> None:
    draft.rayjob["metadata"]["name"] = "2nd-thaw"


@breaks("ray_name")
def cron_name_too_long(draft: Draft) -> None:
    draft.add_cron("0 2 * * *")
    draft.one("RayCronJob")["metadata"]["name"] = "thaw-" + "x" * 32


@breaks("ray_name", "cluster")
def cluster_name_too_long(draft: Draft) -> None:
    draft.one("RayCluster")["metadata"]["name"] = "thaw-" + "x" * 49


@breaks("group_has_container")
def group_without_containers(draft: Draft) -> None:
    draft.worker_pod["containers"] = []


@breaks("group_resources_once")
def head_resources_twice(draft: Draft) -> None:
    draft.head["resources"] = {"CPU": "0"}


@breaks("group_labels")
def labels_in_ray_start_params(draft: Draft) -> None:
    draft.workers["rayStartParams"]["labels"] = "tier=spot"


@breaks("group_labels")
def group_label_with_a_space(draft: Draft) -> None:
    draft.workers["labels"] = {"tier": "very cheap"}


@breaks("group_replicas")
def fewest_above_most(draft: Draft) -> None:
    draft.workers.update(minReplicas=3, maxReplicas=2)


@breaks("group_replicas")
def negative_replicas(draft: Draft) -> None:
    draft.workers["minReplicas"] = -1


@breaks("group_needs_autoscaler_v2")
def idle_timeout_without_autoscaler(draft: Draft) -> None:
    draft.workers["idleTimeoutSeconds"] = 60


@breaks("group_needs_autoscaler_v2")
def priority_on_an_old_ray(draft: Draft) -> None:
    draft.autoscale()
    draft.workers["priority"] = 1
    draft.cluster["rayVersion"] = "2.55.0"


@breaks("gcs_fault_tolerance")
def redis_address_alone(draft: Draft) -> None:
    draft.set_env("RAY_REDIS_ADDRESS", "redis:6379")


@breaks("gcs_fault_tolerance")
def redis_password_in_start_params(draft: Draft) -> None:
    draft.cluster["gcsFaultToleranceOptions"] = {"redisAddress": "redis:6379"}
    draft.head["rayStartParams"]["redis-password"] = "$REDIS_PASSWORD"


@breaks("gated_field")
def network_policy_of_the_operator(draft: Draft) -> None:
    draft.cluster["networkPolicy"] = {"mode": "DenyAll"}


@breaks("gated_field")
def mutual_tls_of_the_operator(draft: Draft) -> None:
    draft.cluster["tlsOptions"] = {"enabled": True}


@breaks("gated_field")
def embedded_gcs_storage(draft: Draft) -> None:
    draft.cluster["gcsFaultToleranceOptions"] = {"backend": "rocksdb"}


@breaks("autoscaler_and_suspend")
def suspended_group_beside_the_autoscaler(draft: Draft) -> None:
    draft.autoscale()
    draft.workers["suspend"] = True


@breaks("autoscaler_version_once")
def autoscaler_version_twice(draft: Draft) -> None:
    draft.autoscale()
    draft.set_env("RAY_enable_autoscaler_v2", "1")


@breaks("autoscaler_version_once")
def autoscaler_version_without_autoscaler(draft: Draft) -> None:
    draft.cluster["enableInTreeAutoscaling"] = False
    draft.set_env("RAY_enable_autoscaler_v2", "true")


@breaks("autoscaler_restart_policy")
def workers_that_restart_beside_autoscaler_v2(draft: Draft) -> None:
    draft.autoscale()
    draft.worker_pod["restartPolicy"] = "Always"


@breaks("autoscaler_options")
def negative_idle_timeout(draft: Draft) -> None:
    draft.autoscale(idleTimeoutSeconds=-1)


@breaks("autoscaler_options")
def start_command_taken_from_the_operator(draft: Draft) -> None:
    draft.autoscale(env=[{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD", "value": "true"}])


@breaks("token_auth_version")
def tokens_on_an_old_ray(draft: Draft) -> None:
    draft.cluster["rayVersion"] = "2.51.1"


@breaks("token_auth_version")
def tokens_without_a_ray_version(draft: Draft) -> None:
    del draft.cluster["rayVersion"]


@breaks("token_auth_version")
def kubernetes_tokens_in_a_job(draft: Draft) -> None:
    draft.cluster["authOptions"]["enableK8sTokenAuth"] = True


@breaks("upgrade_strategy_alone")
def upgrade_strategy_in_a_job(draft: Draft) -> None:
    draft.cluster["upgradeStrategy"] = {"type": "Recreate"}


@breaks("suspend_needs_shutdown")
def suspended_job_that_stays(draft: Draft) -> None:
    draft.job.update(suspend=True, shutdownAfterJobFinishes=False)


@breaks("ttl_needs_shutdown")
def ttl_of_a_job_that_stays(draft: Draft) -> None:
    draft.job.update(ttlSecondsAfterFinished=60, shutdownAfterJobFinishes=False)


@breaks("ttl_needs_shutdown")
def negative_ttl(draft: Draft) -> None:
    draft.job["ttlSecondsAfterFinished"] = -1


@breaks("one_way_of_deletion")
def two_ways_of_deletion(draft: Draft) -> None:
    draft.delete_by_rules(("DeleteCluster", "SUCCEEDED", 0))
    draft.job["shutdownAfterJobFinishes"] = True


@breaks("one_way_of_deletion")
def deletion_on_success_alone(draft: Draft) -> None:
    draft.job["deletionStrategy"] = {"onSuccess": {"policy": "DeleteCluster"}}


@breaks("deletion_rule")
def workers_deleted_beside_the_autoscaler(draft: Draft) -> None:
    draft.autoscale()
    draft.delete_by_rules(("DeleteWorkers", "SUCCEEDED", 0))


@breaks("deletion_rule")
def same_deletion_twice(draft: Draft) -> None:
    draft.delete_by_rules(("DeleteCluster", "FAILED", 0), ("DeleteCluster", "FAILED", 60))


@breaks("deletion_rule")
def negative_time_to_deletion(draft: Draft) -> None:
    draft.delete_by_rules(("DeleteCluster", "FAILED", -1))


@breaks("deletion_order")
def cluster_deleted_before_its_workers(draft: Draft) -> None:
    draft.delete_by_rules(("DeleteWorkers", "FAILED", 600), ("DeleteCluster", "FAILED", 60))


@breaks("cluster_or_selector")
def job_without_a_cluster(draft: Draft) -> None:
    del draft.job["rayClusterSpec"]


@breaks("cluster_or_selector")
def retries_on_a_shared_cluster(draft: Draft) -> None:
    del draft.job["rayClusterSpec"]
    draft.job.update(clusterSelector={"ray.io/cluster": "thaw"}, backoffLimit=2)


@breaks("cluster_or_selector")
def selector_without_the_label(draft: Draft) -> None:
    del draft.job["rayClusterSpec"]
    draft.job.update(clusterSelector={"team": "cars"}, backoffLimit=0)


@breaks("submission_mode")
def misspelt_submission_mode(draft: Draft) -> None:
    draft.job["submissionMode"] = "K8SJobMode"


@breaks("mode_and_its_fields")
def retries_in_interactive_mode(draft: Draft) -> None:
    draft.job.update(submissionMode="InteractiveMode", backoffLimit=1)


@breaks("mode_and_its_fields")
def submitter_template_in_sidecar_mode(draft: Draft) -> None:
    draft.job["submissionMode"] = "SidecarMode"


@breaks("runtime_env_parses")
def runtime_env_that_is_no_yaml(draft: Draft) -> None:
    draft.job["runtimeEnvYAML"] = "env_vars: {NCCL_DEBUG: INFO"


@breaks("runtime_env_parses")
def runtime_env_that_is_a_text(draft: Draft) -> None:
    draft.job["runtimeEnvYAML"] = "NCCL_DEBUG=INFO"


@breaks("serve_config_parses", "serve")
def serve_config_that_is_no_yaml(draft: Draft) -> None:
    draft.one("RayService")["spec"]["serveConfigV2"] = "applications: ["


@breaks("serve_config_parses", "serve")
def service_without_applications(draft: Draft) -> None:
    draft.one("RayService")["spec"]["serveConfigV2"] = "applications: {}"


@breaks("serve_config_parses", "serve")
def application_without_its_module(draft: Draft) -> None:
    draft.one("RayService")["spec"]["serveConfigV2"] = "applications: [{name: thaw}]"


@breaks("serve_config_parses", "serve")
def service_with_a_misspelt_option(draft: Draft) -> None:
    spec = draft.one("RayService")["spec"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace("run: ", "runs: ")


@breaks("job_limits")
def no_time_at_all(draft: Draft) -> None:
    draft.job["activeDeadlineSeconds"] = 0


@breaks("job_limits")
def negative_retries(draft: Draft) -> None:
    draft.job["backoffLimit"] = -1


@breaks("cron_schedule")
def hour_that_is_none(draft: Draft) -> None:
    draft.add_cron("0 24 * * *")


@breaks("scheduled_job_starts")
def scheduled_job_that_is_suspended(draft: Draft) -> None:
    draft.job["suspend"] = True
    draft.add_cron("0 2 * * *")


@breaks("cron_schedule")
def four_fields(draft: Draft) -> None:
    draft.add_cron("0 2 * *")


@breaks("cron_schedule")
def time_zone_in_the_schedule(draft: Draft) -> None:
    draft.add_cron("CRON_TZ=Europe/Berlin 0 2 * * *")


@breaks("cron_schedule")
def time_zone_that_is_none(draft: Draft) -> None:
    draft.add_cron("0 2 * * *", timeZone="Europe/Atlantis")
