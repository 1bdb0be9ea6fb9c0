"""python -m cluster doctor | submit | status | logs | stop | check-k8s"""

from collections.abc import Sequence
from typing import Any

from cluster.dispatch import Verb, dispatch, parse_verb
from cluster.entry import run_room

DOCTOR_HELP = """Check a cluster, or this machine, before anything runs on it.

  python -m cluster doctor                                    # this machine
  python -m cluster doctor --address HEAD:6379 --data /nfs/cars --out /nfs/sweep
  python -m cluster submit -- python -m cluster doctor --out s3://bucket/sweep   # from outside
  python -m cluster doctor --json                             # one JSON object

Every line begins with ok, warn or fail. A warning or failure says what to do. The exit code is 1 if
a check fails.
"""

SUBMIT_HELP = """Run a command of Thaw as a job of a Ray cluster, and follow its log.

  python -m cluster submit -- python -m tuning --data s3://bucket/cars --out s3://bucket/sweep
  python -m cluster submit --address http://HEAD:8265 --no-wait -- python -m trainers ...
  python -m cluster submit --submission-id sweep-7 -- python -m tuning ...   # safe to repeat

The command is parsed first, and its paths, secrets, size and versions are checked. Then the four
packages of this folder are sent with it. Ctrl-C detaches and leaves the job running. The exit code
is the job's, or 1 if it was stopped. If the cluster asks for a token, set RAY_AUTH_MODE=token and
put the token into RAY_AUTH_TOKEN or ~/.ray/auth_token.
"""

CHECK_K8S_HELP = """Build Kubernetes overlays and check them, without a cluster.

  python -m cluster check-k8s                        # all of k8s/
  python -m cluster check-k8s k8s/deploy/team        # your own overlay, or a folder with several
  python -m cluster check-k8s built.yaml --json      # output of helm or kustomize; prints JSON

The rules are those of Kubernetes 1.29 to 1.37, of KubeRay 1.7 (schemas, CEL, what its operator
refuses) and of Pod Security `restricted`, and the needs of a job of Thaw: network traffic, quota,
disks, storage, pods that are not evicted, entrypoints that parse. The exit code is 1 if there are
findings.
"""

VERBS = {
    "doctor": Verb(
        "check a cluster, or this machine, before anything runs on it",
        "cluster.config:DoctorConfig",
        "cluster.doctor.doctor:run_doctor",
        help=DOCTOR_HELP,
    ),
    "submit": Verb(
        "check a command, run it as a job of a cluster, follow its log",
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
