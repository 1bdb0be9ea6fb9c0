"""Keys stay in Secrets: named by reference in pods, written in no object, no command, no runtime
environment (which `ray job list` and the dashboard show)."""

import base64
import re
from collections.abc import Iterator
from typing import Any

import yaml

from k8s.checker.parts import Part, containers, dig, join, objects, ray_jobs
from k8s.checker.rule import Problem, rule

SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_ID)?$", re.IGNORECASE)
"""Name of a variable that holds a key; WANDB_API_KEY, AWS_ACCESS_KEY_ID, HF_TOKEN."""
KEY_FORMS = {
    "an AWS key id": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a W&B key": re.compile(r"\bwandb_v1_\w{20,}|(?<![0-9a-fA-F/:@.-])[0-9a-f]{40}(?![0-9a-fA-F])"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "a GitHub token": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a JSON web token": re.compile(r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+"),
    "a password in a URL": re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s:@$]+:[^/\s@$]+@"),
    "an AWS secret": re.compile(
        r"(?<![\w/+.:@-])(?!/)(?=\S*[0-9])(?=\S*[a-z])(?=\S*[A-Z])[A-Za-z0-9/+]{40}(?![\w/+.=-])"
    ),
}
ASSIGNMENT = re.compile(r"(?<![\w-])(\w+)=(?!\$)\S+")
PLACEHOLDER = re.compile(r"|.*(replace|change|your|example|placeholder|<.*>).*", re.IGNORECASE)
"""What an example may say in place of a key."""


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string of an object, and its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from strings(item, join(path, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from strings(item, f"{path}[{index}]")
    elif isinstance(value, str):
        yield path, value


@rule(objects())
def no_key_written(part: Part) -> Iterator[Problem]:
    for path, text in strings(part.value):
        for what, form in KEY_FORMS.items():
            if form.search(text):
                yield path, f"looks like {what}: refer to a Secret"


@rule(containers)
def variable_by_reference(part: Part) -> Iterator[Problem]:
    for index, item in enumerate(part.value.get("env") or ()):
        if SECRET_NAME.search(item.get("name", "")) and item.get("value"):
            yield f"env[{index}]", f"{item['name']} is written here: use valueFrom.secretKeyRef"


@rule(ray_jobs)
def runtime_env_without_keys(part: Part) -> Iterator[Problem]:
    try:
        runtime_env = yaml.safe_load(part.value.get("runtimeEnvYAML") or "")
    except yaml.YAMLError:
        return  # runtime_env_parses says so
    for name in dig(runtime_env, "env_vars", {}):
        if SECRET_NAME.search(name):
            yield "runtimeEnvYAML", f"holds {name}, for all to see: give it to the pods"


@rule(ray_jobs)
def entrypoint_without_keys(part: Part) -> Iterator[Problem]:
    for name in ASSIGNMENT.findall(part.value.get("entrypoint") or ""):
        if SECRET_NAME.search(name):
            yield "entrypoint", f"sets {name}, for all to see: give it to the pods"


@rule(objects("Secret"))
def secret_is_an_example(part: Part) -> Iterator[Problem]:
    """What is committed is no secret: a key of an example says where the real one comes from."""
    for key, text in (part.value.get("stringData") or {}).items():
        if not PLACEHOLDER.fullmatch(str(text)):
            yield f"stringData.{key}", "holds a value: commit a placeholder"
    for key, text in (part.value.get("data") or {}).items():
        if not PLACEHOLDER.fullmatch(base64.b64decode(text).decode(errors="replace").strip()):
            yield f"data.{key}", "holds a value: commit a placeholder"
