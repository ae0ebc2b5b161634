"""KServe's protocol. Oracles: tritonclient, and ``predict`` bit for bit."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from served import expected, photo

import vitsplit
from vitsplit.serving import kserve

PIXELS = np.random.default_rng(1).integers(0, 256, (1, 40, 56, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def triton(address):
    import tritonclient.http as client

    with client.InferenceServerClient(address) as connected:
        yield connected


def tensor(values, datatype="UINT8", *, binary=True):
    import tritonclient.http as client

    found = client.InferInput("image", list(values.shape), datatype)
    found.set_data_from_numpy(values, binary_data=binary)
    return found


def test_state_and_metadata(triton):
    assert triton.is_server_live() and triton.is_server_ready()
    assert triton.is_model_ready("rooms") and not triton.is_model_ready("absent")
    assert triton.get_server_metadata()["name"] == "vitsplit"
    metadata = triton.get_model_metadata("rooms")
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [1, -1, -1, 3]}]
    assert metadata["outputs"] == [{"name": "mask", "datatype": "UINT8", "shape": [-1, -1]}]
    assert triton.get_model_metadata("rooms,far")["outputs"][1]["name"] == "far.depth"


@pytest.mark.parametrize("binary", [True, False])
def test_pixels(triton, runs, binary):
    import tritonclient.http as client

    outputs = [client.InferRequestedOutput("depth", binary_data=binary)]
    found = triton.infer("far", [tensor(PIXELS, binary=binary)], outputs=outputs, request_id="7")
    wanted = vitsplit.load({"far": runs["far"]}).predict(PIXELS[0])["far"].depth
    np.testing.assert_array_equal(found.as_numpy("depth"), wanted)
    assert found.get_response()["id"] == "7"


def test_an_image_file_and_all_outputs(triton, runs):
    content = photo()
    found = triton.infer("things", [tensor(np.array([content], dtype=object), "BYTES")])
    wanted = expected({"things": runs["things"]}, content)["things"]
    for name, array in wanted.arrays().items():
        np.testing.assert_array_equal(found.as_numpy(name), array)
        assert found.as_numpy(name).dtype == array.dtype


def test_several_bundles_as_one_model(triton, runs):
    content = photo()
    found = triton.infer("rooms,far", [tensor(np.array([content], dtype=object), "BYTES")])
    wanted = expected(runs, content)
    np.testing.assert_array_equal(found.as_numpy("rooms.mask"), wanted["rooms"].mask)
    np.testing.assert_array_equal(found.as_numpy("far.depth"), wanted["far"].depth)


def test_errors_have_the_form_of_the_protocol(triton):
    from tritonclient.utils import InferenceServerException

    for model, given in (("absent", PIXELS), ("rooms", PIXELS[:, :0]), ("rooms", np.zeros((2, 4, 4, 3), np.uint8))):
        with pytest.raises(InferenceServerException):
            triton.infer(model, [tensor(given)])


def image_input(**changes):
    return {"name": "image", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [0, 1, 2, 3, 4, 255]} | changes


BODIES = [
    b"", b"[]", b"{", b'{"inputs": []}', b"\xff",
    *[
        json.dumps({"inputs": [image_input(**changes)]}).encode()
        for changes in (
            {"name": "x"}, {"datatype": "FP32"}, {"shape": [1, 1, 2]}, {"shape": [1, 10**9, 10**9, 3]}, {"shape": "x"},
            {"shape": [1, 1, 2, True]}, {"data": [0]}, {"data": [0, 1, 2, 3, 4, 256]}, {"data": [[0], [1, 2]]},
            {"data": ["a"] * 6}, {"data": None}, {"data": [0.5] * 6}, {"parameters": 3}, {"data": [10**30] * 6},
            {"parameters": {"binary_data_size": 6}}, {"parameters": {"binary_data_size": -1}},
            {"datatype": "BYTES", "shape": [1], "data": ["%%"]}, {"datatype": "BYTES", "shape": [2], "data": ["", ""]},
            {"datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="]}, {"data": [[[0, 1, 2], [3, 4, "5"]]]},
            {"data": [[0, 1, 2], 3]}, {"data": [0] * 300_000 + ["a" * 400_000]},
        )
    ],
    json.dumps({"inputs": [image_input()], "outputs": [{"name": "absent"}]}).encode(),
    json.dumps({"inputs": [image_input()], "outputs": 3}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_malformed_requests(client, body):
    response = client.post("/v2/models/rooms/infer", content=body)
    assert response.status_code in (400, 413, 415) and isinstance(response.json()["error"], str)


@pytest.mark.parametrize("length", ["5", "-1", "x", "99999999999999999999", "1000000"])
def test_a_wrong_length_of_the_header(client, length):
    headers = {"Inference-Header-Content-Length": length}
    body = json.dumps({"inputs": [image_input()]}).encode()
    assert client.post("/v2/models/rooms/infer", content=body, headers=headers).status_code == 400


def test_damaged_bodies_are_answered(client):
    """Bytes of the JSON and of the tensor are changed, and the body is cut: never status 500."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, 4 * 5 * 3, dtype=np.uint8).tobytes()
    given = {"name": "image", "datatype": "UINT8", "shape": [1, 4, 5, 3], "parameters": {"binary_data_size": 60}}
    outputs = [{"name": "mask", "parameters": {"binary_data": True}}]
    header = json.dumps({"id": "1", "inputs": [given], "outputs": outputs}).encode()
    statuses = set()
    for _ in range(80):
        content = bytearray(header + pixels)
        for _ in range(rng.integers(3)):
            content[rng.integers(len(content))] = rng.integers(32, 127)
        length = len(header) + int(rng.integers(-1, 2)) * int(rng.integers(2))
        response = client.post(
            "/v2/models/rooms/infer",
            content=bytes(content[: rng.choice([len(content), len(content) - 1, length])]),
            headers={"Inference-Header-Content-Length": str(length)},
        )
        statuses.add(response.status_code)
        assert response.status_code == 200 or isinstance(response.json()["error"], str)
    assert {200, 400} <= statuses <= {200, 400, 413, 415}


def test_json_alone(client, runs):
    content = photo()
    given = image_input(datatype="BYTES", shape=[1], data=[base64.b64encode(content).decode()])
    found = client.post("/v2/models/rooms/infer", json={"inputs": [given]}).json()["outputs"][0]
    mask_HW = np.array(found["data"], np.uint8).reshape(found["shape"])
    np.testing.assert_array_equal(mask_HW, expected({"rooms": runs["rooms"]}, content)["rooms"].mask)


def test_large_outputs_are_binary(client, runs, monkeypatch):
    body = {"inputs": [image_input(shape=[1, 40, 56, 3], data=PIXELS.tolist())]}
    url = "/v2/models/rooms/infer"
    found = client.post(url, json=body).json()["outputs"][0]
    wanted = vitsplit.load({"rooms": runs["rooms"]}).predict(PIXELS[0])["rooms"].mask
    np.testing.assert_array_equal(np.reshape(found["data"], found["shape"]), wanted)
    monkeypatch.setattr(kserve, "MOST_JSON_VALUES", 40 * 56 - 1)
    assert client.post(url, json=body).status_code == 400
    assert client.post(url, json=body | {"parameters": {"binary_data_output": True}}).status_code == 200


def test_versions(client):
    assert client.get("/v2/models/rooms/versions/1/ready").status_code == 200
    assert client.get("/v2/models/rooms/versions/2").status_code == 404
