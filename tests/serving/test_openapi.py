"""/openapi.json validates, its examples run, and responses have the form that it describes."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from served import photo

from vitsplit.serving.limits import FORMATS


@pytest.fixture(scope="module")
def document(client):
    return client.get("/openapi.json").json()


def test_the_document_is_valid(document):
    validate(document)


def test_every_route_of_the_api_is_described(client, document):
    paths = {route.path for route in client.app.routes if not route.path.startswith(("/page", "/openapi"))}
    assert set(document["paths"]) == paths - {"/"}


def schema(document, name):
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]})


def test_responses_have_the_described_form(client, document):
    for query in ("", "?masks=png", "?bundles=rooms,things&format=coco"):
        found = client.post(f"/v1/predict{query}", content=photo()).json()
        schema(document, "Predictions").validate(found)
        for prediction in found["predictions"].values() if isinstance(found, dict) else ():
            schema(document, prediction["task"].capitalize()).validate(prediction)
    schema(document, "Bundles").validate(client.get("/v1/bundles").json())
    for response in (client.post("/v1/predict", content=b"x"), client.get("/absent")):
        schema(document, "Error").validate(response.json())
    body = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert set(body) == set(FORMATS.values())


def test_the_inference_protocol_has_the_described_form(client, document):
    """A request that the schema allows is answered as it says, for each form of the paths."""
    request = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 14, 14, 3], "data": [9] * 588}]}
    schema(document, "InferenceRequest").validate(request)
    for version in ("", "/versions/1"):
        model = f"/v2/models/rooms{version}"
        schema(document, "ModelMetadata").validate(client.get(model).json())
        schema(document, "InferenceResponse").validate(client.post(f"{model}/infer", json=request).json())
        for response in (
            client.post(f"{model}/infer", json={"inputs": []}),
            client.get(f"/v2/models/absent{version}"),
            client.get(f"/v2/models/absent{version}/ready"),
        ):
            assert response.status_code >= 400
            schema(document, "InferenceError").validate(response.json())
    for path, methods in document["paths"].items():
        if path.startswith("/v2") and "get" in methods:
            found = client.get(path.replace("{model}", "rooms"))
            described = methods["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            assert found.status_code == 200
            Draft202012Validator(described | {"components": document["components"]}).validate(found.json())


def test_the_examples_run(document, address, tmp_path, monkeypatch, capsys):
    (tmp_path / "photo.jpg").write_bytes(photo(kind="JPEG"))
    monkeypatch.chdir(tmp_path)
    samples = {each["lang"]: each["source"] for each in document["paths"]["/v1/predict"]["post"]["x-codeSamples"]}
    exec(samples["Python"], {"URL": f"http://{address}"})
    assert "'rooms': 'segmentation'" in capsys.readouterr().out
    if shutil.which("curl"):
        command = samples["Shell"].replace("URL", f"http://{address}").split()
        assert b'"rooms"' in subprocess.run(command, check=True, capture_output=True).stdout
