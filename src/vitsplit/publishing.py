"""Upload of bundles to the Hugging Face hub."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from PIL import Image
from safetensors.torch import save_file

from vitsplit.atomic_files import json_text
from vitsplit.bundle import (
    CARD,
    README,
    WEIGHTS,
    Card,
    card_to_dict,
    count_values,
    describe_weights,
    public_card,
    read_tensors,
)
from vitsplit.bundle_delta import copied_parameters, to_delta
from vitsplit.data.decoding import read_array
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
from vitsplit.inference.loading import backbone_of, check_weights, read_bundles
from vitsplit.model import head_shapes, untrained_head
from vitsplit.model_card import Weights, model_card

PICTURES = {"picture.jpg": "JPEG", "picture.jpeg": "JPEG", "picture.png": "PNG", "picture.webp": "WEBP"}
"""Pillow's formats of the picture of a model card, by its name in a repository."""
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
    delta: bool = False,
    weights: str | Path | None = None,
) -> str:
    """Uploads a bundle, or the heads of a run, to the Hugging Face hub.

    The repository is created if it does not exist. One commit has ``head.json`` and ``head.safetensors`` (of several
    heads in ``best/HEAD``), a generated model card as ``README.md``, and the picture; no other file of the folder is
    uploaded. Files of other heads and the picture from an earlier upload are removed. ``head.json`` has the settings of
    the run; of paths such as that of ``--weights``, it has the last part only.

    Args:
        run: Run folder (its best bundles) or bundle folder.
        repository: ``namespace/name``. The token is that of ``HF_TOKEN`` or ``hf auth login``.
        private: Create the repository as a private one; an existing public one is an error.
        revision: The branch, created if it does not exist; None: ``main``.
        message: Message of the commit; None: one that names the folder.
        picture: A picture of predictions for the model card (JPEG, PNG or WebP); None: none. Its pixels are saved
            again, upright and as RGB, without metadata such as the place of a photograph.
        delta: Store trained copies of the backbone's parameters (of ViT-Split, the task head) as differences to them,
            which are useless without the backbone; loading restores every bit. Requires the backbone.
        weights: Weights of the backbone for ``delta``, see ``vitsplit.load``.

    Returns:
        URL of the commit.

    Raises:
        BundleError: The bundle is missing, damaged or does not fit its card.
        ConfigError: The picture is missing, too large or of another format; or ``delta`` is given, and no head has
            copies of the backbone's parameters.
        DataError: The picture cannot be decoded.
        WeightsError: The backbone is unavailable.
        HubError: The name is invalid, the hub is disabled or unreachable, or it refuses the upload (token, permission);
            or ``private`` is given, and the repository is public.

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
    with TemporaryDirectory() as scratch:
        bundles = _bundles(run)
        if delta:
            bundles |= _deltas(bundles, weights, Path(scratch))
        files = _files(bundles, address, None if picture is None else Path(picture))
        told = message or f"Upload {Path(run).resolve().name} with vitsplit"
        return _commit(address, files, told, private=private, branch=revision)


def _commit(
    address: Address, files: Mapping[str, Path | bytes], message: str, *, private: bool, branch: str | None
) -> str:
    """Uploads the files in one commit, and returns its URL."""
    api, repository = HfApi(), address.repository
    with hub_errors(address):
        api.create_repo(repository, private=private, exist_ok=True)
        # Of a repository that exists, create_repo ignores the argument.
        if private and not api.model_info(repository).private:
            raise HubError(
                f"{address}: --private was given, but the repository is public. Nothing was uploaded: make it private "
                f"at {constants.ENDPOINT}/{repository}/settings, or give another name."
            )
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        present = list(api.list_repo_files(repository, revision=branch))
        former = [*repository_files(present, {CARD: 0, WEIGHTS: 0}), *(name for name in present if name in PICTURES)]
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()),
                *(CommitOperationDelete(path_in_repo=name) for name in former if name not in files),
            ],
            commit_message=message,
            revision=branch,
        )
    return commit.commit_url


class _Bundle(NamedTuple):
    """What is uploaded of a bundle."""

    card: Card
    contents: dict[str, Any]  # of head.json
    weights: Path


def _bundles(run: str | Path) -> dict[str, _Bundle]:
    """The bundles of a run by name, after they are checked."""
    found = {}
    for name, (folder, card) in read_bundles([run]).items():
        check_weights(card, folder)
        found[name] = _Bundle(card, public_card(folder), folder / WEIGHTS)
    return found


def _deltas(bundles: Mapping[str, _Bundle], weights: str | Path | None, scratch: Path) -> dict[str, _Bundle]:
    """The bundles that have copies of the backbone's parameters, with differences to them in files in ``scratch``."""
    copying = {
        name: bundle
        for name, bundle in bundles.items()
        if copied_parameters(head_shapes(bundle.card.config, bundle.card.description))
    }
    if not copying:
        raise ConfigError(
            f"--delta: {', '.join(bundles)} has no copies of the backbone's parameters (with --tune-blocks lora, "
            "bundles have the low-rank matrices only). Omit the option."
        )
    (first, *_) = bundles.values()
    backbone = backbone_of(first.card, first.weights.parent, weights)
    found = {}
    for name, (card, contents, file) in copying.items():
        if card.delta:  # downloaded from the hub
            continue
        untrained = untrained_head(card.config, backbone, card.description)
        state, digest = to_delta(untrained.upgraded(read_tensors(file)), untrained)
        save_file(state, scratch / f"{name}.safetensors")
        found[name] = _Bundle(
            replace(card, delta=digest), contents | {"delta": digest}, scratch / f"{name}.safetensors"
        )
    return found


def _files(bundles: Mapping[str, _Bundle], address: Address, picture: Path | None) -> dict[str, Path | bytes]:
    """The files to upload, by their path in the repository."""
    files: dict[str, Path | bytes] = {}
    for name, bundle in bundles.items():
        prefix = ""
        if len(bundles) > 1:
            check_head_name(name)
            prefix = f"{HEADS}/{name}/"
        files[f"{prefix}{CARD}"] = f"{json_text(bundle.contents, indent=2)}\n".encode()
        files[f"{prefix}{WEIGHTS}"] = bundle.weights
    named = None
    if picture is not None:
        named = f"picture{picture.suffix.lower()}"
        files[named] = _read_picture(picture, PICTURES.get(named))
    page = model_card(
        {name: card_to_dict(bundle.card) for name, bundle in bundles.items()},
        {name: _describe_weights(bundle) for name, bundle in bundles.items()},
        place=str(address),
        picture=named,
    )
    return files | {README: page.encode()}


def _describe_weights(bundle: _Bundle) -> Weights:
    config = bundle.card.config
    return describe_weights(count_values(bundle.weights), config, head_shapes(config, bundle.card.description))


def _read_picture(picture: Path, kind: str | None) -> bytes:
    """The picture as a new file, of a format of Pillow's, which has its pixels only."""
    if kind is None or not picture.is_file():
        suffixes = ", ".join(Path(name).suffix for name in PICTURES)
        raise ConfigError(f"--picture {picture}: not a picture. Give a file ({suffixes}).")
    if picture.stat().st_size > LARGEST_PICTURE:
        raise ConfigError(f"--picture {picture}: larger than the limit of {LARGEST_PICTURE / 1e6:g} MB. Resize it.")
    file = io.BytesIO()
    Image.fromarray(read_array(picture)).save(file, kind, quality=95)
    return file.getvalue()
