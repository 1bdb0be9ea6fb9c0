"""All mutations, by name."""

from tests.k8s import mutations_jobs, mutations_kuberay, mutations_pods  # noqa: F401  each registers
from tests.k8s.drafts import REGISTERED, Mutation

__all__ = ["MUTATIONS", "Mutation"]

MUTATIONS = {mutation.name: mutation for mutation in REGISTERED}
assert len(MUTATIONS) == len(REGISTERED), "two mutations have one name"
