"""``vitsplit bench accuracy``: methods x seeds as ordinary runs, with equal steps or equal seconds."""

import json
import re
import types

import pytest

from vitsplit.analysis.bench.budget import steps_of
from vitsplit.analysis.runs import Outcome, Trial
from vitsplit.analysis.study_report import progress
from vitsplit.analysis.variants import Variant
from vitsplit.cli.main import main
from vitsplit.errors import ConfigError, RunError
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


def test_equal_seconds_are_converted_to_steps_once(scenes, tmp_path, monkeypatch, capsys):
    out = tmp_path / "timed"
    arguments = [*ACCURACY, "--data", str(scenes), "--out", str(out), *TINY, "--seconds", "0.5"]
    arguments += ["--linear-probe.lr", "5e-3", "--methods", "vitsplit", "linear-probe"]
    found = {"vitsplit": 1, "linear-probe": 2, "frozen-head": 1}
    timed = []

    def steps_of(times, seconds):
        timed.append(set(times))
        assert {len(samples) for samples in times.values()} == {5}
        return {name: found[name] for name in times}

    monkeypatch.setattr("vitsplit.analysis.bench.budget.steps_of", steps_of)
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert timed == [{"vitsplit", "linear-probe"}], "the second time nothing is timed"
    found |= {"vitsplit": 99, "linear-probe": 99}
    assert main([*arguments, "frozen-head"]) == 0, "a method more leaves the runs of the others as they were"
    assert timed[1:] == [{"frozen-head"}]
    assert main([*arguments, "--linear-probe.batch-size", "1"]) == 2
    assert re.search(r"steps\.json .*linear-probe.*--out", capsys.readouterr().err)
    assert main([*arguments, "--seconds", "1"]) == 2
    assert re.search(r"steps\.json .*--seconds 0\.5", capsys.readouterr().err)
    for name, steps in (("vitsplit", 1), ("linear-probe", 2)):
        config = json.loads((out / "runs" / f"{name}-seed0" / "config.json").read_text())
        assert config["loop"]["steps"] == steps


def test_steps_follow_the_median_step_time():
    assert steps_of({"a": [0.5, 9.0, 0.4], "b": [2.0, 2.0, 2.0]}, 10.0) == {"a": 20, "b": 5}
    with pytest.raises(ConfigError, match=r"--seconds 1: .* b .*2\.0 s"):
        steps_of({"a": [0.5], "b": [2.0]}, 1.0)


@pytest.mark.parametrize(
    "known",
    ["", "[]", "{}", '{"seconds": 1, "settings": {}, "steps": [1]}', '{"seconds": "1", "settings": {}, "steps": {}}',
     '{"seconds": 1, "settings": {}, "steps": {"vitsplit": 0}}', '{"seconds": 1, "settings": {}, "steps": {"a": 1.5}}'],
)  # fmt: skip
def test_steps_without_times_are_rejected(scenes, tmp_path, known, capsys):
    (tmp_path / "steps.json").write_text(known)
    arguments = [*ACCURACY, "--data", str(scenes), "--out", str(tmp_path), *TINY, "--seconds", "1"]
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
    assert main([*common, "--seconds", "0"]) == 2
    assert "--seconds must be" in capsys.readouterr().err
