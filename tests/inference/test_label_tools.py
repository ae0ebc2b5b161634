"""Files for label tools: each is read by code of its tool, or restated from its documentation, and compared with the
predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from bundles import write_depth_bundle, write_detection_bundle, write_segmentation_bundle
from PIL import Image
from pycocotools.coco import COCO

import vitsplit
from vitsplit.cli.main import main
from vitsplit.inference.label_tools.label_studio import encode_brush
from vitsplit.tasks.detection.annotations import AnnotationLog
from vitsplit.tasks.detection.coco import read_coco

Found = dict[str, list[tuple[str, Any]]]
"""Class name, and mask (H, W) bool or box (x, y, width, height), of all regions of the images by name."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("run") / "best"
    return {
        "rooms": write_segmentation_bundle(root / "rooms", seed=1),
        "things": write_detection_bundle(root / "things", seed=3),
        "boxes": write_detection_bundle(root / "boxes", seed=4, masks=False),
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes, one in a folder of its own, with a name that is not plain."""
    folder = tmp_path_factory.mktemp("inputs") / "my photos"
    (folder / "deep").mkdir(parents=True)
    pixels = np.random.default_rng(0)
    for name, size in {"1.png": (60, 80, 3), "b.jpg": (80, 50, 3), "deep/ä & <1>.png": (60, 80, 3)}.items():
        Image.fromarray(pixels.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def expected(runs: dict[str, Path], photos: Path) -> dict[str, Found]:
    """What the predictor returns, by head and image."""
    model = vitsplit.load(runs, device="cpu")
    found: dict[str, Found] = {head: {} for head in runs}
    for file in sorted(path for path in photos.rglob("*") if path.is_file()):
        name, predictions = file.relative_to(photos).as_posix(), model.predict(file)
        mask_HW = predictions["rooms"].mask
        names = predictions["rooms"].classes.names
        found["rooms"][name] = [(names[label], mask_HW == label) for label in np.unique(mask_HW)]
        for head in ("things", "boxes"):
            each = predictions[head]
            corners = each.boxes.astype(float)
            shapes = each.masks if head == "things" else np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
            found[head][name] = [
                (each.classes.names[label], shape)
                for label, shape in zip(each.labels, shapes, strict=True)
                if head == "boxes" or shape.any()
            ]
    assert sum(map(len, found["rooms"].values())) > 6 and sum(map(len, found["things"].values())) > 6
    return found


@pytest.fixture(scope="module")
def out(runs: dict[str, Path], photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of all formats; images are predicted for the first one only."""
    folder = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("coco", "cvat", "label-studio", "fiftyone"):
            words = [*map(str, runs.values()), str(photos), "--out", str(folder), "--device", "cpu"]
            assert main(["predict", *words, "--export-format", kind, "--export-score", "0"]) == 0
            patch.setattr("vitsplit.inference.loading.open_backbone", lambda *_, **__: pytest.fail("backbone read"))
    return folder


def assert_equal(found: Found, expected: Found, tolerance: float = 0) -> None:
    assert found.keys() == expected.keys()
    for name, regions in expected.items():
        assert [label for label, _ in found[name]] == [label for label, _ in regions]
        for (_, ours), (_, theirs) in zip(found[name], regions, strict=True):
            assert np.shape(ours) == np.shape(theirs)
            assert np.allclose(ours, theirs, rtol=0, atol=tolerance)


def read_coco_file(file: Path) -> Found:
    coco = COCO(str(file))
    found: Found = {}
    for image in coco.dataset["images"]:
        entries = coco.imgToAnns[image["id"]]
        for entry in entries:
            if "segmentation" in entry:
                assert entry["area"] == coco.annToMask(entry).sum()
        found[image["file_name"]] = [
            (coco.cats[each["category_id"]]["name"],
             coco.annToMask(each).astype(bool) if "segmentation" in each else each["bbox"])
            for each in entries
        ]  # fmt: skip
    return found


@pytest.mark.parametrize("head", ["rooms", "things", "boxes"])
@pytest.mark.parametrize("name", ["{}_coco.json", "{}_fiftyone/labels.json"])
def test_pycocotools_reads_the_annotations(name: str, head: str, out: Path, expected: dict[str, Found]) -> None:
    assert_equal(read_coco_file(out / name.format(head)), expected[head], tolerance=0.001)


def test_the_annotations_are_a_data_set_for_training(out: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").symlink_to(photos)
    (tmp_path / "annotations" / "instances_train.json").write_bytes((out / "things_coco.json").read_bytes())
    log = AnnotationLog()
    data = read_coco(tmp_path, "train", log)
    assert not log.problems and len(data.items) == 3


def read_cvat(file: Path) -> Found:
    """From the documentation of "CVAT for images 1.1"."""
    found: Found = {}
    root = ElementTree.parse(file).getroot()
    assert root.findtext("version") == "1.1"
    labels = {label.findtext("name") for label in root.iterfind("meta/task/labels/label")}
    for image in root.iterfind("image"):
        shapes: list[tuple[str, Any]] = []
        for shape in image:
            assert shape.attrib["label"] in labels
            if shape.tag == "box":
                x1, y1, x2, y2 = (float(shape.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
                shapes.append((shape.attrib["label"], (x1, y1, x2 - x1, y2 - y1)))
                continue
            left, top, width, height = (int(shape.attrib[side]) for side in ("left", "top", "width", "height"))
            pixels: list[bool] = []
            for index, run in enumerate(shape.attrib["rle"].split(",")):
                pixels += [index % 2 == 1] * int(run)
            mask_HW = np.zeros((int(image.attrib["height"]), int(image.attrib["width"])), dtype=bool)
            mask_HW[top : top + height, left : left + width] = np.reshape(pixels, (height, width))
            shapes.append((shape.attrib["label"], mask_HW))
        found[image.attrib["name"]] = shapes
    return found


@pytest.mark.parametrize("head", ["rooms", "things", "boxes"])
def test_cvat_annotations(head: str, out: Path, expected: dict[str, Found]) -> None:
    assert_equal(read_cvat(out / f"{head}_cvat.xml"), expected[head], tolerance=0.01)


def test_cvat_masks_are_those_of_its_sdk(out: Path, expected: dict[str, Found]) -> None:
    masks = pytest.importorskip("cvat_sdk.masks")
    for image in ElementTree.parse(out / "things_cvat.xml").getroot().iterfind("image"):
        for shape, (_, mask_HW) in zip(image, expected["things"][image.attrib["name"]], strict=True):
            left, top, width, height = (int(shape.attrib[side]) for side in ("left", "top", "width", "height"))
            theirs = masks.encode_mask(mask_HW, [left, top, left + width, top + height])
            assert [int(run) for run in shape.attrib["rle"].split(",")] == theirs[:-4]
            assert theirs[-4:] == [left, top, left + width - 1, top + height - 1]


def read_brush(content: list[int]) -> np.ndarray:
    """From the description of ``@thi.ng/rle-pack``, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in content)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        same, size = take(1), sizes[take(2)]
        length = take(size) + 1
        values += [take(word)] * length if same else [take(word) for _ in range(length)]
    assert len(values) == total and len(bits) - place < 8
    return np.array(values)


def read_label_studio(file: Path) -> Found:
    found: Found = {}
    for task in json.loads(file.read_text()):
        regions: list[tuple[str, Any]] = []
        (prediction,) = task["predictions"]
        for result in prediction["result"]:
            width, height, value = result["original_width"], result["original_height"], result["value"]
            if result["type"] == "rectanglelabels":
                sides = np.array([value["x"], value["y"], value["width"], value["height"]])
                shape: Any = sides / 100 * [width, height, width, height]
            else:
                values_HW4 = read_brush(value["rle"]).reshape(height, width, 4)
                assert set(np.unique(values_HW4)) <= {0, 255} and (values_HW4 == values_HW4[..., :1]).all()
                shape = values_HW4[..., 3] == 255
            regions.append((value[result["type"]][0], shape))
        folder, _, name = unquote(task["data"]["image"].removeprefix("/data/local-files/?d=")).partition("/")
        assert folder == "my photos"
        found[name] = regions
    return found


@pytest.mark.parametrize("head", ["rooms", "things", "boxes"])
def test_label_studio_tasks(head: str, out: Path, expected: dict[str, Found]) -> None:
    assert_equal(read_label_studio(out / f"{head}_label-studio.json"), expected[head], tolerance=0.001)


@pytest.mark.parametrize("head", ["rooms", "things", "boxes"])
def test_label_studio_accepts_tasks_and_configuration(head: str, out: Path, expected: dict[str, Found]) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    config = interface((out / f"{head}_label-studio.xml").read_text())
    config.validate()
    for task, regions in zip(json.loads((out / f"{head}_label-studio.json").read_text()), expected[head].values(),
                             strict=True):  # fmt: skip
        assert config.validate_task({"data": task["data"]})
        assert config.validate_prediction(task["predictions"][0], return_errors=True) == []
        for result, (_, shape) in zip(task["predictions"][0]["result"], regions, strict=True):
            if head != "boxes":
                values_HW4 = brush.decode_rle(result["value"]["rle"]).reshape(*shape.shape, 4)
                assert np.array_equal(values_HW4[..., 3] == 255, shape)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 1])
def test_brushes_of_long_and_short_runs(share: float) -> None:
    mask_HW = np.random.default_rng(0).random((150, 301)) < share
    assert np.array_equal(read_brush(encode_brush(mask_HW)).reshape(150, 301, 4)[..., 0] == 255, mask_HW)


def test_the_manifest_of_fiftyone_has_the_images(out: Path, photos: Path, expected: dict[str, Found]) -> None:
    manifest = json.loads((out / "rooms_fiftyone" / "data.json").read_text())
    assert {name: Path(file) for name, file in manifest.items()} == {name: photos / name for name in expected["rooms"]}


@pytest.mark.parametrize("head", ["rooms", "things", "boxes"])
def test_fiftyone_imports_the_folder(head: str, out: Path, photos: Path, expected: dict[str, Found]) -> None:
    """Its importer alone: a data set of FiftyOne needs its database."""
    # Not in the test environment: all releases for Python 3.11 require a starlette older than that of vitsplit[serve].
    coco = pytest.importorskip("fiftyone.utils.coco", reason="fiftyone requires a starlette below 1.4, vitsplit 1.10")
    found: Found = {}
    folder = str(out / f"{head}_fiftyone")
    with coco.COCODetectionDatasetImporter(dataset_dir=folder, data_path="data.json") as importer:
        for path, metadata, labels in importer:
            regions: list[tuple[str, Any]] = []
            for each in labels["detections" if head == "boxes" else "segmentations"].detections:
                size = [metadata.width, metadata.height]
                shape: Any = np.array(each.bounding_box) * (size * 2)
                if head != "boxes":
                    x, y = (round(value) for value in shape[:2])
                    shape = np.zeros((metadata.height, metadata.width), dtype=bool)
                    shape[y : y + each.mask.shape[0], x : x + each.mask.shape[1]] = each.mask
                assert each.confidence is not None
                regions.append((each.label, shape))
            found[Path(path).relative_to(photos).as_posix()] = regions
    assert_equal(found, expected[head], tolerance=0.001)


def test_objects_of_low_score_are_left_out(runs: dict[str, Path], photos: Path, out: Path) -> None:
    """The default is that of overlays; the files of the images have all objects."""
    scores = [each["score"] for file in out.rglob("*_things_detections.json") for each in json.loads(file.read_text())]
    words = [*map(str, runs.values()), str(photos), "--out", str(out), "--device", "cpu"]
    command = ["predict", *words, "--export-format", "coco"]
    kept = json.loads((out / "things_coco.json").read_text())["annotations"]
    limit = float(np.median([each["score"] for each in kept]))
    for flags, least in ((["--export-score", str(limit)], limit), ([], 0.5), (["--export-score", "0"], 0)):
        assert main([*command, *flags]) == 0
        found = json.loads((out / "things_coco.json").read_text())["annotations"]
        assert [each["score"] for each in found] == [each["score"] for each in kept if each["score"] >= least]
    assert len(scores) >= len(kept)


def test_videos_and_images_without_predictions_are_left_out(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in {"1.png": (photos / "1.png").read_bytes(), "2.png": b"broken", "clip.mp4": b"broken"}.items():
        (tmp_path / name).write_bytes(content)
    words = [str(runs["rooms"]), *(str(tmp_path / name) for name in ("1.png", "2.png", "clip.mp4"))]
    assert main(["predict", *words, "--out", str(tmp_path / "out"), "--export-format", "coco"]) == 1
    assert "videos left out: 1" in capsys.readouterr().out
    listed = json.loads((tmp_path / "out" / "rooms_coco.json").read_text())["images"]
    assert [image["file_name"] for image in listed] == ["1.png"]


@pytest.mark.parametrize("flags", [["--shard", "1/2"], ["--engine", "ray"]])
def test_it_is_refused_where_not_all_images_are_written(
    flags: list[str], runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(runs["rooms"]), str(photos), "--export-format", "coco"]
    assert main(["predict", *words, "--out", str(tmp_path / "out"), *flags]) == 2
    assert "--export-format" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["predict", *words]) == 2 and main(["predict", *words[:2], "--export-score", "0.3"]) == 2


def test_depth_is_refused_in_one_line(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    depth = write_depth_bundle(tmp_path / "far" / "best")
    words = [str(runs["rooms"]), str(depth), str(photos), "--out", str(tmp_path / "out"), "--export-format", "cvat"]
    assert main(["predict", *words]) == 2
    assert len((error := capsys.readouterr().err).splitlines()) == 1 and "depth" in error
    assert not (tmp_path / "out").exists()


ENTRY: dict[str, Any] = {"category_id": 0, "score": 1, "bbox": [0, 0, 1, 1]}
CHANGED = [
    {},
    [ENTRY | {"category_id": 7}],
    [ENTRY | {"score": 2}],
    [ENTRY | {"bbox": [0, 0, 1]}],
    [ENTRY | {"segmentation": {"size": [60, 80], "counts": "0"}}],
    [ENTRY | {"segmentation": {"size": [80, 60], "counts": [4800]}}],
]


@pytest.mark.parametrize("content", CHANGED)
def test_a_changed_file_of_predictions_is_refused(
    content: Any, runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(runs["boxes"]), str(photos / "1.png"), "--out", str(tmp_path), "--device", "cpu"]
    assert main(command) == 0
    (tmp_path / "1_detections.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main([*command, "--export-format", "coco"]) == 2
    assert "1_detections.json" in capsys.readouterr().err and not list(tmp_path.glob("*coco*"))
