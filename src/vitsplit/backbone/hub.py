"""Weights from the model hub: the local cache first, then the network, with a short timeout if it is unreachable."""

from __future__ import annotations

import functools
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError

from vitsplit.errors import WeightsError

PROBE_SECONDS = 3.0
# File names of weights in timm's repositories, the safe format first.
_FILE_NAMES = ("model.safetensors", "pytorch_model.bin")


class HubUnavailableError(WeightsError):
    """The file is neither in the cache nor available from the hub; the message says what was tried."""


@functools.cache
def reachable(endpoint: str) -> bool:
    """Whether the hub responds within ``PROBE_SECONDS``, tested once per process; uses proxy settings.

    Tested first because the hub's client retries for minutes behind a firewall that drops packets.
    """
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD")
        try:
            urllib.request.build_opener().open(request, timeout=PROBE_SECONDS).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except urllib.error.URLError as error:
            # A certificate error counts as a response: the hub's client has its own certificates.
            answers.append(isinstance(error.reason, ssl.SSLError))
        except OSError:
            answers.append(False)

    # A thread, because the timeout does not cover the DNS lookup.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 0.5)
    return bool(answers and answers[0])


def cached_file(repository: str) -> Path | None:
    """The weights of a repository in the local hub cache (``HF_HOME``), or None."""
    for file_name in _FILE_NAMES:
        try:
            return Path(hf_hub_download(repository, file_name, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
    return None


def fetch(repository: str) -> Path:
    """The weights of a repository: from the local cache, else from the hub.

    Raises:
        HubUnavailableError: Not in the cache, and the hub is disabled or unreachable.
        WeightsError: The repository is gated or does not exist.
    """
    cached = cached_file(repository)
    if cached is not None:
        return cached
    tried = f"{repository} is not in the hub cache {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        raise HubUnavailableError(f"{tried}; the hub is disabled by HF_HUB_OFFLINE")
    if not reachable(constants.ENDPOINT):
        raise HubUnavailableError(f"{tried}; {constants.ENDPOINT} is unreachable (timeout {PROBE_SECONDS:.0f} s)")
    for file_name in _FILE_NAMES:
        try:
            return Path(hf_hub_download(repository, file_name))
        except GatedRepoError as error:
            raise WeightsError(_gated(repository)) from error
        except LocalEntryNotFoundError as error:
            raise HubUnavailableError(f"{tried}; the download from {constants.ENDPOINT} failed: {error}") from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # the client raises errors of its network library, which differ by version
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise HubUnavailableError(f"{tried}; {constants.ENDPOINT} returned: {reason[0]}") from error
    raise HubUnavailableError(f"{tried}; {constants.ENDPOINT}/{repository} has none of {', '.join(_FILE_NAMES)}")


def _gated(repository: str) -> str:
    return (
        f"The weights of {repository} are gated. Accept their license at {constants.ENDPOINT}/{repository}, then set "
        "HF_TOKEN to a token of that account; or download the file in a browser and pass --weights FILE."
    )
