"""Whether the W&B server that this process would use answers, and knows the key.

Only the driver talks to W&B, so nodes need not reach it.
"""

import base64
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping

from cluster.doctor.results import CheckResult, fail, ok, shorten, warn
from cluster.io.errors import UserError
from cluster.wandb_env import check_settings, find_base_url, find_key, find_mode

TIMEOUT_S = 10.0


def check_wandb(environment: Mapping[str, str] = os.environ) -> list[CheckResult]:
    """Ask the server who we are, as W&B's own client does first."""
    mode, found = find_mode(environment), find_key(environment)
    if mode.value == "off":
        return [ok("wandb", f"off ({mode.source}): nothing is tracked")]
    try:
        check_settings(environment)
    except UserError as error:
        return [fail("wandb", str(error), "no run would start with it: set it right, or unset it")]
    if mode.value == "online" and found is None:
        return [
            warn("wandb", f"online ({mode.source}) without a key", "set WANDB_API_KEY, or log in")
        ]
    if mode.value != "online" or found is None:
        sync = "runs wait in their folders for `python -m trainers track sync`"
        return [ok("wandb", f"offline ({mode.source}): {sync}")]
    key, url = found.value, find_base_url(environment)
    if found.source == "WANDB_IDENTITY_TOKEN_FILE":
        return [ok("wandb", f"{url}, with the identity token of {found.value}, which is not tried")]
    request = urllib.request.Request(
        f"{url}/graphql",
        data=json.dumps({"query": "query Viewer { viewer { id username } }"}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}",
        },
    )
    site = url.replace("//api.", "//")
    refused = fail(
        "wandb", f"{url} refuses the key of {found.source}", f"take one of {site}/authorize"
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            viewer = json.load(response)["data"]["viewer"]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return [refused]
        return [_out_of_reach(url, error)]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        return [_out_of_reach(url, error)]
    return [ok("wandb", f"{url} knows the key")] if viewer else [refused]


def _out_of_reach(url: str, error: Exception) -> CheckResult:
    return warn(
        "wandb",
        f"{url} is out of reach ({shorten(error)})",
        "runs will be offline: check WANDB_BASE_URL and the proxy, or upload them later",
    )
