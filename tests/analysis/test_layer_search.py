"""``--layers auto`` and ``--max-minutes`` on known learning curves and on real runs."""

import json
import math
import multiprocessing
import os
import re
import signal

import pytest
import torch
from safetensors.torch import load_file

import vitsplit
from small_run import SMALL_RUN
from vitsplit.analysis import layer_search, short_runs
from vitsplit.analysis.layer_search import FIRST_STEPS, Candidate, Part, candidates, search, steps_for, variants
from vitsplit.analysis.variants import Variant
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.recipes import recipe
from vitsplit.saved_config import config_from_dict

CONFIG = override(recipe("laptop-segmentation-paper"), {"warmup_steps": 0})


def known(tmp_path, curves, *, seconds=None, steps=1000, max_head_gmacs=None, config=CONFIG):
    """Searches candidates with the losses ``scale - fall * log2(step)`` and the given seconds per step."""
    spent = []

    def train_to(config, folder, target):
        scale, fall, each = curves[folder.name]
        before = len(done.get(folder.name, ()))
        done[folder.name] = [scale - fall * math.log2(1 + step) for step in range(target)]
        spent.append((folder.name, target - before, (target - before) * each))
        return Part(losses=done[folder.name], seconds=[each] * target)

    done: dict[str, list[float]] = {}
    everyone = [
        Candidate(Variant(name=name, settings={"num_tuned_layers": index}), config, index + 1.0, each, tmp_path / name)
        for index, (name, (_, _, each)) in enumerate(curves.items())
    ]
    choice = search(everyone, train_to, steps=steps, seconds=seconds, max_head_gmacs=max_head_gmacs)
    return choice, spent


def test_the_lowest_loss_is_chosen_within_a_fifth_of_the_budget(tmp_path):
    curves = {name: (3 + distance, 0.2, 1.0) for name, distance in zip("abcdef", (5, 3, 1, 0, 2, 4), strict=True)}
    choice, spent = known(tmp_path, curves, steps=1000)
    assert choice.winner.variant.name == "d" and choice.evidence["chosen"] == "d"
    assert sum(steps for _, steps, _ in spent) <= 200
    # Halving: 6, 3 and 2 candidates, to 15, 30 and 60 steps: 6 x 15 + 3 x 15 + 2 x 30 of 200; with 16, it were 208.
    assert [len(each["losses"]) for each in choice.evidence["rounds"]] == [6, 3, 2]
    assert [each["steps"] for each in choice.evidence["rounds"]] == [15, 30, 60]


def test_shorter_runs_compare_fewer_candidates(tmp_path):
    curves = {name: (3.0 - index, 0.2, 1.0) for index, name in enumerate("abcdef")}
    few, spent = known(tmp_path, curves, steps=290)
    assert few.winner.variant.name == "c"  # 3 x 11 + 2 x 11 of 58 steps; with a fourth, 4 x 10 + 2 x 10
    assert sum(steps for _, steps, _ in spent) == 55
    two, spent = known(tmp_path, curves, steps=140)
    assert two.winner.variant.name == "b"  # 2 x 14 of 28 steps, in one round
    assert [steps for _, steps, _ in spent] == [14, 14]
    none, spent = known(tmp_path, curves, steps=20)
    assert none.winner.variant.name == "a" and not spent and not none.evidence["rounds"]


def test_equal_time_accounts_for_the_cost_of_a_step(tmp_path):
    # After n steps: 3 - 0.2 log2 n. Twice as slow is almost 0.2 worse at the end (both continue from the same step), so
    # 0.1 better at equal steps is not enough.
    curves = {"fast": (3.0, 0.2, 1.0), "slow": (2.9, 0.2, 2.0)}
    choice, _ = known(tmp_path, curves, seconds=1000)
    assert choice.winner.variant.name == "fast"
    last = choice.evidence["rounds"][-1]
    expected = 0.2 * math.log2((last["steps"] + 800) / (last["steps"] + 400)) - 0.1
    assert last["losses"]["slow"] - last["losses"]["fast"] == pytest.approx(expected, abs=0.02)
    assert known(tmp_path, curves, steps=1000)[0].winner.variant.name == "slow"
    better = {**curves, "slow": (2.7, 0.2, 2.0)}
    choice, _ = known(tmp_path, better, seconds=1000)
    assert choice.winner.variant.name == "slow"


def test_the_laptop_recipe_compares_candidates_in_half_an_hour(tmp_path, caplog):
    """Its warm-up has 30 of 300 steps, which take about 3 seconds each; the message says which time would do."""
    config = recipe("laptop-segmentation")
    curves = {name: (3.0 - index, 0.2, 3.0) for index, name in enumerate("abcdefg")}
    choice, spent = known(tmp_path, curves, seconds=1800, steps=300, config=config)
    assert len(choice.evidence["rounds"][0]["losses"]) >= 2 and sum(each for _, _, each in spent) <= 360 + 30
    # (30 seconds of timing: the clock does not run here.)
    assert not known(tmp_path, curves, seconds=600, steps=300, config=config)[0].evidence["rounds"]
    minutes = int(re.search(r"--max-minutes, to (\d+)", caplog.text)[1])
    choice, _ = known(tmp_path, curves, seconds=60 * minutes, steps=300, config=config)
    assert choice.evidence["rounds"]


def test_the_beginning_is_charged_once_if_its_features_are_cached():
    part = Part(losses=[1.0] * 10, seconds=[2.0] * 5 + [1.0] * 5, backbone_seconds=1.0)
    assert steps_for(part, 100.0, first_views=5) == 10 + 100


def test_warm_up_losses_are_ignored(tmp_path):
    config = override(CONFIG, {"warmup_steps": 30, "steps": 1000})
    curves = {name: (scale, 0.2, 1.0) for name, scale in (("early", 3.0), ("late", 2.9))}
    rounds = known(tmp_path, curves, steps=1000, config=config)[0].evidence["rounds"]
    assert rounds[0]["steps"] == 100  # both candidates, of a budget of 200
    rounds = known(tmp_path, curves, steps=400, config=override(config, {"steps": 400}))[0].evidence["rounds"]
    assert rounds[0]["steps"] == 40
    # The mean of steps 31 to 40 of the curves, not of the last half.
    expected = sum(3.0 - 0.2 * math.log2(1 + step) for step in range(30, 40)) / 10
    assert rounds[0]["losses"]["early"] == pytest.approx(expected, abs=1e-4)


def test_the_cost_limit_of_an_additional_head(tmp_path):
    curves = {name: (3.0 - index, 0.2, 1.0) for index, name in enumerate("abcd")}
    assert known(tmp_path, curves, max_head_gmacs=2.5)[0].winner.variant.name == "b"
    with pytest.raises(ConfigError, match=r"--max-head-gmacs 0\.5"):
        known(tmp_path, curves, max_head_gmacs=0.5)


def test_number_of_steps_in_a_given_time():
    plain = Part(losses=[1.0] * 10, seconds=[2.0] * 10)
    assert steps_for(plain, 100.0, first_views=40) == 10 + 50
    assert steps_for(plain, -3.0, first_views=40) == 10
    plain = Part(losses=[1.0] * 10, seconds=[2.0] * 10, backbone_seconds=1.0)
    # 30 more steps compute their features (60 s); the others take a second each.
    assert steps_for(plain, 100.0, first_views=40) == 10 + 30 + 40
    assert steps_for(plain, 50.0, first_views=40) == 10 + 25


def test_candidates_range_from_the_frozen_layer_to_all_blocks():
    found = {each.name: each.settings for each in variants(override(CONFIG, {"num_tuned_layers": 3}), 12)}
    assert next(iter(found)) == "kt3-full", "the configuration itself comes first"
    assert {each["num_tuned_layers"] for each in found.values()} == {0, 3, 6, 9, 12}
    assert any(not each.get("prior_head", True) and each["num_tuned_layers"] == 12 for each in found.values())


def test_cost_of_an_additional_head(tmp_path):
    """12 D^2 multiply-adds per token and block, and 2 D per pair of tokens."""
    config = override(CONFIG, {"crop_size": (252, 336)})
    costs = {each.variant.name: each.head_gmacs for each in candidates(config, 12, tmp_path, 7)}
    tokens = 18 * 24 + 1
    block = (12 * tokens * 384**2 + 2 * tokens**2 * 384) / 1e9
    assert costs["kt6-full"] - costs["kt3-full"] == pytest.approx(3 * block, rel=1e-6)
    assert costs["kt12-full"] - costs["kt0"] == pytest.approx(12 * block, rel=1e-6)


SEARCHED = {
    **SMALL_RUN,
    "warmup_steps": 0,
    "steps": 58,
    "num_prior_layers": 2,
    "eval_every": 58,
    "fusion_form": "residual",
    "tune_blocks": "full",
}


@pytest.fixture(scope="module")
def searched(scenes, tmp_path_factory):
    """A run with ``--layers auto`` that compares three candidates after two steps, and two of them after four."""
    out = tmp_path_factory.mktemp("searched") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_search, "FIRST_STEPS", 2)
        return out, vitsplit.train(data=scenes, out=out, layers="auto", max_head_gmacs=0.06, **SEARCHED)


def test_the_run_continues_the_chosen_candidate(scenes, searched, tmp_path):
    out, result = searched
    config = config_from_dict(json.loads((out / "config.json").read_text()), "config.json")
    assert config.loop.log_every == 1 and config.loop.steps == 58
    given = vitsplit.train(config, data=scenes, out=tmp_path / "given")
    assert given.metrics == result.metrics
    one, other = (load_file(run / "best" / "head.safetensors") for run in (out, tmp_path / "given"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    steps = [json.loads(line).get("step") for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 59)), "with the losses of the search"
    assert not (out / "search").exists()


def test_the_choice_is_in_the_run_and_in_the_bundle(searched):
    out, _ = searched
    choice = json.loads((out / "layers.json").read_text())["segmentation"]
    assert vitsplit.load(out)["segmentation"].card.choice == choice
    by_name = {each["name"]: each for each in choice["candidates"]}
    method = json.loads((out / "config.json").read_text())["heads"]["segmentation"]["method"]
    assert by_name[choice["chosen"]]["settings"].items() <= method.items()
    assert all(each["head_gmacs"] <= 0.06 for each in by_name.values())
    assert [len(each["losses"]) for each in choice["rounds"]] == [3, 2]
    assert sum(each["steps"] for each in by_name.values()) == 2 + 4 + 4


def test_a_finished_run_keeps_its_choice(scenes, searched):
    out, result = searched
    again = vitsplit.train(data=scenes, out=out, layers="auto", resume=True, **SEARCHED)
    assert again.metrics == result.metrics


def train_until_killed(scenes, out):
    short_runs.search = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
    torch.set_num_threads(1)
    vitsplit.train(data=scenes, out=out, layers="auto", **SEARCHED)


def test_a_search_that_is_killed_starts_again(scenes, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=train_until_killed, args=(scenes, tmp_path / "run"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    result = vitsplit.train(data=scenes, out=tmp_path / "run", layers="auto", resume=True, **{**SEARCHED, "steps": 3})
    assert result.stopped_by is None and (tmp_path / "run" / "best" / "head.json").exists()


@pytest.mark.parametrize("auto", [False, True], ids=["minutes", "minutes-and-layers"])
def test_each_head_has_its_own_layers_and_steps_by_time(scenes, tmp_path, auto):
    settings = {name: value for name, value in SEARCHED.items() if name not in ("steps", "eval_every")}
    out, data = tmp_path / "run", {"rooms": ("segmentation", scenes), "depth": scenes}
    options = {"max_minutes": 0.05} | ({"layers": "auto"} if auto else {})
    vitsplit.train(data=data, out=out, **options, **{**settings, "image_scale": (64, 48)})
    config = config_from_dict(json.loads((out / "config.json").read_text()), "config.json")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row][-1] == config.loop.steps >= FIRST_STEPS
    assert (out / "layers.json").exists() == auto
    if auto:
        assert json.loads((out / "layers.json").read_text()).keys() == {"rooms", "depth"}


def test_invalid_candidates_are_skipped(tmp_path, caplog):
    fused = override(CONFIG, {"backbone": "eva02_tiny_patch14_224"})  # its attention uses the weights directly
    names = [each.variant.name for each in candidates(fused, 12, tmp_path, 7)]
    assert names == ["kt3-full", "kt9-full", "kt6-full", "kt12-full", "kt0"] and "--tune-blocks lora" in caplog.text
    with pytest.raises(ConfigError, match="--tune-blocks lora"):
        candidates(override(fused, {"tune_blocks": "lora"}), 12, tmp_path, 7)


def test_a_stopped_choice_is_not_resumed_without_its_flags(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(short_runs, "search", interrupt)
    with pytest.raises(KeyboardInterrupt):
        vitsplit.train(data=scenes, out=tmp_path / "run", layers="auto", **SEARCHED)
    with pytest.raises(ConfigError, match="--layers auto"):
        vitsplit.train(data=scenes, out=tmp_path / "run", resume=True, **SEARCHED)


def test_a_kill_after_the_choice_can_be_resumed(scenes, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(short_runs, "_adopt", interrupt)
        patch.setattr(layer_search, "FIRST_STEPS", 2)
        with pytest.raises(KeyboardInterrupt):
            vitsplit.train(data=scenes, out=out, layers="auto", max_head_gmacs=0.06, **SEARCHED)
    assert (out / "layers.json").exists() and not (out / "config.json").exists()
    vitsplit.train(data=scenes, out=out, layers="auto", resume=True, **{**SEARCHED, "steps": 3})
    assert vitsplit.load(out)["segmentation"].card.choice["chosen"] == "kt2-full"


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_minutes_set_the_number_of_steps(scenes, tmp_path):
    settings = {name: value for name, value in SEARCHED.items() if name not in ("steps", "eval_every")}
    vitsplit.train(data=scenes, out=tmp_path / "run", max_minutes=0.03, **settings)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert rows[-1]["step"] == config["loop"]["steps"] >= FIRST_STEPS
    again = vitsplit.train(data=scenes, out=tmp_path / "run", max_minutes=7, resume=True, **settings)
    assert again.stopped_by is None, "a resumed run keeps its number of steps"


def test_the_limit_needs_a_choice(scenes):
    with pytest.raises(ConfigError, match="--max-head-gmacs"):
        vitsplit.train(data=scenes, max_head_gmacs=1.0)
    with pytest.raises(ConfigError, match="layers='gate'"):
        vitsplit.train(data=scenes, layers="gate")


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("laptop-segmentation", {"method": "linear-probe"}, "--method linear-probe"),
        ("laptop-vqa", {"connector": "mlp2x"}, "--connector mlp2x"),
    ],
)
def test_methods_without_layers(scenes, tmp_path, name, settings, expected):
    with pytest.raises(ConfigError, match=expected):
        vitsplit.train(override(recipe(name), settings), data=scenes, out=tmp_path / "run", layers="auto")
