"""The graph in PyTorch; the oracle is the predictor that it is made of."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_backbones import KINDS, image
from tiny_predictor import METHOD, tiny_predictor

from vitsplit.errors import ExportError
from vitsplit.exporting.graph import ExportGraph
from vitsplit.exporting.parity import model_outputs
from vitsplit.inference.predictor import Predictor
from vitsplit.methods import MethodConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.nn.bins import bin_weights

SIZES = [(50, 66), (70, 84), (33, 90)]


def assert_equal_outputs(predictor: Any, **options: Any) -> None:
    graph = ExportGraph(predictor, **options).eval()
    for size in SIZES:
        images = image(*size)
        expected = model_outputs(predictor, images)
        found = dict(zip(graph.outputs, graph(images), strict=False))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name.endswith("classes"):
                assert (found[name].numpy() == value).mean() > 0.999
            else:
                scale = max(1.0, float(abs(value).max()))
                assert abs(found[name].numpy() - value).max() < 3e-5 * scale, (name, size)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_family_of_backbones(kind: str) -> None:
    assert_equal_outputs(tiny_predictor(kind))


@pytest.mark.parametrize(
    "changes",
    [
        {"selection": "gate"},
        {"selection": "last", "tap_norm": False},
        {"num_tuned_layers": 0},
        {"num_tuned_layers": 4, "prior_head": False, "fusion": False},
        {"deformable": False, "combine": "add", "fusion_form": "residual"},
        {"task_head_window": 2},
        {"task_head_window": 3},
    ],
    ids=str,
)
def test_every_form_of_the_method(changes: dict[str, Any]) -> None:
    settings = {name: getattr(METHOD, name) for name in ("num_tuned_layers", "num_prior_layers", "first_prior_layer")}
    assert_equal_outputs(tiny_predictor(method=SplitConfig(**(settings | changes))))


@pytest.mark.parametrize("method", ["linear-probe", "frozen-head", "full-finetune", "lora", "vpt", "adaptformer"])
def test_other_methods(method: str) -> None:
    assert_equal_outputs(tiny_predictor(method=MethodConfig.by_name(method)()))


@pytest.mark.parametrize(("side", "bins"), [(7, 1), (7, 2), (7, 3), (7, 6), (6, 6), (4, 6), (37, 6)])
def test_bins_are_those_of_adaptive_pooling(side: int, bins: int) -> None:
    map_11hw = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(side))
    weights = bin_weights(side, bins)
    torch.testing.assert_close(weights @ map_11hw @ weights.mT, F.adaptive_avg_pool2d(map_11hw, bins))


def test_upernet() -> None:
    assert_equal_outputs(tiny_predictor(tasks=("segmentation",), method=MethodConfig.by_name("upernet")()))


@pytest.mark.parametrize("deform", ["native", "grid"])
def test_both_forms_of_the_deformable_convolution(deform: Any) -> None:
    assert_equal_outputs(tiny_predictor(), deform=deform)


def test_stretched_padding_and_registers() -> None:
    assert_equal_outputs(tiny_predictor("dinov2-small-reg", ("segmentation",), task_settings={"pad_logits": "stretch"}))


def test_the_other_layout() -> None:
    predictor, images = tiny_predictor(), image(50, 66)
    first = ExportGraph(predictor).eval()(images)
    second = ExportGraph(predictor, layout="nhwc").eval()(images.permute(0, 2, 3, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_predictor_is_left_as_it_is() -> None:
    predictor, images = (
        tiny_predictor(method=SplitConfig(num_tuned_layers=2, num_prior_layers=2, selection="gate")),
        image(50, 66),
    )
    before = model_outputs(predictor, images)
    states = {name: copy.deepcopy(head.model.state_dict()) for name, head in predictor.items()}
    graph = ExportGraph(predictor).eval()
    graph(images)
    after = model_outputs(predictor, images)
    assert all((before[name] == after[name]).all() for name in before)
    for name, head in predictor.items():
        assert all(torch.equal(value, states[name][key]) for key, value in head.model.state_dict().items())
        assert any(parameter.requires_grad for parameter in head.model.parameters())


def test_the_weights_are_shared_with_the_predictor() -> None:
    predictor = tiny_predictor()
    own = {parameter.data_ptr() for parameter in predictor.backbone.parameters()}
    assert own <= {parameter.data_ptr() for parameter in ExportGraph(predictor).parameters()}


@pytest.mark.parametrize("method", ["vit-adapter", "vit-comer"])
def test_adapters_are_refused_by_name(method: str) -> None:
    predictor = tiny_predictor(
        "mae-base", ("segmentation",), MethodConfig.by_name(method)(decoder="linear"), embed_dim=384, num_heads=6
    )
    with pytest.raises(ExportError, match=f"segmentation: .*{method}"):
        ExportGraph(predictor)


def test_a_task_without_an_exported_form_is_refused_by_name() -> None:
    predictor = tiny_predictor(tasks=("depth",))
    predictor["depth"].task = SimpleNamespace(name="vqa")
    with pytest.raises(ExportError, match="depth: the task vqa"):
        ExportGraph(predictor)


@pytest.mark.parametrize("name", ["living.room", "rooms/1", "", "best"])
def test_names_that_no_file_or_output_can_have_are_refused(name: str) -> None:
    predictor = tiny_predictor(tasks=("depth",), depth=2)
    renamed = Predictor(predictor.backbone, "fp32")
    renamed.register(name, predictor["depth"])
    with pytest.raises(ExportError, match=repr(name)):
        ExportGraph(renamed)


def test_a_predictor_in_bf16_is_refused() -> None:
    predictor = tiny_predictor()
    predictor.backbone.set_precision(torch.bfloat16)
    with pytest.raises(ExportError, match="fp32"):
        ExportGraph(predictor)


def test_the_model_has_one_pass_for_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = tiny_predictor(depth=2)
    pixels = image(50, 66)
    head: Any = predictor["depth"]
    alone = head.task.graph_outputs(*head.forward(pixels))["depth"]
    passes: list[int] = []
    forward = type(predictor.backbone).forward
    monkeypatch.setattr(
        type(predictor.backbone), "forward", lambda self, *args: passes.append(1) or forward(self, *args)
    )
    together = model_outputs(predictor, pixels)
    assert len(passes) == 1
    torch.testing.assert_close(torch.from_numpy(together["depth.depth"]), alone.detach())
