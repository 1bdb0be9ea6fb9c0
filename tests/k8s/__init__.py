"""Mutations of the overlays of k8s/, which the rules must notice, and a job server."""
