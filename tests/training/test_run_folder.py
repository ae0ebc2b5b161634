import json

import pytest
import torch

from vitsplit.errors import RunError
from vitsplit.training.run_folder import RunFolder


@pytest.fixture
def taken(tmp_path):
    run = RunFolder.open(tmp_path / "taken")
    run.write_config({"a": 1})
    return run


def test_a_taken_folder_is_refused_with_both_ways_out(taken):
    with pytest.raises(RunError, match=r"already holds a run.*--resume.*--out"):
        RunFolder.open(taken.path)
    assert RunFolder.open(taken.path, resume=True).read_config() == {"a": 1}


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(RunError, match=r"not an empty folder.*--out"):
        RunFolder.open(tmp_path)
    with pytest.raises(RunError, match="not an empty folder"):
        RunFolder.open(tmp_path / "photo.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_start_that_failed_early_does_not_take_the_folder(tmp_path):
    run = RunFolder.open(tmp_path / "run")
    run.log_file.write_text("weights not found")
    assert RunFolder.open(tmp_path / "run").path == run.path


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_there_must_be_a_run_to_resume(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=f"{name} holds no run to resume"):
        RunFolder.open(tmp_path / name, resume=True)


def test_metrics_are_cut_back_to_a_step(taken):
    rows = [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5}, {"step": 4, "eval": {"x": 1}}, {"step": 6, "loss": 0.2}]
    for row in rows:
        taken.append_metrics(row)
    with taken.metrics_file.open("a") as file:
        file.write('{"step": 8, "lo')  # a kill in the middle of a row
    taken.cut_metrics(4)
    assert [json.loads(line) for line in taken.metrics_file.read_text().splitlines()] == rows[:3]


def test_an_interrupted_replacement_of_a_bundle_is_put_right(taken):
    (taken.path / ".best.old").mkdir()
    (taken.path / ".best.old" / "head.json").write_text("old")
    (taken.path / ".best.new").mkdir()
    (taken.path / ".last.new").mkdir()
    RunFolder.open(taken.path, resume=True)
    assert (taken.best / "head.json").read_text() == "old"
    assert sorted(path.name for path in taken.path.iterdir()) == ["best", "config.json"]


def test_every_start_is_recorded_and_shares_an_id(taken):
    first = taken.record_start(torch.device("cpu"), processes=1)
    second = taken.record_start(torch.device("cpu"), processes=2)
    starts = json.loads(taken.environment_file.read_text())
    assert first == second == starts[0]["run_id"] == starts[1]["run_id"]
    assert [start["processes"] for start in starts] == [1, 2]
    assert starts[0]["versions"]["torch"] == torch.__version__.split("+")[0]
