import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitsplit.tasks.detection.metrics import average_precision, write_results

CATEGORY_IDS = (7, 3, 90, 12)
"""With gaps, and not in their order; nothing of the last is in the truth."""
SIZE = (180, 220)


def ellipse(rng, scale=None):
    height, width = SIZE
    y, x = np.mgrid[:height, :width]
    centre_y, centre_x = rng.uniform(0.1, 0.9, 2) * SIZE
    radius_y, radius_x = scale or rng.choice([6.0, 25.0, 75.0]) * rng.uniform(0.7, 1.3, 2)
    return ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 < 1


def shape_of(mask_HW):
    """Mask as COCO entries: segmentation and the box around it."""
    encoded = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    box = coco_mask.toBbox(encoded).tolist()
    return {"segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()}, "bbox": box}


def scene(seed=0, images=8):
    """Truth with crowds and images without objects, and detections: shifted, of wrong classes, and false positives."""
    rng = np.random.default_rng(seed)
    truth, results = [], []
    for image_id in range(0, 10 * images, 10):
        for _ in range(rng.integers(0, 7)):
            mask = ellipse(rng)
            area, category = int(mask.sum()), int(rng.choice(CATEGORY_IDS[:3]))
            entry = {"id": len(truth) + 5, "image_id": image_id, "category_id": category, "area": area}
            truth.append(entry | {"iscrowd": int(rng.random() < 0.15)} | shape_of(mask))
            for _ in range(rng.integers(0, 3)):
                moved = np.roll(mask, rng.integers(-6, 7, 2), (0, 1))
                category = category if rng.random() < 0.8 else int(rng.choice(CATEGORY_IDS))
                score = round(float(rng.random()), 1)  # with ties
                results.append({"image_id": image_id, "category_id": category, "score": score} | shape_of(moved))
        results.append({"image_id": image_id, "category_id": 12, "score": 0.4} | shape_of(ellipse(rng)))
    categories = [{"id": category_id, "name": f"class {category_id}"} for category_id in CATEGORY_IDS]
    sizes = {"height": SIZE[0], "width": SIZE[1]}
    entries = [{"id": image_id, "file_name": f"{image_id}.jpg"} | sizes for image_id in range(0, 10 * images, 10)]
    return {"info": {}, "images": entries, "annotations": truth, "categories": categories}, results


def pycocotools_figures(truth_file, results_file, kind):
    truth = COCO(str(truth_file))
    run = COCOeval(truth, truth.loadRes(str(results_file)), kind)
    run.evaluate(), run.accumulate(), run.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    precision = run.eval["precision"][:, :, :, 0, 2]
    per_class = [precision[:, :, run.params.catIds.index(category_id)].mean() for category_id in CATEGORY_IDS]
    return dict(zip(names, run.stats[:6].tolist(), strict=True)), per_class


@pytest.mark.parametrize(("kind", "coco_kind"), [("box", "bbox"), ("mask", "segm")])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_metrics_equal_pycocotools_on_the_written_files(tmp_path, kind, coco_kind, seed):
    truth, results = scene(seed)
    assert any(entry["iscrowd"] for entry in truth["annotations"])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    files = write_results(results, tmp_path)
    assert [file.name for file in files] == ["detections_bbox.json", "detections_segm.json"]
    expected, per_class = pycocotools_figures(
        tmp_path / "truth.json", tmp_path / f"detections_{coco_kind}.json", coco_kind
    )
    figures = average_precision(truth, results, kind, CATEGORY_IDS)
    for name, value in expected.items():
        assert figures[name] == (pytest.approx(value, abs=1e-12) if value >= 0 else None), name
    assert figures["ap"] > 0.05 and per_class[3] == -1
    for row, value in zip(figures["classes"], per_class, strict=True):
        assert row["ap"] == (pytest.approx(value, abs=1e-12) if value >= 0 else None)


def test_perfect_detections_reach_one_and_none_reach_zero():
    truth, _ = scene(seed=4)
    objects = [entry for entry in truth["annotations"] if not entry["iscrowd"]]
    keys = ("image_id", "category_id", "bbox", "segmentation")
    perfect = [{key: entry[key] for key in keys} | {"score": 0.9} for entry in objects]
    for kind in ("box", "mask"):
        figures = average_precision(truth, perfect, kind, CATEGORY_IDS)
        assert figures["ap"] == figures["ap50"] == figures["ap_large"] == pytest.approx(1.0)
        assert [row["ap50"] for row in figures["classes"]] == [pytest.approx(1.0)] * 3 + [None]
        nothing = average_precision(truth, [], kind, CATEGORY_IDS)
        assert nothing["ap"] == nothing["ap50"] == nothing["ap75"] == 0
        assert [row["ap"] for row in nothing["classes"]] == [0, 0, 0, None]


def test_boxes_alone_write_one_file(tmp_path):
    _, results = scene()
    boxes = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in results]
    assert [file.name for file in write_results(boxes, tmp_path)] == ["detections_bbox.json"]
    assert json.loads((tmp_path / "detections_bbox.json").read_text()) == boxes
