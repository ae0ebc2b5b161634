"""Two processes on CPUs (gloo) give the same result as one with the same global batch."""

import json
from pathlib import Path

import pytest
import torch
from pair_runs import SECOND_HALF, SETTINGS, STREAM, one_head_config, two_heads_config
from safetensors.torch import load_file
from tiny import IGNORE, TinyTask, tiny_run

import vitsplit


@pytest.fixture(scope="module")
def launched(pairs) -> Path:
    """A folder of runs in two processes: tiny ones, and two command line runs on the scenes data set."""
    return pairs / "distributed"


@pytest.fixture
def two(launched) -> Path:
    return launched / "good"


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(two, tmp_path):
    one = tiny_run(tmp_path / "one", **SETTINGS)
    for rank in (0, 1):
        weights = load_file(two / f"weights-{rank}.safetensors")
        for name, tensor in one.weights.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5, msg=name)
        assert json.loads((two / f"score-{rank}.json").read_text()) == one.result.best_metrics
    for name, tensor in one.last.items():
        torch.testing.assert_close(load_file(two / "run/last/head.safetensors")[name], tensor, rtol=0, atol=1e-5)
    losses = [json.loads(line).get("loss") for line in (two / "run/metrics.jsonl").read_text().splitlines()]
    expected = [row.get("loss") for row in one.rows("step")]
    assert [loss for loss in losses if loss] == pytest.approx([loss for loss in expected if loss], abs=1e-5)


def test_processes_have_different_images_and_numbers_of_ignored_patches(two):
    seen = [json.loads((two / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    stream, data = STREAM, TinyTask().train_data()
    ignored = []
    for step in range(20):
        batch = [f"image-{stream[position][0]:02d}.png" for position in range(8 * step, 8 * step + 8)]
        spread = [name for process in seen for micro in process[2 * step : 2 * step + 2] for name in micro]
        assert spread == batch
        masks = [data[stream[position]][1] for position in range(8 * step, 8 * step + 8)]
        ignored.append([sum(int((mask == IGNORE).sum()) for mask in half) for half in (masks[:4], masks[4:])])
    assert sum(first != second for first, second in ignored) > 10


def test_files_are_written_by_one_process(two):
    rows = [json.loads(line) for line in (two / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(2, 21, 2))
    assert [row["step"] for row in rows if "eval" in row] == [10, 20]
    assert len(list((two / "run/tensorboard").iterdir())) == 1
    assert len(json.loads((two / "run/environment.json").read_text())) == 1
    assert (two / "run/log.txt").read_text().count("precision:") == 1
    assert "step 20/20" in (two / "printed-0.txt").read_text()
    assert (two / "printed-1.txt").read_text() == ""


def test_a_non_finite_loss_in_one_process_stops_both(launched):
    messages = [(launched / "bad" / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert f"Step 2: the loss is nan (patches). Files of the batch: {', '.join(SECOND_HALF)}." in messages[0]


@pytest.mark.parametrize("name", ["norms", "averaged_norms"])
def test_every_process_evaluates_with_the_saved_running_statistics(launched, name):
    computed = [json.loads((launched / name / f"computed-{rank}.json").read_text()) for rank in (0, 1)]
    assert computed[0] == computed[1]
    pictured = json.loads((launched / name / "run/pictures/index.html").read_text())
    assert pictured["title"] == "run, step 4"
    if name == "norms":
        weights = [load_file(launched / name / f"weights-{rank}.safetensors") for rank in (0, 1)]
        saved = load_file(launched / name / "run/last/head.safetensors")
        assert all(saved[key].equal(tensor) for each in weights for key, tensor in each.items())


def test_the_command_in_two_processes_gives_the_weights_of_one(launched, tmp_path):
    two = launched / "one_head" / "run"
    one = vitsplit.train(one_head_config(), data=launched / "data", out=tmp_path / "one")
    alone, together = (load_file(run / "last" / "head.safetensors") for run in (one.run, two))
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-5, msg=name)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.run.iterdir()}
    rows, expected = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (two, one.run)
    )
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5]
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in rows[:5]] == pytest.approx([row[name] for row in expected[:5]], rel=1e-4)
    assert len(json.loads((two / "environment.json").read_text())) == 1
    assert (two / "log.txt").read_text().count("precision:") == 1


def test_a_joint_run_in_two_processes_gives_the_weights_of_one(launched, tmp_path):
    two, data = launched / "two_heads" / "run", launched / "data"
    one = vitsplit.train(two_heads_config(), data={"segmentation": data, "depth": data}, out=tmp_path / "one")
    # Depth's loss is the root of a mean over a process's images, so it depends on the number of processes.
    alone, together = (load_file(run / "last" / "segmentation" / "head.safetensors") for run in (one.run, two))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-5, msg=name)
    assert load_file(two / "last" / "depth" / "head.safetensors").keys()
    assert {path.name for path in two.iterdir()} == {path.name for path in one.run.iterdir()}
