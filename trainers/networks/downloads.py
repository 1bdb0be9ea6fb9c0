"""Where published weights are downloaded from: a web address, or a repository on Hugging Face.

Tokens, mirrors and time limits come from the environment, as huggingface_hub reads it.
"""

import http.client
import pickle
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Protocol, TypeVar

import huggingface_hub
import safetensors
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  its base, of the library it requests with
    LocalEntryNotFoundError,
)

from cluster.io.errors import holds_credentials

T = TypeVar("T")

ASK_TIMEOUT_S = 4.0
HUB_URL = "https://huggingface.co"
HUB_FILE = "model.safetensors"
SAFE_FILES = {
    "pytorch_model.bin": HUB_FILE,
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}
"""Pickle -> the safetensors file that timm reads instead where the repository has it."""
NO_ACCESS = (401, 403)
MAX_REASON = 300
"""Characters of an error's text."""
DOWNLOAD_ERRORS = (OSError, http.client.HTTPException, HTTPError, EntryNotFoundError)
"""Of urllib and torch.hub, and of huggingface_hub, whose errors of connections are no OSError."""
READ_ERRORS = (
    *DOWNLOAD_ERRORS,
    *(RuntimeError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError),
)
"""Also of a file that is damaged, cut off, or of another network."""


class Origin(Protocol):
    """Has the weights, or may have them."""

    @property
    def url(self) -> str:
        """The public web address of the file."""
        ...

    @property
    def server(self) -> str:
        """The server that is asked, for messages."""
        ...

    def is_cached(self) -> bool:
        """Whether they are read without a download."""
        ...

    def ask(self) -> None:
        """Ask the server for them; downloads nothing.

        Raises:
            DOWNLOAD_ERRORS: where it does not have them, or does not answer.
        """
        ...


@dataclass(frozen=True)
class WebFile:
    """A file at a web address, kept in torch hub's cache."""

    url: str

    @property
    def server(self) -> str:
        return "its server"

    def is_cached(self) -> bool:
        return (Path(torch.hub.get_dir()) / "checkpoints" / Path(self.url).name).exists()

    def ask(self) -> None:
        request = urllib.request.Request(self.url, method="HEAD")
        urllib.request.urlopen(request, timeout=ASK_TIMEOUT_S).close()


@dataclass(frozen=True)
class HubFiles:
    """A file of a repository on Hugging Face: the first of `names` that it has."""

    repository: str
    """ORGANIZATION/NAME, or ORGANIZATION/NAME@REVISION."""
    names: tuple[str, ...]

    @property
    def url(self) -> str:
        return self._url_of(self.names[0], endpoint=HUB_URL)

    @property
    def server(self) -> str:
        mirrored = constants.ENDPOINT != HUB_URL  # which may have a password in it
        return "the mirror in HF_ENDPOINT" if mirrored else "Hugging Face"

    def is_cached(self) -> bool:
        repository, revision = self._repository
        return any(
            isinstance(
                huggingface_hub.try_to_load_from_cache(repository, name, revision=revision), str
            )
            for name in self.names
        )

    def ask(self) -> None:
        self._first(
            lambda name: huggingface_hub.get_hf_file_metadata(
                self._url_of(name), timeout=ASK_TIMEOUT_S
            )
        )

    def download(self) -> str:
        """Return the path of the file, downloaded or cached.

        Raises:
            DOWNLOAD_ERRORS: where it is neither.
        """
        repository, revision = self._repository
        return self._first(
            lambda name: huggingface_hub.hf_hub_download(repository, name, revision=revision)
        )

    def _url_of(self, name: str, endpoint: str | None = None) -> str:
        repository, revision = self._repository
        return huggingface_hub.hf_hub_url(repository, name, revision=revision, endpoint=endpoint)

    def _first(self, get: Callable[[str], T]) -> T:
        *others, last = self.names
        for name in others:
            with suppress(EntryNotFoundError):
                return get(name)
        return get(last)

    @property
    def _repository(self) -> tuple[str, str | None]:
        repository, _, revision = self.repository.partition("@")
        return repository, revision or None


def list_files(file: str | None) -> tuple[str, ...]:
    """Return the names of files in a repository of timm's, in the order in which timm tries them.

    Args:
        file: that the network's config names; None where it names none.
    """
    file = file or "pytorch_model.bin"
    if file.endswith(".bin"):
        return SAFE_FILES.get(file, f"{file.removesuffix('.bin')}.safetensors"), file
    return (file,)


def explain(error: BaseException) -> str:
    """Return why a download or a file failed, in one line."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # such as a host without an address
    text = str(error).partition("For more")[0]  # links to pages about status codes
    if not text or holds_credentials(text):  # of HF_ENDPOINT
        return type(error).__name__
    return shorten(text, MAX_REASON, placeholder=" ...")


def describe_remedy(error: BaseException) -> str:
    """Return the remedy where a server refuses the user, with `or`; nothing for other errors."""
    if not _lacks_access(error):
        return ""
    return "set HF_TOKEN to a token that may read it (on each node of a cluster), or "


def _lacks_access(error: BaseException) -> bool:
    """Whether a server refuses the user, or hides a private repository from them."""
    for _ in range(5):  # huggingface_hub raises some as the cause of another
        if isinstance(error, HfHubHTTPError) and error.response.status_code in NO_ACCESS:
            return True
        if error.__cause__ is None:
            return False
        error = error.__cause__
    return False
