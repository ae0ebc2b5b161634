"""Upload of bundles to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

from vitsplit.atomic_files import json_text
from vitsplit.bundle import CARD, README, WEIGHTS, card_to_dict, count_values, find_bundles, public_card
from vitsplit.errors import ConfigError, HubError
from vitsplit.files import is_address
from vitsplit.hub_repository import (
    HEADS,
    Address,
    check_head_name,
    check_repository,
    hub_errors,
    repository_files,
)
from vitsplit.inference.loading import check_weights, read_bundles
from vitsplit.model_card import model_card

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LARGEST_PICTURE = 8 << 20
"""Size limit in bytes of the picture of a model card."""


def push(
    run: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    picture: str | Path | None = None,
) -> str:
    """Uploads a bundle, or the heads of a run, to the Hugging Face hub.

    The repository is created if it does not exist. One commit has ``head.json`` and ``head.safetensors`` (of several
    heads in ``best/HEAD``), a generated model card as ``README.md``, and the picture; no other file of the folder is
    uploaded. Files of other heads from an earlier upload are removed. ``head.json`` has the settings of the run; of
    paths such as that of ``--weights``, it has the last part only.

    Args:
        run: Run folder (its best bundles) or bundle folder.
        repository: ``namespace/name``. The token is that of ``HF_TOKEN`` or ``hf auth login``.
        private: Create the repository as a private one; an existing one is not changed.
        revision: The branch, created if it does not exist; None: ``main``.
        message: Message of the commit; None: one that names the folder.
        picture: A picture of predictions for the model card (JPEG, PNG or WebP); None: none.

    Returns:
        URL of the commit.

    Raises:
        BundleError: The bundle is missing, damaged or does not fit its card.
        ConfigError: The picture is missing, too large or of another format.
        HubError: The name is invalid, the hub is disabled or unreachable, or it refuses the upload (token, permission).

    Example:
        >>> vitsplit.push("runs/first", "me/rooms", private=True)  # doctest: +SKIP
        >>> vitsplit.load("hf://me/rooms")  # doctest: +SKIP
    """
    check_repository(repository)
    if is_address(run):
        raise HubError(f"{run}: is on the hub already. Give a run or bundle folder.")
    address = Address(repository) if revision is None else Address(repository, revision)
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{address}: the hub is disabled by HF_HUB_OFFLINE. Unset it to upload.")
    files = _files(run, address, None if picture is None else Path(picture))
    api = HfApi()
    with hub_errors(address):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        former = repository_files(list(api.list_repo_files(repository, revision=revision)), {CARD: 0, WEIGHTS: 0})
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()),
                *(CommitOperationDelete(path_in_repo=name) for name in former if name not in files),
            ],
            commit_message=message or f"Upload {Path(run).resolve().name} with vitsplit",
            revision=revision,
        )
    return commit.commit_url


def _files(run: str | Path, address: Address, picture: Path | None) -> dict[str, Path | bytes]:
    """The files to upload, by their path in the repository, after the bundles are checked."""
    folders = find_bundles(run)
    bundles = read_bundles([run])
    files: dict[str, Path | bytes] = {}
    for name, (folder, card) in bundles.items():
        check_weights(card, folder)
        prefix = ""
        if len(folders) > 1:
            check_head_name(name)
            prefix = f"{HEADS}/{name}/"
        files[f"{prefix}{CARD}"] = f"{json_text(public_card(folder), indent=2)}\n".encode()
        files[f"{prefix}{WEIGHTS}"] = folder / WEIGHTS
    named = None
    if picture is not None:
        named = f"picture{picture.suffix.lower()}"
        files[named] = _check_picture(picture)
    page = model_card(
        {name: card_to_dict(card) for name, (_, card) in bundles.items()},
        {name: count_values(folder) for name, (folder, _) in bundles.items()},
        place=str(address),
        picture=named,
    )
    return files | {README: page.encode()}


def _check_picture(picture: Path) -> Path:
    if picture.suffix.lower() not in PICTURE_SUFFIXES or not picture.is_file():
        raise ConfigError(f"--picture {picture}: not a picture. Give a file ({', '.join(PICTURE_SUFFIXES)}).")
    if picture.stat().st_size > LARGEST_PICTURE:
        raise ConfigError(f"--picture {picture}: larger than the limit of {LARGEST_PICTURE / 1e6:g} MB. Resize it.")
    return picture
