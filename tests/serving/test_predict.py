"""Predictions over HTTP. Oracles: ``predict`` bit for bit, pycocotools, Pillow and numpy."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from served import expected, photo, serving


@pytest.fixture(scope="module")
def answer(runs):
    return expected(runs, photo())


def test_json_holds_the_predictions_bit_for_bit(client, answer):
    response = client.post("/v1/predict", content=photo())
    assert response.status_code == 200, response.text
    found = response.json()
    assert found["image"]["size"] == [48, 64]
    assert set(found["predictions"]) == {"rooms", "far", "things"}
    rooms, far, things = (found["predictions"][name] for name in ("rooms", "far", "things"))

    mask_HW = np.full((48, 64), 255, np.uint8)
    for segment in rooms["segments"]:
        own_HW = coco_mask.decode(segment["mask"]).astype(bool)
        assert segment["share"] == pytest.approx(own_HW.mean(), abs=1e-6)
        mask_HW[own_HW] = segment["class"]
    np.testing.assert_array_equal(mask_HW, answer["rooms"].mask)
    assert [each["name"] for each in rooms["classes"]] == list(answer["rooms"].classes.names)

    depth_HW = np.asarray(Image.open(io.BytesIO(base64.b64decode(far["png"])))) * far["scale"]
    np.testing.assert_allclose(depth_HW, answer["far"].depth, atol=far["scale"] / 2 + 1e-6)
    assert far["range"] == [float(answer["far"].depth.min()), float(answer["far"].depth.max())]

    detected = answer["things"]
    assert len(things["objects"]) == len(detected.boxes) > 0
    np.testing.assert_array_equal([each["box"] for each in things["objects"]], detected.boxes.astype(float))
    np.testing.assert_array_equal([each["score"] for each in things["objects"]], detected.scores.astype(float))
    np.testing.assert_array_equal([each["class"] for each in things["objects"]], detected.labels)
    for each, mask in zip(things["objects"], detected.masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(each["mask"]).astype(bool), mask)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_other_formats_of_images(client, runs, kind):
    content = photo(40, 56, kind=kind)
    response = client.post("/v1/predict?bundles=rooms&format=npz", content=content)
    arrays = np.load(io.BytesIO(response.content))
    np.testing.assert_array_equal(arrays["rooms.mask"], expected({"rooms": runs["rooms"]}, content)["rooms"].mask)


def test_npz_has_all_arrays(client, answer):
    arrays = np.load(io.BytesIO(client.post("/v1/predict?format=npz", content=photo()).content))
    np.testing.assert_array_equal(arrays["rooms.mask"], answer["rooms"].mask)
    np.testing.assert_array_equal(arrays["far.depth"], answer["far"].depth)
    for name in ("boxes", "labels", "scores", "mask_bins"):
        np.testing.assert_array_equal(arrays[f"things.{name}"], getattr(answer["things"], name))


def test_png_is_the_file_of_the_command(client, answer, tmp_path):
    for head, suffix in (("rooms", "_mask.png"), ("far", "_depth.png")):
        answer[head].save(tmp_path, "photo")
        response = client.post(f"/v1/predict?format=png&bundles={head}", content=photo())
        assert response.headers["content-type"] == "image/png"
        served, written = Image.open(io.BytesIO(response.content)), Image.open(tmp_path / f"photo{suffix}")
        np.testing.assert_array_equal(np.asarray(served), np.asarray(written))
        assert (served.mode, served.getpalette(), served.info) == (written.mode, written.getpalette(), written.info)
    picture = Image.open(io.BytesIO(client.post("/v1/predict?format=png&bundles=things", content=photo()).content))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(answer["things"].overlay()))


def test_masks_as_png(client, answer):
    found = client.post("/v1/predict?masks=png&bundles=rooms", content=photo()).json()["predictions"]["rooms"]
    mask_HW = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["png"]))))
    np.testing.assert_array_equal(mask_HW, answer["rooms"].mask)
    assert all("mask" not in segment for segment in found["segments"])


def test_coco_results(client, answer):
    entries = client.post("/v1/predict?format=coco&bundles=rooms,things&image_id=7", content=photo()).json()
    rooms = [entry for entry in entries if "bbox" not in entry]
    assert {entry["category_id"] for entry in rooms} == set(np.unique(answer["rooms"].mask).tolist())
    for entry in rooms:
        mask_HW = coco_mask.decode(entry["segmentation"])
        np.testing.assert_array_equal(mask_HW == 1, answer["rooms"].mask == entry["category_id"])
    assert entries[len(rooms) :] == answer["things"].coco_results(7)
    # Depth has no such results, and is left out unless it is asked for.
    assert client.post("/v1/predict?format=coco&image_id=7", content=photo()).json() == entries


def test_only_the_heads_asked_for_run(client, answer):
    found = client.post("/v1/predict?bundles=far", content=photo()).json()
    assert set(found["predictions"]) == {"far"}
    assert [each["bundles"] for each in found["pass"]] == [["far"]] * len(found["pass"])
    both = client.post("/v1/predict?bundles=rooms,far", content=photo()).json()
    # The heads resize to one size, so that one pass serves both; mirrored images would be another.
    assert [each["bundles"] for each in both["pass"]] == [["rooms", "far"]]
    assert 0 < both["pass"][0]["blocks"] <= both["pass"][0]["of"] == 12
    assert {"decode_ms", "queue_ms", "model_ms", "encode_ms"} <= both["timing"].keys()


def test_bundles_and_state(client, runs):
    found = client.get("/v1/bundles").json()
    assert set(found["bundles"]) == set(runs)
    assert found["bundles"]["rooms"]["classes"][1] == {"name": "class 1", "color": "#28d75a"}
    assert found["bundles"]["far"]["unit"] == "m"
    assert found["backbone"]["blocks"] == 12
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_metrics(client):
    client.post("/v1/predict", content=photo())
    client.post("/v1/predict?bundles=none", content=photo())
    text = client.get("/metrics").text
    assert 'vitsplit_stage_seconds_count{stage="model"}' in text
    assert 'vitsplit_refusals_total{reason="unknown_bundle"}' in text
    assert "vitsplit_batch_images_count" in text
    assert 'vitsplit_backbone_passes_total{heads="2"}' in text and "rooms,far" not in text
    assert "vitsplit_accepted_requests 0.0" in text
    assert 'vitsplit_responses_total{route="/v1/predict",status="200"}' in text


def test_stopping_is_announced(runs):
    with serving({"rooms": runs["rooms"]}) as client:
        client.service.stopping = True
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").headers["connection"] == "close"
