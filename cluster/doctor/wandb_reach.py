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

SERVER = "https://api.wandb.ai"
TIMEOUT_S = 10.0


def check_wandb(environment: Mapping[str, str] = os.environ) -> list[CheckResult]:
    """Ask the server who we are, as W&B's own client does first."""
    key = environment.get("WANDB_API_KEY")
    if environment.get("WANDB_MODE") in ("offline", "disabled") or not key:
        why = "WANDB_MODE says so" if key else "WANDB_API_KEY is not set"
        return [ok("wandb", f"offline ({why}): runs wait in their folders for `wandb sync`")]
    url = environment.get("WANDB_BASE_URL", SERVER).rstrip("/")
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
        "wandb", f"{url} refuses the key", f"set WANDB_API_KEY to one of {site}/authorize"
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
