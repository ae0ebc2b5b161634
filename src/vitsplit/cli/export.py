"""``vitsplit export RUN...``: heads and their backbone as one graph that runs without this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from vitsplit.cli.values import ImageSize
from vitsplit.errors import ConfigError


def export(
    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN ...")]],
    /,
    *,
    out: Path,
    format: Annotated[tuple[Literal["onnx", "openvino", "pt2"], ...], Field(min_length=1)] = ("onnx",),
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32",
    size: ImageSize | None = None,
    deform: Literal["auto", "native", "grid"] = "auto",
    layout: Literal["nchw", "nhwc"] = "nchw",
    images: Path | None = None,
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[HEAD=]FOLDER ...")] = (),
    split: bool = False,
    weights: str | None = None,
    language_weights: str | None = None,
    language_model: str | None = None,
) -> int:
    """Export one or several bundles with their backbone as one graph, or as a graph each.

    The graph takes RGB images as uint8 and has named outputs, at the size of the input: class scores and ids
    (segmentation), meters (depth), boxes, scores, labels and masks (detection; one image at a time), and visual
    tokens (questions; without the language model). It is compared with the model in its own runtime, at three sizes
    and two batch sizes; a graph whose outputs differ is not written.

    The folder has the graphs, card.json (inputs, outputs, classes, units, hashes, largest differences) and README.md
    with code that runs them with numpy, Pillow and the runtime alone.

    Examples:
        vitsplit export runs/first --out exported
        vitsplit export runs/rooms --out rooms --split
        vitsplit export runs/rooms runs/depth --out exported --format onnx openvino --images photos/
        vitsplit export runs/rooms --out small --precision int8 --images photos/ --data my_data

    Args:
        runs: Run folders (their best bundles) or bundle folders, of one backbone.
        out: The folder to create.
        format: Formats: ONNX (run by ONNX Runtime), OpenVINO, and PyTorch's pt2.
        precision: Precision of the graphs.
        size: Height and width of the input; None: any size.
        deform: Deformable convolutions as one operator (native) or as sampling on a grid; auto: native where the
            runtime has the operator.
        layout: Layout of the input: (batch, 3, height, width) or (batch, height, width, 3).
        images: Folder of images for the comparison with the model; None: generated scenes.
        data: The data set of the only head, or HEAD=FOLDER for each head, on which the graphs and the model are
            evaluated (split val): mIoU and AP must agree within half a point, relative errors of depths within 0.002.
            Below fp32, this replaces the other limits.
        split: Write a graph of the backbone and one of each head instead. That of the backbone is the same file in
            every such export from it, so that heads can be exported one by one, and run together.
        weights: Weights of the backbone, if they cannot be downloaded or a run was trained with --weights.
        language_weights: Folder of the language model, if a run was trained with --language-weights.
        language_model: Name of the language model on the hub, if it is not one that vitsplit knows.
    """
    from vitsplit import api

    result = api.export(
        runs,
        out=out,
        formats=format,
        precision=precision,
        size=size,
        deform=deform,
        layout=layout,
        images=images,
        data=_data_of(data),
        split=split,
        weights=weights,
        language_weights=language_weights,
        language_model=language_model,
        say=print,
    )
    print(f"exported {', '.join(result.card['heads'])} to {result.folder}; its README.md has code that runs the graphs")
    return 0


def _data_of(words: Sequence[str]) -> str | dict[str, str] | None:
    """The values of ``--data``: the data set of the only head, or data sets by head.

    Raises:
        ConfigError: A value of several has no head, or the head of another.
    """
    if not words:
        return None
    if len(words) == 1 and ("=" not in words[0] or Path(words[0]).exists()):
        return words[0]
    found: dict[str, str] = {}
    for word in words:
        head, equals, folder = word.partition("=")
        if not equals or head in found:
            raise ConfigError(f"--data {word}: give HEAD=FOLDER, once for each head.")
        found[head] = folder
    return found
