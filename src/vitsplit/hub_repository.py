"""Addresses of bundles on the Hugging Face hub, ``hf://namespace/name[@revision]``, and their download.

Only files of fixed names are downloaded, after their sizes are checked. Nothing from a repository is executed. The
cache is that of huggingface_hub (``HF_HOME``); it is used offline (``HF_HUB_OFFLINE=1``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vitsplit.backbone.hub import PROBE_SECONDS, reachable
from vitsplit.errors import HubError
from vitsplit.files import shown

SCHEME = "hf://"
HEADS = "best"
"""Folder of the heads of a repository with several, one subfolder for each, as in a run."""

logger = logging.getLogger(__name__)

# A Path has one slash after the colon.
_ADDRESS = re.compile(r"hf:/{1,2}(?P<repository>[^/@]+/[^/@]+?)/?(?:@(?P<revision>[\w][\w./-]*))?")
_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HEAD = re.compile(r"\w[\w.-]*")
_FORM = "Give hf://namespace/name or hf://namespace/name@revision."


@dataclass(frozen=True)
class Address:
    """A repository, and its branch, tag or commit."""

    repository: str
    revision: str = constants.DEFAULT_REVISION

    def __str__(self) -> str:
        at = "" if self.revision == constants.DEFAULT_REVISION else f"@{self.revision}"
        return f"{SCHEME}{self.repository}{at}"


def parse_address(run: str | PurePath) -> Address:
    """The parts of an address.

    Raises:
        HubError: It is invalid.
    """
    text = run.as_posix() if isinstance(run, PurePath) else run
    match = _ADDRESS.fullmatch(text)
    if match is None or ".." in text:
        raise HubError(f"{shown(text)}: not an address on the hub. {_FORM}")
    check_repository(match["repository"])
    return Address(match["repository"], match["revision"] or constants.DEFAULT_REVISION)


def check_repository(name: str) -> None:
    """Checks the name of a repository, ``namespace/name``.

    Raises:
        HubError: It is invalid.
    """
    if not _REPOSITORY.fullmatch(name):
        raise HubError(f"{shown(name)}: not the name of a repository. Give namespace/name: letters, digits, '_-.'.")


def check_head_name(name: str) -> None:
    """Checks the name of a head, which is a folder of a repository.

    Raises:
        HubError: It is invalid.
    """
    if not _HEAD.fullmatch(name):
        raise HubError(f"The head {shown(name)} cannot be a folder on the hub: use letters, digits, '_', '-' and '.'.")


def repository_files(paths: list[str], names: Mapping[str, int]) -> list[str]:
    """The files of bundles among those of a repository: ``NAME`` or ``best/HEAD/NAME``."""
    found = []
    for path in paths:
        *folders, name = path.split("/")
        is_head = len(folders) == 2 and folders[0] == HEADS and _HEAD.fullmatch(folders[1])
        if name in names and (not folders or is_head):
            found.append(path)
    return found


def download(run: str | PurePath, limits: Mapping[str, int]) -> Path:
    """Downloads the bundles of a repository into the cache, unless they are there.

    Args:
        run: The address.
        limits: The names of a bundle's files, and the size limit of each in bytes; for several heads, of their sum.

    Returns:
        A folder of the cache like a bundle, or like a run for several heads. It may contain other files.

    Raises:
        HubError: The address is invalid; the repository or revision is missing, private or gated; a file is too large;
            or the hub is unavailable and the cache does not have the bundles.
    """
    address = parse_address(run)
    is_commit = _COMMIT.fullmatch(address.revision) is not None  # and does not change
    if constants.HF_HUB_OFFLINE:
        return _from_cache(address, limits, "the hub is disabled by HF_HUB_OFFLINE")
    if is_commit and (folder := _find_cached(address, limits)) is not None:
        return folder
    if not reachable(constants.ENDPOINT):
        why = f"{constants.ENDPOINT} is unreachable (timeout {PROBE_SECONDS:.0f} s)"
        folder = _from_cache(address, limits, why)
        logger.warning("%s: %s; using the cached version of it", address, why)
        return folder
    with hub_errors(address):
        info = HfApi().model_info(address.repository, revision=address.revision, files_metadata=True)
        sizes = {each.rfilename: each.size for each in info.siblings or ()}
        files = repository_files(list(sizes), limits)
        _check_sizes(address, {file: sizes[file] for file in files}, limits)
        if not _COMMIT.fullmatch(info.sha or ""):
            raise HubError(f"{address}: {constants.ENDPOINT} returned no commit of it. Repeat the command later.")
        # The commit whose sizes were checked: the branch may have moved since.
        folder = Path(snapshot_download(address.repository, revision=info.sha, allow_patterns=files))
        if not is_commit:
            _note_commit(folder, address.revision)
    return folder


def _note_commit(folder: Path, revision: str) -> None:
    """Records a snapshot in the cache as the commit of a branch or tag, as the client does when it resolves these."""
    file = folder.parent.parent / "refs" / revision
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(folder.name, encoding="utf-8")


def _check_sizes(address: Address, sizes: Mapping[str, int | None], limits: Mapping[str, int]) -> None:
    for name, limit in limits.items():
        found = {file: size for file, size in sizes.items() if file.rpartition("/")[2] == name}
        if not found:
            raise HubError(
                f"{address}: there is no head bundle in this repository (no {name} or {HEADS}/HEAD/{name}). Give a "
                "repository that `vitsplit push` has written."
            )
        total = 0
        for file, size in found.items():
            total += limit + 1 if size is None else size
            if total > limit:
                stated = "an unknown size" if size is None else f"{size:,} bytes"
                raise HubError(
                    f"{address}: {file} has {stated}, over the limit of {limit:,} bytes. It was not downloaded: check "
                    "who published it."
                )


def _from_cache(address: Address, limits: Mapping[str, int], why: str) -> Path:
    folder = _find_cached(address, limits)
    if folder is None:
        raise HubError(
            f"{address}: not in the hub cache {constants.HF_HUB_CACHE}, and {why}. Load it once with access to the hub."
        )
    return folder


def _find_cached(address: Address, limits: Mapping[str, int]) -> Path | None:
    """The folder of a complete earlier download, or None."""
    patterns = [*limits, *(f"{HEADS}/*/{name}" for name in limits)]
    try:
        folder = Path(
            snapshot_download(
                address.repository, revision=address.revision, allow_patterns=patterns, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    # Earlier versions of the client return incomplete folders, too.
    folders = [folder, *folder.glob(f"{HEADS}/*")]
    has = [[(each / name).is_file() for name in limits] for each in folders]
    return folder if any(all(each) for each in has) and not any(any(each) and not all(each) for each in has) else None


@contextmanager
def hub_errors(address: Address) -> Iterator[None]:
    """Converts the errors of the hub's client to one line that names the remedy.

    Raises:
        HubError: An error of the client, its network library or the file system occurred in the block.
    """
    page = f"{constants.ENDPOINT}/{address.repository}"
    token = "set HF_TOKEN to a token of an account with access (or run `hf auth login`)"
    try:
        yield
    except HubError:
        raise
    except GatedRepoError as error:
        raise HubError(f"{address}: the repository is gated. Accept its terms at {page}, then {token}.") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{address}: there is no such repository, or it is private. Check the name; for a private one, {token}."
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(
            f"{address}: the repository has no branch, tag or commit '{address.revision}'. See {page}/tree/main."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        remedy = f"For this, {token}." if status in (401, 403) else "Repeat the command later."
        raise HubError(f"{address}: {constants.ENDPOINT} returned: {_first_line(error)} {remedy}") from error
    except Exception as error:  # the client raises errors of its network library, which differ by version
        raise HubError(f"{address}: the request to {constants.ENDPOINT} failed: {_first_line(error)}") from error


def repository_name(folder: Path) -> str | None:
    """The name of the repository, without namespace, if ``folder`` is a snapshot in the hub cache."""
    parts = folder.parent.parent.name.split("--")
    return parts[-1] if folder.parent.name == "snapshots" and parts[0] == "models" and len(parts) == 3 else None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
