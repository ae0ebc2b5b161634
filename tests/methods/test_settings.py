"""What cannot be combined is refused, with what to do instead."""

import importlib.util

import pytest

from vitsplit.cli.main import main
from vitsplit.engine.override import override
from vitsplit.engine.saved_config import config_from_dict, flat_to_dict
from vitsplit.errors import ConfigError
from vitsplit.methods.settings import check_method, decoder_kind
from vitsplit.recipes import recipe

SEGMENTATION = recipe("ade20k-small")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "upernet", "decoder": "linear"}, r"--decoder linear contradicts .* --method full-finetune"),
        ({"method": "full-finetune", "decoder": "upernet"}, r"has one\. --method upernet is full fine-tuning with it"),
        ({"method": "vitsplit", "decoder": "upernet"}, r"--method vitsplit has one\. Leave it away"),
        ({"method": "lora", "decoder": "upernet"}, r"--method lora has one\. Leave it away"),
        ({"method": "linear-probe", "decoder": "linear"}, r"is --method frozen-head"),
        ({"method": "frozen-head", "drop_path": 0.1}, r"--drop-path .* --method frozen-head does not\. Leave it away"),
        ({"method": "lora", "sharding": "fsdp2"}, r"--sharding fsdp2 .* Leave --sharding away"),
        ({"method": "full-finetune", "cache_features": 2}, r"--cache-features .* --method full-finetune trains one"),
        ({"method": "lora", "trunk_lora_rank": 0}, r"--trunk-lora-rank must be from 1 .*, not 0"),
        ({"method": "vpt", "num_prompts": -1}, r"--num-prompts must be from 1 .*, not -1"),
        ({"method": "vit-adapter", "drop_path": 1.0}, r"--drop-path must be from 0 to below 1, not 1\.0"),
    ],
)
def test_contradictions(settings, said):
    with pytest.raises(ConfigError, match=said):
        check_method(override(SEGMENTATION, settings))


@pytest.mark.parametrize("name", ["nyuv2-small", "coco-small"])
def test_methods_of_segmentation_alone(name):
    for method in ("upernet", "lora", "vpt", "adaptformer", "vit-adapter", "vit-comer"):
        with pytest.raises(ConfigError, match=rf"--method {method} is for segmentation, not for .* full-finetune"):
            check_method(recipe(name).change(method=method))
    for method in ("vitsplit", "linear-probe", "frozen-head", "full-finetune"):
        check_method(recipe(name).change(method=method))


def test_questions_have_baselines_of_their_own():
    with pytest.raises(ConfigError, match=r"--method full-finetune: visual question .* --connector mlp2x"):
        check_method(recipe("laptop-vqa").change(method="full-finetune"))


@pytest.mark.parametrize(
    ("method", "decoder", "kind"),
    [
        ("vitsplit", "auto", "own"),
        ("vitsplit", "linear", "own"),
        ("linear-probe", "auto", "probe"),
        ("frozen-head", "auto", "own"),
        ("full-finetune", "linear", "own"),
        ("upernet", "auto", "upernet"),
        ("upernet", "upernet", "upernet"),
        ("lora", "auto", "own"),
        ("vit-adapter", "auto", "upernet"),
        ("vit-adapter", "linear", "own"),
        ("vit-comer", "upernet", "upernet"),
    ],
)
def test_the_decoder(method, decoder, kind):
    config = override(SEGMENTATION, {"method": method, "decoder": decoder})
    check_method(config)
    assert decoder_kind(config) == kind


def test_refusals_come_before_data_and_weights_are_read(tmp_path, capsys):
    arguments = ["train", "depth", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--method", "vpt"]
    assert main(arguments) == 2
    assert "--method vpt is for segmentation" in capsys.readouterr().err


def test_lora_without_its_library(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    assert main(["info", "ade20k-small", "--method", "lora"]) == 2
    assert "pip install 'vitsplit[lora]'" in capsys.readouterr().err


def test_settings_of_before_there_were_baselines_still_load():
    written = flat_to_dict(SEGMENTATION)
    del written["baseline"]
    assert config_from_dict(written, "config.json", task="segmentation") == SEGMENTATION


def test_an_adapter_in_a_joint_run_needs_its_patch_size_said(scenes, tmp_path):
    import vitsplit

    settings = {"backbone": "dinov2-small", "random_weights": True, "segmentation": {"method": "vit-adapter"}}
    with pytest.raises(ConfigError, match=r"--segmentation\.method vit-adapter needs patches of 16 .*--patch-size 16"):
        vitsplit.train(data={"segmentation": scenes, "depth": scenes}, out=tmp_path / "run", **settings)
