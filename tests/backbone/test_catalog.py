"""The static table against timm's models, and unknown names."""

import json
import math
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.layers import LayerScale
from tiny_backbones import image

from vitsplit.backbone import load_backbone, meta_backbone
from vitsplit.backbone.catalog import CATALOG
from vitsplit.backbone.models import build_model, license_of, timm_name_of
from vitsplit.bundle import check_backbone
from vitsplit.cli.main import main
from vitsplit.errors import BundleError, ConfigError
from vitsplit.types import TapRequest

# Parts of timm's models that trunks do not have.
NOT_TRUNK = ("head", "attn_pool", "neck")


@pytest.mark.parametrize("spec", CATALOG.values(), ids=CATALOG)
def test_sizes_and_licenses_equal_timm(spec):
    with torch.device("meta"):
        model = timm.create_model(spec.timm_name)
    trunk = [value for name, value in model.named_parameters() if not name.startswith(NOT_TRUNK)]
    assert spec.parameters == sum(value.numel() for value in trunk)
    assert (spec.width, spec.num_layers) == (model.embed_dim, len(model.blocks))
    assert (spec.patch_size,) * 2 == model.patch_embed.patch_size
    assert (spec.image_size,) * 2 == model.pretrained_cfg["input_size"][1:]
    if spec.name != "dinov2-small-focus":
        assert spec.license == model.pretrained_cfg["license"]
        assert spec.timm_name.endswith("." + model.pretrained_cfg["tag"])


@pytest.mark.parametrize("spec", CATALOG.values(), ids=CATALOG)
def test_meta_backbones_have_the_catalog_sizes_and_run(spec):
    backbone = meta_backbone(spec.name)
    assert sum(value.numel() for value in backbone.parameters()) == spec.parameters
    sizes = (backbone.width, backbone.num_layers, backbone.patch_size, backbone.family.name)
    assert sizes == (spec.width, spec.num_layers, spec.patch_size, spec.family)
    assert (backbone.info.weights_hash, backbone.info.license) == ("", spec.license)
    taps = backbone(image(200, 300).to("meta"), TapRequest(maps=frozenset({spec.num_layers - 1})))
    grid = (-(-200 // spec.patch_size), -(-300 // spec.patch_size))
    assert taps.maps[spec.num_layers - 1].shape == (2, spec.width, *grid)


@pytest.mark.parametrize(
    ("name", "released"),
    [("small", 22_056_576), ("base", 86_580_480), ("large", 304_368_640), ("giant", 1_136_480_768)],
)
def test_dinov2_parameter_counts_equal_the_release(name, released):
    spec = CATALOG[f"dinov2-{name}"]
    assert spec.parameters == released - spec.width


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# By the beginning of the name, the longest that fits: activation between the layers of an MLP, mean and standard
# deviation, whether blocks have a layer scale, pixels of a patch, epsilon of the blocks' norms.
PUBLISHED = {
    # facebookresearch/dinov2: hub/backbones.py (patch 14, init_values 1.0, ffn_layer mlp; giant swiglufused),
    # models/vision_transformer.py (nn.GELU, eps 1e-6), data/transforms.py
    "dinov2-": ("gelu", IMAGENET, True, 14, 1e-6),
    "dinov2-giant": ("swiglu", IMAGENET, True, 14, 1e-6),
    # facebookresearch/dinov3: hub/backbones.py (patch 16, layerscale_init 1e-5, ffn_layer mlp; plus swiglu;
    # layernormbf16, which is nn.LayerNorm with eps 1e-5), README (mean and std of the LVD-1689M models)
    "dinov3-": ("gelu", IMAGENET, True, 16, 1e-5),
    "dinov3-small-plus": ("swiglu", IMAGENET, True, 16, 1e-5),
    # openai/CLIP: clip/model.py (QuickGELU, nn.LayerNorm with its own eps), clip/clip.py (_transform)
    "clip-large-336": ("quick-gelu", OPENAI, False, 14, 1e-5),
    # google-research/big_vision: models/vit.py (nn.gelu, in flax the approximation by tanh; nn.LayerNorm, in flax with
    # eps 1e-6), pp value_range(-1, 1) in configs/proj/image_text; as transformers' SiglipConfig (gelu_pytorch_tanh)
    "siglip": ("gelu-tanh", HALF, False, 16, 1e-6),
    # baaivision/EVA: EVA-02/asuka/modeling_finetune.py (SwiGLU with a norm inside, eps 1e-6; no gamma in the file),
    # datasets.py (OpenAI's mean and std)
    "eva02-large": ("swiglu", OPENAI, False, 14, 1e-6),
    # facebookresearch/mae: models_mae.py (timm's Block with nn.GELU, eps 1e-6), main_pretrain.py
    "mae-": ("gelu", IMAGENET, False, 16, 1e-6),
    # facebookresearch/segment-anything: build_sam.py (eps 1e-6, pixel_mean and pixel_std), modeling/image_encoder.py
    "sam-": ("gelu", IMAGENET, False, 16, 1e-6),
}
FORMULAS = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu-tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "swiglu": lambda x: x * torch.sigmoid(x),
}


@pytest.mark.parametrize("name", CATALOG)
def test_entries_match_the_published_architectures(name):
    activation, pixels, has_layer_scale, patch_size, epsilon = PUBLISHED[
        max((start for start in PUBLISHED if name.startswith(start)), key=len)
    ]
    with torch.device("meta"):
        model = build_model(name)
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    for block in model.blocks:
        torch.testing.assert_close(block.mlp.act(x), FORMULAS[activation](x), rtol=0, atol=1e-12)
        assert (type(block.mlp).__name__ in ("GluMlp", "SwiGLU")) == (activation == "swiglu")
        scales = [getattr(block, each, None) for each in ("ls1", "ls2", "gamma_1", "gamma_2")]
        assert sum(isinstance(each, LayerScale | torch.nn.Parameter) for each in scales) == 2 * has_layer_scale
        assert {block.norm1.eps, block.norm2.eps} == {epsilon}
    assert CATALOG[name].activation == activation
    assert model.patch_embed.patch_size == (patch_size, patch_size)
    info = meta_backbone(name).info
    assert (info.mean, info.std) == pixels


def test_backbones_with_corrected_activations_have_new_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr("vitsplit.backbone.weights.build_model", partial(build_model, depth=1))
    clip, siglip, dinov2 = (
        load_backbone(name, random_weights=True).info for name in ("clip-large-336", "siglip-base", "dinov2-small")
    )
    for info, timm_name in ((clip, "vit_large_patch14_clip_336.openai"), (siglip, siglip.timm_name)):
        former = load_backbone(timm_name, random_weights=True)
        assert former.info.weights_hash == info.former_hash != info.weights_hash
        card = SimpleNamespace(
            backbone={"weights_hash": info.former_hash, "timm_name": timm_name}, backbone_title=info.name
        )
        with pytest.raises(BundleError, match=rf"plain GELU.*\"{re.escape(timm_name)}\".*head\.json"):
            check_backbone(card, SimpleNamespace(info=info, name=info.name), tmp_path)
        check_backbone(card, former, tmp_path)  # as the message says
    assert dinov2.former_hash == ""


def test_timm_names_of_known_families_work():
    model = build_model("deit_small_patch16_224", depth=1)
    assert (type(model).__name__, model.embed_dim) == ("VisionTransformer", 384)
    assert timm_name_of("vit_small_patch16_224") == "vit_small_patch16_224.augreg_in21k_ft_in1k"
    assert license_of("vit_large_patch16_224.mae") == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dinov2-smal", "dinov2-small"),
        ("vit_small_patch14_dinov2.lvd142", r"vit_small_patch14_dinov2\.lvd142m"),
        ("resnet50", "'resnet50'"),
        ("vit_base_r50_s16_224", r"is not a plain"),
        ("beit_base_patch16_224", r"is not a plain"),
        ("!", "'!'.*vitsplit backbones"),
    ],
)
def test_unknown_names_are_rejected_with_suggestions(name, expected):
    with pytest.raises(ConfigError, match=expected):
        build_model(name)


def test_learned_rotary_frequencies_are_rejected():
    with pytest.raises(ConfigError, match="learned frequencies"):
        meta_backbone("vit_base_patch16_rope_mixed_224")


def test_the_command_prints_every_backbone(capsys):
    assert main(["backbones", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(CATALOG)
    assert rows[0]["parameters"] == 22_056_192
    assert main(["backbones"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in CATALOG)
    assert "cc-by-nc-4.0" in text
    assert "1,136.5 M" in text


def test_the_command_needs_no_torch():
    code = "import sys; from vitsplit.cli.main import main; main(['backbones']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
