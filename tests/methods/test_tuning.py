"""Methods that run their own transformer: initial state, trained parts and unchanged parts."""

import copy

import pytest
import torch
from tiny_backbones import KINDS, image, tiny_backbone
from torch import nn

from vitsplit.backbone import meta_backbone
from vitsplit.errors import ConfigError
from vitsplit.methods.adaptformer import AdaptFormer, AdaptFormerConfig
from vitsplit.methods.finetune import FullFineTune
from vitsplit.methods.lora import LoraConfig
from vitsplit.methods.trunk import Trunk
from vitsplit.methods.vpt import DeepPrompts, VptConfig
from vitsplit.types import TapRequest

LORA = LoraConfig(trunk_lora_rank=2, trunk_lora_alpha=6.0)
VPT = VptConfig(num_prompts=3)
ADAPTFORMER = AdaptFormerConfig(bottleneck=5)


def low_rank(backbone):
    return LORA.build(backbone, num_maps=1)


def taps_of(backbone, head, size=(40, 50)):
    """What the head asks for, and the frozen maps of the last four layers beside it."""
    return backbone(image(*size), head.request(train=False) | TapRequest(maps=frozenset(range(backbone.num_layers))))


@pytest.mark.parametrize("kind", KINDS)
def test_methods_start_as_the_frozen_model(kind):
    backbone = tiny_backbone(kind)
    for head in (FullFineTune(backbone), low_rank(backbone), AdaptFormer(backbone, ADAPTFORMER)):
        taps = taps_of(backbone, head)
        torch.testing.assert_close(head(taps), taps.maps[3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainable_part_gets_a_gradient(kind):
    backbone = tiny_backbone(kind)
    heads = [FullFineTune(backbone), FullFineTune(backbone, num_maps=4), low_rank(backbone),
             AdaptFormer(backbone, ADAPTFORMER)]  # fmt: skip
    for head in heads if kind == "sam-base" else [*heads, DeepPrompts(backbone, VPT)]:
        out = head(taps_of(backbone, head))
        sum(part.square().sum() for part in (out if isinstance(out, list) else [out])).backward()
        unreached = [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None]
        assert not unreached
        pretrained = [id(p) for group in head.pretrained_parameters().values() for p in group]
        trained = [id(p) for p in head.parameters() if p.requires_grad]
        assert sorted(pretrained) == (sorted(trained) if isinstance(head, FullFineTune) else [])


def test_upernet_reads_the_last_four_layers():
    backbone = tiny_backbone("dinov2-small", depth=6)
    head = FullFineTune(backbone, num_maps=4)
    taps = taps_of(backbone, head)
    for layer, map_BDhw in zip((2, 3, 4, 5), head(taps), strict=True):
        torch.testing.assert_close(map_BDhw, taps.maps[layer], rtol=1e-4, atol=1e-5)


def test_only_a_trained_trunk_is_copied():
    backbone = tiny_backbone("dinov2-small")
    theirs = {p.data_ptr() for p in backbone.model.parameters()}
    assert not theirs & {p.data_ptr() for p in Trunk(backbone, trained=True).parameters()}
    assert theirs == {p.data_ptr() for p in Trunk(backbone, trained=False).parameters()}
    for head in (low_rank(backbone), DeepPrompts(backbone, VPT), AdaptFormer(backbone, ADAPTFORMER)):
        read = {p.data_ptr() for block in backbone.blocks for p in block.parameters()}
        assert read < {p.data_ptr() for p in head.parameters()}
        assert not any(p.requires_grad for p in backbone.parameters())
    assert not [name for name, _ in backbone.named_modules() if "lora" in name or name.endswith("mlp.down")]


def test_low_rank_matrices_can_be_merged():
    """The same model with ``W + alpha / r B A`` in place of every attention matrix."""
    backbone = tiny_backbone("dinov2-small")
    head = low_rank(backbone)
    merged = tiny_backbone("dinov2-small")
    added = {}
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(added)))
                added[name] = parameter
        for index, block in enumerate(merged.model.blocks):
            for layer in ("qkv", "proj"):
                prefix = f"task_head.blocks.{index}.attn.{layer}."
                down_rD = added[f"{prefix}lora_A.weight"]
                up_Dr = added[f"{prefix}lora_B.weight"]
                getattr(block.attn, layer).weight.add_(6.0 / 2 * up_Dr @ down_rD)
    assert len(added) == 4 * 2 * 2
    taps = taps_of(backbone, head)
    by_hand = merged(image(40, 50), TapRequest(maps=frozenset({3}))).maps[3]
    assert (head(taps) - taps.maps[3]).abs().max() > 0.1
    torch.testing.assert_close(head(taps), by_hand, rtol=1e-3, atol=1e-4)


def test_adapters_are_float32_beside_bf16_matrices():
    backbone = tiny_backbone("dinov2-small").set_precision(torch.bfloat16)
    for head in (low_rank(backbone), AdaptFormer(backbone, ADAPTFORMER), DeepPrompts(backbone, VPT)):
        assert {p.dtype for p in head.parameters() if p.requires_grad} == {torch.float32}


def test_attention_without_a_module_for_the_projection_is_rejected():
    with torch.device("meta"), pytest.raises(ConfigError, match=r"eva02_tiny.* --method adaptformer or vpt"):
        low_rank(meta_backbone("eva02_tiny_patch14_224"))


def test_a_bottleneck_is_added_beside_the_mlp():
    """By hand on the last block, whose MLP is the last thing that happens: everything before it is the frozen model."""
    backbone = tiny_backbone("mae-base")
    head = AdaptFormer(backbone, ADAPTFORMER)
    *_, last = head.trunk.blocks
    with torch.no_grad():
        nn.init.normal_(last.mlp.up.weight, generator=torch.Generator().manual_seed(1))
        taps = backbone(image(32, 48), TapRequest(tokens=frozenset({3}), pixels=True))
        block = backbone.blocks[3]
        x_BTD = taps.tokens[3] + block.attn(block.norm1(taps.tokens[3]))
        normed = block.norm2(x_BTD)
        hidden = (normed @ last.mlp.down.weight.T + last.mlp.down.bias).clamp_min(0)
        x_BTD = x_BTD + block.mlp(normed) + 0.1 * (hidden @ last.mlp.up.weight.T)
        expected = backbone.final_norm(x_BTD)[:, 1:].mT.unflatten(2, (2, 3))
        torch.testing.assert_close(head(taps), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov2-small-reg", "siglip-base"])
def test_prompts_precede_every_block_and_are_removed(kind):
    """Block after block by hand: prefix tokens and patches go on, what comes out of prompts does not."""
    backbone = tiny_backbone(kind)
    head = DeepPrompts(backbone, VPT)
    assert head.prompts_LPD.shape == (4, 3, 48)
    taps = backbone(image(40, 50), TapRequest(tokens=frozenset({0}), pixels=True))
    prefix = backbone.num_prefix_tokens
    x_BTD = taps.tokens[0]
    with torch.no_grad():
        for block, prompts_PD in zip(backbone.blocks, head.prompts_LPD, strict=True):
            rows = [torch.cat([x_TD[:prefix], prompts_PD, x_TD[prefix:]]) for x_TD in x_BTD]
            x_BTD = block(torch.stack(rows))
            keep = [t for t in range(x_BTD.shape[1]) if not prefix <= t < prefix + 3]
            x_BTD = x_BTD[:, keep]
        expected = backbone.final_norm(x_BTD)[:, prefix:].mT.unflatten(2, taps.grid)
        torch.testing.assert_close(head(taps), expected, rtol=1e-4, atol=1e-5)


def test_prompts_have_no_position():
    with pytest.raises(ConfigError, match=r"--method vpt: .*sam-base"):
        DeepPrompts(tiny_backbone("sam-base"), VPT)
    backbone = tiny_backbone("dinov3-small")
    before = copy.deepcopy(backbone.state_dict())
    head = DeepPrompts(backbone, VPT)
    taps = taps_of(backbone, head)
    assert head(taps).shape == taps.maps[3].shape
    # The order of prompts has no effect.
    reordered = copy.deepcopy(head)
    reordered.prompts_LPD = nn.Parameter(head.prompts_LPD.flip(1))
    torch.testing.assert_close(head(taps), reordered(taps), rtol=1e-4, atol=1e-5)
    assert backbone.blocks[0].attn.num_prefix_tokens == backbone.num_prefix_tokens
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("kind", ["dinov2-small", "dinov3-small", "sam-base"])
def test_stochastic_depth_increases_and_is_off_in_eval(kind):
    backbone = tiny_backbone(kind)
    head = FullFineTune(backbone, drop_path=0.3)
    rates = [[m.drop_prob for m in block.modules() if type(m).__name__ == "DropPath"] for block in head.trunk.blocks]
    assert rates == [pytest.approx([rate] * 2) for rate in (0.0, 0.1, 0.2, 0.3)]
    assert not [m for m in backbone.modules() if type(m).__name__ == "DropPath"]
    taps = taps_of(backbone, head)
    torch.testing.assert_close(head.eval()(taps), taps.maps[3], rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    with torch.no_grad():
        assert (head.train()(taps) - taps.maps[3]).abs().max() > 1e-3
