"""The graph that is exported: everything between the user's pixels and named outputs, in one module or in parts.

The parts are the backbone, from images to the tokens after each block (``tap.tokens.DEPTH``), and each head, from
images and the tokens that it reads to its outputs. That of the backbone does not depend on the heads.

A module is a copy of a predictor that shares its weights. In the copy, what an exporter cannot follow is replaced by
equal computations: branches on sizes (``families``), the row form of the deformable convolution, and some layers
(``replacements``). The predictor itself is not changed.

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.backbone.backbone import run_blocks, tokens_to_map
from vitsplit.errors import ConfigError, ExportError
from vitsplit.exporting.families import Record, exported
from vitsplit.exporting.replacements import FixedMix, MatrixPooling
from vitsplit.heads import check_head_name
from vitsplit.inference.predictor import Predictor
from vitsplit.methods.split.gate import SparseGate
from vitsplit.methods.split.task_head import TaskHead
from vitsplit.model import Head
from vitsplit.nn.deformable_attention import DeformableAttention
from vitsplit.nn.deformable_convolution import DeformConv3x3
from vitsplit.nn.low_rank import LowRankLinear
from vitsplit.nn.shared_weights import share_weights
from vitsplit.nn.upernet import PyramidPooling
from vitsplit.nn.windows import FixedWindows
from vitsplit.runtime.card import IMAGE, TAP
from vitsplit.tasks.base import GraphTask
from vitsplit.types import LayerTaps, Padding, TapRequest

Layout = Literal["nchw", "nhwc"]
Deform = Literal["native", "grid"]
WHOLE, BACKBONE = "graph", "backbone"


class Steps:
    """Intermediate tensors of one pass, by name, for finding the block where an error begins."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def recorder(self, title: str, first_block: int = 0) -> Record:
        """Records the tokens of a series of blocks as ``TITLE.embedding``, ``TITLE.block0``, ``TITLE.block1``, ...

        Args:
            title: Prefix of the names.
            first_block: Index of the first block.
        """

        def record(x_BTD: Tensor, is_block: bool) -> None:
            count = sum(name.startswith(f"{title}.block") for name in self.tensors)
            self.tensors[f"{title}.block{first_block + count}" if is_block else f"{title}.embedding"] = x_BTD

        return record


class ExportGraph(nn.Module):
    """Images to the outputs of all heads of a predictor: normalization, padding, backbone, heads, un-padding.

    Args:
        predictor: The heads and their backbone, in float32 on the CPU.
        layout: Layout of the input: (B, 3, H, W) or (B, H, W, 3), uint8, RGB.
        deform: Form of the deformable convolutions: torchvision's operator, or sampling on a grid.
        part: Name of a part of the graph: ``backbone``, or a head; None: the whole.

    Attributes:
        name: Name of the part, or ``graph``.
        batch: Number of images at once; None: any.
        depths: Depths of the tokens that the heads read, or of all for the backbone.
        inputs: Names of the inputs: the images, followed for a head by the tokens of ``depths``, (B, T, D) float32.
        outputs: Names of the outputs, ``HEAD.OUTPUT`` or those of the tokens, in order.
        steps: The intermediate tensors of the last call, which follow the outputs.
        steps_in_outputs: The intermediate tensors that are outputs, with the names of these.

    Raises:
        ExportError: A head or the backbone cannot be exported; the message says why.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self, predictor: Predictor, *, layout: Layout = "nchw", deform: Deform = "grid", part: str | None = None
    ) -> None:
        super().__init__()
        check_exportable(predictor)
        backbone = predictor.backbone
        self.name = part or WHOLE
        self.layout, self.deform = layout, deform
        self.patch_size, self.num_prefix_tokens = backbone.patch_size, backbone.num_prefix_tokens
        self.width = backbone.width
        self.steps = Steps()
        self.family = exported(backbone.family, self.steps.recorder("backbone"))
        self.model: Any = share_weights(backbone.model)
        self.register_buffer("mean_C11", backbone.mean_C11)
        self.register_buffer("std_C11", backbone.std_C11)
        heads = {name: head for name, head in predictor.items() if part in (None, name)}
        self.tasks: dict[str, Any] = {name: head.task for name, head in heads.items()}
        self.heads = nn.ModuleDict({name: self._copy(name, head.model, deform) for name, head in heads.items()})
        # Those of the methods: a graph does not compare features with those of the training images.
        requests = (head.model.head.request(train=False) for head in heads.values())
        self.request = functools.reduce(operator.or_, requests, TapRequest())
        self.depths = range(backbone.num_layers + 1) if part == BACKBONE else sorted(self.request.depths)
        taps = [f"{TAP}{depth}" for depth in self.depths]
        self.batch = next((task.graph_batch for task in self.tasks.values() if task.graph_batch is not None), None)
        self.inputs = [IMAGE] if part in (None, BACKBONE) else [IMAGE, *taps]
        self.outputs = [f"{name}.{each}" for name, task in self.tasks.items() for each in task.describe_graph()]
        self.steps_in_outputs: dict[str, str] = {}
        if part == BACKBONE:
            self.outputs = taps
            blocks = (f"backbone.block{index}" for index in range(backbone.num_layers))
            self.steps_in_outputs = dict(zip(["backbone.embedding", *blocks], taps, strict=True))
        self.requires_grad_(False)

    def forward(self, image: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
        """The inputs to the outputs, followed by ``steps`` that are no outputs."""
        self.steps.tensors = {}
        image_BCHW = image if self.layout == "nchw" else image.permute(0, 3, 1, 2)
        taps = self.read(image_BCHW, dict(zip(self.depths, tokens, strict=True)) if tokens else None)
        found = {f"{TAP}{depth}": x_BTD for depth, x_BTD in taps.tokens.items()}
        head: Any
        for name, head in self.heads.items():
            map_BDhw = head.head(taps)
            self.steps.tensors[f"{name}.map"] = map_BDhw if isinstance(map_BDhw, Tensor) else map_BDhw[-1]
            outputs = self.tasks[name].graph_outputs(head.decoder(map_BDhw), taps)
            found |= {f"{name}.{output}": tensor for output, tensor in outputs.items()}
        if self.name == BACKBONE:  # all of its intermediate tensors are outputs
            self.steps.tensors = {}
        return (*(found[name] for name in self.outputs), *self.steps.tensors.values())

    def read(self, image_BCHW: Tensor, tokens: dict[int, Tensor] | None = None) -> LayerTaps:
        """The backbone's pass, as ``Backbone.forward``; with the ``tokens`` of another part, only what is around it."""
        height, width = image_BCHW.shape[2:]
        rows, columns = self.grid(height, width)
        extra_height, extra_width = rows * self.patch_size - height, columns * self.patch_size - width
        top, left = extra_height // 2, extra_width // 2
        padding = Padding(left=left, top=top, right=extra_width - left, bottom=extra_height - top)
        pixels_BCHW = (image_BCHW.float() - self.mean_C11) / self.std_C11
        pixels_BCHW = F.pad(pixels_BCHW, (padding.left, padding.right, padding.top, padding.bottom))
        grid = (rows, columns)
        rope: Tensor | None = None
        if tokens is not None:
            rope = self.family.rope(self.model, grid)
        elif self.depths:
            x_BTD, rope = self.family.embed(self.model, pixels_BCHW)
            request = TapRequest(tokens=frozenset(self.depths))
            tokens, _, _ = run_blocks(self.family, self.model, x_BTD, rope, grid, request, torch.float32)
        tokens = tokens or {}
        norm = self.family.final_norm(self.model)

        def as_map(x_BTD: Tensor) -> Tensor:
            return tokens_to_map(x_BTD, self.num_prefix_tokens, grid, torch.float32)

        return LayerTaps(
            image_size=(height, width),
            padding=padding,
            grid=grid,
            num_prefix_tokens=self.num_prefix_tokens,
            tokens=tokens,
            maps={index: as_map(norm(tokens[index + 1])) for index in sorted(self.request.maps)},
            raw_maps={index: as_map(tokens[index + 1]) for index in sorted(self.request.raw_maps)},
            rope=rope,
            pixels_BCHW=pixels_BCHW,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The patch grid ``(h, w)`` of images of a size."""
        rows, columns = ((side + self.patch_size - 1) // self.patch_size for side in (height, width))
        return rows, columns

    def _copy(self, name: str, head: Head, deform: Deform) -> Head:
        """A copy of a head with exportable parts."""
        copied = share_weights(head)
        module: Any
        for module in copied.modules():
            if isinstance(module, DeformConv3x3):
                module.implementation = "torchvision" if deform == "native" else "grid"
            if hasattr(module, "family"):
                module.family = exported(module.family, self.steps.recorder(name, getattr(module, "depth", 0)))
            if isinstance(module, TaskHead):
                module.windows = FixedWindows
            for child, part in module.named_children():
                if isinstance(part, SparseGate):
                    setattr(module, child, FixedMix(part.weights(), part.used_layers()))
                if isinstance(part, PyramidPooling):
                    setattr(module, child, MatrixPooling(part))
                if isinstance(part, LowRankLinear):
                    setattr(module, child, part.merged())
        copied.decoder = self.tasks[name].graph_decoder(copied.decoder)
        return copied


def split_graph(predictor: Predictor, *, layout: Layout, deform: Deform) -> list[ExportGraph]:
    """The parts of a graph, in the order in which they run: the backbone and each head.

    Raises:
        ConfigError: A head has the name of the backbone's graph.
        ExportError: As ``ExportGraph``.
    """
    if BACKBONE in predictor:
        raise ConfigError(
            f"--split: a head is named {BACKBONE}, as the graph of the backbone. Rename its run's folder, or give "
            "another name in Python: export({'first': RUN}, split=True)."
        )
    return [ExportGraph(predictor, layout=layout, deform=deform, part=name).eval() for name in (BACKBONE, *predictor)]


def check_exportable(predictor: Predictor) -> None:
    """Refuses what has no exported form.

    Raises:
        ExportError: The message says what and why, and what to do.
    """
    backbone = predictor.backbone
    if backbone.precision != torch.float32 or backbone.mean_C11.device.type != "cpu":
        raise ExportError(
            f"A graph is made from float32 weights on the CPU, but the backbone is in {backbone.precision} on "
            f"{backbone.mean_C11.device}. Load the heads with precision='fp32', device='cpu'."
        )
    for name, head in predictor.items():
        _check_name(name)
        if not isinstance(head.task, GraphTask):
            raise ExportError(f"{name}: the task {head.task.name} has no exported form. Export the other heads.")
        for module in head.model.modules():
            if isinstance(module, DeformableAttention):
                raise ExportError(
                    f"{name}: --method {head.card.config.method.name} has multi-scale deformable attention, which has "
                    "no exported form. Use --method vitsplit, linear-probe, full-finetune or lora."
                )


def _check_name(name: str) -> None:
    """Refuses a name that cannot be part of the names of files and outputs."""
    try:
        check_head_name(name)
    except ConfigError as error:
        raise ExportError(
            f"The head {name!r} cannot be exported under this name. Use a letter followed by letters, digits, '-' and "
            "'_', by the name of its run's folder, or in Python: export({'first': RUN})."
        ) from error
