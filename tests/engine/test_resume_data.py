"""Data files that change between two starts of a run; the oracle is the change that was made."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from tiny import TinyTask, tiny_run

import vitsplit
from small_run import SMALL_RUN
from vitsplit.cli.main import main
from vitsplit.engine.resume import changes, fingerprint, read_fingerprint, write_fingerprint
from vitsplit.errors import DataError, RunError
from vitsplit.recipes import recipe
from vitsplit.sample import write_segmentation_set
from vitsplit.tasks import open_task
from vitsplit.tasks.detection.annotations import AnnotationLog
from vitsplit.tasks.detection.yolo import read_yolo
from vitsplit.tasks.vqa.samples import open_samples


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(6):
        file = folder / f"{index}.png"
        file.write_bytes(bytes(10 + index))
        os.utime(file, (1_700_000_000, 1_700_000_000))
    return folder


def files(folder):
    return {path.name: path for path in sorted(folder.iterdir())}


def test_the_record_round_trips(folder, tmp_path):
    found = fingerprint(files(folder))
    assert found["3.png"] == (13, 1_700_000_000) and list(found) == [f"{index}.png" for index in range(6)]
    write_fingerprint(tmp_path / "data.json", found)
    assert read_fingerprint(tmp_path / "data.json") == found
    assert changes(found, read_fingerprint(tmp_path / "data.json")) == ""


def test_changes_are_counted_and_named(folder):
    before = fingerprint(files(folder))
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes(b"other")
    os.utime(folder / "2.png", (1_700_000_100, 1_700_000_100))
    (folder / "new.png").touch()
    message = changes(before, fingerprint(files(folder)))
    assert message.startswith("of 6 files ")
    for part in ("1 missing (0.png)", "1 new (new.png)", "1 of another size (1.png)", "time (2.png)"):
        assert part in message
    assert "only times differ" not in message


def test_copies_without_times_and_rounded_times_are_accepted(folder, tmp_path):
    before = fingerprint(files(folder))
    shutil.copytree(folder, tmp_path / "kept")  # with the times
    assert changes(before, fingerprint(files(tmp_path / "kept"))) == ""
    for path in folder.iterdir():
        os.utime(path, (1_700_000_001.9, 1_700_000_001.9))  # as file systems and archives round
    assert changes(before, fingerprint(files(folder))) == ""
    for path in folder.iterdir():
        path.touch()
    message = changes(before, fingerprint(files(folder)))
    assert "6 of the same size with another modification time (0.png, 1.png, 2.png, ...)" in message
    assert "only times differ" in message


def test_another_order_of_the_same_files_is_a_change(folder):
    before = fingerprint(files(folder))
    named = files(folder)
    swapped = {name: named[name] for name in ("0.png", "2.png", "1.png", "3.png", "4.png", "5.png")}
    assert changes(before, fingerprint(swapped)) == "the same files in another order, from 2.png on"


def test_non_utf8_names_and_missing_files(folder, tmp_path):
    odd = folder / os.fsdecode(b"\xff.png")
    odd.touch()
    write_fingerprint(tmp_path / "data.json", fingerprint(files(folder)))
    assert len(read_fingerprint(tmp_path / "data.json")) == 7
    with pytest.raises(DataError, match=r"gone\.png"):
        fingerprint({"gone.png": folder / "gone.png"})


@pytest.mark.parametrize(
    "content", ["", "[]", '{"a": 1}', '{"a": [1]}', '{"a": [1, 2.5]}', '{"a": [true, 1]}', '{"a": [1, 1e400]}']
)
def test_a_broken_record_is_named(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(RunError, match=r"data\.json.*Delete it"):
        read_fingerprint(tmp_path / "data.json")


def test_a_hundred_thousand_files_take_seconds(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(1000)]
    for path in paths:
        path.touch()
    names = {f"images/train/{index}.png": paths[index % 1000] for index in range(100_000)}
    began = time.process_time()
    found = fingerprint(names)
    write_fingerprint(tmp_path / "data.json", found)
    assert changes(read_fingerprint(tmp_path / "data.json"), found) == ""
    assert time.process_time() - began < 10


class FromFolder(TinyTask):
    """A task with data files."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def files(self):
        return files(self.folder)


def test_a_run_on_changed_data_is_resumed_only_with_the_flag(folder, tmp_path):
    out = tmp_path / "run"
    tiny_run(out, task=FromFolder(folder), steps=2)
    tiny_run(out, task=FromFolder(folder), steps=2, resume=True)
    (folder / "3.png").write_bytes(b"x")
    with pytest.raises(RunError, match=r"another size \(3\.png\).*--allow-changed-data.*--out"):
        tiny_run(out, task=FromFolder(folder), steps=2, resume=True)
    allowed = tiny_run(out, task=FromFolder(folder), steps=2, resume=True, allow_changed_data=True)
    assert "3.png" in allowed.printed
    # The changed data are recorded, and accepted from then on.
    assert "3.png" not in tiny_run(out, task=FromFolder(folder), steps=2, resume=True).printed


def test_a_run_without_a_record_resumes_with_a_warning(folder, tmp_path):
    run = tiny_run(tmp_path / "run", task=FromFolder(folder), steps=2)
    run.folder.data_file.unlink()
    assert "not compared" in tiny_run(tmp_path / "run", task=FromFolder(folder), steps=2, resume=True).printed
    assert len(json.loads(run.folder.data_file.read_text())) == 6
    assert not tiny_run(tmp_path / "memory", steps=2).folder.data_file.exists()


def test_more_images_are_allowed_in_another_order(folder, tmp_path):
    class More(FromFolder):
        def train_data(self):
            data = super().train_data()
            data.count = 24
            return data

    tiny_run(tmp_path / "run", task=FromFolder(folder), steps=2)
    with pytest.raises(RunError, match=r"23 images.* 24.*--allow-changed-data"):
        tiny_run(tmp_path / "run", task=More(folder), steps=2, resume=True)
    allowed = tiny_run(tmp_path / "run", task=More(folder), steps=2, resume=True, allow_changed_data=True)
    assert "now there are 24" in allowed.printed


def test_segmentation_records_all_its_files(tmp_path):
    first = write_segmentation_set(tmp_path / "data", 3, 2, (48, 64), seed=1, workers=1)
    run = tmp_path / "run"
    vitsplit.train(data=first, out=run, **SMALL_RUN)
    expected = {
        path.relative_to(first).as_posix(): path.stat().st_size
        for path in first.rglob("*")
        if path.is_file() and path.parent.parent.name in ("images", "masks")
    }
    expected["classes.json"] = (first / "classes.json").stat().st_size
    recorded = {name: state[0] for name, state in json.loads((run / "data.json").read_text()).items()}
    assert recorded == expected and len(recorded) == 2 * 5 + 1
    moved = tmp_path / "elsewhere" / "data"
    moved.parent.mkdir()
    first.rename(moved)
    assert main(["train", "segmentation", "--data", str(moved), "--out", str(run), "--resume"]) == 0


def test_the_command_reports_an_edited_mask(tmp_path, capsys):
    data = write_segmentation_set(tmp_path / "data", 3, 2, (48, 64), seed=1, workers=1)
    run = tmp_path / "run"
    vitsplit.train(data=data, out=run, **SMALL_RUN)
    mask = sorted((data / "masks" / "train").iterdir())[0]
    Image.fromarray(np.zeros((48, 64), dtype=np.uint8)).save(mask)
    words = ["train", "segmentation", "--data", str(data), "--out", str(run), "--resume"]
    capsys.readouterr()
    assert main(words) == 2
    assert f"masks/train/{mask.name}" in capsys.readouterr().err
    assert main([*words, "--allow-changed-data"]) == 0


@pytest.mark.parametrize("task", ["depth", "detection"])
def test_every_task_records_images_and_labels(task, tmp_path):
    data = write_segmentation_set(tmp_path / "data", 4, 2, (48, 64), seed=1, workers=1)
    found = open_task(recipe(f"laptop-{task}").task, data).files()
    images = {path.relative_to(data).as_posix() for path in (data / "images").rglob("*") if path.is_file()}
    depths = {name.replace("images", "depth").replace(".jpg", ".png") for name in images}
    labels = {"depth": {"depth.json", *depths}}
    labels["detection"] = {path.relative_to(data).as_posix() for path in (data / "annotations").iterdir()}
    assert found.keys() == images | labels[task]
    assert all(path == data / name for name, path in found.items())


def test_questions_record_their_file_and_images(tmp_path):
    data = write_segmentation_set(tmp_path / "data", 4, 2, (48, 64), seed=1, workers=1)
    found = open_samples(data, "train", recipe("laptop-vqa").task)
    names = found.files()
    assert names[found.file.name] == found.file and len(names) == 1 + 4
    assert all((found.file.parent / name).samefile(path) for name, path in names.items())


def test_yolo_records_a_label_file_per_image(tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "classes.json").write_text('["thing"]')
    for name in ("a", "b"):
        Image.fromarray(np.zeros((48, 64, 3), dtype=np.uint8)).save(tmp_path / "images" / "train" / f"{name}.png")
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")  # b has no objects
    found = read_yolo(tmp_path, "train", AnnotationLog())
    assert set(found.files()) == {"images/train/a.png", "labels/train/a.txt", "images/train/b.png"}
