"""``card.json`` and ``README.md`` of an export: everything that running the graphs requires, without this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitsplit.bundle import card_to_dict
from vitsplit.exporting.formats import Format, FormatName, Written, file_hash, files_of
from vitsplit.exporting.graph import ExportGraph
from vitsplit.inference.predictor import Predictor
from vitsplit.runtime.card import CARD, FORMAT
from vitsplit.runtime.runtime import WITHOUT_PREDICTIONS
from vitsplit.version import __version__

README = "README.md"
SPLIT = (
    "Each head has a graph of its own, which reads the image, for its size, and tokens of the backbone's graph: "
    "`tap.tokens.12` are the tokens after 12 blocks. The graph of the backbone is the same file for all heads exported "
    "in this way from it, and only needs to compute the tokens that the heads in use read (`inputs` of `parts` in "
    "`card.json`).\n\n"
)
NOT_IN_GRAPH = (
    "The graph predicts the whole image at one scale, without flip: test_mode slide, test_scales and test_flip of a "
    "bundle are not part of it."
)


def make_card(
    predictor: Predictor, graph: ExportGraph, size: tuple[int, int] | None, weights: Mapping[str, str]
) -> dict[str, Any]:
    """The card without its graphs, JSON-ready.

    Args:
        predictor: The exported heads.
        graph: Their graph.
        size: Height and width of the input; None: any.
        weights: SHA-256 of the weights file of each head, as far as they have one.
    """
    info = predictor.backbone.info
    sides: list[str | int] = ["height", "width"] if size is None else list(size)
    batch = graph.batch or "batch"
    known = {"batch": batch, "height": sides[0], "width": sides[1]}
    return {
        "format": FORMAT,
        "vitsplit": __version__,
        "backbone": {
            "name": info.name,
            "title": info.title,
            "timm_name": info.timm_name,
            "license": info.license,
            "source": info.source,
            "weights_hash": info.weights_hash,
            "patch_size": predictor.backbone.patch_size,
        },
        "input": {
            "name": "image",
            "dtype": "uint8",
            "color": "RGB",
            "layout": graph.layout,
            "shape": [batch, 3, *sides] if graph.layout == "nchw" else [batch, *sides, 3],
        },
        "outputs": graph.outputs,
        "heads": {name: _head(predictor, name, known, weights.get(name)) for name in predictor},
        "not_in_graph": NOT_IN_GRAPH,
        "graphs": {},
    }


def _head(predictor: Predictor, name: str, known: Mapping[str, str | int], weights_hash: str | None) -> dict[str, Any]:
    head = predictor[name]
    task: Any = head.task
    request = head.model.head.request(train=False)
    scale = getattr(task.config, "image_scale", None)
    return {
        "task": task.name,
        "description": task.describe(),
        "image_scale": None if scale is None else [max(scale), min(scale)],
        "input_size": list(task.config.crop_size) if task.name in WITHOUT_PREDICTIONS else None,
        "outputs": {
            f"{name}.{output}": {
                "kind": value.kind,
                "shape": [known.get(side, side) for side in value.shape],
                "meaning": value.meaning,
            }
            for output, value in task.describe_graph().items()
        },
        "method": head.card.config.method.name,
        "layers": sorted(request.maps | request.raw_maps),
        "weights_hash": weights_hash,
        "bundle": card_to_dict(replace(head.card, delta="")),  # the graph has the restored weights
    }


def graph_entry(
    each: Format, graphs: Sequence[Written], *, deform: str, precision: str, settings: Mapping[str, str], **rest: Any
) -> dict[str, Any]:
    """The entry of a format: the files of its graphs with their SHA-256, how they were made, and their parity."""
    files = [files_of(each, graph) for graph in graphs]
    return {
        "files": {path.name: file_hash(path) for paths in files for path in paths},
        "parts": [
            {
                "files": [path.name for path in paths],
                "inputs": list(graph.inputs),
                "outputs": list(graph.outputs),
                "steps": dict(graph.steps),
            }
            for paths, graph in zip(files, graphs, strict=True)
        ],
        "precision": precision,
        "deform": deform,
        "settings": dict(settings),
        **rest,
    }


def readme(card: Mapping[str, Any], formats: Mapping[FormatName, Format]) -> str:
    """The README: what the folder holds, and code that runs each graph."""
    backbone = card["backbone"]
    is_split = any(len(graph["parts"]) > 1 for graph in card["graphs"].values())
    heads = "\n".join(_describe_head(name, head) for name, head in card["heads"].items())
    parity = "\n".join(
        f"| {name} | {graph['precision']} | {output} | {_figures(errors)} |"
        for name, graph in card["graphs"].items()
        for output, errors in graph["parity"]["worst"].items()
    )
    scores = "".join(
        f"- {name}, {head}: {found['measure']} {found['graph']:.4f} on {found['data']}, "
        f"the model {found['model']:.4f}\n"
        for name, graph in card["graphs"].items()
        for head, found in graph.get("scores", {}).items()
    )
    code = "\n".join(
        f"With `{', '.join(card['graphs'][name]['files'])}`:\n\n```python\n{_code(card, name, each)}```\n"
        for name, each in formats.items()
    )
    return (
        f"# {', '.join(card['heads'])} on {backbone['title']}\n\n"
        f"Written by vitsplit {card['vitsplit']}. The weights are those of `{backbone['title']}` "
        f"(`{backbone['timm_name']}`, license {backbone['license']}) and of the heads.\n\n{heads}\n\n"
        "Resize an image to fit the longest and shortest side of a head (`image_scale` in `card.json`), keeping the "
        "aspect ratio, with an antialiased bilinear filter. Heads with the same `image_scale` share a run. "
        f"{card['not_in_graph']}\n\n{SPLIT if is_split else ''}{code}\n"
        "Largest differences from the model in float32:\n\n"
        f"| graph | precision | output | difference |\n| --- | --- | --- | --- |\n{parity}\n"
        + (f"\nOn labeled images:\n\n{scores}" if scores else "")
    )


def _describe_head(name: str, head: Mapping[str, Any]) -> str:
    scale = head["image_scale"]
    size = "at the image's own size" if scale is None else f"resized to fit {scale[0]} x {scale[1]} pixels"
    if head["input_size"] is not None:
        size = "of {} x {} pixels (height x width)".format(*head["input_size"])
    outputs = "\n".join(
        f"  - `{output}` ({', '.join(map(str, value['shape']))}): {value['meaning']}"
        for output, value in head["outputs"].items()
    )
    return f"- **{name}** ({head['task']}), {size}\n{outputs}"


def _figures(errors: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.4f}" if name == "agreement" else f"{name} {value:.2g}" for name, value in errors.items()
    )


def _code(card: Mapping[str, Any], format_name: FormatName, runtime: Format) -> str:
    """Code that reads ``photo.jpg`` and computes the outputs, with numpy, Pillow and the runtime.

    The outputs are those of the heads that take the image at the size of the first one.
    """
    name, head = next(iter(card["heads"].items()))
    sizes = {each: (one["image_scale"], one["input_size"]) for each, one in card["heads"].items()}
    alike = [each for each, size in sizes.items() if size == sizes[name]]
    shape = card["input"]["shape"]
    height, width = shape[2:] if card["input"]["layout"] == "nchw" else shape[1:3]
    resize = ""
    if head["input_size"] is not None:
        height, width = head["input_size"]
    if isinstance(height, int):
        resize = f"image = image.resize(({width}, {height}), Image.Resampling.BILINEAR)\n"
    elif head["image_scale"] is not None:
        resize = (
            f'longest, shortest = card["heads"]["{name}"]["image_scale"]\n'
            "factor = min(longest / max(image.size), shortest / min(image.size))\n"
            "size = [int(side * factor + 0.5) for side in image.size]\n"
            "image = image.resize(size, Image.Resampling.BILINEAR)\n"
        )
    pixels = "np.asarray(image)" + (".transpose(2, 0, 1)" if card["input"]["layout"] == "nchw" else "")
    return (
        f"import json\n\nimport numpy as np\nimport {runtime.packages[-1]}\nfrom PIL import Image, ImageOps\n\n"
        f'card = json.load(open("{CARD}"))\n'
        'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")\n'
        f'{resize}values = {{"image": np.ascontiguousarray({pixels}[None])}}\n'
        f'parts = card["graphs"]["{format_name}"]["parts"]\n'
        f'names = [name for head in {json.dumps(alike)} for name in card["heads"][head]["outputs"]]\n'
        'read = {name for part in parts for name in part["inputs"]} | set(names)\n'
        f"{runtime.code(card)}"
        "outputs = {name: values[name] for name in names}\n"
        "for name, value in outputs.items():\n    print(name, value.shape, value.dtype)\n"
    )
