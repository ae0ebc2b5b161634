import json

import pytest
import torch

from vitsplit.engine.run_folder import RunFolder
from vitsplit.errors import RunError


def open_run(path, *, resume=False):
    """Opens and closes a run folder."""
    with RunFolder.open(path, resume=resume) as run:
        return run


@pytest.fixture
def taken(tmp_path):
    run = open_run(tmp_path / "taken")
    run.path.mkdir()
    run.write_config({"a": 1})
    return run


def test_a_folder_with_a_run_is_rejected_with_both_remedies(taken):
    with pytest.raises(RunError, match=r"already holds a run.*--resume.*--out"):
        open_run(taken.path)
    resumed = open_run(taken.path, resume=True)
    assert resumed.holds_run and resumed.read_config() == {"a": 1}


def test_a_folder_with_other_files_is_rejected(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(RunError, match=r"photo\.jpg.*--out"):
        open_run(tmp_path)
    with pytest.raises(RunError, match=r"no config\.json, but photo\.jpg"):
        open_run(tmp_path, resume=True)
    with pytest.raises(RunError, match="is a file, not a folder"):
        open_run(tmp_path / "photo.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("left", ["", "log.txt", ".start.json", "..start.json.new", ".config.json.new"])
def test_an_aborted_start_does_not_occupy_the_folder(tmp_path, left, resume):
    if left:
        (tmp_path / left).write_text("weights not found")
    (tmp_path / ".lock").write_text('{"pid": 1, "ho')
    assert not open_run(tmp_path, resume=resume).holds_run


def test_a_foreign_data_json_is_not_overwritten(tmp_path):
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(RunError, match=r"data\.json"):
        open_run(tmp_path)
    (tmp_path / ".start.json").write_text("{}")  # of a start that noted its data and was killed
    open_run(tmp_path)


def test_resume_requires_a_run_folder(tmp_path):
    with pytest.raises(RunError, match="missing"):
        open_run(tmp_path / "missing", resume=True)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    "place",
    ["checkpoints", "best", "last", "pictures", "tensorboard", "log.txt", "metrics.jsonl", "checkpoints/step-00000003",
     "checkpoints/.step-00000003.new", "best/depth", ".last.old"],
)  # fmt: skip
def test_a_link_in_a_run_is_rejected_before_removing_files(taken, tmp_path, place):
    outside = tmp_path / "outside"
    (outside / "step-00000001").mkdir(parents=True)
    link = taken.path / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(RunError, match=rf"{link.name} is a link to .*outside"):
        open_run(taken.path, resume=True)
    assert [path.name for path in outside.iterdir()] == ["step-00000001"]


def test_the_run_folder_can_be_a_link(taken, tmp_path):
    (tmp_path / "elsewhere").symlink_to(taken.path)
    assert open_run(tmp_path / "elsewhere", resume=True).holds_run


def test_metrics_are_truncated_to_a_step(taken):
    rows = [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5}, {"step": 4, "eval": {"x": 1}}, {"step": 6, "loss": 0.2}]
    for row in rows:
        taken.append_metrics(row)
    with taken.metrics_file.open("a") as file:
        file.write('{"step": 8, "lo')  # a kill in the middle of a row
    taken.truncate_metrics(4)
    assert [json.loads(line) for line in taken.metrics_file.read_text().splitlines()] == rows[:3]


def test_an_interrupted_replacement_of_a_bundle_is_repaired(taken):
    (taken.path / ".best.old").mkdir()
    (taken.path / ".best.old" / "head.json").write_text("old")
    (taken.path / ".best.new").mkdir()
    (taken.path / ".last.new").mkdir()
    open_run(taken.path, resume=True)
    assert (taken.best / "head.json").read_text() == "old"
    assert sorted(path.name for path in taken.path.iterdir()) == ["best", "config.json"]


def test_every_start_is_recorded_and_shares_an_id(taken):
    first = taken.record_start(torch.device("cpu"), processes=1)
    second = taken.record_start(torch.device("cpu"), processes=2)
    starts = json.loads(taken.environment_file.read_text())
    assert first == second == starts[0]["run_id"] == starts[1]["run_id"]
    assert [start["processes"] for start in starts] == [1, 2]
    assert starts[0]["versions"]["torch"] == torch.__version__.split("+")[0]


@pytest.mark.parametrize(
    "rows",
    ["[1]\n", '{"loss": 1.0}\n', '{"step": "2"}\n', '{"step": -1}\n', '{"step": 1e999}\n', '{"step": 2, "loss": "x"}\n',
     '{"step": 2, "eval": [1]}\n', '{"step": 2\n{"step": 4}\n', '{"step": NaN}\n', '{"step": 2, "step": 3}\n'],
)  # fmt: skip
def test_invalid_rows_are_named(taken, rows):
    taken.metrics_file.write_text('{"step": 1, "loss": null}\n' + rows)
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 2"):
        taken.truncate_metrics(4)
    assert taken.metrics_file.read_text().endswith(rows)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[3]", "[{}]", '[{"run_id": 5}]', '[{"run_id": "../../x"}]', '[{"run_id": "' + "a" * 99 + '"}]'],
)
def test_a_broken_record_of_starts_is_named(taken, content):
    taken.environment_file.write_text(content)
    with pytest.raises(RunError, match=r"environment\.json.*Delete it"):
        taken.record_start(torch.device("cpu"), processes=1)


@pytest.mark.parametrize("content", ["", "[]", "7", '{"a": 1, "a": 2}', '{"loop": Infinity}', "[" * 100_000])
def test_a_broken_configuration_is_named(taken, content):
    taken.config_file.write_text(content)
    with pytest.raises(RunError, match=r"config\.json"):
        taken.read_config()
