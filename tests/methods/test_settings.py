"""Conflicting settings are rejected with a remedy."""

import pytest

from vitsplit.cli.flags import from_flags
from vitsplit.cli.main import main
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.methods import METHODS, MethodConfig
from vitsplit.methods.lora import LoraConfig
from vitsplit.model import check_method, decoder_of
from vitsplit.recipes import recipe
from vitsplit.saved_config import config_from_dict, flat_from_dict, flat_to_dict

SEGMENTATION = recipe("ade20k-small")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "upernet", "decoder": "linear"}, "--decoder linear.*--method upernet"),
        ({"method": "full-finetune", "decoder": "upernet"}, "--decoder upernet.*--method full-finetune"),
        ({"method": "vitsplit", "decoder": "upernet"}, "--decoder upernet.*--method vitsplit"),
        ({"method": "linear-probe", "decoder": "linear"}, "--decoder linear.*--method linear-probe"),
        ({"method": "lora", "sharding": "fsdp2"}, "--sharding fsdp2.*--method lora"),
        ({"method": "full-finetune", "cache_features": 2}, "--cache-features.*--method full-finetune"),
        ({"method": "lora", "trunk_lora_rank": 0}, r"--trunk-lora-rank must be .*from 1 .*, not 0"),
        ({"method": "vpt", "num_prompts": -1}, r"--num-prompts must be .*from 1 .*, not -1"),
        ({"method": "vit-adapter", "drop_path": 1.0}, r"--drop-path must be .*at least 0 and below 1.*not 1\.0"),
        ({"method": "sums"}, "no method 'sums'"),
    ],
)
def test_conflicting_settings_are_rejected(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        check_method(override(SEGMENTATION, settings))


def test_settings_of_another_method_are_ignored_with_a_warning(caplog):
    config = override(SEGMENTATION, {"method": "frozen-head", "drop_path": 0.1, "num_tuned_layers": 2})
    assert config == override(SEGMENTATION, {"method": "frozen-head"})
    assert from_flags(SEGMENTATION, ["--method", "lora", "--num-prompts", "3", "--lr", "1"]).optim.lr == 1.0
    assert [flag for flag in ("drop-path", "num-tuned-layers", "num-prompts") if f"--{flag}" not in caplog.text] == []
    with pytest.raises(ConfigError, match="drop_pathh"):
        override(SEGMENTATION, {"drop_pathh": 0.1})


@pytest.mark.parametrize("name", ["nyuv2-small", "coco-small", "laptop-vqa"])
def test_methods_require_a_task_with_a_matching_decoder(name):
    for method in METHODS.built_in:
        config = override(recipe(name), {"method": method})
        if method == "upernet" or (method == "linear-probe" and name == "laptop-vqa"):
            with pytest.raises(ConfigError, match=rf"--method {method} .* has no such decoder"):
                check_method(config)
        else:
            check_method(config)
            assert decoder_of(config) == ("probe" if method == "linear-probe" else "linear", 1)


def test_other_connectors_replace_the_method():
    check_method(override(recipe("laptop-vqa"), {"connector": "mlp2x"}))
    with pytest.raises(ConfigError, match=r"--connector mlp2x .* --method full-finetune"):
        check_method(override(recipe("laptop-vqa"), {"connector": "mlp2x", "method": "full-finetune"}))


@pytest.mark.parametrize(
    ("method", "decoder", "expected"),
    [
        ("vitsplit", "auto", ("linear", 1)),
        ("vitsplit", "linear", ("linear", 1)),
        ("linear-probe", "auto", ("probe", 1)),
        ("frozen-head", "auto", ("linear", 1)),
        ("frozen-head", "probe", ("probe", 1)),
        ("full-finetune", "linear", ("linear", 1)),
        ("upernet", "auto", ("upernet", 4)),
        ("upernet", "upernet", ("upernet", 4)),
        ("lora", "auto", ("linear", 1)),
        ("vit-adapter", "auto", ("upernet", 4)),
        ("vit-adapter", "linear", ("linear", 1)),
        ("vit-comer", "upernet", ("upernet", 4)),
    ],
)
def test_decoder_of_a_method(method, decoder, expected):
    config = override(SEGMENTATION, {"method": method, "decoder": decoder})
    check_method(config)
    assert decoder_of(config) == expected


def test_every_method_describes_its_capabilities():
    for name in METHODS.built_in:
        method = MethodConfig.by_name(name)
        assert method.name == name and method.title and issubclass(method, MethodConfig)
    frozen = {name for name in METHODS.built_in if MethodConfig.by_name(name).reads_frozen}
    assert frozen == {"vitsplit", "linear-probe", "frozen-head", "lora"}
    assert {name for name in METHODS.built_in if MethodConfig.by_name(name).has_layers} == {"vitsplit"}


def test_settings_are_checked_before_data_and_weights_are_read(tmp_path, capsys):
    arguments = ["train", "depth", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--method", "upernet"]
    assert main(arguments) == 2
    assert "--method upernet" in capsys.readouterr().err


def old_form(method="vitsplit", **baseline):
    """A card's configuration as it was written when all methods' settings stood beside one another."""
    values = flat_to_dict(SEGMENTATION)
    split = values.pop("method")
    del split["name"], split["decoder"], split["trunk_lora_targets"]
    return {**values, "method": method, "split": split, "baseline": {"decoder": "auto", **baseline}}


def test_settings_in_the_former_layout_load():
    read = lambda values: flat_from_dict(values, "segmentation", "head.json")
    assert read(flat_to_dict(SEGMENTATION)) == read(old_form(num_prompts=50)) == SEGMENTATION
    assert read({key: value for key, value in old_form().items() if key != "baseline"}) == SEGMENTATION
    lora = read(old_form("lora", trunk_lora_rank=4, num_prompts=9, drop_path=0.1))
    assert lora.method == LoraConfig(trunk_lora_rank=4, drop_path=0.1)
    for name in METHODS.built_in:
        assert read(old_form(name, drop_path=0.1, bottleneck=3)).method.name == name
    with pytest.raises(ConfigError, match=r"method\.rank"):
        read(old_form("lora", rank=4))
    assert config_from_dict(old_form("vpt", num_prompts=9), "config.json", task="segmentation").method.num_prompts == 9
    joint = {"geometry": {}, "segmentation": {key: old_form("vpt")[key] for key in ("task", "method", "split")}}
    assert config_from_dict(joint, "config.json").method.name == "vpt"


def test_an_adapter_in_a_joint_run_requires_patch_size(scenes, tmp_path):
    import vitsplit

    settings = {"backbone": "dinov2-small", "random_weights": True, "segmentation": {"method": "vit-adapter"}}
    with pytest.raises(ConfigError, match=r"--segmentation\.method vit-adapter .*--patch-size 16"):
        vitsplit.train(data={"segmentation": scenes, "depth": scenes}, out=tmp_path / "run", **settings)
