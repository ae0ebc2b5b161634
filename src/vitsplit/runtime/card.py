"""The card of an exported folder, read as untrusted: ``card.json`` and the hashes of the files that it names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitsplit.errors import ConfigError, ExportError
from vitsplit.files import CONTROL, inside, is_file, open_regular, read_json, shown, string, whole_number

CARD = "card.json"
FORMAT = 1
ADVICE = "Copy the folder again from where it was exported, or export the bundle again."
LARGEST_SIDE = 1 << 16
MAIN_SUFFIXES = (".onnx", ".xml", ".pt2")
MOST_HEADS = 1000
MOST_TAPS = 10_000
IMAGE = "image"
"""Name of the input with the images."""
TAP = "tap.tokens."
"""Prefix of the names of tensors between graphs: ``tap.tokens.DEPTH``, the tokens after so many blocks, (B, T, D)."""
_HASH = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"(?!\.)[^/\\:]{1,200}")
_SETTINGS: Mapping[str, tuple[str, ...]] = {"INFERENCE_PRECISION_HINT": ("f32", "f16", "bf16")}
"""Settings of a runtime that a card may have. Others could, for example, name files."""


@dataclass(frozen=True)
class HeadCard:
    """A head of an exported folder.

    Attributes:
        task: Name of the task.
        description: Classes, colors or unit, see ``Task.describe``; not checked.
        image_scale: Longest and shortest side that images are resized to fit; None: not resized.
        outputs: Names of its outputs in the graph, ``HEAD.OUTPUT``.
    """

    task: str
    description: Any
    image_scale: tuple[int, int] | None
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class PartCard:
    """One graph: of backbone and heads together, of the backbone, or of a head.

    Attributes:
        files: Its files, that which is opened first.
        inputs: Names of its inputs: ``image``, and outputs of the parts before it.
        outputs: Names of its outputs, in order.
    """

    files: tuple[Path, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class GraphCard:
    """The graphs of an exported folder, in one format.

    Attributes:
        parts: The graphs, in the order in which they run.
        files: Their files, with their SHA-256.
        settings: Settings of the runtime.
        precision: Their precision, such as ``fp32``.
        smallest_side: Smallest height and width of the input.
    """

    parts: tuple[PartCard, ...]
    files: Mapping[Path, str]
    settings: Mapping[str, str]
    precision: str
    smallest_side: int


@dataclass(frozen=True)
class ExportCard:
    """The card of an exported folder.

    Attributes:
        folder: The folder.
        backbone: Name of the backbone.
        layout: Layout of the input, (B, 3, H, W) or (B, H, W, 3).
        batch: Number of images of the input: 1, or None for any.
        size: Height and width of the input; None: any.
        heads: The heads, by name.
        graphs: The graphs, by the name of their format, in the order of their export.
    """

    folder: Path
    backbone: str
    layout: Literal["nchw", "nhwc"]
    batch: Literal[1] | None
    size: tuple[int, int] | None
    heads: Mapping[str, HeadCard]
    graphs: Mapping[str, GraphCard]


def is_export(folder: str | Path) -> bool:
    """Whether a folder is an exported one."""
    return is_file(Path(folder) / CARD)


def read_card(folder: str | Path) -> ExportCard:
    """Reads the card of an exported folder. Files of graphs are not read, see ``check_files``.

    Raises:
        ExportError: The card is missing or invalid; the message names the key.
    """
    folder = Path(folder)
    path = folder / CARD
    if not is_export(folder):
        raise ExportError(f"{folder}: no {CARD}. Give a folder that `vitsplit export` has written.")
    card = _object(read_json(path, error=ExportError, advice=ADVICE), str(path), ("format",))
    written = whole_number(card["format"], f"{path}: format", 1, 10**6, error=ExportError, advice=ADVICE)
    if written != FORMAT:
        raise ExportError(f"{path}: format {written}, this version reads {FORMAT}. Update vitsplit.")
    _object(card, str(path), ("backbone", "input", "heads", "graphs"))
    backbone = _object(card["backbone"], f"{path}: backbone", ("name",))
    layout, batch, size = _input(card["input"], f"{path}: input")
    named, graphs = (_named(card[key], f"{path}: {key}") for key in ("heads", "graphs"))
    for name in named:
        if not _FILE_NAME.fullmatch(name):  # predictions are written to files of this name
            raise ExportError(f"{path}: heads: {shown(name)} is not a file name. {ADVICE}")
    heads = {name: _head(head, f"{path}: heads: {name}") for name, head in named.items()}
    outputs = [output for head in heads.values() for output in head.outputs]
    return ExportCard(
        folder=folder,
        backbone=_line(backbone["name"], f"{path}: backbone: name"),
        layout=layout,
        batch=batch,
        size=size,
        heads=heads,
        graphs={name: _graph(graph, folder, outputs, f"{path}: graphs: {name}") for name, graph in graphs.items()},
    )


def join_cards(cards: Sequence[ExportCard]) -> ExportCard:
    """One card for the heads of several folders; graphs that are the same file, as that of the backbone, run once.

    Raises:
        ConfigError: The folders do not fit together; the message says why.
    """
    first, *others = cards
    for card in others:
        both = f"{first.folder} and {card.folder}"
        if (first.layout, first.size) != (card.layout, card.size):
            raise ConfigError(
                f"{both} take other layouts or sizes of images. Export with the same --layout and --size."
            )
        if twice := first.heads.keys() & card.heads.keys():
            raise ConfigError(f"{both} have a head {min(twice)} each. Rename a run's folder, and export it again.")
        graphs = {
            name: _join_graphs(first.graphs[name], card.graphs[name], f"{both}: {name}")
            for name in first.graphs
            if name in card.graphs
        }
        if not graphs:
            raise ConfigError(f"{both} have no format in common. Export with the same --format.")
        first = replace(first, batch=first.batch or card.batch, heads={**first.heads, **card.heads}, graphs=graphs)
    return first


def _join_graphs(first: GraphCard, second: GraphCard, where: str) -> GraphCard:
    if (first.settings, first.precision) != (second.settings, second.precision):
        raise ConfigError(f"{where}: precisions {first.precision} and {second.precision}. Export with the same.")
    files = {**first.files, **second.files}
    known = {tuple(files[path] for path in part.files) for part in first.parts}
    added = [part for part in second.parts if tuple(files[path] for path in part.files) not in known]
    if {name for part in first.parts for name in part.outputs} & {name for part in added for name in part.outputs}:
        raise ConfigError(
            f"{where}: the graphs of the backbone are different files. Export the heads together, or with --split from "
            "one backbone by the same versions of vitsplit and PyTorch, in another precision than int8."
        )
    smallest = max(first.smallest_side, second.smallest_side)
    return replace(first, parts=(*first.parts, *added), files=files, smallest_side=smallest)


def check_files(graph: GraphCard) -> None:
    """Compares the files of a graph with their hashes in the card.

    Raises:
        ExportError: A file is missing or has other content.
    """
    for path, expected in graph.files.items():
        with open_regular(path, error=ExportError, advice=ADVICE) as file:
            try:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as fault:
                raise ExportError(f"{path}: cannot be read ({fault}). {ADVICE}") from fault
        if found != expected:
            raise ExportError(f"{path}: not the file of {CARD}, which has another hash. {ADVICE}")


def _input(value: Any, where: str) -> tuple[Literal["nchw", "nhwc"], Literal[1] | None, tuple[int, int] | None]:
    """Layout, batch and size of the input."""
    given = _object(value, where, ("layout", "shape", "dtype"))
    layout, shape = given["layout"], given["shape"]
    if layout not in ("nchw", "nhwc") or given["dtype"] != "uint8":
        raise ExportError(
            f"{where}: layout {shown(layout)} must be nchw or nhwc, and dtype {shown(given['dtype'])} uint8. {ADVICE}"
        )
    if not isinstance(shape, list) or len(shape) != 4 or shape[0] not in ("batch", 1):
        raise ExportError(f"{where}: shape must be a list of four from batch or 1, not {shown(shape)}. {ADVICE}")
    sides = shape[2:] if layout == "nchw" else shape[1:3]
    size = None
    if sides != ["height", "width"]:
        height, width = (
            whole_number(side, f"{where}: shape", 1, LARGEST_SIDE, error=ExportError, advice=ADVICE) for side in sides
        )
        size = (height, width)
    return layout, 1 if shape[0] == 1 else None, size


def _head(value: Any, where: str) -> HeadCard:
    head = _object(value, where, ("task", "description", "image_scale", "outputs"))
    scale = head["image_scale"]
    if scale is not None:
        if not isinstance(scale, list) or len(scale) != 2:
            raise ExportError(f"{where}: image_scale must be a list of two or null, not {shown(scale)}. {ADVICE}")
        longest, shortest = (
            whole_number(side, f"{where}: image_scale", 1, LARGEST_SIDE, error=ExportError, advice=ADVICE)
            for side in scale
        )
        scale = (longest, shortest)
    return HeadCard(
        task=_line(head["task"], f"{where}: task"),
        description=head["description"],
        image_scale=scale,
        outputs=tuple(_named(head["outputs"], f"{where}: outputs")),
    )


def _graph(value: Any, folder: Path, outputs: Sequence[str], where: str) -> GraphCard:
    graph = _object(value, where, ("files", "settings", "precision", "smallest_side"))
    files = {}
    for name, digest in _named(graph["files"], f"{where}: files").items():
        if not isinstance(digest, str) or not _HASH.fullmatch(digest):
            raise ExportError(f"{where}: files: {name}: must be 64 hexadecimal digits, not {shown(digest)}. {ADVICE}")
        files[inside(folder, name, f"{where}: files", error=ExportError, advice=ADVICE)] = digest
    settings = _object(graph["settings"], f"{where}: settings", ())
    for key, setting in settings.items():
        if setting not in _SETTINGS.get(key, ()):
            raise ExportError(f"{where}: settings: {shown(key)} {shown(setting)} is unknown. Update vitsplit.")
    smallest = whole_number(
        graph["smallest_side"], f"{where}: smallest_side", 1, LARGEST_SIDE, error=ExportError, advice=ADVICE
    )
    # Folders of earlier versions have one graph and no list.
    names = sorted(graph["files"], key=lambda name: not name.endswith(MAIN_SUFFIXES))
    one = {"files": names, "inputs": [IMAGE], "outputs": list(outputs)}
    parts = _parts(graph.get("parts", [one]), folder, files, outputs, f"{where}: parts")
    return GraphCard(parts, files, settings, _line(graph["precision"], f"{where}: precision"), smallest)


def _parts(
    value: Any, folder: Path, files: Collection[Path], outputs: Sequence[str], where: str
) -> tuple[PartCard, ...]:
    """The graphs of a format: each reads what those before it compute, and together they compute all outputs."""
    known, found = {IMAGE}, []
    for index, part in enumerate(_list(value, where, MOST_HEADS)):
        place = f"{where}: {index}"
        given = _object(part, place, ("files", "inputs", "outputs"))
        paths = [
            inside(folder, name, f"{place}: files", error=ExportError, advice=ADVICE)
            for name in _list(given["files"], f"{place}: files", MOST_HEADS)
        ]
        inputs, computed = (
            [_line(name, f"{place}: {key}") for name in _list(given[key], f"{place}: {key}", MOST_TAPS)]
            for key in ("inputs", "outputs")
        )
        if not set(paths) <= set(files) or not known.issuperset(inputs) or not known.isdisjoint(computed):
            raise ExportError(f"{place}: has files or tensors that are not in the card, or computed twice. {ADVICE}")
        known |= set(computed)
        found.append(PartCard(tuple(paths), tuple(inputs), tuple(computed)))
    if missing := set(outputs) - known:
        raise ExportError(f"{where}: no graph has the output {min(missing)}. {ADVICE}")
    return tuple(found)


def _list(value: Any, where: str, most: int) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise ExportError(f"{where} must be a list of 1 to {most} entries, not {shown(value)}. {ADVICE}")
    return value


def _object(value: Any, where: str, required: Collection[str]) -> dict[str, Any]:
    """Checks that a value is an object with some keys, and returns it. Other keys are not read."""
    if not isinstance(value, dict):
        raise ExportError(f"{where} must be an object, not {shown(value)}. {ADVICE}")
    for key in required:
        if key not in value:
            raise ExportError(f"{where}: {key} is missing. {ADVICE}")
    return value


def _named(value: Any, where: str) -> dict[str, Any]:
    """Checks that a value is an object of 1 to ``MOST_HEADS`` named values, and returns it."""
    found = _object(value, where, ())
    if not 1 <= len(found) <= MOST_HEADS:
        raise ExportError(f"{where}: {len(found)} entries, must be 1 to {MOST_HEADS}. {ADVICE}")
    for name in found:
        _line(name, where)
    return found


def _line(value: Any, where: str) -> str:
    text = string(value, where, error=ExportError, advice=ADVICE)
    if not text.strip() or CONTROL.search(text):
        raise ExportError(f"{where} must be a line of text, not {shown(text)}. {ADVICE}")
    return text
