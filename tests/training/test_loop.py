import json

from tiny import tiny_run


def test_a_run_leaves_the_documented_folder(tmp_path):
    run = tiny_run(tmp_path / "run", track=("tensorboard",))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "best",
        "last",
        "checkpoints",
        "tensorboard",
    }
    rows = [json.loads(line) for line in run.folder.metrics_file.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6, 8, 10, 12]
    assert rows[-1]["step"] == 12 and rows[-1]["eval"]["count"] > 0
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
