"""``Runtime`` on a small graph; the oracle is the prediction of the tasks from the same heads in PyTorch."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_export import (
    DEPTH_SCALE,
    ROOMS_SCALE,
    add_openvino,
    model_predictions,
    read_card_json,
    write_card,
    write_export,
)

import vitsplit
from vitsplit.errors import BundleError, ConfigError, DataError, ExportError
from vitsplit.runtime import Runtime

RNG = np.random.default_rng(1)


def picture(height, width):
    """A smooth image, since antialiasing of Pillow and torchvision may differ by one level."""
    small = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).copy()


def as_tensor(image_HWC):
    return torch.from_numpy(image_HWC).permute(2, 0, 1)[None]


def assert_same(mine, expected):
    assert mine.keys() == expected.keys() == {"rooms", "depth"}
    assert mine["rooms"].mask.dtype == np.uint8 and mine["depth"].depth.dtype == np.float32
    assert mine["rooms"].mask.shape == expected["rooms"].mask.shape
    assert (mine["rooms"].mask == expected["rooms"].mask).mean() > 0.995
    assert np.abs(mine["depth"].depth - expected["depth"].depth).max() < 0.031, "one level in each of three channels"
    assert np.array_equal(mine["rooms"].image, expected["rooms"].image)
    assert mine["rooms"].classes == expected["rooms"].classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_export(tmp_path_factory.mktemp("export") / "exported")
    add_openvino(folder)
    return folder


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_predictions_are_those_of_the_tasks(folder, runtime):
    model = Runtime(folder, runtime, threads=1)
    assert model.runtime == runtime
    for size in ((90, 120), (200, 150), (40, 300), (61, 47)):
        image_HWC = picture(*size)
        assert_same(model.predict(image_HWC), model_predictions(as_tensor(image_HWC))[0])


def test_without_resizing_predictions_are_exact(folder):
    image_HWC = picture(*sorted(ROOMS_SCALE))
    expected = model_predictions(as_tensor(image_HWC))[0]["rooms"]
    found = Runtime(folder, "onnx").predict(image_HWC)["rooms"]
    assert np.array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-5)
    assert found.confidence.dtype == np.float32 and 0.25 <= found.confidence.min() < found.confidence.max() <= 1
    image_HWC = picture(*sorted(DEPTH_SCALE))
    expected = model_predictions(as_tensor(image_HWC))[0]["depth"].depth
    np.testing.assert_allclose(Runtime(folder, "onnx").predict(image_HWC)["depth"].depth, expected, atol=1e-5)


def test_a_batch_of_images_of_several_sizes(folder, tmp_path):
    images = [picture(90, 120), picture(50, 70), picture(180, 240), picture(50, 70)]
    Image.fromarray(images[1]).save(tmp_path / "second.png")
    mine = Runtime(folder).predict_batch([images[0], tmp_path / "second.png", Image.fromarray(images[2]), images[3]])
    for each, image_HWC in zip(mine, images, strict=True):
        assert_same(each, model_predictions(as_tensor(image_HWC))[0])
    assert Runtime(folder).predict_batch([]) == []


@pytest.mark.parametrize("options", [{"layout": "nhwc"}, {"size": (90, 120)}], ids=str)
def test_other_layouts_and_fixed_sizes(tmp_path, options):
    model = Runtime(write_export(tmp_path / "exported", **options))
    for size in ((90, 120), (180, 240)):
        image_HWC = picture(*size)
        mine, expected = model.predict(image_HWC), model_predictions(as_tensor(image_HWC))[0]
        assert (mine["rooms"].mask == expected["rooms"].mask).mean() > 0.99


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_threads_predict_at_once(folder, runtime):
    model, images = Runtime(folder, runtime, threads=1), [picture(60, 80) for _ in range(8)]
    expected = [model.predict(image_HWC)["rooms"].mask for image_HWC in images]
    found = [None] * len(images)

    def predict(index):
        for _ in range(5):
            found[index] = model.predict(images[index])["rooms"].mask

    threads = [threading.Thread(target=predict, args=(index,)) for index in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(mine, each) for mine, each in zip(found, expected, strict=True))


def test_the_first_format_that_is_installed_is_taken(folder, monkeypatch):
    assert Runtime(folder).runtime == "onnx"
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert Runtime(folder).runtime == "openvino"
    with pytest.raises(ConfigError, match="pip install onnxruntime"):
        Runtime(folder, "onnx")


def test_what_cannot_be_predicted(folder):
    model = Runtime(folder)
    with pytest.raises(DataError, match="larger"):
        model.predict(picture(300, 3))
    with pytest.raises(DataError, match=r"absent\.jpg"):
        model.predict("absent.jpg")
    with pytest.raises(ConfigError, match="threads"):
        Runtime(folder, threads=0)
    with pytest.raises(ConfigError, match="tensorrt"):
        Runtime(folder, "tensorrt")


def test_devices(folder, monkeypatch):
    import onnxruntime

    for device, provider in (("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")):
        if provider not in onnxruntime.get_available_providers():
            with pytest.raises(ConfigError, match=f"{provider}.*pip install onnxruntime-gpu"):
                Runtime(folder, "onnx", device=device)
    with pytest.raises(ConfigError, match="tpu"):
        Runtime(folder, device="tpu")
    with pytest.raises(ConfigError, match="--format onnx"):
        Runtime(folder, "openvino", device="cuda")
    asked = []

    class Session:
        def __init__(self, path, options, providers):
            asked.append(providers)

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ConfigError, match="did not start"):
        Runtime(folder, "onnx", device="cuda")
    assert asked == [["CUDAExecutionProvider", "CPUExecutionProvider"]]


OTHER_GRAPH = {"files": {"a": "0" * 64}, "settings": {}, "precision": "fp32", "smallest_side": 8}
PATH_OUTSIDE = {"../graph.onnx": "0" * 64}


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (["format"], 2, "Update vitsplit"),
        (["format"], "1", "format"),
        (["heads"], {}, "heads"),
        (["heads"], {"/tmp/rooms": {}}, "/tmp/rooms"),
        (["heads"], {"..": {}}, "file name"),
        (["heads", "rooms", "task"], "pose", "pose"),
        (["heads", "rooms", "image_scale"], [10**9, 5], "image_scale"),
        (["heads", "rooms", "outputs"], {"rooms.classes": {}}, "rooms.logits"),
        (["heads", "rooms", "description"], {"classes": ["a"]}, "colours"),
        (["heads", "rooms", "description"], {"classes": ["a"], "colours": [[0, 0, 300]]}, "colours"),
        (["heads", "depth", "description"], {"unit": "feet", "min_depth": 0, "max_depth": 1}, "feet"),
        (["input", "layout"], "chwn", "chwn"),
        (["input", "shape"], ["batch", 3, -4, 5], "shape"),
        (["input", "shape"], [2, 3, "height", "width"], "shape"),
        (["graphs", "onnx", "files"], PATH_OUTSIDE, "graph.onnx"),
        (["graphs", "onnx", "files"], {"/etc/passwd": "0" * 64}, "passwd"),
        (["graphs", "onnx", "files"], {"absent.onnx": "0" * 64}, "absent.onnx"),
        (["graphs", "onnx", "files"], {"graph.onnx": "0" * 64}, "hash"),
        (["graphs", "onnx", "settings"], {"CACHE_DIR": "/tmp"}, "CACHE_DIR"),
        (
            ["graphs"],
            {"pt2": {"files": {"a": "0" * 64}, "settings": {}, "precision": "fp32", "smallest_side": 8}},
            "--format",
        ),
    ],
    ids=str,
)
def test_untrusted_cards(tmp_path, keys, value, named):
    folder = write_export(tmp_path / "exported")
    card = read_card_json(folder)
    place = card
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    write_card(folder, card, hashes=False)
    with pytest.raises((ExportError, BundleError, ConfigError), match=named):
        Runtime(folder)


def test_a_graph_that_is_not_that_of_the_card(tmp_path):
    folder = write_export(tmp_path / "exported")
    card = read_card_json(folder)
    rooms = card["heads"]["rooms"]
    for description in (rooms["description"], rooms["bundle"]["description"]):
        del description["classes"][-1], description["colours"][-1]
    write_card(folder, card)
    image = np.zeros((40, 50, 3), np.uint8)
    with pytest.raises(ExportError, match="logits"):
        Runtime(folder).predict(image)
    with pytest.raises(ExportError, match="logits"):
        vitsplit.load(folder).predict(image)


def test_files_that_are_no_graphs(tmp_path):
    folder = write_export(tmp_path / "exported")
    (folder / "graph.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"graph\.onnx"):
        Runtime(folder)
    write_card(folder, read_card_json(folder))
    with pytest.raises(ExportError, match="cannot read the graph"):
        Runtime(folder)
    (folder / "graph.onnx").unlink()
    with pytest.raises(ExportError, match=r"graph\.onnx"):
        Runtime(folder)
    with pytest.raises(ExportError, match=r"card\.json"):
        Runtime(tmp_path)


PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED}:
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
import numpy as np
from vitsplit.runtime import Runtime

folder, runtime, out = sys.argv[1:]
model = Runtime(folder, runtime, threads=1)
for name, prediction in model.predict(np.full((50, 60, 3), 128, np.uint8)).items():
    prediction.save(out, name)
"""
REFUSED = {"torch", "torchvision", "timm", "pydantic", "matplotlib", "faster_coco_eval", "rich", "yaml", "tyro", "onnx"}


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_without_torch(folder, tmp_path, runtime):
    """In an environment without PyTorch (`make test-floors` makes one), otherwise in one that refuses to import it."""
    python = os.environ.get("VITSPLIT_WITHOUT_TORCH", sys.executable)
    program = PROGRAM.replace("{REFUSED}", repr(REFUSED))
    if python != sys.executable:
        program = f"import importlib.util\nassert importlib.util.find_spec('torch') is None\n{program}"
    subprocess.run([python, "-c", program, str(folder), runtime, str(tmp_path)], check=True, timeout=120)
    assert {path.name for path in tmp_path.iterdir()} == {
        "rooms_mask.png", "rooms_overlay.jpg", "depth_depth.npy", "depth_depth.png", "depth_depth.jpg",
    }  # fmt: skip
