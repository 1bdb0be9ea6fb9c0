"""A trained network behind HTTP, by Ray Serve: JSON and multipart, a page to drop photographs on.

Imports `export`, `evaluation`, `run` and the root of `trainers`.
Enter at `serve` (the command) and `app` (the deployment, which `k8s/` names too).
"""
