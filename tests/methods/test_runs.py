"""Methods on the command line: a few steps of training, evaluation and prediction on generated scenes."""

import json

import pytest

from small_run import SMALL_RUN
from vitsplit.cli.main import main
from vitsplit.nn import upernet

SETTINGS = {name: value for name, value in SMALL_RUN.items() if name not in ("random_weights", "track", "image_scale")}
FLAGS = ["--random-weights", "--image-scale", "64", "48", "--track"]
for setting, value in SETTINGS.items():
    parts = value if isinstance(value, tuple) else (value,)
    FLAGS += [f"--{setting.replace('_', '-')}", *map(str, parts)]


@pytest.fixture(autouse=True)
def small_upernet(monkeypatch):
    """Fewer channels: the decoder of the paper, which test_counts checks, has 30 million parameters."""
    monkeypatch.setattr(upernet, "CHANNELS", 32)
    monkeypatch.setattr(upernet, "AUXILIARY_CHANNELS", 32)


@pytest.mark.parametrize(
    ("task", "method", "more"),
    [
        ("segmentation", "upernet", ["--dice-weight", "0.5", "--layer-decay", "0.9", "--drop-path", "0.1"]),
        ("segmentation", "lora", ["--trunk-lora-rank", "4"]),
        ("segmentation", "vit-adapter", ["--decoder", "linear"]),
        ("depth", "full-finetune", []),
        ("detection", "full-finetune", ["--pyramid-width", "16", "--anchor-sizes", "8", "16", "24", "32", "48"]),
    ],
)  # fmt: skip
def test_train_evaluate_predict(scenes, tmp_path, capsys, task, method, more):
    run, flags = tmp_path / "run", [*FLAGS, *more]
    assert main(["train", task, "--data", str(scenes), "--out", str(run), "--method", method, *flags]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 3 and all(0 < row["loss"] < 1e4 for row in steps)
    assert ("lr_task_head" in steps[0]) == (method != "lora")
    assert main(["evaluate", str(run), "--data", str(scenes), "--out", str(tmp_path / "page")]) == 0
    image = next((scenes / "images" / "val").iterdir())
    capsys.readouterr()
    assert main(["predict", str(run), str(image), "--out", str(tmp_path / "answers")]) == 0
    assert [path for path in (tmp_path / "answers").rglob("*") if path.is_file()]
    assert main(["info", str(run), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])["parameters"]
    own = counts["task_head"] if method == "lora" else counts["tuned"] + counts["added"]
    assert counts["trainable"] == own + counts["decoder"]
