"""An exported folder in place of bundles; the oracle are the same heads in PyTorch, with the same tasks."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_export import (
    CLASSES,
    DEPTH,
    ROOMS,
    forward_rooms,
    model_predictions,
    read_card_json,
    write_card,
    write_export,
)

import vitsplit
from vitsplit.cli.main import main
from vitsplit.engine.evaluation import evaluate
from vitsplit.errors import BundleError, ConfigError, DataError, ExportError
from vitsplit.tasks import open_task

RNG = np.random.default_rng(0)
SIZES = [(100, 120), (60, 61), (150, 90)]


def pictures(folder):
    folder.mkdir(parents=True)
    for index, size in enumerate(SIZES):
        small = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def tensor_of(path):
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("rooms", "depth"),
    [
        ({}, {}),
        ({"test_scales": (0.75, 1.25), "test_flip": True}, {"test_flip": True}),
        ({"test_mode": "slide", "crop_size": (40, 50)}, {"image_scale": (120, 90)}),
    ],
    ids=["whole", "flip", "slide"],
)
def test_predictions_are_those_of_the_bundles(tmp_path, rooms, depth):
    settings = {"rooms": dataclasses.replace(ROOMS, **rooms), "depth": dataclasses.replace(DEPTH, **depth)}
    model = vitsplit.load(write_export(tmp_path / "exported", **settings))
    for path in pictures(tmp_path / "photos").iterdir():
        mine, expected = model.predict(path), model_predictions(tensor_of(path), **settings)[0]
        assert (mine["rooms"].mask == expected["rooms"].mask).mean() > 0.9995
        np.testing.assert_allclose(mine["depth"].depth, expected["depth"].depth, atol=1e-5)


def test_heads_of_one_size_share_a_run(tmp_path):
    model = vitsplit.load(write_export(tmp_path / "exported", depth=dataclasses.replace(DEPTH, image_scale=(120, 90))))
    model.predict(np.full((90, 120, 3), 100, np.uint8))
    assert model.describe_passes() == "1 pass at 90x120 for rooms and depth"


def test_the_command_writes_the_files_of_the_predictions(tmp_path):
    folder, photos, out = write_export(tmp_path / "exported"), pictures(tmp_path / "photos"), tmp_path / "out"
    assert main(["predict", str(folder), str(photos), "--out", str(out)]) == 0
    for path in photos.iterdir():
        expected = model_predictions(tensor_of(path))[0]
        mask = np.asarray(Image.open(out / f"{path.stem}_mask.png"))
        assert (mask == expected["rooms"].mask).mean() > 0.9995
        np.testing.assert_allclose(np.load(out / f"{path.stem}_depth.npy"), expected["depth"].depth, atol=1e-5)
    # The log tells exports apart: another one does not go on in this folder.
    other = write_export(tmp_path / "other", depth=dataclasses.replace(DEPTH, test_flip=True))
    assert main(["predict", str(folder), str(photos), "--out", str(out)]) == 0
    assert main(["predict", str(other), str(photos), "--out", str(out)]) == 2


def test_images_in_tiles(tmp_path):
    folder, photos = write_export(tmp_path / "exported"), pictures(tmp_path / "photos")
    arguments = ["predict", str(folder), str(photos / "0.png"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--tile", "40", "48"]) == 0
    logits_1KHW, _ = forward_rooms(tensor_of(photos / "0.png"))
    mask = np.asarray(Image.open(tmp_path / "out" / "0_mask.png"))
    assert (mask == logits_1KHW[0].argmax(0).numpy()).mean() > 0.9995, "tiles are not resized"


def test_evaluation_is_that_of_the_heads(tmp_path, capsys):
    data = tmp_path / "data"
    for image in pictures(data / "images" / "val").iterdir():
        height, width = tensor_of(image).shape[2:]
        labels = Image.fromarray(RNG.integers(0, 4, (4, 5), dtype=np.uint8)).resize((width, height), 0)
        (data / "masks" / "val").mkdir(parents=True, exist_ok=True)
        labels.save(data / "masks" / "val" / image.name)
    (data / "classes.json").write_text(json.dumps({"names": CLASSES["classes"]}))
    folder = write_export(tmp_path / "exported")
    arguments = ["evaluate", str(folder), "--data", str(data), "--out", str(tmp_path / "out"), "--json"]
    assert main([*arguments]) == 2, "two heads, none is named"
    capsys.readouterr()
    assert main([*arguments, "--head", "rooms", "--test-flip"]) == 0
    task = open_task(dataclasses.replace(ROOMS, test_flip=True), data, ("val",))
    expected = evaluate(task, forward_rooms).metrics
    assert json.loads(capsys.readouterr().out)["miou"] == pytest.approx(expected["miou"], abs=2e-3)
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_options_of_bundles_and_of_exports(tmp_path):
    folder = write_export(tmp_path / "exported")
    for options in ({"weights": "w"}, {"precision": "bf16"}, {"device": "cuda"}, {"runtime": "openvino"}):
        with pytest.raises(ConfigError):
            vitsplit.load(folder, **options)
    with pytest.raises(ConfigError, match="without bundles"):
        vitsplit.load(folder, tmp_path)
    with pytest.raises(BundleError):
        vitsplit.load(tmp_path, runtime=None)
    assert vitsplit.load(folder, runtime="onnx", device="cpu").keys() == {"rooms", "depth"}


def test_sizes_that_the_graph_does_not_take(tmp_path):
    model = vitsplit.load(write_export(tmp_path / "exported", size=(90, 120)))
    with pytest.raises(DataError, match="90x120"):
        model.predict(np.zeros((100, 100, 3), np.uint8))
    model = vitsplit.load(write_export(tmp_path / "dynamic"))
    with pytest.raises(DataError, match="larger"):
        model.predict(np.zeros((3, 300, 3), np.uint8))


@pytest.mark.parametrize("change", ["missing", "broken", "other task"])
def test_untrusted_cards_of_bundles(tmp_path, change):
    folder = write_export(tmp_path / "exported")
    card = read_card_json(folder)
    head = card["heads"]["rooms"]
    if change == "missing":
        del head["bundle"]
    elif change == "broken":
        head["bundle"]["config"]["task"]["crop_size"] = [-1, 5]
    else:
        head["bundle"] = card["heads"]["depth"]["bundle"]
    write_card(folder, card)
    with pytest.raises((ExportError, BundleError, ConfigError), match="rooms"):
        vitsplit.load(folder)
