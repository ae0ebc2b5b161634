"""A detector from an exported folder through the commands; the oracle is the bundle."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import SMALL, write_detection_bundle
from label_files import coco_content, coco_image, coco_object, write_coco
from safetensors import safe_open
from tiny_backbones import image

import vitsplit
from vitsplit.cli.main import main
from vitsplit.exporting.formats import Written, open_graphs
from vitsplit.exporting.onnx_format import OnnxFormat
from vitsplit.exporting.parity import model_outputs
from vitsplit.exporting.quantization import REST, products_by_step, quantize
from vitsplit.runtime import Runtime

pytestmark = pytest.mark.slow  # one export of a detector
CATEGORIES = [{"id": 1, "name": "ball"}, {"id": 2, "name": "box"}]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bundle of a detector, and the folder of its graphs."""
    root = tmp_path_factory.mktemp("detection")
    scale = {"crop_size": (96, 128), "image_scale": (128, 96)}  # the graph takes sides of more than 64 pixels
    settings = {"backbone": SMALL, "num_tuned_layers": 1, "num_prior_layers": 1, "task": scale}
    run = write_detection_bundle(root / "detection" / "best", **settings)
    assert main(["export", str(run), "--out", str(root / "exported"), "--split"]) == 0
    return run, root / "exported"


@pytest.mark.parametrize("size", [(96, 128), (70, 97), (140, 182)], ids=str)
def test_outputs_with_masks(exported, size):
    run, folder = exported
    model, runtime = vitsplit.load(run, precision="fp32", device="cpu"), Runtime(folder)
    pixels = image(*size, batch=1)
    expected = model_outputs(model, pixels)
    (found,) = runtime.outputs(pixels.permute(0, 2, 3, 1).numpy())
    assert len(expected["detection.boxes"]) > 2
    assert np.array_equal(found["detection"]["labels"], expected["detection.labels"])
    for name, limit in {"boxes": 1e-2, "scores": 1e-3, "masks": 1e-3}.items():
        np.testing.assert_allclose(found["detection"][name], expected[f"detection.{name}"], atol=limit)


def test_fully_connected_layers_in_int8(exported, tmp_path):
    bundle, folder = exported
    card = json.loads((folder / "card.json").read_text())
    parts = [
        Written(folder / part["files"][0], part["inputs"], part["outputs"]) for part in card["graphs"]["onnx"]["parts"]
    ]
    (detection,) = (part for part in parts if part.path.stem == "detection")
    quantized = Written(tmp_path / detection.path.name, detection.inputs, detection.outputs)
    quantize(detection.path, quantized.path, products_by_step(detection.path, [])[REST])
    with safe_open(bundle / "head.safetensors", framework="np") as stored:
        layers = [name for name in stored.keys() if "box_head" in name]  # noqa: SIM118  # not a dict
        shapes = [tuple(stored.get_slice(name).get_shape()) for name in layers]
    sizes = {(shape[1], shape[0]) for shape in shapes if len(shape) == 2}
    weights = [onnx.numpy_helper.to_array(each) for each in onnx.load(quantized.path).graph.initializer]
    assert len(sizes) == 2 and sizes <= {weight.shape for weight in weights if weight.dtype == np.int8}
    backbone = next(part for part in parts if part.path.stem == "backbone")
    found = open_graphs(OnnxFormat(), [backbone, quantized], {})(image(96, 128, batch=1).numpy())
    assert found["detection.boxes"].shape[1] == 4


def test_predict_and_evaluate_are_those_of_the_bundle(exported, tmp_path, capsys):
    bundle, folder = exported
    objects = [
        coco_object(index, index % 3, box=(4 + index, 6, 20, 18), category_id=1 + index % 2) for index in range(6)
    ]
    data = tmp_path / "data"
    write_coco(data, coco_content([coco_image(number) for number in range(3)], objects, CATEGORIES), split="val")
    found, metrics = [], []
    for index, source in enumerate(([str(bundle)], [str(folder)])):
        out = tmp_path / f"predictions-{index}"
        assert main(["predict", source[0], str(data / "images" / "val"), "--out", str(out)]) == 0
        found.append({path.name: path for path in sorted(out.rglob("*")) if path.is_file()})
        capsys.readouterr()
        report = tmp_path / f"evaluation-{index}"
        assert main(["evaluate", *source, "--data", str(data), "--out", str(report), "--json", "--workers", "0"]) == 0
        metrics.append(json.loads(capsys.readouterr().out))
    assert found[0].keys() <= found[1].keys()
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
