"""The rules of `make check-k8s`, one module per subject; each registers with `tests.k8s.rule`."""
