import json
import multiprocessing
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vitsplit.cli.main import main
from vitsplit.data import check
from vitsplit.data.check import ITEMS_PER_PROCESS, map_files
from vitsplit.data.classes import read_classes
from vitsplit.data.show import SHOWN, show_report
from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks import check_data
from vitsplit.tasks.segmentation.check import inspect_pair

RNG = np.random.default_rng(0)


@pytest.fixture
def root(tmp_path):
    """Four images per split, of noise, with masks whose left half is class 0 and right half class 1."""
    for split in ("train", "val"):
        for k in range(4):
            write(tmp_path, split, k)
    (tmp_path / "classes.json").write_text(json.dumps(["left", "right"]))
    return tmp_path


def write(root, split, name, image=None, mask=None):
    image = RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8) if image is None else image
    mask = np.repeat([[0] * 5 + [1] * 5], 8, axis=0).astype(np.uint8) if mask is None else mask
    for kind, array in (("images", image), ("masks", mask)):
        path = root / kind / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def only_error(root, kind):
    report = check_data(root, "segmentation", workers=1)
    assert [finding.kind for finding in report.errors] == [kind]
    assert main(["data", "check", str(root), "--workers", "1"]) == 1
    return report.errors[0]


def test_a_valid_set_has_no_findings(root):
    mask = np.full((8, 10), 255, np.uint8)
    mask[:, :2] = 1
    write(root, "train", "more", np.zeros((8, 10), np.uint8), mask)
    write(root, "train", "large", RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8), np.zeros((20, 30), np.uint8))
    report = check_data(root, "segmentation", workers=1)
    assert report.findings == [] and report.format == "folder"
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, val.images) == (6, 4)
    assert train.sizes == [(10, 8, 5), (30, 20, 1)] and val.sizes == [(10, 8, 4)]
    assert train.converted == {"gray": 1}
    labeled = 4 * 80 + 16 + 600
    assert [(c.name, c.count, c.images) for c in train.classes] == [("left", 760, 5), ("right", 176, 5)]
    assert train.classes[1].share == pytest.approx(176 / labeled)
    assert train.ignored_share == pytest.approx(64 / (labeled + 64)) and val.ignored_share == 0


def test_workers_give_the_same_report_and_progress_is_reported(root, monkeypatch):
    calls = []
    alone = check_data(root, "segmentation", workers=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k, 8) for k in range(1, 9)]
    for k in range(4, 12):
        write(root, "val", k)
    alone = check_data(root, "segmentation", workers=1)
    monkeypatch.setattr(check, "ITEMS_PER_PROCESS", 4)
    assert check_data(root, "segmentation", workers=2).to_json() == alone.to_json()


def test_truncated_image_is_reported(root):
    path = root / "images" / "val" / "2.png"
    path.write_bytes(path.read_bytes()[:120])
    error = only_error(root, "unreadable image")
    assert error.file == str(path) and str(path) in error.message and "Copy it again" in error.message


def test_unreadable_mask_is_reported(root):
    path = root / "masks" / "train" / "0.png"
    path.write_bytes(b"")
    error = only_error(root, "unreadable mask")
    assert error.file == str(path) and "0 bytes" in error.message


def test_label_out_of_range_is_reported(root):
    mask = np.zeros((8, 10), np.uint8)
    mask[2, :3] = 9
    write(root, "train", 1, mask=mask)
    error = only_error(root, "label out of range")
    assert error.file == str(root / "masks" / "train" / "1.png")
    assert "value 9 (3 pixels)" in error.message and "2 classes" in error.message


def test_size_mismatch_is_reported(root):
    write(root, "val", 1, mask=np.eye(4, dtype=np.uint8))
    error = only_error(root, "size mismatch")
    assert error.file == str(root / "masks" / "val" / "1.png") and "4x4" in error.message and "10x8" in error.message


def test_color_mask_is_reported(root):
    write(root, "val", 1, mask=RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8))
    assert "mask_colors" in only_error(root, "unreadable mask").message


def test_image_in_two_splits_is_reported_across_names_and_formats(root):
    Image.open(root / "images" / "train" / "3.png").save(root / "images" / "val" / "3.bmp")
    (root / "images" / "val" / "3.png").unlink()
    error = only_error(root, "image in two splits")
    assert str(root / "images/train/3.png") in error.message and str(root / "images/val/3.bmp") in error.message
    assert "train and val" in error.message and "Remove it" in error.message


def test_blank_images_of_different_shapes_are_not_duplicates(root):
    write(root, "train", "wide", np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8))
    write(root, "val", "tall", np.zeros((6, 4, 3), np.uint8), np.zeros((6, 4), np.uint8))
    assert check_data(root, "segmentation", workers=1).errors == []


def test_warnings_do_not_fail(root):
    image = RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    write(root, "train", "x", image)
    write(root, "train", "y", image)
    write(root, "val", "z", mask=np.full((8, 10), 255, np.uint8))
    (root / "classes.json").write_text(json.dumps(["left", "right", "behind"]))
    report = check_data(root, "segmentation", workers=1)
    kinds = sorted(finding.kind for finding in report.warnings)
    assert kinds == ["classes never seen", "classes never seen", "duplicate image", "mask all ignored"]
    assert not report.errors and report.to_json()["ok"] is True
    message = "\n".join(finding.message for finding in report.warnings)
    assert "behind" in message and "x.png" in message and "y.png" in message and "z.png" in message
    assert main(["data", "check", str(root)]) == 0


def test_unmatched_files_are_reported_and_the_other_split_is_checked(root):
    (root / "masks" / "train" / "2.png").unlink()
    error = only_error(root, "split train cannot be opened")
    assert "1 of 4 images" in error.message and "(2)" in error.message
    assert list(check_data(root, "segmentation", workers=1).splits) == ["val"]


def test_all_errors_are_reported_together(root):
    write(root, "train", 0, mask=np.full((8, 10), 77, np.uint8))
    write(root, "train", 1, mask=np.eye(3, dtype=np.uint8))
    (root / "images" / "val" / "0.png").write_bytes(b"x")
    kinds = sorted(finding.kind for finding in check_data(root, "segmentation", workers=1).errors)
    assert kinds == ["label out of range", "size mismatch", "unreadable image"]


def test_json_on_standard_output(root, capsys):
    assert main(["data", "check", str(root), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True and report["splits"]["train"]["images"] == 4
    assert report["splits"]["val"]["classes"][1] == {"name": "right", "count": 160, "share": 0.5, "images": 4}


def test_tables_on_standard_output(root, capsys):
    write(root, "train", 0, mask=np.full((8, 10), 77, np.uint8))
    assert main(["data", "check", str(root)]) == 1
    output = capsys.readouterr().out
    assert "left" in output and "all 10x8" in output and "not ready: 1 error, 0 warnings" in output
    assert f"{root / 'masks' / 'train' / '0.png'}: label out of range: value 77 (80 pixels)" in output


def test_many_findings_are_summarized(root):
    for k in range(SHOWN + 3):
        write(root, "train", k, mask=np.full((8, 10), 77, np.uint8))
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    show_report(check_data(root, "segmentation", workers=1), console)
    output = console.export_text()
    assert f"label out of range ({SHOWN + 3})" in output and "and 3 more" in output


def test_missing_folder_and_unknown_task(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "absent")]) == 2
    assert "not found" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no task 'sums'"):
        check_data(tmp_path, "sums")


def test_a_killed_process_is_reported():
    with pytest.raises(DataError, match="--workers 1"):
        list(map_files(os._exit, [9] * 2 * ITEMS_PER_PROCESS, workers=2))


def process_of(item):
    return multiprocessing.current_process().name, multiprocessing.get_start_method(allow_none=True)


def test_processes_are_spawned_and_only_for_enough_files():
    """A fork would copy the locks of torch's threads, but not the threads that open them."""
    (alone,) = {name for name, _ in map_files(process_of, range(ITEMS_PER_PROCESS + 1), workers=8)}
    assert alone == multiprocessing.current_process().name
    assert alone == "MainProcess"
    found = set(map_files(process_of, range(2 * ITEMS_PER_PROCESS), workers=2))
    assert {method for _, method in found} == {"spawn"} and all("Spawn" in name for name, _ in found)


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "train", "val", "classes"), [("nyuv2", 636, 159, 39), ("camvid", 367, 101, 11)])
def test_public_sets_have_no_errors(name, train, val, classes):
    folder = os.environ.get("VITSPLIT_DATA")
    if not folder or not (Path(folder) / name).is_dir():
        pytest.skip(f"{name}: set VITSPLIT_DATA to the folder that holds it")
    report = check_data(
        Path(folder) / name, "segmentation", workers=1
    )  # so few images are read faster than a process starts
    assert report.errors == []
    assert {split: data.images for split, data in report.splits.items()} == {"train": train, "val": val}
    assert all(len(data.classes) == classes for data in report.splits.values())


def header_of_png(path, width, height):
    """A PNG that ends before its pixel data."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 1000) + b"IDAT"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + end)


def test_an_oversized_image_is_detected_from_its_header(root):
    header_of_png(root / "images" / "train" / "0.png", 13_300, 13_300)
    assert "too large" in only_error(root, "unreadable image").message


def test_pipes_are_reported_without_blocking(root):
    for kind in ("images", "masks"):
        (root / kind / "train" / "0.png").unlink()
        os.mkfifo(root / kind / "train" / "0.png")
    report = check_data(root, "segmentation", workers=1)
    assert sorted(finding.kind for finding in report.errors) == ["unreadable image", "unreadable mask"]


def test_large_pairs_use_little_memory(root):
    """What numpy allocates for 9 million pixels, without Pillow: the mask (a byte each), and copies of some rows."""
    white = np.full((3000, 3000, 3), 255, np.uint8)
    write(root, "train", "large", white, np.ones((3000, 3000), np.uint8))
    item = (root / "images/train/large.png", root / "masks/train/large.png")
    labels = read_classes(root / "classes.json")
    tracemalloc.start()
    try:
        pair = inspect_pair(item, labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pair.pixels == {1: 9_000_000} and pair.image.size == (3000, 3000) and not pair.findings
    assert peak < 4 * 9_000_000  # the whole image as an array takes 27 million more, its counting 72 million


def test_equal_pixels_have_equal_digests_across_formats(root):
    """The same picture as PNG, as TIFF turned by EXIF, and as a palette; another of the same bytes in another shape."""
    pixels = RNG.integers(0, 4, (8, 10, 1), dtype=np.uint8).repeat(3, 2) * 60
    exif = Image.Exif()
    exif[0x0112] = 6
    at = root / "images" / "train"
    Image.fromarray(pixels).save(at / "0.png")
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(at / "1.png", exif=exif)
    Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE).save(at / "2.png")
    Image.fromarray(pixels.reshape(10, 8, 3)).save(at / "3.png")
    facts = [check.inspect_image(at / f"{k}.png")[0] for k in range(4)]
    assert facts[0].digest == facts[1].digest == facts[2].digest != facts[3].digest
    assert [fact.kind for fact in facts] == ["RGB", "RGB, turned by EXIF", "palette", "RGB"]


def test_unprintable_names_are_escaped(root, capsys):
    for name in ("a\udcff", "b\x1b[31m"):
        write(root, "train", name)
        (root / "images" / "train" / f"{name}.png").write_bytes(b"broken")
    report = check_data(root, "segmentation", workers=1)
    assert len(report.errors) == 2
    assert main(["data", "check", str(root), "--workers", "1"]) == 1
    output = capsys.readouterr().out
    output.encode()
    assert "\x1b[31m" not in output and "b\\x1b" in output
    assert main(["data", "check", str(root), "--workers", "1", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 2
