"""Two processes on processors (gloo) train as one does with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import IGNORE, TinyTask, tiny_run

from vitsplit.training.sampling import SampleStream

SETTINGS = {"steps": 20, "batch_size": 8, "accumulate": 2, "eval_every": 10, "clip_norm": 0.5, "ema": 0.9}


STREAM = SampleStream(23, 0)
SECOND_HALF = [f"image-{STREAM[position][0]:02d}.png" for position in range(12, 16)]  # of step 2: the second process's


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("launched")
    runs = {
        "good": SETTINGS | {"track": ["tensorboard"]},
        "bad": SETTINGS | {"accumulate": 1, "nan_for": SECOND_HALF[1]},
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("launch_tiny.py")
    done = subprocess.run(
        [*launcher, str(script), str(out), json.dumps(runs)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def two(launched) -> Path:
    return launched / "good"


def test_two_processes_end_with_the_weights_of_one(two, tmp_path):
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


def test_the_processes_had_different_images_and_unequal_numbers_of_ignored_patches(two):
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


def test_everything_is_written_once(two):
    rows = [json.loads(line) for line in (two / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(2, 21, 2))
    assert [row["step"] for row in rows if "eval" in row] == [10, 20]
    assert len(list((two / "run/tensorboard").iterdir())) == 1
    assert len(json.loads((two / "run/environment.json").read_text())) == 1
    assert (two / "run/log.txt").read_text().count("precision:") == 1
    assert "step 20/20" in (two / "printed-0.txt").read_text()
    assert (two / "printed-1.txt").read_text() == ""


def test_a_loss_that_is_not_finite_in_one_process_stops_both_and_names_its_files(launched):
    messages = [(launched / "bad" / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert f"Step 2: the loss is nan. Files of the batch: {', '.join(SECOND_HALF)}." in messages[0]
