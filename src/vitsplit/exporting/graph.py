"""The graph that is exported: everything between the user's pixels and named outputs, in one module.

The module is a copy of a predictor that shares its weights. In the copy, what an exporter cannot follow is replaced by
equal computations: branches on sizes (``families``), the row form of the deformable convolution, and some layers
(``replacements``). The predictor itself is not changed.

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.backbone.backbone import run_blocks
from vitsplit.errors import ExportError
from vitsplit.exporting.families import Record, exported
from vitsplit.exporting.replacements import FixedMix, MatrixPooling
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
from vitsplit.tasks.base import GraphTask
from vitsplit.types import LayerTaps, Padding

Layout = Literal["nchw", "nhwc"]
Deform = Literal["native", "grid"]


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

    Attributes:
        batch: Number of images at once; None: any.
        outputs: Names of the outputs, ``HEAD.OUTPUT``, in order.
        steps: The intermediate tensors of the last call, which follow the outputs.

    Raises:
        ExportError: A head or the backbone cannot be exported; the message says why.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, predictor: Predictor, *, layout: Layout = "nchw", deform: Deform = "grid") -> None:
        super().__init__()
        check_exportable(predictor)
        backbone = predictor.backbone
        self.layout, self.deform = layout, deform
        self.patch_size, self.num_prefix_tokens = backbone.patch_size, backbone.num_prefix_tokens
        self.steps = Steps()
        requests = [head.model.request(train=False) for head in predictor.values()]
        self.request = requests[0]
        for request in requests[1:]:
            self.request |= request
        self.family = exported(backbone.family, self.steps.recorder("backbone"))
        self.model: Any = share_weights(backbone.model)
        self.register_buffer("mean_C11", backbone.mean_C11)
        self.register_buffer("std_C11", backbone.std_C11)
        self.tasks: dict[str, Any] = {name: head.task for name, head in predictor.items()}
        self.heads = nn.ModuleDict({name: self._copy(name, head.model, deform) for name, head in predictor.items()})
        self.batch = next((task.graph_batch for task in self.tasks.values() if task.graph_batch is not None), None)
        self.outputs = [f"{name}.{each}" for name, task in self.tasks.items() for each in task.describe_graph()]
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images to outputs, followed by ``steps``."""
        self.steps.tensors = {}
        taps = self.read(image if self.layout == "nchw" else image.permute(0, 3, 1, 2))
        found: dict[str, Tensor] = {}
        head: Any
        for name, head in self.heads.items():
            map_BDhw = head.head(taps)
            self.steps.tensors[f"{name}.map"] = map_BDhw if isinstance(map_BDhw, Tensor) else map_BDhw[-1]
            outputs = self.tasks[name].graph_outputs(head.decoder(map_BDhw), taps)
            found |= {f"{name}.{output}": tensor for output, tensor in outputs.items()}
        return (*(found[name] for name in self.outputs), *self.steps.tensors.values())

    def read(self, image_BCHW: Tensor) -> LayerTaps:
        """The backbone's pass, as ``Backbone.forward``."""
        height, width = image_BCHW.shape[2:]
        rows, columns = ((side + self.patch_size - 1) // self.patch_size for side in (height, width))
        extra_height, extra_width = rows * self.patch_size - height, columns * self.patch_size - width
        top, left = extra_height // 2, extra_width // 2
        padding = Padding(left=left, top=top, right=extra_width - left, bottom=extra_height - top)
        pixels_BCHW = (image_BCHW.float() - self.mean_C11) / self.std_C11
        pixels_BCHW = F.pad(pixels_BCHW, (padding.left, padding.right, padding.top, padding.bottom))
        grid = (rows, columns)
        tokens: dict[int, Tensor] = {}
        maps: dict[int, Tensor] = {}
        raw_maps: dict[int, Tensor] = {}
        rope: Tensor | None = None
        if self.request.tokens or self.request.num_blocks:
            x_BTD, rope = self.family.embed(self.model, pixels_BCHW)
            tokens, maps, raw_maps = run_blocks(self.family, self.model, x_BTD, rope, grid, self.request, torch.float32)
        return LayerTaps(
            image_size=(height, width),
            padding=padding,
            grid=grid,
            num_prefix_tokens=self.num_prefix_tokens,
            tokens=tokens,
            maps=maps,
            raw_maps=raw_maps,
            rope=rope,
            pixels_BCHW=pixels_BCHW,
        )

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
        if not isinstance(head.task, GraphTask):
            raise ExportError(f"{name}: the task {head.task.name} has no exported form. Export the other heads.")
        for module in head.model.modules():
            if isinstance(module, DeformableAttention):
                raise ExportError(
                    f"{name}: --method {head.card.config.method.name} has multi-scale deformable attention, which has "
                    "no exported form. Use --method vitsplit, linear-probe, full-finetune or lora."
                )
