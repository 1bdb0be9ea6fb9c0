"""The rules of `check-k8s`, one module per subject; each registers with `k8s.checker.rule`."""
