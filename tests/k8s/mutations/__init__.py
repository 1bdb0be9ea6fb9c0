"""All mutations, by name."""

from tests.k8s.mutations import between, jobs, kuberay, pods  # noqa: F401  each registers its mutations
from tests.k8s.mutations.drafts import REGISTERED, Mutation

__all__ = ["MUTATIONS", "Mutation"]

MUTATIONS = {mutation.name: mutation for mutation in REGISTERED}
assert len(MUTATIONS) == len(REGISTERED), "two mutations have one name"
