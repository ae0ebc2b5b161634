"""Parameters and multiply-adds of a configuration, computed from shapes, without weights or data.

There are two counts of multiply-adds: ``total`` covers all matrix products, including convolutions and attention;
``mmcv_rules`` follows mmcv's counter, which was used for Fig. 8 of the paper, and reproduces its values.

Shapes: B batch, D width, h w patch grid, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vitsplit.backbone import Backbone, open_backbone
from vitsplit.model import Head, backbone_settings, build_head
from vitsplit.nn.initialization import SkipMetaInitialization
from vitsplit.recipes import count_classes
from vitsplit.tasks import bare_task
from vitsplit.train_config import TrainConfig


def count_parameters(model: Head, backbone: Backbone) -> dict[str, int]:
    """Parameters by part.

    Returns:
        ``task_head``, ``prior_head`` (with the gate's scores), ``fusion``, ``decoder``: trainable parameters of each;
        ``trainable``: their sum; ``frozen``: the backbone. For visual question answering also ``connector``: the
        trainable parameters except those of the language model, which is not loaded. For methods without frozen maps
        also ``tuned``, the trainable parameters of the pretrained model, and ``added``, the others; ``frozen``
        are then their frozen parameters.
    """
    head = model.head
    counts = {"task_head": 0, "prior_head": 0, "fusion": 0}
    if hasattr(head, "parts"):
        counts |= {name: sum(map(_trainable, modules)) for name, modules in head.parts().items()}
    decoder: Any = model.decoder
    if hasattr(decoder, "projection"):
        counts["connector"] = _trainable(head) + _trainable(decoder.projection)
    frozen = _count(backbone.parameters())
    if model.request(train=True).pixels:  # independent of the layers kept by a gate, which are unknown here
        tuned = sum(map(_count, head.pretrained_parameters().values()))
        counts |= {"tuned": tuned, "added": _trainable(head) - tuned}
        frozen = _count(head.parameters()) - _trainable(head)
    return {
        **counts,
        "decoder": _trainable(model.decoder),
        "trainable": _trainable(model),
        "frozen": frozen,
    }


def gmacs(
    config: TrainConfig,
    size: tuple[int, int],
    *,
    num_classes: int | None = None,
    description: Mapping[str, Any] | None = None,
    used_layers: tuple[int, ...] | None = None,
) -> dict[str, float]:
    """Multiply-adds in 10^9 for one prediction on one image: the required layers of the backbone, head and decoder.

    Args:
        config: The configuration.
        size: Height and width of the image, before padding to the patch size.
        num_classes: K; None: that of the configuration's data set.
        description: The task description of a bundle, see ``shape_model``.
        used_layers: The layers kept by a trained gate; None: assumes that the last layer is kept, the maximum cost.

    Returns:
        ``total``: matrix products and convolutions, including attention and deformable convolutions. Excluded are
        norms, activations, additions, the weighted sums of a gate, and bilinear sampling (four products per value).
        ``head``: the part of ``total`` that is not the frozen backbone's.
        ``mmcv_rules``: convolutions (with bias), transposed convolutions (with bias), linear layers (without), and
        twice the elements of layer and group norms; no attention or deformable convolutions.

    The cost of a detector depends on its detections; it is computed for 1000 proposals and ``max_detections`` masks,
    without the selection of proposals and RoI pooling, which have no matrix products.
    """
    config = config.change(method=config.method.without_gate(used_layers))
    rules = _Counter(MMCV_RULES)
    with rules:
        cost = _forward_gmacs(config, size, num_classes, description)
    return {"total": cost.frozen + cost.trained, "head": cost.trained, "mmcv_rules": rules.macs / 1e9}


def step_gmacs(config: TrainConfig, size: tuple[int, int], *, num_classes: int | None = None) -> dict[str, float]:
    """Multiply-adds in 10^9 of a training step per image, counted as ``total`` of ``gmacs``.

    Returns:
        ``frozen``: the backbone's forward pass; ``trained``: the forward pass of head and decoder; ``step``: the frozen
        part once and the trained part three times, since the backward pass has two products for each product of the
        forward pass (one if the weight is frozen, as in LoRA). A gate is counted as an untrained gate in ``gmacs``.
    """
    config = config.change(method=config.method.without_gate(None))
    cost = _forward_gmacs(config, size, num_classes, None)
    step = cost.frozen + 3 * cost.trained - cost.frozen_matrices
    return {"frozen": cost.frozen, "trained": cost.trained, "step": step}


class _Gmacs(NamedTuple):
    """Multiply-adds of the backbone and of the model, and those of the model with frozen weights."""

    frozen: float
    trained: float
    frozen_matrices: float


def _forward_gmacs(
    config: TrainConfig, size: tuple[int, int], num_classes: int | None, description: Mapping[str, Any] | None
) -> _Gmacs:
    """Multiply-adds for one image."""
    backbone, model = shape_model(config, num_classes, description)
    image_BCHW = torch.empty(1, 3, *size, dtype=torch.uint8, device="meta")
    frozen, trained = FlopCounterMode(display=False), FlopCounterMode(display=False)
    matrices = _Counter(FROZEN_MATRICES)
    with torch.no_grad():
        with frozen:
            taps = backbone(image_BCHW, model.request(train=False))
        with trained, matrices:
            model(taps)
    return _Gmacs(frozen.get_total_flops() / 2e9, trained.get_total_flops() / 2e9, matrices.macs / 1e9)


def shape_model(
    config: TrainConfig, num_classes: int | None = None, description: Mapping[str, Any] | None = None
) -> tuple[Backbone, Head]:
    """Backbone and model of a configuration in eval mode, on the meta device.

    Args:
        config: The configuration.
        num_classes: K; None: that of the configuration's data set. Unused for depth.
        description: The task description of a bundle (``Card.description``), instead of K classes. A language model is
            omitted.
    """
    backbone = open_backbone(backbone_settings(config), only_shapes=True)
    if description is None:
        classes = range(count_classes(config) if num_classes is None else num_classes)
        description = {"classes": [f"class {k}" for k in classes], "colours": [[0, 0, 0] for _ in classes]}
    with torch.device("meta"), SkipMetaInitialization():
        model = build_head(config, backbone, bare_task(config.task, without_language_model(description)))
    return backbone, model.eval()


def without_language_model(description: Mapping[str, Any]) -> dict[str, Any]:
    """The task description of a bundle without its language model."""
    return {name: value for name, value in description.items() if name != "language_model"}


def _trainable(module: nn.Module | None) -> int:
    return 0 if module is None else _count(p for p in module.parameters() if p.requires_grad)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


class _Counter(TorchFunctionMode):
    """Counts multiply-adds of functions by rules.

    Functions are intercepted rather than modules, to include layers whose weights are used directly (query, key and
    value in EVA-02).

    Args:
        rules: Function to its counting rule, called with the output and the arguments.
    """

    def __init__(self, rules: Mapping[Callable[..., Any], Callable[..., int]]) -> None:
        super().__init__()
        self.rules = rules
        self.macs = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in self.rules:
            self.macs += self.rules[func](out, *args, **(kwargs or {}))
        return out


def _convolution(out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> int:
    return out.numel() * (weight[0].numel() + (bias is not None))


def _transposed(out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> int:
    return input.numel() * weight[0].numel() + out.numel() * (bias is not None)


def _linear(out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> int:
    return out.numel() * weight.shape[-1]


def _norm(out: Tensor, *_: Any, **__: Any) -> int:
    return 2 * out.numel()


def _frozen_product(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 0 if weight.requires_grad else out.numel() * weight[0].numel()


MMCV_RULES: dict[Callable[..., Any], Callable[..., int]] = {
    F.conv2d: _convolution,
    F.conv_transpose2d: _transposed,
    F.linear: _linear,
    F.layer_norm: _norm,
    F.group_norm: _norm,
}
"""How ``mmcv.cnn.get_model_complexity_info`` counts: layers, not products."""
FROZEN_MATRICES: dict[Callable[..., Any], Callable[..., int]] = {F.linear: _frozen_product, F.conv2d: _frozen_product}
"""Products with frozen weights, whose backward pass has one product instead of two."""
