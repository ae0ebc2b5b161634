"""Finding files, matching images with labels by name, and splits: what every task's folder layout shares."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from vitsplit.data.images import IMAGE_SUFFIXES, MASK_SUFFIXES
from vitsplit.errors import DataError
from vitsplit.files import exists

logger = logging.getLogger(__name__)

Pair = tuple[Path, Path]
LONGEST_SHOWN = 300
"""Characters of a name in an error."""
VAL_SHARE = 0.2
"""Share of the images kept for validation where a folder has no splits of its own."""
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names that a split's folder may have."""


def require_folder(root: str | Path) -> Path:
    """The folder, or a DataError that says what is there instead."""
    root = Path(root)
    if not exists(root):
        raise DataError(f"{root}: there is no such folder. Check the path.")
    if not root.is_dir():
        raise DataError(f"{root}: a file, not a folder. Give the folder that holds the data set.")
    return root


def index_files(folder: Path, suffixes: Collection[str], ending: str = "") -> dict[str, Path]:
    """Finds files in a folder and its sub-folders.

    Args:
        folder: Where to look. Names that start with a dot are left out (``.DS_Store`` and the like).
        suffixes: Lower-case suffixes; upper-case ones match too.
        ending: What the stems must end in; it is not part of the key.

    Returns:
        Relative path without ``ending`` and suffix to the file, in order of the keys.

    Raises:
        DataError: Nothing is found, or two files differ in nothing but the suffix.
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
        raise DataError(f"{folder}: no files {wanted} there ({instead}). Check the path, or copy the files there.")
    twice = [sorted(path.name for path in paths) for paths in found.values() if len(paths) > 1]
    if twice:
        raise DataError(
            f"{folder}: {len(twice)} names belong to several files, such as "
            f"{' and '.join(sorted(twice)[0])}. Keep one of each."
        )
    return {key: found[key][0] for key in sorted(found)}


def match(images: Mapping[str, Path], labels: Mapping[str, Path], images_at: Path, labels_at: Path) -> list[Pair]:
    """Pairs images and labels that have the same key.

    Args:
        images: Key to image, see ``index_files``.
        labels: Key to label file.
        images_at: Where the images were looked for, for the error.
        labels_at: The same of the labels.

    Raises:
        DataError: Images without a label, or labels without an image: counted, the first five named.
    """
    lonely = sorted(set(images) - set(labels))
    orphans = sorted(set(labels) - set(images))
    if lonely or orphans:
        said = []
        if lonely:
            said.append(
                f"{len(lonely)} of {len(images)} images in {images_at} have no label of the same name in "
                f"{labels_at} ({first(lonely)})"
            )
        if orphans:
            said.append(
                f"{len(orphans)} of {len(labels)} labels in {labels_at} have no image of the same name in "
                f"{images_at} ({first(orphans)})"
            )
        raise DataError(f"{'; '.join(said)}. Add the missing files, or remove these.")
    return [(images[key], labels[key]) for key in sorted(images)]


def named_files(root: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their paths relative to a data set's folder, each once; those outside of it by a way out (``../``)."""
    inside = f"{root}{os.sep}"
    return {
        (text.removeprefix(inside) if (text := str(path)).startswith(inside) else os.path.relpath(text, root)): path
        for path in paths
    }


def first(names: Collection[str], count: int = 5) -> str:
    """The first names of many, for an error; the longest are cut."""
    listed = [name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..." for name in list(names)[:count]]
    return ", ".join(listed + ["..."] * (len(names) > count))


def list_splits(root: Path, labels: str = "masks") -> dict[str, Pair]:
    """The splits of a folder data set, with their folders of images and of labels.

    Either ``images/train`` beside ``masks/train``, or ``train/images`` beside ``train/masks``, and so for ``val`` and
    ``test`` (``SPLIT_FOLDERS`` lists the names that are understood).

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

    A folder with ``images`` and ``masks`` but no split folders is split by a hash of the names: a fifth is ``val``, the
    rest ``train``, the same on every machine. A log line says so.

    Args:
        root: The data set.
        split: ``train``, ``val`` or ``test``.
        labels: Name of the label folder.
        suffixes: Suffixes of the label files.

    Raises:
        DataError: Another layout, an empty folder, no such split, or files without a partner.
    """
    splits = list_splits(root, labels)
    if split in splits:
        return _pairs(*splits[split], suffixes)
    if splits:
        raise DataError(
            f"{root}: there is no split '{split}', only {', '.join(splits)}. Add images/{split} and "
            f"{labels}/{split}, or do without split folders: a fifth is then kept for val."
        )
    images_at, labels_at = root / "images", root / labels
    if not images_at.is_dir() or not labels_at.is_dir():
        raise DataError(
            f"{root}: no folders images and {labels} in it. Put the files in images/train, images/val, "
            f"{labels}/train and {labels}/val, with the same names."
        )
    if split not in ("train", "val"):
        raise DataError(
            f"{root}: without split folders there is only train and val, no '{split}'. "
            f"Add images/{split} and {labels}/{split}."
        )
    return _hashed_split(_pairs(images_at, labels_at, suffixes), images_at, split)


def _pairs(images_at: Path, labels_at: Path, suffixes: Collection[str]) -> list[Pair]:
    return match(index_files(images_at, IMAGE_SUFFIXES), index_files(labels_at, suffixes), images_at, labels_at)


def _hashed_split(pairs: list[Pair], images_at: Path, split: str) -> list[Pair]:
    def rank(pair: Pair) -> bytes:
        return hashlib.sha256(
            pair[0].relative_to(images_at).with_suffix("").as_posix().encode(errors="surrogateescape")
        ).digest()

    if len(pairs) < 2:
        raise DataError(f"{images_at}: one image cannot be split into train and val. Add images.")
    kept = set(sorted(pairs, key=rank)[: max(1, round(len(pairs) * VAL_SHARE))])
    logger.warning(
        "%s: no split folders, so %d of %d images, chosen by a hash of their names, are kept for validation",
        images_at.parent,
        len(kept),
        len(pairs),
    )
    return [pair for pair in pairs if (pair in kept) == (split == "val")]
