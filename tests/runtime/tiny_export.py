"""An exported folder of two heads whose graph is a 1x1 convolution each, and the same heads in PyTorch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from vitsplit.bundle import Card, card_to_dict
from vitsplit.data.classes import default_colors
from vitsplit.tasks import bare_task
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.train_config import one_head
from vitsplit.types import LayerTaps, Padding
from vitsplit.version import __version__

RNG = np.random.default_rng(0)
ROOMS_WEIGHT = RNG.normal(0, 0.02, (4, 3, 1, 1)).astype(np.float32)
ROOMS_BIAS = -128 * ROOMS_WEIGHT.sum((1, 2, 3))
DEPTH_WEIGHT = np.full((1, 3, 1, 1), 0.01, np.float32)
CLASSES = {
    "classes": ["wall", "floor", "bed", "lamp"],
    "colours": [list(color) for color in default_colors(4)],
    "temperature": 1.7,
}
ROOMS_SCALE, DEPTH_SCALE = (120, 90), (64, 48)
ROOMS = SegmentationConfig(image_scale=ROOMS_SCALE, test_mode="whole")
DEPTH = DepthConfig(image_scale=DEPTH_SCALE, test_flip=False)
METERS = {"unit": "metres", "min_depth": DEPTH.min_depth, "max_depth": DEPTH.max_depth}


def write_export(
    folder: Path,
    *,
    size: tuple[int, int] | None = None,
    layout: str = "nchw",
    rooms: SegmentationConfig = ROOMS,
    depth: DepthConfig = DEPTH,
) -> Path:
    """Writes the folder with an ONNX graph."""
    folder.mkdir(parents=True)
    onnx.save(graph(size, layout), folder / "graph.onnx")
    sides = ["height", "width"] if size is None else list(size)
    card = {
        "format": 1,
        "backbone": {"name": "none"},
        "input": {
            "layout": layout,
            "dtype": "uint8",
            "shape": ["batch", 3, *sides] if layout == "nchw" else ["batch", *sides, 3],
        },
        "heads": {
            "rooms": head(rooms, CLASSES, ("rooms.logits", "rooms.classes")),
            "depth": head(depth, METERS, ("depth.depth",)),
        },
        "graphs": {"onnx": {"files": {}, "settings": {}, "precision": "fp32", "smallest_side": 8}},
    }
    write_card(folder, card)
    return folder


def write_card(folder: Path, card: dict[str, Any], hashes: bool = True) -> None:
    """Writes the card, with the hashes of the files that are there."""
    if hashes:
        card["graphs"]["onnx"]["files"] = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("graph.onnx")
        }
    (folder / "card.json").write_text(json.dumps(card))


def read_card_json(folder: Path) -> dict[str, Any]:
    """The card."""
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return card


def add_openvino(folder: Path) -> None:
    """Adds the same graph for OpenVINO."""
    import openvino

    openvino.save_model(openvino.Core().read_model(folder / "graph.onnx"), folder / "graph.xml", compress_to_fp16=False)
    card = read_card_json(folder)
    names = ("graph.xml", "graph.bin")
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    card["graphs"]["openvino"] = {"files": files, "settings": settings, "precision": "fp32", "smallest_side": 8}
    (folder / "card.json").write_text(json.dumps(card))


def head(config: Any, description: dict[str, Any], outputs: tuple[str, ...]) -> dict[str, Any]:
    """The entry of a head in the card."""
    backbone = dict.fromkeys(("name", "title", "timm_name", "licence", "source"), "none") | {"weights_hash": "0" * 64}
    card = Card(config.name, one_head(task=config), description, backbone, (), {}, __version__)
    return {
        "task": config.name,
        "description": description,
        "image_scale": [*config.image_scale],
        "outputs": {name: {"kind": "any", "shape": [], "meaning": "-"} for name in outputs},
        "bundle": card_to_dict(card),
    }


def graph(size: tuple[int, int] | None, layout: str) -> Any:
    """The ONNX graph."""
    sides = ["height", "width"] if size is None else list(size)
    shape = ["batch", 3, *sides] if layout == "nchw" else ["batch", *sides, 3]
    weights = {"rooms_w": ROOMS_WEIGHT, "rooms_b": ROOMS_BIAS, "depth_w": DEPTH_WEIGHT, "one": np.array([1], np.int64)}
    node = helper.make_node
    order = [0, 1, 2, 3] if layout == "nchw" else [0, 3, 1, 2]
    nodes = [
        node("Cast", ["image"], ["given"], to=TensorProto.FLOAT),
        node("Transpose", ["given"], ["pixels"], perm=order),
        node("Conv", ["pixels", "rooms_w", "rooms_b"], ["rooms.logits"]),
        node("ArgMax", ["rooms.logits"], ["indices"], axis=1, keepdims=0),
        node("Cast", ["indices"], ["rooms.classes"], to=TensorProto.UINT8),
        node("Conv", ["pixels", "depth_w"], ["meters"]),
        node("Squeeze", ["meters", "one"], ["depth.depth"]),
    ]
    outputs = [
        helper.make_tensor_value_info("rooms.logits", TensorProto.FLOAT, ["batch", 4, *sides]),
        helper.make_tensor_value_info("rooms.classes", TensorProto.UINT8, ["batch", *sides]),
        helper.make_tensor_value_info("depth.depth", TensorProto.FLOAT, ["batch", *sides]),
    ]
    made = helper.make_graph(
        nodes,
        "heads",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def model_predictions(
    image_BCHW: Tensor, rooms: SegmentationConfig = ROOMS, depth: DepthConfig = DEPTH
) -> list[dict[str, Any]]:
    """What the tasks predict from the same heads in PyTorch."""
    found = {
        "rooms": bare_task(rooms, CLASSES).predict(forward_rooms, image_BCHW),
        "depth": bare_task(depth, METERS).predict(forward_depth, image_BCHW),
    }
    return [{name: several[index] for name, several in found.items()} for index in range(len(image_BCHW))]


def forward_rooms(image_BCHW: Tensor) -> tuple[Tensor, LayerTaps]:
    """The forward pass of the head for rooms."""
    return _convolve(image_BCHW, ROOMS_WEIGHT, ROOMS_BIAS)


def forward_depth(image_BCHW: Tensor) -> tuple[Tensor, LayerTaps]:
    """The forward pass of the head for depth."""
    return _convolve(image_BCHW, DEPTH_WEIGHT, np.zeros(1, np.float32))


def _convolve(image_BCHW: Tensor, weight: Any, bias: Any) -> tuple[Tensor, LayerTaps]:
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    output = F.conv2d(image_BCHW.float(), torch.from_numpy(weight), torch.from_numpy(bias))
    return output, LayerTaps(size, Padding(), size, 1)
