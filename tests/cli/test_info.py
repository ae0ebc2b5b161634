import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from vitsplit.backbone import meta_backbone
from vitsplit.cli.main import main
from vitsplit.recipes import RECIPES, recipe
from vitsplit.saved_config import flat_to_dict

PARTS = ["task_head", "prior_head", "fusion", "decoder", "trainable", "frozen"]


def _info(capsys, *arguments: str) -> dict:
    assert main(["info", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_has_exactly_the_promised_keys(capsys):
    facts = _info(capsys, "ade20k-small", "--size", "896", "896")
    assert list(facts) == ["backbone", "num_tuned_layers", "prior_layers", "parameters", "gmacs"]
    assert (facts["backbone"], facts["num_tuned_layers"]) == ("dinov2-small", 3)
    assert facts["prior_layers"] == [2, 5, 8, 11]
    assert list(facts["parameters"]) == PARTS
    assert facts["parameters"]["trainable"] == 10_230_330
    assert list(facts["gmacs"]) == ["total", "head", "mmcv_rules"]
    assert facts["gmacs"]["mmcv_rules"] == pytest.approx(129.87, rel=1e-3)
    assert facts["gmacs"]["total"] == pytest.approx(334.1, rel=5e-3)


def test_the_default_size_is_the_crop(capsys):
    assert _info(capsys, "ade20k-small")["gmacs"] == _info(capsys, "ade20k-small", "--size", "512", "512")["gmacs"]
    assert _info(capsys, "ade20k-small")["gmacs"]["mmcv_rules"] == pytest.approx(43.43, rel=1e-3)


def test_settings_are_flags(capsys):
    facts = _info(capsys, "ade20k-small", "--num-tuned-layers", "4", "--num-classes", "39")
    assert facts["num_tuned_layers"] == 4
    assert facts["parameters"]["task_head"] == 4 * 1_775_232
    assert facts["parameters"]["decoder"] == 8 * 384**2 + 8 * 384 + 39 * 384 + 39
    without = _info(capsys, "ade20k-small", "--no-task-head", "--selection", "last")
    assert (without["num_tuned_layers"], without["prior_layers"]) == (0, [8, 9, 10, 11])
    assert without["parameters"]["task_head"] == 0
    probe = _info(capsys, "laptop-segmentation", "--method", "linear-probe", "--num-classes", "39")
    assert (probe["num_tuned_layers"], probe["prior_layers"]) == (0, [])
    assert probe["parameters"]["trainable"] == 2 * 384 + 39 * 384 + 39


def test_the_table_has_the_same_figures(capsys):
    assert main(["info", "ade20k-base"]) == 0
    text = capsys.readouterr().out
    for figure in ("40.51 M", "21.27 M", "7.79 M", "6.61 M", "4.84 M", "86.58 M frozen", "2 5 8 11", "55.7 mIoU"):
        assert figure in text
    assert main(["info", "ade20k-small-gate"]) == 0
    assert "the gate selects some" in " ".join(capsys.readouterr().out.split())


def test_a_detector_and_its_resampled_backbone(capsys):
    facts = _info(capsys, "coco-small")
    assert (facts["backbone"], facts["prior_layers"]) == ("dinov2-small (patch 16)", [2, 5, 8, 11])
    # The release's 45,266,196, and the background's boxes and masks that torchvision predicts.
    assert facts["parameters"]["trainable"] == 45_266_196 + 4 * 1025 + 257
    # The kernel of 16 x 16 pixels instead of 14 x 14.
    assert facts["parameters"]["frozen"] == 22_056_192 + 3 * 384 * (16**2 - 14**2)
    fewer = _info(capsys, "coco-small", "--num-classes", "20")
    per_class = (4 + 1) * (1024 + 1) + 256 + 1
    assert facts["parameters"]["decoder"] - fewer["parameters"]["decoder"] == 60 * per_class
    at_14 = _info(capsys, "coco-small", "--patch-size", "14", "--size", "512", "512")
    assert (at_14["backbone"], at_14["parameters"]["frozen"]) == ("dinov2-small", 22_056_192)


def test_depth_has_no_classes(capsys):
    facts = _info(capsys, "laptop-depth")
    assert facts["parameters"]["decoder"] == 2 * 384**2 + 129.5 * 384 + 897
    assert main(["info", "laptop-depth"]) == 0
    assert "classes" not in capsys.readouterr().out
    assert main(["info", "laptop-depth", "--num-classes", "4"]) == 2
    assert "laptop-depth has no classes: omit --num-classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe_name", "description", "trainable"),
    [
        ("laptop-depth-paper", {"unit": "metres", "min_depth": 1e-3, "max_depth": None}, 9_335_397),
        # Boxes alone, of two classes: pyramid, proposals, two layers of 1024, and what predicts three classes.
        (
            "laptop-detection",
            {"classes": ["a", "b"], "colours": [[0, 0, 0], [1, 1, 1]], "category_ids": [1, 7], "masks": False},
            (5_325_696 + 1_979_538 + 1_684_626)
            + (12 * 384**2 + 17 * 384)
            + (4 * (384 * 128 + 128) + 4 * (9 * 128**2 + 128))
            + (9 * 128**2 + 128 + 129 * 3 * 5)
            + (49 * 128 * 1024 + 1024 + 1024**2 + 1024 + 1025 * 15),
        ),
    ],
)
def test_a_bundle_of_any_task_is_described_by_its_card(recipe_name, description, trainable, capsys, tmp_path):
    config = recipe(recipe_name)
    card = {
        "format": 1,
        "vitsplit": "0",
        "task": config.task.name,
        "backbone": {
            "name": "dinov2-small",
            "timm_name": "vit_small_patch14_dinov2.lvd142m",
            "licence": "apache-2.0",
            "source": "the hub",
            "weights_hash": "0" * 64,
        },
        "prior_layers": [2, 5, 8, 11],
        "description": description,
        "metrics": {"score": 0.5},
        "config": flat_to_dict(config),
    }
    (tmp_path / "head.json").write_text(json.dumps(card))
    assert _info(capsys, str(tmp_path))["parameters"]["trainable"] == trainable
    assert main(["info", str(tmp_path)]) == 0
    assert "score 0.5" in capsys.readouterr().out


def test_a_run_is_described_by_its_bundle(run: Path, capsys):
    facts = _info(capsys, str(run))
    with safe_open(run / "best" / "head.safetensors", framework="numpy") as file:
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        stored = sum(file.get_tensor(name).size for name in file.keys() if not name.endswith(statistics))  # noqa: SIM118
    card = json.loads((run / "best" / "head.json").read_text())
    assert facts["parameters"]["trainable"] == stored
    assert facts["backbone"] == card["backbone"]["name"]
    assert facts["prior_layers"] == card["prior_layers"]
    assert facts["num_tuned_layers"] == card["config"]["method"]["num_tuned_layers"]
    frozen = sum(parameter.numel() for parameter in meta_backbone(facts["backbone"]).parameters())
    assert facts["parameters"]["frozen"] == frozen
    assert _info(capsys, str(run / "best")) == facts
    assert main(["info", str(run)]) == 0
    assert card["backbone"]["weights_hash"][:12] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ade20k-smal"], "'ade20k-smal'. Did you mean ade20k-small"),
        (["ade20k-small", "--num-tuned-layer", "3"], "--num-tuned-layers INT"),
        (["ade20k-small", "--num-tuned-layers", "13"], "--num-tuned-layers 13"),
        (["ade20k-small", "--num-prior-layers", "11"], "11 prior layers cannot be taken from the 10 layers 2..11"),
        (["ade20k-small", "--backbone", "dinov2-smal"], "'dinov2-smal'"),
        (["."], "no head bundle"),
    ],
)
def test_errors_are_one_message_with_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["info", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_lists_options_without_torch(capsys):
    assert main(["info", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("--size", "--json", "--num-classes", "vitsplit info ade20k-small"))
    assert main(["info"]) == 2
    code = "import sys; from vitsplit.cli.main import main; main(['info', '--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_help_of_a_recipe_lists_its_settings(capsys):
    assert main(["info", "cityscapes-large", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--num-tuned-layers" in text and "(default: 10)" in text


def test_recipes_are_listed(capsys):
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in RECIPES)
    assert "26-39" in text and "51.6 mIoU" in text
    assert max(map(len, text.splitlines())) <= 80
    assert main(["recipes", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(RECIPES)
    assert rows["pascal-context-large"]["prior_layers"] == [2, 4, 7, 9, 11, 14, 16, 18, 21, 23]
    assert rows["cityscapes-base"]["crop_size"] == [896, 896]


def test_listing_recipes_needs_no_torch():
    code = "import sys; from vitsplit.cli.main import main; main(['recipes']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
