"""Keys and passwords, found before they are sent where others read them.

The command of a job, its environment and its files are shown to everyone who may look at the
cluster: on the dashboard, in `ray job list`, in a RayJob's manifest. A secret is reported by its
kind and file, never by its value.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cluster.io.errors import UserError

SECRET_NAMES = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
"""Ends of the names of environment variables whose values must stand in no file."""
MIN_SECRET = 8
"""Shorter values stand in any text."""
MIN_WORD = 16
"""Values without a digit, of small or large letters alone, that are shorter may be a word of any
text: they are looked for where they are all that is given, not within words and files."""
REMEDY = (
    "give secrets to the nodes, in the environment that Ray is started in or a Kubernetes Secret "
    "(secretKeyRef), never to the job"
)

# Of forms that nothing else has.
PATTERNS = {
    "an AWS access key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{34}\b",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})\b",
    "a Google API key": rb"\bAIza[0-9A-Za-z_-]{35}\b",
    "a Slack token": rb"\bxox[abprs]-[0-9A-Za-z-]{20,}",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}",
}
_COMPILED = {kind: re.compile(pattern) for kind, pattern in PATTERNS.items()}
_URL_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@")
_NAMED = re.compile(r"-{0,2}([A-Za-z0-9_-]+)=.+")


def known_secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the keys and passwords of an environment with the names of their variables, the
    longest first, as one may be part of another."""
    secrets = {
        value: name
        for name, value in environment.items()
        if name.endswith(SECRET_NAMES) and len(value) >= MIN_SECRET
    }
    return dict(sorted(secrets.items(), key=lambda item: -len(item[0])))


def may_be_a_word(secret: str) -> bool:
    """Return whether a secret may stand in a text that has nothing to do with it."""
    is_varied = any(map(str.isdigit, secret)) or secret not in (secret.lower(), secret.upper())
    return len(secret) < MIN_WORD and not is_varied


def refuse_secrets_in_words(
    words: Sequence[str], field: str, environment: Mapping[str, str] = os.environ
) -> None:
    """Look at a command line, or at NAME=VALUE pairs.

    Raises:
        UserError: where a word holds a secret.
    """
    known = known_secrets(environment)
    for number, word in enumerate(words, 1):
        named = _NAMED.match(word)
        name = named[1].upper().replace("-", "_") if named else ""
        if f"_{name}".endswith(SECRET_NAMES):
            kind = f"gives {name} a value"
        elif _URL_PASSWORD.search(word):
            kind = "holds a URL with a password"
        elif (value := word.rpartition("=")[2]) in known:
            kind = f"holds the value of {known[value]}"
        elif found := find_secret(word.encode(), known):
            kind = f"holds {found}"
        else:
            continue
        raise UserError(f"{field}: word {number} {kind}, which anyone could read; {REMEDY}")


def refuse_secrets_in_files(
    files: Sequence[Path], root: Path, environment: Mapping[str, str] = os.environ
) -> None:
    """Look at the files that are to be sent.

    Raises:
        UserError: where one holds a secret.
    """
    if found := list(find_in_files(files, known_secrets(environment))):
        shown = ", ".join(f"{path.relative_to(root)} holds {kind}" for path, kind in found[:3])
        raise UserError(
            f"folder is {str(root)!r}: {shown}; take it out of the file, and {REMEDY}; where the "
            "value of a variable is no secret, unset the variable here"
        )


def find_in_files(files: Sequence[Path], known: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Yield the files that hold a secret, and its kind.

    Raises:
        UserError: where one can't be read.
    """
    for path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"folder: {str(path)!r} can't be read ({error.strerror}); delete it, change its "
                "permissions, or run the command again if it has just been moved"
            ) from error
        if kind := find_secret(content, known):
            yield path, kind


def find_secret(content: bytes, known: Mapping[str, str]) -> str | None:
    """Return the kind of secret in `content`, or the name of a known one."""
    for value, name in known.items():
        if not may_be_a_word(value) and value.encode() in content:
            return f"the value of {name}"
    for kind, pattern in _COMPILED.items():
        if pattern.search(content):
            return kind
    return None
