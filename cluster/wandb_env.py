"""What a user has set up for W&B, found as W&B itself finds it: variable, file, default.

    key        WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE, else the server's password in NETRC
    settings   WANDB_PROJECT and the like, else wandb/settings, else ~/.config/wandb/settings

An option of a command is stronger than all of these. Standard library only.
"""

import configparser
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

CLOUD = "https://api.wandb.ai"
PROJECT = "thaw"
NOT_USED = ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_JOB_TYPE")
"""A run folder has its own files, id and kind, so that the same command resumes the same run."""


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
        values = {"disabled": "off", "dryrun": "offline", "run": "online", "shared": "online"}
        return Setting(values.get(mode.value, mode.value), mode.source)
    if (key := find_key(environment)) is not None:
        return Setting("online", f"key of {key.source}")
    host = urlsplit(find_base_url(environment)).hostname
    return Setting(
        "offline", f"no key in WANDB_API_KEY, nor of {host} in {_netrc_name(environment)}"
    )


def _netrc_name(environment: Mapping[str, str]) -> str:
    return environment.get("NETRC") or "~/.netrc"
