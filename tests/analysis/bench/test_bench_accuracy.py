"""``vitsplit bench accuracy``: methods x seeds as ordinary runs, with equal steps or equal seconds."""

import dataclasses
import json
import math
import re
import types

import pytest

from small_run import SMALL_RUN
from vitsplit.analysis import short_runs
from vitsplit.analysis.layer_search import Part
from vitsplit.analysis.runs import Outcome, Trial
from vitsplit.analysis.study_report import progress
from vitsplit.analysis.variants import Variant
from vitsplit.cli.main import main
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError, RunError
from vitsplit.recipes import recipe
from vitsplit.sample.dataset import write_segmentation_set
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.segmentation.config import SegmentationConfig

ACCURACY = ["bench", "accuracy", "segmentation"]
TINY = [
    "--backbone", "test_vit", "--random-weights", "--num-tuned-layers", "2", "--batch-size", "2",
    "--crop-size", "48", "64", "--workers", "0", "--precision", "fp32", "--track",
]  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_segmentation_set(tmp_path_factory.mktemp("scenes") / "data", 6, 2, size=(48, 64), workers=1)


def test_methods_and_seeds_are_trained_once(scenes, tmp_path, capsys):
    out = tmp_path / "methods"
    arguments = [*ACCURACY, "--data", str(scenes), "--out", str(out), *TINY, "--steps", "3"]
    arguments += ["--eval-every", "1", "--log-every", "1", "--methods", "vitsplit", "linear-probe", "--seeds", "0", "1"]
    arguments += ["--lr", "1e-3", "--linear-probe.lr", "5e-3"]
    assert main(arguments) == 0
    runs = {folder.name for folder in (out / "runs").iterdir()}
    assert runs == {"vitsplit-seed0", "vitsplit-seed1", "linear-probe-seed0", "linear-probe-seed1"}
    configs = {
        name: json.loads((out / "runs" / name / "config.json").read_text())["heads"]["segmentation"] for name in runs
    }
    assert all(name.startswith(config["method"]["name"]) for name, config in configs.items())
    rates = {"vitsplit": 1e-3, "linear-probe": 5e-3}
    assert all(config["optim"]["lr"] == rates[config["method"]["name"]] for config in configs.values())
    found = json.loads((out / "results.json").read_text())["variants"]
    assert [variant["name"] for variant in found] == ["vitsplit", "linear-probe"]
    for variant in found:
        scores = [run["score"] for run in variant["runs"]]
        assert variant["mean"] == pytest.approx(sum(scores) / 2)
    assert (out / "curves.png").stat().st_size > 1000
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/metrics.jsonl")}
    assert main(arguments) == 0
    assert before == {file: file.stat().st_mtime_ns for file in out.glob("runs/*/metrics.jsonl")}
    assert "linear-probe, lr 0.005" in capsys.readouterr().out


def test_the_best_of_several_learning_rates_gets_all_seeds(scenes, tmp_path, capsys):
    out = tmp_path / "rates"
    arguments = [*ACCURACY, "--data", str(scenes), "--out", str(out), *TINY, "--steps", "3", "--seeds", "4", "5"]
    arguments += ["--methods", "vitsplit", "linear-probe", "frozen-head", "--lrs", "1e-9", "3e-3"]
    arguments += ["--lr", "2e-3", "--frozen-head.lr", "2e-3"]  # its own, although all have it
    assert main(arguments) == 0
    scores = {}
    for folder in (out / "runs").iterdir():
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        scores[folder.name] = [row["eval"]["miou"] for row in rows if "eval" in row][-1]
    best = {}
    for method in ("vitsplit", "linear-probe"):
        first = {rate: scores[f"{method}-lr{rate}-seed4"] for rate in ("1e-09", "0.003")}
        best[method] = max(first, key=first.get)
        assert len(set(first.values())) == 2, "a learning rate of nothing is another model"
    seconds = {f"{method}-lr{rate}-seed5" for method, rate in best.items()} | {"frozen-head-seed5"}
    assert {name for name in scores if name.endswith("seed5")} == seconds
    found = json.loads((out / "results.json").read_text())["variants"]
    assert [each["name"] for each in found] == [*(f"{name}-lr{rate}" for name, rate in best.items()), "frozen-head"]
    assert all(len(each["runs"]) == 2 for each in found)
    written = {name: json.loads((out / "runs" / name / "config.json").read_text()) for name in scores}
    for name, config in written.items():
        rate = 2e-3 if name.startswith("frozen") else 1e-9 if "1e-09" in name else 3e-3
        assert config["heads"]["segmentation"]["optim"]["lr"] == rate
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/metrics.jsonl")}
    assert main(arguments) == 0
    assert before == {file: file.stat().st_mtime_ns for file in out.glob("runs/*/metrics.jsonl")}


def test_equal_time_is_converted_to_steps_once(scenes, tmp_path, monkeypatch, capsys):
    out = tmp_path / "timed"
    arguments = [*ACCURACY, "--data", str(scenes), "--out", str(out), *TINY, "--minutes", "0.01"]
    arguments += ["--linear-probe.lr", "5e-3", "--methods", "vitsplit", "linear-probe"]
    timed = []

    def steps_within(configs, data, folder, *, seconds):
        timed.append((set(configs), seconds))
        return {name: {"vitsplit": 1, "linear-probe": 2, "frozen-head": 1}[name] for name in configs}

    monkeypatch.setattr(short_runs, "steps_within", steps_within)
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert timed == [({"vitsplit", "linear-probe"}, pytest.approx(0.6))], "the second time nothing is timed"
    assert main([*arguments, "frozen-head"]) == 0, "a method more leaves the runs of the others as they were"
    assert timed[1:] == [({"frozen-head"}, pytest.approx(0.6))]
    assert main([*arguments, "--linear-probe.batch-size", "1"]) == 2
    assert re.search(r"steps\.json .*linear-probe.*--out", capsys.readouterr().err)
    assert main([*arguments, "--minutes", "1"]) == 2
    assert re.search(r"steps\.json .*--minutes 0\.01", capsys.readouterr().err)
    former = [word for word in arguments if word not in ("--minutes", "0.01")]
    assert main([*former, "--seconds", "0.6"]) == 0, "the former flag"
    assert "--minutes 0.01" in capsys.readouterr().err
    assert main([*arguments, "--seconds", "0.6"]) == 2
    for name, steps in (("vitsplit", 1), ("linear-probe", 2)):
        config = json.loads((out / "runs" / f"{name}-seed0" / "config.json").read_text())
        assert config["loop"]["steps"] == steps


def small_config(task):
    sizes = {"image_scale": (64, 48), "train_sides": (48,), "pyramid_width": 16, "sampled_proposals": 16}
    return override(
        recipe(f"laptop-{task}"), {**SMALL_RUN, "backbone": "test_vit", **(sizes if task == "detection" else {})}
    )


def test_steps_follow_the_time_of_real_steps(scenes, tmp_path, monkeypatch):
    """With a clock that advances by a known time per step."""
    tiny = small_config("segmentation")
    configs = {"fast": tiny, "slow": override(tiny, {"num_tuned_layers": 1})}
    seconds = {2: 2.0, 1: 5.0}
    real = short_runs._train_to

    def train_to(data):
        def run(config, folder, steps):
            part = real(data)(config, folder, steps)
            assert len(part.losses) == len(part.seconds) == steps and all(map(math.isfinite, part.losses))
            each = seconds[config.method.num_tuned_layers]
            return dataclasses.replace(part, seconds=[10 * each, *[each] * (steps - 1)])

        return run

    monkeypatch.setattr(short_runs, "_train_to", train_to)
    counted = short_runs.steps_within(configs, scenes, tmp_path / "out", seconds=400.0)
    # The first step took ten times as long, so 18 and 45 s are lost to it.
    assert counted == {"fast": (400 - 18) // 2, "slow": (400 - 45) // 5}
    assert not list((tmp_path / "out").iterdir())
    part = Part(losses=[1.0] * 10, seconds=[50.0, *[5.0] * 9])
    for seconds, steps in ((50, 1), (57, 2), (95, 10), (101, 11)):  # 50 s, and 5 s for each of the others
        assert short_runs._whole_steps("slow", part, seconds, 0) == steps
    with pytest.raises(ConfigError, match=r"--minutes .* slow .*5\.0 s"):
        short_runs._whole_steps("slow", part, 49.0, 0)


def test_steps_of_detection(scenes, tmp_path):
    assert short_runs.steps_within({"a": small_config("detection")}, scenes, tmp_path, seconds=1e6)["a"] > 1000


def test_the_same_method_under_several_names(scenes, tmp_path):
    out = tmp_path / "parts"
    arguments = [*ACCURACY, "--data", str(scenes), "--out", str(out), *TINY, "--steps", "2", "--methods"]
    arguments += ["vitsplit", "alone=vitsplit", "probe=linear-probe", "--alone.no-prior-head", "--alone.no-fusion"]
    assert main(arguments) == 0
    configs = {
        folder.name: json.loads((folder / "config.json").read_text())["heads"]["segmentation"]["method"]
        for folder in (out / "runs").iterdir()
    }
    assert {name: method["name"] for name, method in configs.items()} == {
        "vitsplit-seed0": "vitsplit", "alone-seed0": "vitsplit", "probe-seed0": "linear-probe"
    }  # fmt: skip
    assert configs["vitsplit-seed0"]["prior_head"] and not configs["alone-seed0"]["prior_head"]
    found = json.loads((out / "results.json").read_text())["variants"]
    assert [each["name"] for each in found] == ["vitsplit", "alone", "probe"]


def test_runs_that_choose_their_layers(scenes, tmp_path, capsys):
    """The row has the choice of its run and the cost of the chosen layers; a run of other settings is not reused."""
    out = tmp_path / "auto"
    arguments = [*ACCURACY, "--data", str(scenes), "--out", str(out), *TINY, "--steps", "100", "--warmup-steps", "0"]
    arguments += ["--methods", "vitsplit", "vitsplit:auto", "--seeds", "0"]
    assert main(arguments) == 0
    variants = {each["name"]: each for each in json.loads((out / "results.json").read_text())["variants"]}
    (trained,) = variants["vitsplit-auto"]["runs"]
    folder = out / "runs" / "vitsplit-auto-seed0"
    config = json.loads((folder / "config.json").read_text())["heads"]["segmentation"]
    evidence = json.loads((folder / "layers.json").read_text())["segmentation"]
    (chosen,) = [each for each in evidence["candidates"] if each["name"] == trained["layers"]]
    assert config["method"]["num_tuned_layers"] == chosen["settings"]["num_tuned_layers"]
    assert variants["vitsplit-auto"]["head_gmacs"] == pytest.approx(chosen["head_gmacs"], abs=2e-3)
    assert trained["steps"] == 100 and variants["vitsplit"]["runs"][0]["layers"] is None
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    assert main(arguments) == 0
    assert before == (folder / "metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    for others in (["--vitsplit-auto.no-prior-head"], ["--vitsplit-auto.num-tuned-layers", "1"], ["--minutes", "1"]):
        assert main([*arguments[:-2], *others]) == 2
        assert "--out" in capsys.readouterr().err


def test_names_and_choices_are_checked_before_training(scenes, tmp_path, capsys):
    common = [*ACCURACY, "--data", str(scenes), "--out", str(tmp_path / "out"), *TINY, "--minutes", "1", "--methods"]
    for methods, text in (
        (["a=vitsplit", "a=lora"], "called a"),
        (["a.b=vitsplit"], r"a\.b"),
        (["vitsplit", "lora:auto"], "lora-auto"),
        (["vitsplit:auto", "--vitsplit-auto.no-task-head"], "no-task-head"),
    ):
        assert main([*common, *methods]) == 2
        assert re.search(text, capsys.readouterr().err)
        assert not (tmp_path / "out" / "runs").exists() and not (tmp_path / "out" / "steps.json").exists()


@pytest.mark.parametrize(
    "known",
    ["", "[]", "{}", '{"seconds": 1, "settings": {}, "steps": [1]}', '{"seconds": "1", "settings": {}, "steps": {}}',
     '{"seconds": 1, "settings": {}, "steps": {"vitsplit": 0}}', '{"seconds": 1, "settings": {}, "steps": {"a": 1.5}}'],
)  # fmt: skip
def test_steps_without_times_are_rejected(scenes, tmp_path, known, capsys):
    (tmp_path / "steps.json").write_text(known)
    arguments = [*ACCURACY, "--data", str(scenes), "--out", str(tmp_path), *TINY, "--minutes", "0.1"]
    assert main(arguments) == 2
    assert re.search(r"steps\.json", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("task", "score_name", "sign"), [(SegmentationConfig(), "miou", 1), (DepthConfig(), "neg_rmse", -1)]
)
def test_progress_reads_steps_seconds_and_scores(tmp_path, task, score_name, sign):
    metric = score_name.removeprefix("neg_")
    rows = [
        {"step": 5, "eval": {metric: 0.125, "other": 1}},
        {"step": 10, "loss": 1.0, "seconds": 20.0},
        {"step": 15, "eval": {metric: 0.25, "other": 1}},
        {"step": 20, "loss": 0.5, "seconds": 50.0},
        {"step": 20, "eval": {metric: 0.5}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trial = Trial(
        variant=Variant(name="a", settings={}), seed=0, config=types.SimpleNamespace(task=task), folder=tmp_path
    )
    outcome = Outcome(
        trial=trial, score=0, best_score=0, score_name=score_name, metrics={}, steps=20, seconds=50, description={}
    )
    assert progress(outcome) == [(5, 10.0, sign * 0.125), (15, 35.0, sign * 0.25), (20, 50.0, sign * 0.5)]
    for broken in ('{"step": 5, "eval": {}}\n', '{"step": 5, "eval": {"' + metric + '": "x"}}\n', '{"step": 5}\n'):
        (tmp_path / "metrics.jsonl").write_text(broken)
        with pytest.raises(RunError, match=r"metrics\.jsonl"):
            progress(outcome)


def test_invalid_methods_are_rejected(scenes, tmp_path, capsys):
    common = [*ACCURACY, "--data", str(scenes), "--out", str(tmp_path / "out"), *TINY]
    assert main([*common, "--methods", "vitsplit", "magic"]) == 2
    assert re.search(r"there is no method 'magic'", capsys.readouterr().err)
    assert main([*common, "--methods", "vitsplit:cached", "full-finetune:cached"]) == 2
    assert re.search(r"--cache-features .* --method full-finetune", capsys.readouterr().err)
    assert main([*common, "--method", "lora"]) == 2
    assert re.search(r"bench accuracy --methods.*--method lora", capsys.readouterr().err)
    assert main([*common, "--methods", "vitsplit", "linear-probe", "--lora.lr", "1e-3"]) == 2
    assert re.search(r"--lora\.: this study has no variant 'lora'.*vitsplit, linear-probe", capsys.readouterr().err)
    assert main([*common, "--methods", "vitsplit", "linear-probe", "--linear-probe.lrr", "1e-3"]) == 2
    assert re.search(r"--lrr", capsys.readouterr().err)
    assert main([*common, "--minutes", "0"]) == 2
    assert "--minutes must be" in capsys.readouterr().err
