"""``vitsplit analyze layers``: proposals, their cost, and the readout of a gate."""

import json
import shlex

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import vitsplit
from small_run import SMALL_RUN
from vitsplit.analysis import layer_search
from vitsplit.analysis.proposals import propose
from vitsplit.backbone import open_backbone
from vitsplit.cli.flags import from_flags
from vitsplit.cli.main import main
from vitsplit.engine import assemble
from vitsplit.recipes import recipe

TINY = ["--backbone", "vit_tiny_patch16_224", "--random-weights", "--size", "32", "48", "--batch-size", "4"]
SMALL_BLOCK, D = 1_775_232, 384


def two_blocks(first_late):
    is_late = np.arange(12) >= first_late
    cka = np.where(is_late[:, None] == is_late, 0.9, 0.2)
    np.fill_diagonal(cka, 1.0)
    return cka


def test_every_proposal_has_its_cost_and_flags():
    config = recipe("ade20k-small")
    weights = np.zeros((12, 4))
    weights[[1, 4, 7, 9, 11], [0, 1, 2, 3, 3]] = [1.0, 1.0, 1.0, 0.3, 0.7]
    found = {each.name: each for each in propose(config, two_blocks(7), gate_LJ=weights)}
    assert list(found) == ["least alike", "the recipe's", "gate's readout"]  # the rule of thumb is the recipe's
    assert found["the recipe's"].cost.parameters == 10_230_330  # Table 1's model, K_t = 3
    assert found["least alike"].num_tuned_layers == 5
    assert found["least alike"].cost.parameters == 10_230_330 + 2 * SMALL_BLOCK
    assert found["gate's readout"].prior_layers == (1, 4, 7, 11)  # the fifth has the least weight
    assert "92%" in found["gate's readout"].why and "9 (8%)" in found["gate's readout"].why  # 3.7 and 0.3 of 4
    for proposal in found.values():
        method = from_flags(config, shlex.split(proposal.flags)).method
        assert method.num_tuned_layers == proposal.num_tuned_layers
    # Two more copied blocks and three frozen blocks (9 to 11) less: one block less, at 37 x 37 + 1 tokens.
    block = (12 * D * D + 2 * 1370 * D) * 1370 / 1e9
    assert max(found["least alike"].prior_layers) == 8
    saved = found["the recipe's"].cost.gmacs - found["least alike"].cost.gmacs
    assert saved == pytest.approx(block, rel=1e-3)


def test_the_rule_of_thumb_is_a_quarter_of_the_layers():
    found = {each.name: each for each in propose(recipe("ade20k-mae-base"), two_blocks(7))}
    assert found["rule of thumb"].num_tuned_layers == 3 and found["the recipe's"].num_tuned_layers == 8
    assert found["rule of thumb"].prior_layers == (2, 5, 8, 11)


def test_images_to_page(scenes, tmp_path, capsys):
    out = tmp_path / "layers"
    words = ["--recipe", "laptop-segmentation-paper", "--num-prior-layers", "3", "--out", str(out)]
    assert main(["analyze", "layers", str(scenes / "images"), *TINY, *words]) == 0
    found = json.loads((out / "layers.json").read_text())
    assert found["images"] == 9 and found["gate"] is None and np.array(found["cka"]).shape == (12, 12)
    first, own = found["proposals"]
    assert len(first["prior_layers"]) == 3 and min(first["prior_layers"]) >= 2
    assert own["num_tuned_layers"] == 3 and own["prior_layers"] == [2, 6, 11]
    output = capsys.readouterr().out
    assert first["flags"] in output
    page = (out / "index.html").read_text()
    assert "<svg" in page and 'src="http' not in page and 'href="http' not in page


def test_labels_add_the_quality_of_every_depth(scenes, tmp_path, capsys, monkeypatch):
    """With the given weights; other runs in the folder stay there."""
    monkeypatch.setattr(layer_search, "FIRST_STEPS", 1)
    run, out, weights = tmp_path / "run", tmp_path / "layers", tmp_path / "weights.pt"
    vitsplit.train(data=scenes, out=run, **{**SMALL_RUN, "steps": 1, "warmup_steps": 0})
    (out / "runs").mkdir(parents=True)
    (out / "runs" / "mine").touch()
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), weights)
    opened = []
    monkeypatch.setattr(assemble, "open_backbone", lambda settings: opened.append(settings) or open_backbone(settings))
    given = [*TINY[:2], "--weights", str(weights), *TINY[3:], "--data", str(scenes)]
    words = ["--run", str(run), *given, "--max-minutes", "0.001", "--out", str(out)]
    assert main(["analyze", "layers", str(scenes / "images"), *words]) == 0
    qualities = json.loads((out / "layers.json").read_text())["quality"]
    assert {each["settings"]["num_tuned_layers"] for each in qualities} == {0, 2, 3, 6, 9, 12}
    costs = {each["settings"]["num_tuned_layers"]: each["head_gmacs"] for each in qualities}
    assert sorted(costs, key=costs.get) == [0, 2, 3, 6, 9, 12]
    assert min(each["behind"] for each in qualities) == 0 and {each["steps"] for each in qualities} == {1}
    assert "for one more head" in capsys.readouterr().out
    assert [each.weights for each in opened] == [str(weights)] * len(qualities)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"runs"} and (out / "runs" / "mine").exists()
    assert (out / "quality.png").stat().st_size > 5000


def test_gate_readout(scenes, tmp_path):
    run = tmp_path / "run"
    vitsplit.train(data=scenes, out=run, **{**SMALL_RUN, "steps": 1, "selection": "gate", "num_prior_layers": 2})
    file = run / "best" / "head.safetensors"
    state = load_file(file)
    scores = torch.zeros(12, 2)
    scores[3, 0] = scores[8, 1] = scores[10, 1] = 50.0  # the second column has two equals
    save_file({**state, "head.gate.scores_LJ": scores}, file)
    out = tmp_path / "layers"
    images = str(scenes / "images")
    words = [images, "--run", str(run), "--size", "32", "48", "--batch-size", "4", "--out", str(out)]
    assert main(["analyze", "layers", *words]) == 0
    found = json.loads((out / "layers.json").read_text())
    gate = np.array(found["gate"])
    assert gate[3, 0] == 1.0 and (gate[8, 1], gate[10, 1]) == (0.5, 0.5) and gate.sum() == pytest.approx(2.0)
    readout = found["proposals"][-1]
    assert readout["name"] == "gate's readout" and readout["prior_layers"] == [3, 8]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "3"], "--batch-size must be "),
        (["--batch-size", "16"], "9 images are fewer than --batch-size 16"),
        (["--recipe", "laptop-depth", "--run", "x"], "--recipe and --run"),
    ],
)
def test_invalid_options(words, message, scenes, capsys):
    assert main(["analyze", "layers", str(scenes / "images"), *TINY, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_method_without_layers_to_choose(scenes, tmp_path, capsys):
    run = tmp_path / "probe"
    vitsplit.train(data=scenes, out=run, **{**SMALL_RUN, "steps": 1, "method": "linear-probe"})
    words = ["analyze", "layers", str(scenes / "images" / "train"), "--run", str(run), "--batch-size", "4"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    output = capsys.readouterr().err
    assert "--method linear-probe" in output
