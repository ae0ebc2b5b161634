import dataclasses
import subprocess
import sys

import pytest

from vitsplit.cli.options import config_from_cli, flag_names, split_by_method, split_by_name
from vitsplit.engine.override import changed_settings, override
from vitsplit.errors import ConfigError
from vitsplit.recipes import recipe

BASE = recipe("ade20k-small")


def test_no_flag_changes_nothing():
    assert config_from_cli(BASE, []) == BASE


@pytest.mark.parametrize(
    ("flags", "part", "changed"),
    [
        ("--lr 3e-4 --betas 0.9 0.95 --clip-norm 1", "optim", {"lr": 3e-4, "betas": (0.9, 0.95), "clip_norm": 1.0}),
        ("--num-tuned-layers 4 --no-task-head", "method", {"num_tuned_layers": 4, "task_head": False}),
        ("--selection explicit --prior-layers 0 3 7", "method", {"selection": "explicit", "prior_layers": (0, 3, 7)}),
        ("--crop-size 448 392 --image-scale None", "task", {"crop_size": (448, 392), "image_scale": None}),
        ("--test-stride 100 200 --test-flip", "task", {"test_stride": (100, 200), "test_flip": True}),
        ("--test-scales 0.5 1 1.5", "task", {"test_scales": (0.5, 1.0, 1.5)}),
        ("--workers -1 --seed=7 --compile --track", "loop", {"workers": -1, "seed": 7, "compile": True, "track": ()}),
        ("--track tensorboard wandb", "loop", {"track": ("tensorboard", "wandb")}),
        ("--backbone dinov3-base --weights a/b.pth", "backbone", {"backbone": "dinov3-base", "weights": "a/b.pth"}),
    ],
)
def test_flags_change_their_settings_and_no_other(flags, part, changed):
    expected = BASE.change(**{part: dataclasses.replace(getattr(BASE, part), **changed)})
    assert config_from_cli(BASE, flags.split()) == expected


def test_what_changed_is_what_override_needs():
    changed = config_from_cli(
        BASE, ["--lr", "3e-4", "--crop-size", "448", "392", "--trunk-lora-rank", "4", "--method", "lora"]
    )
    settings = changed_settings(BASE, changed)
    assert settings == {"lr": 3e-4, "crop_size": (448, 392), "trunk_lora_rank": 4, "method": "lora"}
    assert override(BASE, settings) == changed
    assert changed_settings(changed, changed) == {}


def test_a_name_before_a_flag_is_told_from_a_dot_in_a_value():
    words = ["--lr", "1e-4", "--a.no-flip", "--weights=a.pth", "--b.c", "1", "2", "--weights", "x.y"]
    shared = ["--lr", "1e-4", "--weights=a.pth", "--weights", "x.y"]
    assert split_by_name(words) == {"": shared, "a": ["--no-flip"], "b": ["--c", "1", "2"]}
    assert split_by_name(["--a.b", "--c.d"], {"a"}) == {"a": ["--b"], "": ["--c.d"]}


def test_settings_of_the_configuration_itself():
    assert config_from_cli(BASE, ["--method", "linear-probe"]) == override(BASE, {"method": "linear-probe"})


def test_every_setting_is_a_flag_with_help(capsys):
    with pytest.raises(SystemExit) as stop:
        config_from_cli(BASE, ["--help"], prog="vitsplit train segmentation")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: vitsplit train segmentation" in text
    words = set(text.replace(",", " ").split())
    assert set(flag_names(BASE.flat("segmentation"))) <= words
    assert "Peak learning rate." in text, "help is the field's docstring"
    assert "40000" in text, "defaults are the recipe's"


def test_names_are_unique_over_all_dataclasses():
    flags = list(flag_names(BASE.flat("segmentation")))
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-tuned-layer", "4"], r"no flag --num-tuned-layer\. Did you mean --num-tuned-layers"),
        (["--lrr=3"], r"no flag --lrr\."),
        (["--no-task-heads"], r"no flag --no-task-heads\. Did you mean --no-task-head "),
        (["--zzz"], r"no flag --zzz\. --help lists"),
        (["--device", "cuda:1"], "CUDA_VISIBLE_DEVICES=1"),
        (["stray"], r"'stray' stands without a flag"),
    ],
)
def test_an_unknown_flag_is_an_error_with_close_ones(arguments, message):
    with pytest.raises(ConfigError, match=message):
        config_from_cli(BASE, arguments)


def test_a_value_of_a_wrong_type_ends_with_status_2(capsys):
    for arguments in (["--lr", "abc"], ["--selection", "random"], ["--crop-size", "3"]):
        with pytest.raises(SystemExit) as stop:
            config_from_cli(BASE, arguments)
        assert stop.value.code == 2
        assert arguments[0] in capsys.readouterr().err


def test_making_a_configuration_needs_no_torch():
    code = (
        "import sys; from vitsplit.recipes import recipe; from vitsplit.cli.options import config_from_cli; "
        "config_from_cli(recipe('ade20k-small'), ['--steps', '3']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_of_compared_methods_are_told_from_those_of_all():
    words = ["--lr", "1e-4", "--trunk-lora-rank", "4", "--drop_path=0.1", "--num-tuned-layers", "2"]
    shared, own = split_by_method(BASE, words, ["vitsplit", "lora", "vpt"])
    assert shared == ["--lr", "1e-4", "--num-tuned-layers", "2"]
    assert own == {"lora": ["--trunk-lora-rank", "4", "--drop_path=0.1"], "vpt": ["--drop_path=0.1"]}
