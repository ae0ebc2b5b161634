"""The static table against timm's own models, and names that are not there."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from tiny_backbones import image

from vitsplit.backbone import meta_backbone
from vitsplit.backbone.build import build_model, licence_of, timm_name_of
from vitsplit.backbone.catalog import CATALOG
from vitsplit.cli import backbones
from vitsplit.errors import ConfigError
from vitsplit.types import TapRequest

# Parts of timm's models that no trunk has.
NOT_TRUNK = ("head", "attn_pool", "neck")


@pytest.mark.parametrize("spec", CATALOG.values(), ids=CATALOG)
def test_sizes_and_licences_are_timms(spec):
    with torch.device("meta"):
        model = timm.create_model(spec.timm_name)
    trunk = [value for name, value in model.named_parameters() if not name.startswith(NOT_TRUNK)]
    assert spec.parameters == sum(value.numel() for value in trunk)
    assert (spec.width, spec.num_layers) == (model.embed_dim, len(model.blocks))
    assert (spec.patch_size,) * 2 == model.patch_embed.patch_size
    assert (spec.image_size,) * 2 == model.pretrained_cfg["input_size"][1:]
    if spec.name != "dinov2-small-focus":
        assert spec.licence == model.pretrained_cfg["license"]
        assert spec.timm_name.endswith("." + model.pretrained_cfg["tag"])


@pytest.mark.parametrize("spec", CATALOG.values(), ids=CATALOG)
def test_meta_backbones_have_the_tables_sizes_and_run(spec):
    backbone = meta_backbone(spec.name)
    assert sum(value.numel() for value in backbone.parameters()) == spec.parameters
    sizes = (backbone.width, backbone.num_layers, backbone.patch_size, backbone.family.name)
    assert sizes == (spec.width, spec.num_layers, spec.patch_size, spec.family)
    assert (backbone.info.weights_hash, backbone.info.licence) == ("", spec.licence)
    taps = backbone(image(200, 300).to("meta"), TapRequest(maps=frozenset({spec.num_layers - 1})))
    grid = (-(-200 // spec.patch_size), -(-300 // spec.patch_size))
    assert taps.maps[spec.num_layers - 1].shape == (2, spec.width, *grid)


@pytest.mark.parametrize(
    ("name", "released"),
    [("small", 22_056_576), ("base", 86_580_480), ("large", 304_368_640), ("giant", 1_136_480_768)],
)
def test_dinov2_counts_are_the_releases_without_the_mask_token(name, released):
    spec = CATALOG[f"dinov2-{name}"]
    assert spec.parameters == released - spec.width


def test_any_timm_name_of_the_families_works():
    model = build_model("deit_small_patch16_224", depth=1)
    assert (type(model).__name__, model.embed_dim) == ("VisionTransformer", 384)
    assert timm_name_of("vit_small_patch16_224") == "vit_small_patch16_224.augreg_in21k_ft_in1k"
    assert licence_of("vit_large_patch16_224.mae") == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dinov2-smal", "Close to it: dinov2-small"),
        ("vit_small_patch14_dinov2.lvd142", r"vit_small_patch14_dinov2\.lvd142m"),
        ("resnet50", "'resnet50' is no plain"),
        ("vit_base_r50_s16_224", "is no plain"),
        ("beit_base_patch16_224", "is no plain"),
        ("!", "There is no backbone '!'. `vitsplit backbones` lists"),
    ],
)
def test_other_names_are_refused_with_what_is_close(name, said):
    with pytest.raises(ConfigError, match=said):
        build_model(name)


def test_learned_rotary_frequencies_are_refused():
    with pytest.raises(ConfigError, match="learn their frequencies"):
        meta_backbone("vit_base_patch16_rope_mixed_224")


def test_the_command_prints_every_backbone(capsys):
    assert backbones.main(["--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(CATALOG)
    assert rows[0]["parameters"] == 22_056_192
    assert backbones.main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in CATALOG)
    assert "cc-by-nc-4.0" in text
    assert "1,136.5 M" in text


def test_the_command_needs_no_torch():
    code = "import sys; from vitsplit.cli.backbones import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
