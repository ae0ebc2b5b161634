"""A detector from an exported folder through the commands; the oracle is the bundle."""

import json

import pytest
from bundles import write_detection_bundle
from label_files import coco_content, coco_image, coco_object, write_coco

from vitsplit.cli.main import main

pytestmark = pytest.mark.slow  # one export of a backbone of twelve blocks
CATEGORIES = [{"id": 1, "name": "ball"}, {"id": 2, "name": "box"}]


def test_predict_and_evaluate_are_those_of_the_bundle(tmp_path, capsys):
    scale = {"crop_size": (96, 128), "image_scale": (128, 96)}  # the graph takes sides of more than 64 pixels
    bundle = write_detection_bundle(tmp_path / "run" / "best", num_prior_layers=2, task=scale)
    objects = [
        coco_object(index, index % 3, box=(4 + index, 6, 20, 18), category_id=1 + index % 2) for index in range(6)
    ]
    data = tmp_path / "data"
    write_coco(data, coco_content([coco_image(number) for number in range(3)], objects, CATEGORIES), split="val")
    exported = tmp_path / "exported"
    assert main(["export", str(bundle), "--out", str(exported), "--split"]) == 0
    found, metrics = [], []
    for index, source in enumerate((bundle, exported)):
        out = tmp_path / f"predictions-{index}"
        assert main(["predict", str(source), str(data / "images" / "val"), "--out", str(out)]) == 0
        found.append({path.name: path for path in sorted(out.rglob("*")) if path.is_file()})
        capsys.readouterr()
        report = tmp_path / f"evaluation-{index}"
        assert (
            main(["evaluate", str(source), "--data", str(data), "--out", str(report), "--json", "--workers", "0"]) == 0
        )
        metrics.append(json.loads(capsys.readouterr().out))
    assert found[0].keys() == found[1].keys()
    names = [name for name in found[0] if name.endswith("_detections.json")]
    assert len(names) == 3
    for name in names:
        expected, mine = (json.loads(each[name].read_text()) for each in found)
        assert len(mine) == len(expected) > 0
        for one, other in zip(expected, mine, strict=True):
            assert one["category_id"] == other["category_id"]
            assert other["score"] == pytest.approx(one["score"], abs=1e-3)
            assert other["bbox"] == pytest.approx(one["bbox"], abs=0.02)
    numbers = {name: value for name, value in metrics[0].items() if isinstance(value, float)}
    assert numbers
    for name, value in numbers.items():
        assert metrics[1][name] == pytest.approx(value, abs=5e-3, nan_ok=True), name
