"""Finding files, pairing images with labels by name, and splits: shared by the folder layouts of all tasks."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from vitsplit.data.decoding import IMAGE_SUFFIXES, MASK_SUFFIXES
from vitsplit.errors import DataError
from vitsplit.files import exists

logger = logging.getLogger(__name__)

Pair = tuple[Path, Path]
LONGEST_SHOWN = 300
"""Maximum number of characters of a name in an error."""
VAL_SHARE = 0.2
"""Fraction of images used for validation if a folder has no splits."""
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Accepted folder names of each split."""


def require_folder(root: str | Path) -> Path:
    """Returns the folder, or raises DataError if it is not a folder."""
    root = Path(root)
    if not exists(root):
        raise DataError(f"{root}: folder not found. Check the path.")
    if not root.is_dir():
        raise DataError(f"{root}: not a folder. Give the folder of the data set.")
    return root


def index_files(folder: Path, suffixes: Collection[str], ending: str = "") -> dict[str, Path]:
    """Finds files in a folder and its subfolders.

    Args:
        folder: The folder. Hidden files (``.DS_Store``, ...) are skipped.
        suffixes: Lower-case suffixes, matched case-insensitively.
        ending: Required ending of the stems; not part of the key.

    Returns:
        Relative path without ``ending`` and suffix to the file, in order of the keys.

    Raises:
        DataError: No files are found, or two files differ only in their suffix.
    """
    found: dict[str, list[Path]] = {}
    others: Counter[str] = Counter()
    for path in folder.rglob("*") if folder.is_dir() else ():
        relative = path.relative_to(folder)
        if path.suffix == "" or any(part.startswith(".") for part in relative.parts):
            continue
        if path.suffix.lower() in suffixes and path.stem.endswith(ending):
            found.setdefault(relative.with_suffix("").as_posix().removesuffix(ending), []).append(path)
        else:
            others[path.suffix] += 1
    if not found:
        wanted = ", ".join(f"*{ending}{suffix}" for suffix in sorted(suffixes))
        instead = ", ".join(f"{count} *{suffix}" for suffix, count in others.most_common(3)) or "nothing else"
        raise DataError(f"{folder}: no files {wanted} found ({instead}). Check the path, or add the files.")
    twice = [sorted(path.name for path in paths) for paths in found.values() if len(paths) > 1]
    if twice:
        raise DataError(
            f"{folder}: {len(twice)} names are ambiguous, such as {' and '.join(sorted(twice)[0])}. Remove one of each."
        )
    return {key: found[key][0] for key in sorted(found)}


def pair_files(images: Mapping[str, Path], labels: Mapping[str, Path], images_at: Path, labels_at: Path) -> list[Pair]:
    """Pairs images and labels that have the same key.

    Args:
        images: Key to image, see ``index_files``.
        labels: Key to label file.
        images_at: Folder of the images, for the error.
        labels_at: Folder of the labels, for the error.

    Raises:
        DataError: There are images without a label or labels without an image.
    """
    unmatched = sorted(set(images) - set(labels))
    orphans = sorted(set(labels) - set(images))
    if unmatched or orphans:
        messages = []
        if unmatched:
            messages.append(
                f"{len(unmatched)} of {len(images)} images in {images_at} have no label of the same name in "
                f"{labels_at} ({preview(unmatched)})"
            )
        if orphans:
            messages.append(
                f"{len(orphans)} of {len(labels)} labels in {labels_at} have no image of the same name in "
                f"{images_at} ({preview(orphans)})"
            )
        raise DataError(f"{'; '.join(messages)}. Add the missing files, or remove these files.")
    return [(images[key], labels[key]) for key in sorted(images)]


def relative_names(root: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their paths relative to a data set's folder, without duplicates; ``../`` for files outside of it."""
    inside = f"{root}{os.sep}"
    return {
        (text.removeprefix(inside) if (text := str(path)).startswith(inside) else os.path.relpath(text, root)): path
        for path in paths
    }


def preview(names: Collection[str], count: int = 5) -> str:
    """The first few names for an error message, truncated."""
    listed = [name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..." for name in list(names)[:count]]
    return ", ".join(listed + ["..."] * (len(names) > count))


def list_splits(root: Path, labels: str = "masks") -> dict[str, Pair]:
    """The splits of a folder data set, with their folders of images and of labels.

    Either ``images/train`` and ``masks/train``, or ``train/images`` and ``train/masks``; likewise ``val`` and ``test``
    (``SPLIT_FOLDERS`` lists the accepted names).

    Args:
        root: The data set.
        labels: Name of the label folder.

    Returns:
        Split to (images, labels), in the order train, val, test; empty if there are no split folders.
    """
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        for name in names:
            for images_at, labels_at in (
                (root / "images" / name, root / labels / name),
                (root / name / "images", root / name / labels),
            ):
                if images_at.is_dir() and split not in found:
                    found[split] = (images_at, labels_at)
    return found


def split_pairs(root: Path, split: str, labels: str = "masks", suffixes: Collection[str] = MASK_SUFFIXES) -> list[Pair]:
    """The (image, label) files of one split of a folder data set.

    A folder with ``images`` and ``masks`` but no split folders is split by a hash of the names: a fifth is ``val``,
    the rest ``train``. This is logged.

    Args:
        root: The data set.
        split: ``train``, ``val`` or ``test``.
        labels: Name of the label folder.
        suffixes: Suffixes of the label files.

    Raises:
        DataError: The layout is unknown, a folder is empty, the split does not exist, or images and labels do not
            match.
    """
    splits = list_splits(root, labels)
    if split in splits:
        return _pairs(*splits[split], suffixes)
    if splits:
        raise DataError(
            f"{root}: split '{split}' not found, only {', '.join(splits)}. Add images/{split} and {labels}/{split}, or "
            "remove the split folders to use a fifth of the images for val."
        )
    images_at, labels_at = root / "images", root / labels
    if not images_at.is_dir() or not labels_at.is_dir():
        raise DataError(
            f"{root}: no folders images and {labels} found. Put the files in images/train, images/val, {labels}/train "
            f"and {labels}/val, with the same names."
        )
    if split not in ("train", "val"):
        raise DataError(
            f"{root}: without split folders there are only train and val, no '{split}'. Add images/{split} and "
            f"{labels}/{split}."
        )
    return _hashed_split(_pairs(images_at, labels_at, suffixes), images_at, split)


def _pairs(images_at: Path, labels_at: Path, suffixes: Collection[str]) -> list[Pair]:
    return pair_files(index_files(images_at, IMAGE_SUFFIXES), index_files(labels_at, suffixes), images_at, labels_at)


def _hashed_split(pairs: list[Pair], images_at: Path, split: str) -> list[Pair]:
    def rank(pair: Pair) -> bytes:
        return hashlib.sha256(
            pair[0].relative_to(images_at).with_suffix("").as_posix().encode(errors="surrogateescape")
        ).digest()

    if len(pairs) < 2:
        raise DataError(f"{images_at}: a single image cannot be split into train and val. Add images.")
    chosen = set(sorted(pairs, key=rank)[: max(1, round(len(pairs) * VAL_SHARE))])
    logger.warning(
        "%s: no split folders: %d of %d images, chosen by a hash of their names, are used for validation",
        images_at.parent,
        len(chosen),
        len(pairs),
    )
    return [pair for pair in pairs if (pair in chosen) == (split == "val")]
