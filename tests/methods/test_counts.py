"""Parameter counts of the methods, against the paper's tables and the release's code."""

import json

import pytest

from vitsplit.analysis.cost import count_parameters, shape_model, step_gmacs
from vitsplit.backbone.config import BackboneConfig
from vitsplit.cli.main import main
from vitsplit.engine.override import override
from vitsplit.recipes import recipe

SIZES = ("small", "base", "large")
WIDTHS = (384, 768, 1024)
# Method -> trainable parameters with DINOv2 S, B, L and 150 classes (Tables 1 and 6), by hand, with the mask token.
DINOV2 = {
    "frozen-head": (1_240_470, 4_840_086, 8_550_550),
    "full-finetune": (23_297_046, 91_420_566, 312_919_190),
    "upernet": (52_167_596, 120_721_964, 341_197_100),
}
# The same in millions of methods whose authors' code was counted to two decimals, with DINOv2 (Table 14), and with DeiT
# (224 pixels) or, for the large one, AugReg (384) at patch 16 (Table 1).
ADAPTERS = {"vit-adapter": (58.07, 134.54, 364.61), "vit-comer": (61.84, 145.65, 384.24)}
IMAGENET = {"vit-adapter": (57.61, 133.64, 363.80), "vit-comer": (61.39, 144.75, 383.43)}
IMAGENET_BACKBONES = ("deit_small_patch16_224", "deit_base_patch16_224", "vit_large_patch16_384")
VIT_SMALL = 22_056_192
OWN_DECODER = 1_240_470
UPERNET, AUXILIARY = 29_187_222, 923_798


def counted(name, method, backbone=None, **baseline):
    config = override(recipe(name), {"method": method, **baseline})
    if backbone is not None:
        config = config.change(backbone=BackboneConfig(backbone=backbone))
    frozen, model = shape_model(config)
    return count_parameters(model, frozen)


@pytest.mark.parametrize("method", DINOV2)
def test_parameters_with_dinov2(method):
    for size, width, by_hand in zip(SIZES, WIDTHS, DINOV2[method], strict=True):
        mask_token = 0 if method == "frozen-head" else width
        assert counted(f"ade20k-{size}", method)["trainable"] == by_hand - mask_token


@pytest.mark.parametrize("method", ADAPTERS)
def test_adapter_parameters_with_dinov2(method):
    for size, millions in zip(SIZES, ADAPTERS[method], strict=True):
        assert counted(f"ade20k-{size}", method)["trainable"] / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("method", IMAGENET)
def test_parameters_with_supervised_backbones(method):
    for size, backbone, printed in zip(SIZES, IMAGENET_BACKBONES, IMAGENET[method], strict=True):
        counts = counted(f"ade20k-{size}", method, backbone)
        assert counts["trainable"] / 1e6 == pytest.approx(printed, abs=0.006)


def test_parts_of_full_fine_tuning():
    counts = counted("ade20k-small", "upernet")
    assert counts["tuned"] == VIT_SMALL and counts["added"] == counts["frozen"] == 0
    assert counts["decoder"] == UPERNET + AUXILIARY


@pytest.mark.parametrize(
    ("method", "added"),
    [
        ("vpt", 12 * 50 * 384),
        ("adaptformer", 12 * (2 * 384 * 64 + 384 + 64)),
    ],
)
def test_added_parameters_of_efficient_tuning(method, added):
    counts = counted("ade20k-small", method)
    assert (counts["tuned"], counts["added"], counts["decoder"]) == (0, added, OWN_DECODER)
    assert counts["trainable"] == added + OWN_DECODER
    assert counts["frozen"] == VIT_SMALL


def test_lora_equals_the_low_rank_task_head_of_all_blocks():
    counts = counted("ade20k-small", "lora")
    # qkv and proj of 12 blocks: (D + 3 D) r and (D + D) r.
    assert counts["task_head"] == 12 * (4 + 2) * 384 * 16
    assert counts["trainable"] == counts["task_head"] + OWN_DECODER
    assert counts["frozen"] == VIT_SMALL


@pytest.mark.parametrize("method", ["vit-adapter", "vit-comer"])
def test_the_plain_decoder_omits_layers_of_other_scales(method):
    pyramid, single = counted("ade20k-small", method), counted("ade20k-small", method, decoder="linear")
    assert single["decoder"] == OWN_DECODER
    assert single["tuned"] == pyramid["tuned"]
    # The transposed convolution to stride 4, the stem's 1x1 convolution there, and three batch norms.
    assert pyramid["added"] - single["added"] == (4 * 384**2 + 384) + (64 * 384 + 384) + 3 * 2 * 384


def test_info_reports_the_same_counts(capsys):
    assert main(["info", "ade20k-small", "--method", "vit-adapter", "--decoder", "linear", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["backbone"] == "dinov2-small (patch 16)"
    assert facts["prior_layers"] == [] and facts["num_tuned_layers"] == 0
    assert facts["parameters"] == counted("ade20k-small", "vit-adapter", decoder="linear")
    assert main(["info", "ade20k-small", "--method", "lora"]) == 0
    text = capsys.readouterr().out
    assert "0.44 M" in text and "22.06 M frozen" in text and "prior layers" not in text


def test_multiply_adds_by_hand():
    """By hand: DINOv2-S at 518 x 518, and what each method adds to it."""
    width, tokens, positions = 384, 37**2 + 1, 37**2

    def blocks(tokens):
        return 12 * (12 * tokens * width**2 + 2 * tokens**2 * width)

    embedding = positions * width * 3 * 14**2
    decoder = positions * (4 + 16) * width**2 + 16 * positions * width * 150
    by_hand = {
        "frozen-head": embedding + blocks(tokens) + decoder,
        "full-finetune": embedding + blocks(tokens) + decoder,
        "lora": embedding + blocks(tokens) + decoder + 12 * tokens * 6 * width * 16,
        "vpt": embedding + blocks(tokens + 50) + decoder,
        "adaptformer": embedding + blocks(tokens) + decoder + 12 * tokens * 2 * width * 64,
    }
    for method, products in by_hand.items():
        config = override(recipe("ade20k-small"), {"method": method})
        step = step_gmacs(config, (512, 512))
        assert (step["frozen"] + step["trained"]) * 1e9 == pytest.approx(products, rel=1e-9), method
        assert (step["frozen"] == 0) == (method not in ("frozen-head", "lora"))
        # A frozen matrix needs no gradient of its own, only to hand one on; attention's products need both.
        frozen_matrices = embedding + 12 * 12 * tokens * width**2 if method in ("lora", "adaptformer") else 0
        if method == "vpt":
            frozen_matrices = embedding + 12 * 12 * (tokens + 50) * width**2
        expected = 3 * products - frozen_matrices
        if method == "frozen-head":
            expected = products + 2 * decoder
        if method == "lora":
            # The embedding is the frozen model's, and has no backward pass.
            expected -= embedding
        assert step["step"] * 1e9 == pytest.approx(expected, rel=1e-9), method


def test_the_adapters_run_at_patch_16():
    config = override(recipe("ade20k-small"), {"method": "vit-adapter"})
    # 806 GMAC a training step with UperNet, and 178 with ViT-Split's decoder, by an estimate that is good to 5 %. The
    # estimate for the latter has the layers of the finest map, which its decoder does not read, in it.
    assert step_gmacs(config, (512, 512))["step"] == pytest.approx(806, rel=0.05)
    finest = 64**2 * 4 * 384**2 + 128**2 * 64 * 384
    linear = override(config, {"decoder": "linear"})
    assert step_gmacs(linear, (512, 512))["step"] == pytest.approx(178 - 3 * finest / 1e9, rel=0.05)
