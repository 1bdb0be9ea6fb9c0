"""The checker of k8s/: overlays, built and judged by small named rules (`python -m tests.k8s`)."""
