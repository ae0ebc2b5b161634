"""Studies: which runs they have, which are trained and which are reused."""

import dataclasses
import functools
import json
import statistics

import pytest

from small_run import SMALL_RUN
from vitsplit import api
from vitsplit.analysis import runs
from vitsplit.analysis.runs import Outcome, outcome, plan, run_status
from vitsplit.analysis.study import Cost, Costs, rows
from vitsplit.analysis.study_report import describe_cost
from vitsplit.analysis.variants import Variant
from vitsplit.engine.override import override
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.step_numbers import StepNumbers
from vitsplit.errors import ConfigError, RunError, TrainingError
from vitsplit.recipes import recipe

ONE = Variant(name="one", settings={"num_tuned_layers": 1})
TWO = Variant(name="two", settings={"num_tuned_layers": 2})
TWIN = Variant(name="twin", settings={"prior_layers": ()})


def small(**settings):
    return override(recipe("laptop-segmentation"), {**SMALL_RUN, "steps": 2, **settings})


@pytest.fixture
def trained():
    """The folders that are trained, in order, and whether they were resumed."""
    return []


@pytest.fixture
def run_trials(trained):
    def train(config, **options):
        trained.append((options["out"].name, options["resume"]))
        return api.train(config, **options)

    return functools.partial(runs.run_trials, train=train)


def test_a_plan_has_every_variant_and_seed_without_duplicate_runs(tmp_path):
    trials = plan(small(), [ONE, TWO, TWIN], [0, 7], tmp_path)
    assert [(trial.variant.name, trial.seed) for trial in trials] == [
        *(("one", 0), ("two", 0), ("twin", 0)),
        *(("one", 7), ("two", 7), ("twin", 7)),
    ]
    assert [trial.config.method.num_tuned_layers for trial in trials[:3]] == [1, 2, 2]
    assert {trial.config.loop.seed for trial in trials[3:]} == {7}
    assert trials[2].folder == trials[1].folder != trials[4].folder
    assert trials[0].folder == tmp_path / "runs" / "one-seed0"


@pytest.mark.parametrize(
    ("variants", "seeds", "expected"),
    [
        ([ONE, ONE], [0], "Two variants are called 'one'"),
        ([Variant(name="a/b", settings={})], [0], "cannot be called 'a/b'"),
        ([ONE], [1, 1], "--seeds 1 1"),
        ([Variant(name="x", settings={"num_tuned_layer": 1})], [0], "Did you mean num_tuned_layers"),
    ],
)
def test_invalid_plans_are_rejected(variants, seeds, expected, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        plan(small(), variants, seeds, tmp_path)


def test_a_second_call_trains_only_new_variants(scenes, tmp_path, trained, run_trials):
    first = run_trials(plan(small(), [ONE, TWIN], [0], tmp_path), scenes, tmp_path)
    assert trained == [("one-seed0", False), ("twin-seed0", False)] and len(first.outcomes) == 2
    found = first.outcomes[0]
    run = json.loads((tmp_path / "runs" / "one-seed0" / "pictures" / "metrics.json").read_text())
    assert found.metrics == run and found.score == run["miou"] and found.score_name == "miou"
    assert found.steps == 2 and found.seconds > 0 and len(found.description["classes"]) > 1
    trained.clear()
    heard = []
    trials = plan(small(), [ONE, TWIN, TWO], [0], tmp_path)
    again = run_trials(trials, scenes, tmp_path, on_finished=lambda outcomes: heard.append(len(outcomes)))
    assert trained == [] and heard == [3]
    assert [each.score for each in again.outcomes[:2]] == [each.score for each in first.outcomes]
    with pytest.raises(RunError, match=r"other settings \(optim\.lr"):
        run_trials(plan(small(lr=0.5), [ONE], [0], tmp_path), scenes, tmp_path)
    with pytest.raises(RunError, match=r"'segmentation' on .*study\.json"):
        run_trials(trials, tmp_path, tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", '{"task": 1}', '{"a": NaN}', "null", "[" * 100_000])
def test_an_unreadable_study_is_named(scenes, tmp_path, content, run_trials):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(RunError, match=r"study\.json"):
        run_trials(plan(small(), [ONE], [0], tmp_path), scenes, tmp_path)


def test_a_run_of_another_head_is_rejected(scenes, tmp_path, trained, run_trials):
    trials = plan(small(), [ONE], [0], tmp_path)
    run_trials(trials, scenes, tmp_path)
    state = next((trials[0].folder / "checkpoints").glob("*2/state.json"))
    state.write_text(state.read_text().replace('"segmentation": {', '"depth": {'))
    with pytest.raises(RunError, match="one-seed0"):
        outcome(trials[0])


def test_an_interrupted_run_resumes_with_the_same_result(scenes, tmp_path, trained, run_trials, monkeypatch):
    config = small(steps=3, checkpoint_every=1)
    whole = run_trials(plan(config, [ONE], [0], tmp_path / "whole"), scenes, tmp_path / "whole")
    trials = plan(config, [ONE], [0], tmp_path / "cut")
    read = StepNumbers.read

    def with_a_signal_in_the_second(self):
        result = read(self)
        return dataclasses.replace(result, stop="SIGTERM" if result.step == 2 else None)

    monkeypatch.setattr(StepNumbers, "read", with_a_signal_in_the_second)
    cut = run_trials(trials, scenes, tmp_path / "cut")
    assert cut.stopped_by == "SIGTERM" and cut.outcomes == () and run_status(trials[0]) == "interrupted"
    with pytest.raises(RunError, match="no finished run"):
        outcome(trials[0])
    monkeypatch.setattr(StepNumbers, "read", read)
    resumed = run_trials(trials, scenes, tmp_path / "cut")
    assert trained == [("one-seed0", False), ("one-seed0", False), ("one-seed0", True)]
    assert resumed.outcomes[0].metrics == whole.outcomes[0].metrics and resumed.outcomes[0].steps == 3


@pytest.mark.slow
def test_runs_in_separate_processes(scenes, tmp_path, run_trials):
    trials = plan(small(steps=1), [ONE, TWO], [3], tmp_path)
    result = run_trials(trials, scenes, tmp_path, processes=2)
    assert [each.trial.variant.name for each in result.outcomes] == ["one", "two"] and result.stopped_by is None
    assert RunFolder(trials[1].folder).read_config()["loop"]["seed"] == 3


def test_a_failed_process_is_named_with_its_last_output_and_stops_the_study(tmp_path, monkeypatch, run_trials):
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/called"\necho "error: no such crop" >&2\nexit 2\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(stand_in))
    out = tmp_path / "study"
    with pytest.raises(TrainingError, match=r"one-seed0.*: error: no such crop"):
        run_trials(plan(small(), [ONE, TWO], [0, 1], out), tmp_path, out, processes=2)
    called = (tmp_path / "called").read_text().splitlines()
    assert len(called) == 2  # two at once, of four
    words = called[0].split()
    assert words[:5] == ["-P", "-m", "vitsplit", "train", "segmentation"]
    assert words[words.index("--data") + 1] == str(tmp_path) and "--resume" not in words


def test_rows_have_mean_and_spread_over_seeds(tmp_path):
    counted = []

    def count(config, description):
        counted.append(config.method.num_tuned_layers)
        return Cost(parameters=config.method.num_tuned_layers, gmacs=0.0, head_gmacs=0.0)

    trials = plan(small(), [ONE, TWO, TWIN], [0, 1, 2], tmp_path)
    scores = {("one", 0): 0.5, ("one", 1): 0.6, ("one", 2): 0.8, ("two", 1): 0.25}
    outcomes = [
        Outcome(
            trial=trial, score=scores[key], best_score=1, score_name="miou", metrics={}, steps=2, seconds=key[1],
            description={},
        )
        for trial in trials
        if (key := (trial.variant.name, trial.seed)) in scores
    ]  # fmt: skip
    one, two, twin = rows(trials, outcomes, Costs({}, count))
    assert counted == [1, 2]
    assert one.mean == pytest.approx(19 / 30) and one.spread == pytest.approx(statistics.stdev([0.5, 0.6, 0.8]))
    assert one.seconds == 1.0 and list(one.by_seed) == [0, 1, 2]
    assert two.scores == [0.25] and two.spread is None and twin.scores == [] and twin.mean != twin.mean


def test_the_cheapest_head_within_the_standard_error_is_named(tmp_path):
    def count(config, description):
        return Cost(parameters=1, gmacs=9.0, head_gmacs=float(config.method.num_tuned_layers))

    variants = [Variant(name=name, settings={"num_tuned_layers": index + 1}) for index, name in enumerate("abc")]
    trials = plan(small(), variants, [0, 1], tmp_path)

    def described(scores):
        outcomes = [
            Outcome(
                trial=trial, score=scores[trial.variant.name][trial.seed], best_score=1, score_name="miou", metrics={},
                steps=2, seconds=1, description={},
            )
            for trial in trials
        ]  # fmt: skip
        return describe_cost(rows(trials, outcomes, Costs({}, count)))

    # The standard error of c is 0.05: b is within it, and a is not.
    text = described({"a": (0.40, 0.40), "b": (0.57, 0.57), "c": (0.55, 0.65)})
    assert text.startswith("c ") and "60.00" in text and "3 GMACs" in text and "b is 3.00 behind, with 2 GMACs" in text
    assert "No cheaper head" in described({"a": (0.40, 0.40), "b": (0.50, 0.50), "c": (0.60, 0.60)})
