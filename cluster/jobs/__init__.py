"""`python -m cluster submit|status|logs|stop`: commands as Ray jobs.

Imports the root of `cluster` and `cluster.io`.
Enter at `submit`; `jobs` has the other three verbs, `job_server` the HTTP client.
"""
