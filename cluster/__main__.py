"""python -m cluster doctor | submit | status | logs | stop | check-k8s"""

from collections.abc import Sequence
from typing import Any

from cluster.dispatch import Verb, dispatch, parse_verb
from cluster.entry import run_room

DOCTOR_HELP = """Look over a cluster before anything runs on it.

  python -m cluster doctor                                    # this machine
  python -m cluster doctor --address HEAD:6379 --data /nfs/cars --out /nfs/sweep
  python -m cluster submit -- python -m cluster doctor --out s3://bucket/sweep   # from outside
  python -m cluster doctor --json                             # for machines

Every line is ok, warn or fail, with what to do about it. The exit code is 1 where something fails.
"""

SUBMIT_HELP = """Run a command of Thaw's as a job of a cluster, and follow its log.

  python -m cluster submit -- python -m tuning --data s3://bucket/cars --out s3://bucket/sweep
  python -m cluster submit --address http://HEAD:8265 --no-wait -- python -m trainers ...
  python -m cluster submit --submission-id sweep-7 -- python -m tuning ...   # safe to repeat

The rooms of this folder are sent along. Before that the command is parsed, and paths, secrets, size
and versions are checked. Ctrl-C detaches and leaves the job running. The exit code is the job's: 0,
or 1 where it failed. Where the cluster asks for a token, set RAY_AUTH_MODE=token and have it in
RAY_AUTH_TOKEN or ~/.ray/auth_token.
"""

CHECK_K8S_HELP = """Build Kubernetes overlays and check them, without a cluster.

  python -m cluster check-k8s                        # all of k8s/
  python -m cluster check-k8s k8s/deploy/team        # your own overlay, or a folder with several
  python -m cluster check-k8s built.yaml --json      # what helm or kustomize wrote, for machines

The rules are those of Kubernetes 1.29 to 1.37 and of KubeRay 1.7 (schemas, CEL, what its operator
refuses), Pod Security `restricted`, and what a job of Thaw's needs: traffic, quota, disks, storage,
pods that are not evicted, entrypoints that parse. The exit code is 1 where something is found.
"""

VERBS = {
    "doctor": Verb(
        "check a cluster, or this machine, before anything runs on it",
        "cluster.config:DoctorConfig",
        "cluster.doctor.doctor:run_doctor",
        help=DOCTOR_HELP,
    ),
    "submit": Verb(
        "check a command and this folder, run them as a job of a cluster, follow its log",
        "cluster.config:SubmitConfig",
        "cluster.jobs.submit:run_submission",
        help=SUBMIT_HELP,
        parse="cluster.jobs.config:parse_submission",
    ),
    "status": Verb(
        "show the state of a job; without its name, all jobs",
        "cluster.jobs.config:StatusConfig",
        "cluster.jobs.jobs:run_status",
    ),
    "logs": Verb(
        "print the log of a job; --follow to its end",
        "cluster.jobs.config:LogsConfig",
        "cluster.jobs.jobs:run_logs",
    ),
    "stop": Verb(
        "stop a job, with time to save its state",
        "cluster.jobs.config:StopConfig",
        "cluster.jobs.jobs:run_stop",
    ),
    "check-k8s": Verb(
        "check Kubernetes overlays, yours or those of k8s/, without a cluster",
        "cluster.manifests:CheckK8sConfig",
        "cluster.manifests:run_check",
        help=CHECK_K8S_HELP,
    ),
}


def main(arguments: Sequence[str]) -> None:
    dispatch("cluster", VERBS, arguments)


def parse(arguments: Sequence[str]) -> Any:
    """Parse a verb and its options into its config."""
    return parse_verb("cluster", VERBS, arguments)


if __name__ == "__main__":
    run_room(main)
