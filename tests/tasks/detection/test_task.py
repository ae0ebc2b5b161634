import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import vitsplit
from small_run import SMALL_RUN
from vitsplit.data.classes import ClassList
from vitsplit.engine.evaluation import evaluate
from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.data import DetectionSample, collate
from vitsplit.tasks.detection.decoder import LOSSES, Detections, Limits
from vitsplit.tasks.detection.prediction import DetectionPrediction
from vitsplit.tasks.detection.task import DetectionTask
from vitsplit.types import LayerTaps, Padding

CONFIG = DetectionConfig(image_scale=(64, 48))
SMALL_DETECTOR = {
    **{name: value for name, value in SMALL_RUN.items() if name != "crop_size"},
    "task": "detection",
    "image_scale": (64, 48),
    "jitter": "none",
    "anchor_sizes": (4, 8, 16, 32, 64),
    "pyramid_width": 16,
    "sampled_proposals": 16,
    "score_threshold": 0.1,
}


@pytest.fixture(scope="module")
def objects(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated scenes as a plain COCO data set: 48 x 64 pixels, with masks."""
    root = tmp_path_factory.mktemp("objects") / "data"
    for folder in ("images", "annotations"):
        shutil.copytree(scenes / folder, root / folder)
    return root


def without_masks(root: Path, out: Path, splits: tuple[str, ...]) -> Path:
    shutil.copytree(root, out)
    for split in splits:
        file = out / "annotations" / f"{split}.json"
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        file.write_text(json.dumps(content))
    return out


class TruthTeller:
    """A model that finds the true objects and one false positive per padded image."""

    def __init__(self, task: DetectionTask, masks: bool = True) -> None:
        images = task.val_images()
        self.samples = [images.load(index) for index in range(len(images))]
        self.masks = masks

    def __call__(self, image_BCHW):
        taps = LayerTaps(tuple(image_BCHW.shape[-2:]), Padding(2, 1, 0, 0), (1, 1), 1)
        (sample,) = (sample for sample in self.samples if torch.equal(sample.image_CHW, image_BCHW[0]))
        boxes_N4 = torch.cat([sample.boxes_N4, torch.tensor([[3.0, 3, 30, 30]])]) + torch.tensor([2.0, 1, 2, 1])
        labels_N = torch.cat([sample.labels_N, torch.tensor([1])])
        scores_N = torch.linspace(0.9, 0.4, len(labels_N))
        bins = torch.ones(len(labels_N), 28, 28) if self.masks else None
        return [Detections(boxes_N4, labels_N, scores_N, bins, Limits.of(CONFIG))], taps


def test_targets_include_the_padding_offset_and_exclude_crowds():
    masks_NHW = torch.zeros(2, 20, 30, dtype=torch.uint8)
    masks_NHW[0, 5:10, 8:12] = 1
    boxes_N4, labels_N = torch.tensor([[8.0, 5, 12, 10], [0, 0, 30, 20]]), torch.tensor([1, 0])
    crowd_N = torch.tensor([False, True])
    pixels = torch.zeros(3, 20, 30, dtype=torch.uint8)
    big = DetectionSample(pixels, boxes_N4, labels_N, masks_NHW, crowd_N, "a", 1)
    small = DetectionSample(
        pixels[:, :12, :25], boxes_N4[:0], labels_N[:0], masks_NHW[:0, :12, :25], crowd_N[:0], "b", 2
    )
    batch = collate([big, small])
    taps = LayerTaps((20, 30), Padding(left=6, top=4, right=6, bottom=4), (2, 3), 1)
    task = DetectionTask(CONFIG, ClassList(names=("a", "b")))
    targets = task.targets(batch, taps)
    assert targets.sizes == [(24, 36), (16, 31)]
    assert targets.boxes[0].tolist() == [[14, 9, 18, 14]] and targets.boxes[1].shape == (0, 4)
    assert [labels.tolist() for labels in targets.labels] == [[1], []]
    assert [masks.shape for masks in targets.masks] == [(1, 28, 42), (0, 28, 42)]
    assert targets.masks[0][0, 9:14, 14:18].all() and targets.masks[0].sum() == 20
    assert DetectionTask(CONFIG, task.classes, masks=False).targets(batch, taps).masks is None
    normalizers = task.normalizers(batch)
    sums = task.loss_sums({name: torch.tensor(1.5) for name in normalizers}, batch, taps)
    assert {name: float(sums[name] / normalizers[name]) for name in sums} == dict.fromkeys(LOSSES.values(), 1.5)


def test_masks_follow_the_data_and_the_setting(objects, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    boxes_only = without_masks(objects, tmp_path / "boxes", ("train", "val"))
    for root, masks, expected, message in (
        (objects, "auto", True, "Mask R-CNN: every object of the training images has a mask"),
        (objects, "off", False, "Faster R-CNN: masks off"),
        (objects, "on", True, "Mask R-CNN: masks on"),
        (boxes_only, "auto", False, "Faster R-CNN: not every object of the training images has a mask"),
    ):
        caplog.clear()
        task = DetectionTask.open(dataclasses.replace(CONFIG, masks=masks), root, ("train", "val"))
        assert task.masks is task.describe()["masks"] is expected
        assert task.build_decoder("linear", 32, 16).roi_heads.has_mask() is expected
        assert message in caplog.text
    with pytest.raises(DataError, match="--masks"):
        DetectionTask.open(dataclasses.replace(CONFIG, masks="on"), boxes_only, ("train", "val"))


def test_predicting_needs_only_the_description(objects):
    task = DetectionTask.open(CONFIG, objects, ("val",))
    again = DetectionTask.from_description(CONFIG, json.loads(json.dumps(task.describe())))
    assert (again.classes, again.category_ids, again.masks) == (task.classes, (1, 2, 3, 4), True)
    plain = {"classes": ["a", "b"], "colours": [[0, 0, 0], [9, 9, 9]]}
    for masks, expected in (("auto", True), ("on", True), ("off", False)):
        counted = DetectionTask.from_description(dataclasses.replace(CONFIG, masks=masks), plain)
        assert counted.masks is expected and counted.category_ids == (1, 2)


def test_metrics_merge_across_processes(objects):
    task = DetectionTask.open(CONFIG, objects, ("val",))
    forward, seen = TruthTeller(task), []
    whole = evaluate(task, forward, on_image=lambda: seen.append(1))
    assert len(seen) == len(task.val_images()) == 3
    assert whole.score_name == "mask_ap" and whole.score == whole.metrics["mask_ap"]
    assert whole.metrics["box_ap"] > 0.6
    metrics = [task.metric() for _ in range(2)]
    for index in range(3):
        sample = task.val_data().load(index)
        metrics[index % 2].update(task.predict(forward, sample.image_CHW[None])[0], sample)
    states = [metric.state() for metric in metrics]
    for metric in metrics:
        metric.merge(states)
        assert metric.compute() == whole


def test_metrics_and_files_equal_the_official_tool(objects, tmp_path):
    task = DetectionTask.open(CONFIG, objects, ("val",))
    forward = TruthTeller(task)
    evaluation = evaluate(task, forward)
    page = task.write_report(forward, evaluation, tmp_path / "report", title="t", count=2)
    assert page.read_text().count("<img") == 4 and "cylinder" in page.read_text()
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == evaluation.metrics
    truth = COCO(str(objects / "annotations" / "val.json"))
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        run = COCOeval(truth, truth.loadRes(str(tmp_path / "report" / f"detections_{kind}.json")), kind)
        run.evaluate(), run.accumulate(), run.summarize()
        assert evaluation.metrics[f"{name}_ap"] == pytest.approx(run.stats[0], abs=1e-12)
        assert evaluation.metrics[f"{name}_ap50"] == pytest.approx(run.stats[1], abs=1e-12)
    counts = {name: row["objects"] for name, row in evaluation.metrics["classes"].items()}
    names = {category["id"]: category["name"] for category in truth.dataset["categories"]}
    for category_id, name in names.items():
        assert counts[name] == len(truth.getAnnIds(catIds=[category_id]))
    assert task.table(evaluation).row_count == 4


def test_only_boxes_are_evaluated_without_masks(objects, tmp_path, caplog):
    task = DetectionTask.open(CONFIG, objects, ("val",))
    evaluation = evaluate(task, TruthTeller(task, masks=False))
    assert evaluation.score_name == "box_ap" and "mask_ap" not in evaluation.metrics
    assert "the detections have no masks" in caplog.text
    caplog.clear()
    bare = DetectionTask.open(CONFIG, without_masks(objects, tmp_path / "bare", ("val",)), ("train", "val"))
    assert "val.json: not every object has a mask" in caplog.text
    assert bare.masks and "mask_ap" not in evaluate(bare, TruthTeller(bare)).metrics


def test_splits_without_objects_are_rejected_early(objects, tmp_path):
    empty = shutil.copytree(objects, tmp_path / "empty")
    content = json.loads((empty / "annotations" / "val.json").read_text())
    for split in ("val", "test"):
        (empty / "annotations" / f"{split}.json").write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(DataError, match=r"val\.json: no object in the 3 images"):
        DetectionTask.open(CONFIG, empty, ("train", "val"))
    shutil.copytree(empty / "images" / "val", empty / "images" / "test")
    task = DetectionTask.open(CONFIG, empty, ("test",))
    with pytest.raises(DataError, match=r"test\.json: no object"):
        evaluate(task, lambda image: pytest.fail("predicted for nothing"))


@pytest.mark.parametrize("method", ["vitsplit", "linear-probe"])
def test_train_evaluate_predict(objects, tmp_path, method):
    result = vitsplit.train(data=objects, out=tmp_path / "run", **{**SMALL_DETECTOR, "method": method})
    rows = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if "loss" in row)
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row) and first["loss"] > 1
    evaluation, _ = vitsplit.evaluate(result.run, data=objects)
    assert evaluation.metrics == result.metrics
    predictor = vitsplit.load(result.run)
    image = next((objects / "images" / "val").iterdir())
    prediction = predictor.predict(image)["detection"]
    assert isinstance(prediction, DetectionPrediction)
    assert prediction.masks.shape == (len(prediction.boxes), 48, 64)
    assert (prediction.boxes[:, 2] <= 64).all() and (prediction.scores > 0.1).all()
    assert [path.name for path in prediction.save(tmp_path, image.stem)] == [
        f"{image.stem}_detections.json",
        f"{image.stem}_overlay.jpg",
    ]
    with pytest.raises(ConfigError, match="--score-threshold"):
        vitsplit.evaluate(predictor, data=objects, score_threshold=0.01)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"anchor_sizes": (32, 64)}, "--anchor-sizes.* 32 64"),
        ({"image_scale": (800, 0)}, "--image-scale.* 800 0"),
        ({"train_sides": ()}, "--train-sides"),
        ({"scale_range": (2.0, 0.5)}, r"--scale-range.*2\.0.*0\.5"),
        ({"flip": 1.5}, "--flip.* 1.5"),
        ({"score_threshold": -0.1}, "--score-threshold.* -0.1"),
        ({"max_detections": 0}, "--max-detections.* 0"),
    ],
)
def test_invalid_settings_are_rejected_by_flag(changes, expected):
    with pytest.raises(ConfigError, match=expected):
        DetectionTask(dataclasses.replace(CONFIG, **changes), ClassList(names=("a",)))
