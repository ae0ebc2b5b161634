import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from vitsplit.backbone import meta_backbone
from vitsplit.backbone.backbone import Backbone
from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import SplitConfig
from vitsplit.methods.split.head import SplitHead
from vitsplit.methods.split.task_head import TaskHead
from vitsplit.model import Head
from vitsplit.tasks.segmentation.decoder import SegmentationDecoder
from vitsplit.types import TapRequest

SMALL = SplitConfig(num_tuned_layers=2, num_prior_layers=2, first_prior_layer=1)

# Table 6 without the release's unused norm, for 150 classes: switches -> parameters of S and of B, counted by hand
# from the shapes of the parts. K_t = 3, K_p = 4.
TABLE_6 = {
    "frozen last layer": ({"prior_head": False, "task_head": False, "fusion": False}, 1_240_470, 4_840_086),
    "prior head": ({"task_head": False, "fusion": False}, 3_220_008, 12_633_000),
    "task head": ({"prior_head": False, "fusion": False}, 6_566_166, 26_108_310),
    "both, added": ({"fusion": False}, 8_545_704, 33_901_224),
    "all": ({}, 10_230_330, 40_514_490),
}


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _build(name: str, config: SplitConfig) -> Head:
    backbone = meta_backbone(name)
    with torch.device("meta"):
        return Head(SplitHead(backbone, config), SegmentationDecoder(backbone.width, 150))


@pytest.mark.parametrize(("switches", "small", "base"), TABLE_6.values(), ids=TABLE_6.keys())
def test_parameters_of_table_6(switches, small, base):
    config = SplitConfig(**switches)
    assert _count(_build("dinov2-small", config)) == small
    assert _count(_build("dinov2-base", config)) == base


def test_parameter_counts_follow_from_shapes():
    width, head = 384, _build("dinov2-small", SplitConfig()).head
    mix = 9 * width**2 + 162 * width + 18
    assert _count(head.task_head) == 3 * 1_775_232
    assert _count(head.prior_head) == 4 * width**2 + width + mix
    assert _count(head.fusion) == 2 * width**2 + width + mix
    plain = _build("dinov2-small", SplitConfig(deformable=False, combine="add")).head
    assert _count(plain.prior_head) == 4 * width**2 + width + 9 * width**2
    assert _count(plain.fusion) == width**2 + width + 9 * width**2
    gate = _build("dinov2-small", SplitConfig(selection="gate")).head
    assert _count(gate) == _count(head) + 12 * 4


def test_untrained_task_map_equals_the_frozen_output(backbone: Backbone, image_BCHW: Tensor):
    pixels_BCHW = backbone(image_BCHW, TapRequest(pixels=True)).pixels_BCHW
    # timm's own way through the whole model.
    with torch.no_grad():
        out = backbone.model.forward_features(pixels_BCHW)
    for num_tuned in (1, 2, 4):
        task_head = TaskHead(backbone, backbone.num_layers - num_tuned).train()
        request = TapRequest(tokens=frozenset({task_head.depth}), maps=frozenset({backbone.num_layers - 1}))
        taps = backbone(image_BCHW, request)
        patches = out if out.dim() == 4 else out[:, backbone.num_prefix_tokens :].transpose(1, 2)
        expected = patches.reshape(2, backbone.width, *taps.grid)
        with torch.no_grad():
            task_map = task_head(taps)
        assert task_map.shape == (2, backbone.width, *taps.grid)
        assert float((task_map - expected).abs().max()) == 0.0
        assert float((task_map - taps.maps[backbone.num_layers - 1]).abs().max()) == 0.0
        # With gradient PyTorch may choose another kernel for attention with a trained bias (SAM): it rounds otherwise.
        torch.testing.assert_close(task_head(taps), task_map, rtol=1e-5, atol=1e-5)


def test_exactly_the_trainable_parameters_get_gradients(backbone: Backbone, image_BCHW: Tensor):
    torch.manual_seed(0)
    for config in (SMALL, SplitConfig(num_tuned_layers=2, num_prior_layers=2, selection="gate")):
        model = Head(SplitHead(backbone, config), SegmentationDecoder(backbone.width, 5))
        taps = backbone(image_BCHW, model.head.request(train=True))
        output = model(taps)
        (output * torch.randn(output.shape)).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, f"{name} is dead"
            else:
                assert parameter.grad is None and name.startswith("head.task_head.final_norm"), name
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in backbone.parameters())
        tapped = [*taps.tokens.values(), *taps.maps.values()]
        assert tapped and all(tensor.grad_fn is None and not tensor.requires_grad for tensor in tapped)


def test_training_changes_neither_the_backbone_nor_the_frozen_norm(plain_backbone: Backbone, image_BCHW: Tensor):
    head = SplitHead(plain_backbone, SMALL)
    before = {name: tensor.clone() for name, tensor in plain_backbone.state_dict().items()}
    norm_before = [tensor.clone() for tensor in head.task_head.final_norm.state_dict().values()]
    blocks_before = [parameter.detach().clone() for parameter in head.task_head.blocks.parameters()]
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1)
    head(plain_backbone(image_BCHW, head.request(train=True))).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in plain_backbone.state_dict().items())
    norm_after = head.task_head.final_norm.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(norm_before, norm_after, strict=True))
    after = head.task_head.blocks.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(blocks_before, after, strict=True)), "the copies are copies"


def test_saved_state_is_the_trainable_state(plain_backbone: Backbone):
    model = Head(SplitHead(plain_backbone, SMALL), SegmentationDecoder(plain_backbone.width, 5))
    state = model.trainable_state()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable <= state.keys()
    assert not any("final_norm" in name for name in state)
    assert {name.rsplit(".", 1)[1] for name in state.keys() - trainable} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_copied_blocks_are_pretrained_in_order(plain_backbone: Backbone):
    head = SplitHead(plain_backbone, SMALL)
    groups = head.pretrained_parameters()
    blocks = list(head.task_head.blocks)
    assert groups.keys() == set(range(len(blocks)))
    for above, group in groups.items():
        assert {id(p) for p in group} == {id(p) for p in blocks[-1 - above].parameters()}
    without = dataclasses.replace(SMALL, task_head=False)
    assert not SplitHead(plain_backbone, without).pretrained_parameters()


@pytest.mark.parametrize("switches", list(itertools.product((True, False), repeat=3)), ids=str)
def test_every_combination_of_parts_requests_what_it_uses(switches, plain_backbone: Backbone, image_BCHW: Tensor):
    task, prior, fusion = switches
    config = SplitConfig(
        num_tuned_layers=2, num_prior_layers=2, first_prior_layer=1, task_head=task, prior_head=prior, fusion=fusion
    )
    head = SplitHead(plain_backbone, config)
    request = head.request(train=True)
    assert request.tokens == ({2} if task else set())
    assert request.maps == ({1, 3} if prior else set() if task else {3})
    assert not request.raw_maps and not request.pixels
    taps = plain_backbone(image_BCHW, request)
    assert head(taps).shape == (2, plain_backbone.width, *taps.grid)


def test_without_parts_the_output_is_the_frozen_last_layer(plain_backbone: Backbone, image_BCHW: Tensor):
    head = SplitHead(plain_backbone, SplitConfig(task_head=False, prior_head=False, fusion=False))
    taps = plain_backbone(image_BCHW, head.request(train=True))
    assert torch.equal(head(taps), taps.maps[3])
    assert _count(head) == 0


def test_without_fusion_the_two_maps_are_added(plain_backbone: Backbone, image_BCHW: Tensor):
    head = SplitHead(
        plain_backbone, SplitConfig(num_tuned_layers=2, num_prior_layers=2, first_prior_layer=1, fusion=False)
    )
    taps = plain_backbone(image_BCHW, head.request(train=True))
    expected = head.prior_head([taps.maps[1], taps.maps[3]]) + head.task_head(taps)
    torch.testing.assert_close(head(taps), expected)


@pytest.mark.parametrize("combine", ["concat", "add"])
def test_the_head_equals_equations_1_to_4(combine, plain_backbone: Backbone, image_BCHW: Tensor):
    """Equations 1, 3 and 4 with torchvision's deformable convolution and the release's order of the maps."""
    from torch.nn.functional import gelu
    from torchvision.ops import deform_conv2d

    def block(part, map_BDhw):
        reduced = gelu(part.reduce(map_BDhw))
        return gelu(deform_conv2d(reduced, part.mix.offset(reduced), part.mix.weight, padding=1))

    torch.manual_seed(0)
    config = SplitConfig(num_tuned_layers=2, num_prior_layers=3, first_prior_layer=0, combine=combine)
    head = SplitHead(plain_backbone, config)
    assert head.prior_layers == (0, 2, 3)
    taps = plain_backbone(image_BCHW, head.request(train=True))
    task_tokens = taps.tokens[2]
    for copied in head.task_head.blocks:
        task_tokens = copied(task_tokens)
    task_map = plain_backbone.final_norm(task_tokens)[:, 1:].transpose(1, 2).unflatten(2, taps.grid)
    prior_map = block(head.prior_head.block, torch.cat([taps.maps[0], taps.maps[2], taps.maps[3]], dim=1))
    joined = torch.cat([prior_map, task_map], dim=1) if combine == "concat" else prior_map + task_map
    torch.testing.assert_close(head(taps), block(head.fusion.block, joined), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("num_tuned", [0, 1, 4])
def test_the_residual_form_is_initially_the_frozen_last_layer(num_tuned, tune, backbone: Backbone, image_BCHW: Tensor):
    config = SplitConfig(
        num_tuned_layers=num_tuned,
        num_prior_layers=2,
        first_prior_layer=1,
        fusion_form="residual",
        tune_blocks=tune,
    )
    if tune == "lora" and num_tuned and "rotary" in backbone.name:
        # timm's attention with fused query, key and value and separate biases uses the weight directly.
        with pytest.raises(ConfigError, match="--tune-blocks lora"):
            SplitHead(backbone, config)
        return
    head = SplitHead(backbone, config)
    last = backbone.num_layers - 1
    taps = backbone(image_BCHW, head.request(train=True) | TapRequest(maps=frozenset({last})))
    with torch.no_grad():
        torch.testing.assert_close(head(taps), taps.maps[last], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("switches", "base"), [({}, "task"), ({"task_head": False}, "frozen")], ids=["task", "none"])
def test_the_residual_form_adds_the_fused_map(switches, base, plain_backbone: Backbone, image_BCHW: Tensor):
    """``f_o = f_t + g_f([f'_p; f_t])``: what the paper's form computes, added to the task map."""
    torch.manual_seed(0)
    settings = {"num_tuned_layers": 2, "num_prior_layers": 2, "first_prior_layer": 1, **switches}
    paper = SplitHead(plain_backbone, SplitConfig(**settings))
    residual = SplitHead(plain_backbone, SplitConfig(**settings, fusion_form="residual"))
    residual.load_state_dict(paper.state_dict())
    taps = plain_backbone(image_BCHW, residual.request(train=True))
    added = paper.task_head(taps) if base == "task" else taps.maps[3]
    torch.testing.assert_close(residual(taps), added + paper(taps))


def test_without_tuned_blocks_the_task_map_is_the_frozen_last_layer(plain_backbone: Backbone, image_BCHW: Tensor):
    torch.manual_seed(0)
    head = SplitHead(plain_backbone, SplitConfig(num_tuned_layers=0, num_prior_layers=2, first_prior_layer=1))
    taps = plain_backbone(image_BCHW, head.request(train=True))
    assert not taps.tokens and head.task_head is None
    expected = head.fusion([head.prior_head([taps.maps[1], taps.maps[3]]), taps.maps[3]])
    torch.testing.assert_close(head(taps), expected)


def test_low_rank_copies_have_the_published_number_of_parameters():
    """LoRA of rank r on query, key, value and output: (D + 3 D) r and (D + D) r a block (Hu et al. 2022, Section 4)."""
    config = SplitConfig(num_tuned_layers=6, tune_blocks="lora", trunk_lora_rank=16)
    model = _build("dinov2-small", config)
    assert _count(model.head.task_head) == 6 * 6 * 384 * 16
    numbers = sum(tensor.numel() for tensor in model.trainable_state().values())
    assert 4 * numbers <= 21e6 and 2 * numbers <= 11e6
    assert not model.head.pretrained_parameters(), "they are new"
    with_mlp = _build("dinov2-small", dataclasses.replace(config, trunk_lora_targets="all"))
    # (D + 4 D) r for each of the MLP's two layers.
    assert _count(with_mlp.head.task_head) == 6 * (6 + 10) * 384 * 16


def test_raw_maps_are_read_without_the_norm(plain_backbone: Backbone, image_BCHW: Tensor):
    torch.manual_seed(0)
    config = SplitConfig(num_tuned_layers=1, num_prior_layers=2, first_prior_layer=1)
    raw = SplitHead(plain_backbone, SplitConfig(**{**vars(config), "tap_norm": False}))
    assert raw.request(train=True).raw_maps == {1, 3} and not raw.request(train=True).maps
    normed = SplitHead(plain_backbone, config)
    normed.load_state_dict(raw.state_dict())
    taps = plain_backbone(image_BCHW, raw.request(train=True) | normed.request(train=True))
    assert not torch.allclose(raw(taps), normed(taps))


def test_output_is_independent_of_other_images_in_the_batch(backbone: Backbone, image_BCHW: Tensor):
    head = SplitHead(backbone, SMALL).eval()
    both = head(backbone(image_BCHW, head.request(train=True)))
    alone = head(backbone(image_BCHW[1:], head.request(train=True)))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)
