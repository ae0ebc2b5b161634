"""``vitsplit train vqa --stage``: which settings each stage starts with."""

import json

import pytest

from vitsplit.atomic_files import write_json
from vitsplit.cli.flags import from_flags
from vitsplit.cli.main import main
from vitsplit.cli.train import named_heads
from vitsplit.cli.vqa_stages import stage_config, stage_recipe
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.recipes import recipe
from vitsplit.recipes.starting_point import stage_file
from vitsplit.recipes.vqa import STAGES
from vitsplit.saved_config import config_to_dict


def test_a_family_has_a_recipe_for_each_stage():
    for pair in STAGES.values():
        assert [recipe(name).task.stage for name in pair] == ["align", "instruct"]


@pytest.mark.parametrize(
    ("named", "align", "instruct"),
    [
        (None, "laptop-vqa-align", "laptop-vqa"),
        ("llava15-7b", "llava15-7b-align", "llava15-7b-instruct"),
        ("llava15-7b-align", "llava15-7b-align", "llava15-7b-instruct"),
        ("llava15-7b-instruct-release", "llava15-7b-align-release", "llava15-7b-instruct-release"),
    ],
)
def test_the_recipe_of_each_stage_names_both(named, align, instruct):
    assert stage_recipe(named, "align") == align
    assert stage_recipe(named, "instruct") == instruct


def test_flags_change_the_settings_of_a_stage():
    config = from_flags(stage_config("instruct", start="runs/a"), ["--lr", "3e-4", "--connector", "mlp2x"])
    assert (config.name, config.task.stage, config.task.start_from) == ("laptop-vqa", "instruct", "runs/a")
    assert (config.optim.lr, config.task.connector) == (3e-4, "mlp2x")


def test_without_a_stage_the_recipe_decides():
    assert stage_config(None, recipe="laptop-vqa-align").task.stage == "align"
    assert stage_config(None).task.stage == "instruct"


def test_resumed_stages_have_their_own_settings(tmp_path):
    begun = override(stage_config("instruct"), {"lr": 3e-4, "lora_rank": 7})
    write_json(stage_file(tmp_path, "instruct"), config_to_dict(begun))
    again = {"resumed": str(tmp_path), "both": True}
    assert stage_config("instruct", **again) == begun
    with pytest.raises(ConfigError, match=r"align\.json.*--resume"):
        stage_config("align", **again)
    (tmp_path / "align").mkdir()
    align = override(stage_config("align"), {"lr": 5e-4})
    write_json(
        tmp_path / "align" / "config.json", config_to_dict(align)
    )  # of a version that kept no settings of stages
    assert stage_config("align", **again) == align
    stage_file(tmp_path, "instruct").unlink()
    assert stage_config("instruct", **again) == recipe("laptop-vqa")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segmentation", "--stage", "both"], "--stage"),
        (["depth", "--from", "runs/a"], "--from"),
        (["vqa", "--stage", "both", "--config", "c.json", "--data", "d"], "--recipe"),
        (["vqa", "--stage", "both"], "--data"),
    ],
)
def test_incompatible_options(words, message, capsys):
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_paper_s_settings():
    align, instruct = recipe("llava15-7b-align"), recipe("llava15-7b-instruct")
    # LLaVA-1.5: one epoch of 558 K at 256, one of 665 K at 128, 1e-3 and 2e-5, cosine after 3 % of warm-up.
    assert (align.loop.batch_size, align.loop.steps, align.optim.lr) == (256, 2180, 1e-3)
    assert (instruct.loop.batch_size, instruct.loop.steps, instruct.optim.lr) == (128, 5197, 2e-5)
    assert {each.optim.schedule for each in (align, instruct)} == {"warmup-cosine"}
    assert (align.optim.warmup_steps, instruct.optim.warmup_steps) == (66, 156)
    # The release: 5e-4 in the first stage, 16 x 8 x 2 = 256 in the second.
    release = recipe("llava15-7b-align-release"), recipe("llava15-7b-instruct-release")
    assert (release[0].optim.lr, release[1].loop.batch_size, release[1].loop.steps) == (5e-4, 256, 2598)


@pytest.mark.parametrize(
    ("name", "connector", "count"),
    [("llava15-7b-align-release", "vitsplit-release", 182_475_776), ("llava15-7b-align", "mlp2x", 20_979_712)],
)
def test_connectors_are_counted_without_weights(name, connector, count, capsys):
    assert main(["info", name, "--connector", connector, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["connector"] == count


def test_vqa_is_not_supported_for_several_heads():
    with pytest.raises(ConfigError, match="--head vqa:somewhere"):
        named_heads(["vqa:somewhere"])
