"""The predictor on tables: the files of ``save`` and pycocotools are the oracles."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_depth_bundle, write_detection_bundle, write_segmentation_bundle
from cluster_inputs import write_photos
from PIL import Image
from pycocotools import mask as coco_masks
from vqa_bundles import write_language_model, write_vqa_bundle

import vitsplit
from vitsplit.errors import ConfigError, ExportError

pa = pytest.importorskip("pyarrow")
from vitsplit.cluster import Predictor  # noqa: E402


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("bundles")
    return [
        write_segmentation_bundle(root / "rooms" / "best"),
        write_depth_bundle(root / "depth" / "best"),
        write_detection_bundle(root / "objects" / "best"),
    ]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos", 5)


@pytest.fixture(scope="module")
def predictor(runs: list[Path]) -> Predictor:
    return Predictor(runs, device="cpu")


def rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    return pa.table(columns).to_pylist()


def test_columns_are_the_contents_of_the_files(
    runs: list[Path], photos: list[Path], predictor: Predictor, tmp_path: Path
) -> None:
    found = rows(predictor({"path": np.array([str(photo) for photo in photos]), "label": np.arange(5)}))
    model = vitsplit.load(*runs, device="cpu")
    for index, (photo, row) in enumerate(zip(photos, found, strict=True)):
        for name, prediction in model.predict(photo).items():
            prediction.save(tmp_path / name, photo.stem)
        assert row["path"] == str(photo) and row["label"] == index and row["error"] is None
        height, width = np.asarray(Image.open(photo)).shape[:2]
        assert (row["height"], row["width"]) == (height, width)
        assert row["segmentation"]["png"] == (tmp_path / f"segmentation/{photo.stem}_mask.png").read_bytes()
        assert row["depth"]["png"] == (tmp_path / f"depth/{photo.stem}_depth.png").read_bytes()
        meters = np.load(tmp_path / f"depth/{photo.stem}_depth.npy")
        scaled = np.asarray(Image.open(tmp_path / f"depth/{photo.stem}_depth.png")) * row["depth"]["scale"]
        assert np.abs(scaled - meters).max() <= row["depth"]["scale"]
        objects = json.loads((tmp_path / f"detection/{photo.stem}_detections.json").read_text())
        detection = row["detection"]
        assert detection["boxes"] == [each["bbox"] for each in objects] and objects
        assert detection["scores"] == [each["score"] for each in objects]
        assert detection["category_ids"] == [each["category_id"] for each in objects]
        assert detection["categories"] == [each["category"] for each in objects]
        for each, counts in zip(objects, detection["masks"], strict=True):
            ours = coco_masks.decode({"size": [height, width], "counts": counts})
            assert np.array_equal(ours, coco_masks.decode(each["segmentation"]))


def test_all_forms_of_images_agree(photos: list[Path], predictor: Predictor) -> None:
    arrays = np.empty(len(photos), dtype=object)
    arrays[:] = [np.asarray(Image.open(photo)) for photo in photos]
    contents = np.array([photo.read_bytes() for photo in photos], dtype=object)
    expected = predictor({"path": [str(photo) for photo in photos]})
    for batch in (
        {"image": arrays},
        {"bytes": contents},
        {"image": [{"bytes": content, "path": None} for content in contents]},
        {"image": [{"bytes": None, "path": str(photo)} for photo in photos]},
    ):
        found = predictor(batch)
        assert {*found} == {*expected} - {"path"}
        for name, column in found.items():
            assert column.equals(expected[name])


def test_errors_are_rows_and_types_do_not_depend_on_them(photos: list[Path], predictor: Predictor) -> None:
    good = predictor({"bytes": [photos[0].read_bytes()]})
    bad = predictor({"bytes": [b"nonsense", b"", None, 3]})
    assert all(bad[name].type == good[name].type for name in good)
    for row in rows(bad):
        assert row["error"] and row["segmentation"] is None and row["detection"] is None and row["height"] is None
    mixed = rows(predictor({"bytes": [photos[0].read_bytes(), photos[0].read_bytes()[:100], photos[1].read_bytes()]}))
    assert [row["error"] is None for row in mixed] == [True, False, True]
    assert mixed[0]["segmentation"] == rows(good)[0]["segmentation"]
    assert predictor({"bytes": []})["segmentation"].type == good["segmentation"].type


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ExportError("failed"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        IndexError("other"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_image_that_fails_is_a_row(
    error: Exception, photos: list[Path], predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = predictor._model.predict_batch  # type: ignore[union-attr]

    def fails(image_BCHW: Any) -> Any:
        if image_BCHW.shape[2] == 40:
            raise error
        return predict(image_BCHW)

    monkeypatch.setattr(predictor._model, "predict_batch", fails)
    found = rows(predictor({"path": [str(photo) for photo in photos]}))
    assert [bool(row["error"]) for row in found] == [True, False, False, True, False]
    assert [row["segmentation"] is None for row in found] == [bool(row["error"]) for row in found]
    monkeypatch.setattr("vitsplit.cluster.predictor.read_image", lambda path: fails(np.zeros((1, 3, 40, 30))))
    if isinstance(error, MemoryError):
        assert rows(predictor({"path": [str(photos[0])]}))[0]["error"]


def test_a_column_of_paths_with_a_null_is_kept(photos: list[Path], predictor: Predictor) -> None:
    found = rows(predictor({"path": [str(photos[0]), None]}))
    assert [row["path"] for row in found] == [str(photos[0]), None]
    assert [bool(row["error"]) for row in found] == [False, True]


def test_batches_of_one_size_agree_with_single_images(runs: list[Path], photos: list[Path]) -> None:
    batch = {"path": [str(photo) for photo in photos]}
    alone, together = Predictor(runs[:1], device="cpu"), Predictor(runs[:1], device="cpu", batch_size=4)
    for one, other in zip(rows(alone(batch)), rows(together(batch)), strict=True):
        assert one["path"] == other["path"] and one["height"] == other["height"]
        ours, theirs = (np.asarray(Image.open(io.BytesIO(row["segmentation"]["png"]))) for row in (one, other))
        assert (ours != theirs).mean() < 0.01  # batches round differently


def test_a_pickled_copy_loads_at_its_first_call(photos: list[Path], predictor: Predictor) -> None:
    content = pickle.dumps(predictor)
    assert len(content) < 10_000
    batch = {"path": [str(photo) for photo in photos[:2]]}
    copied = pickle.loads(content)(batch)
    assert all(column.equals(copied[name]) for name, column in predictor(batch).items() if name != "path")


def test_wrong_tables_and_arguments(runs: list[Path], photos: list[Path], predictor: Predictor) -> None:
    with pytest.raises(ConfigError, match="column"):
        predictor({"name": ["a"]})
    with pytest.raises(ConfigError, match="height"):
        predictor({"path": [str(photos[0])], "height": [3]})
    with pytest.raises(ConfigError, match="uestions"):
        Predictor(runs[:1], questions=("What is it?",))
    with pytest.raises(ConfigError, match="error"):
        Predictor({"error": runs[0]})


def test_questions_are_asked_about_every_image(photos: list[Path], tmp_path: Path) -> None:
    language = write_language_model(tmp_path / "language")
    run = write_vqa_bundle(tmp_path / "asked" / "best", language)
    questions = ("What?", "How many?")
    options = {"language_weights": str(language), "device": "cpu"}
    predictor = Predictor(run, questions=questions, max_new_tokens=5, **options)
    model = vitsplit.load(run, **options)
    for photo, row in zip(photos, rows(predictor({"path": [str(photo) for photo in photos]})), strict=True):
        answers = model.ask(photo, questions, max_new_tokens=5)
        assert row["vqa"] == {"questions": list(questions), "answers": answers}
    with pytest.raises(ConfigError, match="uestions"):
        Predictor(run, **options)
