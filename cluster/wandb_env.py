"""What a user has set up for W&B, found as W&B itself finds it: variable, file, default.

    key        WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE, else the server's password in NETRC
    settings   WANDB_PROJECT and the like, else wandb/settings, else ~/.config/wandb/settings

An option of a command is stronger than all of these. Standard library only.

W&B's client refuses a wrong setting when a run starts, whatever the options say: `check_settings`
finds it before.
"""

import configparser
import netrc
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cluster.io.errors import UserError, require

CLOUD = "https://api.wandb.ai"
PROJECT = "thaw"
NOT_USED = ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_JOB_TYPE")
"""A run folder has its own files, id and kind, so that the same command resumes the same run."""
MODES = {
    "online": "online",
    "offline": "offline",
    "disabled": "off",
    "run": "online",
    "dryrun": "offline",
    "shared": "online",
}
"""Values of WANDB_MODE, and ours."""
MAX_TAG = 64
"""Characters of a tag, W&B's limit."""


class Setting(NamedTuple):
    value: str
    source: str
    """For messages: the variable or file."""


def find_setting(name: str, environment: Mapping[str, str] = os.environ) -> Setting | None:
    """Find a setting such as `project`; None where it is not set."""
    variable = f"WANDB_{name.upper()}"
    if value := environment.get(variable):
        return Setting(value, variable)
    home = Path(environment.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    for file in (Path("wandb/settings"), home / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(file.read_text())
            if value := parser.get("default", name, fallback=""):
                return Setting(value, str(file))
        except (OSError, ValueError, RuntimeError, configparser.Error):
            continue  # W&B reads no such file either
    return None


def check_settings(environment: Mapping[str, str] = os.environ) -> None:
    """Check what the user has set up for W&B.

    Raises:
        UserError: naming the variable, or the setting and its file.
    """
    if found := find_setting("mode", environment):
        require(found.value in MODES, _name("mode", found), found.value, f"use {', '.join(MODES)}")
    if found := find_setting("project", environment):
        require_project(_name("project", found), found.value)
    if found := find_setting("base_url", environment):
        require(
            _is_url(found.value),
            _name("base_url", found),
            found.value,
            f"give the server's URL, such as {CLOUD}",
        )
    for tag in split_tags(environment):
        require_tag("WANDB_TAGS", tag)
    key = environment.get("WANDB_API_KEY", "")
    if key != key.strip():  # not shown
        raise UserError("WANDB_API_KEY begins or ends with white space; set it without")


def split_tags(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the tags in WANDB_TAGS."""
    tags = environment.get("WANDB_TAGS", "").split(",")
    return [tag.strip() for tag in tags if tag.strip()]


def require_project(field: str, project: str) -> None:
    """Refuse what is no name of a W&B project."""
    require(
        0 < len(project.strip()) <= len(project) <= 128 and not set(project) & set("/\\#?%:"),
        field,
        project,
        "use 1 to 128 characters, none of them / \\ # ? % :; a team goes into WANDB_ENTITY",
    )


def require_tag(field: str, tag: str) -> None:
    """Refuse what is no W&B tag."""
    require(
        0 < len(tag.strip()) <= len(tag) <= MAX_TAG,
        field,
        tag,
        f"use 1 to {MAX_TAG} characters for each tag, or leave it out",
    )


def drop_empty_variables(environment: MutableMapping[str, str]) -> None:
    """Drop W&B's variables that are empty, and empty tags: they count as not set, yet W&B's client
    refuses them."""
    for name in [name for name in environment if name.startswith("WANDB_")]:
        if not environment[name]:
            del environment[name]
    if "WANDB_TAGS" in environment:
        environment["WANDB_TAGS"] = ",".join(split_tags(environment))
        if not environment["WANDB_TAGS"]:
            del environment["WANDB_TAGS"]


def _name(name: str, found: Setting) -> str:
    is_variable = found.source.startswith("WANDB_")
    return found.source if is_variable else f"{name} of {found.source}"


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port, or of an address in brackets
        return False


def find_base_url(environment: Mapping[str, str] = os.environ) -> str:
    """Return the URL of the server."""
    found = find_setting("base_url", environment)
    return (found.value if found else CLOUD).rstrip("/")


def find_key(environment: Mapping[str, str] = os.environ) -> Setting | None:
    """Find a key of the server; None where W&B would ask for one."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if value := environment.get(variable):
            return Setting(value, variable)
    files = [environment["NETRC"]] if environment.get("NETRC") else ["~/.netrc", "~/_netrc"]
    server = urlsplit(find_base_url(environment))
    for name in files:
        file = os.path.expanduser(name)
        try:
            logins = netrc.netrc(file)
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        # Today's client writes and reads HOST:PORT, older ones wrote HOST.
        found = logins.authenticators(server.netloc) or logins.authenticators(server.hostname or "")
        if found is not None and found[2]:
            return Setting(found[2], file)
    return None


def find_login(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the key of a login in a file, for W&B's client, which finds none of older ones."""
    found = find_key(environment)
    is_login = found is not None and not found.source.startswith("WANDB_")
    return found.value if found is not None and is_login else None


def find_mode(environment: Mapping[str, str] = os.environ) -> Setting:
    """Return online, offline or off, and the reason."""
    if environment.get("WANDB_DISABLED", "").casefold() in ("true", "1", "yes"):
        return Setting("off", "WANDB_DISABLED")
    if (mode := find_setting("mode", environment)) is not None:
        return Setting(MODES.get(mode.value, mode.value), mode.source)
    if (key := find_key(environment)) is not None:
        return Setting("online", f"key of {key.source}")
    host = urlsplit(find_base_url(environment)).hostname
    return Setting(
        "offline", f"no key in WANDB_API_KEY, nor of {host} in {_netrc_name(environment)}"
    )


def _netrc_name(environment: Mapping[str, str]) -> str:
    return environment.get("NETRC") or "~/.netrc"
