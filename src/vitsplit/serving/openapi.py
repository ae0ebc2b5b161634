"""The description of the HTTP API, ``/openapi.json``, for the heads that are loaded."""

from __future__ import annotations

from typing import Any, get_args

from vitsplit.serving.limits import FORMATS
from vitsplit.serving.service import Service
from vitsplit.tasks.prediction import MaskForm, ServedFormat
from vitsplit.version import __version__

Schema = dict[str, Any]

PYTHON = """import json, urllib.request

with open("photo.jpg", "rb") as file:
    request = urllib.request.Request(URL + "/v1/predict", data=file.read(), headers={"Content-Type": "image/jpeg"})
with urllib.request.urlopen(request) as response:
    predictions = json.load(response)["predictions"]
print({name: prediction["task"] for name, prediction in predictions.items()})
"""
"""A client, for which ``URL`` is the address of the server."""
CURL = "curl --fail --silent --data-binary @photo.jpg URL/v1/predict"


def document(service: Service) -> Schema:
    """The OpenAPI document, version 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vitsplit",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(service),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"administrator": {"type": "http", "scheme": "bearer"}},
        },
    }


def _paths(service: Service) -> Schema:
    names = list(service.heads)
    predict = _operation(
        "predict",
        "Predictions of an image by one pass of the backbone.",
        _success({"application/json": _ref("Predictions"), "image/png": _file(), "application/x-npz": _file()}),
        parameters=[
            _parameter("bundles", {"type": "string"}, f"Names, separated by commas: {', '.join(names)}."),
            _parameter("format", {"enum": list(get_args(ServedFormat)), "default": "json"}, "Form of the response."),
            _parameter("masks", {"enum": list(get_args(MaskForm)), "default": "rle"}, "Form of masks in JSON."),
            _parameter("image_id", {"type": "string", "default": "0"}, "Image id of COCO results."),
        ],
        body=_image_body(),
        errors=(400, 404, 408, 413, 415, 503),
    )
    predict["x-codeSamples"] = [{"lang": "Python", "source": PYTHON}, {"lang": "Shell", "source": CURL}]
    ask = _operation(
        "ask",
        "An answer about an image, as server-sent events.",
        _success({"text/event-stream": {"type": "string"}}),
        parameters=[
            _parameter("question", {"type": "string"}, "The question, if the body is an image."),
            _parameter("bundle", {"type": "string"}, "Name of the bundle, if several answer questions."),
            _parameter("max_new_tokens", {"type": "integer", "minimum": 1}, "Length limit of the answer in tokens."),
        ],
        body={
            "required": True,
            "content": {**_image_body()["content"], "application/json": {"schema": _ref("Question")}},
        },
        errors=(400, 404, 408, 413, 415, 503),
    )
    return {
        "/v1/predict": {"post": predict},
        "/v1/ask": {"post": ask},
        "/v1/bundles": {"get": _operation("bundles", "The loaded bundles.", _json(_ref("Bundles")))},
        "/v1/bundles/{name}": {
            "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
            "put": _administration(
                "add", "Adds a bundle from below the root of the bundles.",
                {"201": {"description": "The bundle.", "content": {"application/json": {"schema": _ref("Bundle")}}}},
                {"required": True, "content": {"application/json": {"schema": _ref("Folder")}}},
            ),
            "delete": _administration("remove", "Removes a bundle.", {"204": {"description": "Removed."}}),
        },
        "/healthz": {"get": _operation("healthz", "Whether the process runs.", _json({"type": "object"}))},
        "/readyz": {"get": _operation("readyz", "Whether it accepts work.", _json({"type": "object"}), errors=(503,))},
        "/metrics": {"get": _operation("metrics", "For Prometheus.", _success({"text/plain": {"type": "string"}}))},
    }  # fmt: skip


def _operation(
    name: str,
    summary: str,
    responses: Schema,
    *,
    parameters: list[Schema] | None = None,
    body: Schema | None = None,
    errors: tuple[int, ...] = (),
) -> Schema:
    failures = {
        str(status): {"description": "An error.", "content": {"application/json": {"schema": _ref("Error")}}}
        for status in (*errors, 500)
    }
    found: Schema = {"operationId": name, "summary": summary, "responses": responses | failures}
    if parameters:
        found["parameters"] = parameters
    if body:
        found["requestBody"] = body
    return found


def _administration(name: str, summary: str, responses: Schema, body: Schema | None = None) -> Schema:
    operation = _operation(name, summary, responses, body=body, errors=(400, 401, 403, 404, 409, 503))
    return operation | {"security": [{"administrator": []}]}


def _parameter(name: str, schema: Schema, text: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _image_body() -> Schema:
    return {"required": True, "content": {media_type: {"schema": _file()} for media_type in FORMATS.values()}}


def _success(content: Schema) -> Schema:
    return {"200": {"description": "Success.", "content": {kind: {"schema": each} for kind, each in content.items()}}}


def _json(schema: Schema) -> Schema:
    return _success({"application/json": schema})


def _file() -> Schema:
    return {"type": "string", "format": "binary"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    return {"type": "object", "required": list(required), "properties": required | (optional or {})}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _schemas() -> Schema:
    text, number, whole, free = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "object"}
    size = {"type": "array", "items": whole, "minItems": 2, "maxItems": 2}
    classes = _list(_object({"name": text, "color": text}))
    mask = _object({"size": size, "counts": text})
    return {
        "Predictions": {
            "anyOf": [
                _object(
                    {
                        "image": _object({"size": size, "sha256": text}),
                        "predictions": {"type": "object", "additionalProperties": _ref("Prediction")},
                        "timing": {"type": "object", "additionalProperties": number},
                        "pass": _list(_ref("Pass")),
                    }
                ),
                _list(_ref("CocoResult")),
            ]
        },
        "Prediction": {"anyOf": [_ref("Segmentation"), _ref("Depth"), _ref("Detection")]},
        "Segmentation": _object(
            {
                "task": {"const": "segmentation"},
                "size": size,
                "classes": classes,
                "segments": _list(_object({"class": whole, "share": number}, {"mask": mask})),
            },
            {"png": text},
        ),
        "Depth": _object(
            {
                "task": {"const": "depth"},
                "size": size,
                "unit": {"const": "m"},
                "scale": number,
                "range": {"type": "array", "items": number, "minItems": 2, "maxItems": 2},
                "png": text,
            }
        ),
        "Detection": _object(
            {
                "task": {"const": "detection"},
                "size": size,
                "classes": classes,
                "category_ids": _list(whole),
                "objects": _list(_object({"class": whole, "score": number, "box": _list(number)}, {"mask": mask})),
            }
        ),
        "Pass": _object(
            {"size": size, "bundles": _list(text)},
            {"blocks": whole, "of": whole, "maps": _list(whole), "count": whole},
        ),
        "CocoResult": _object(
            {"image_id": {"type": ["integer", "string"]}, "category_id": whole, "score": number},
            {"bbox": _list(number), "segmentation": mask},
        ),
        "Question": _object({"image_sha256": text, "question": text}, {"bundle": text, "max_new_tokens": whole}),
        "Folder": _object({"path": text}),
        "Bundle": _object(
            {"task": text, "needs_question": {"type": "boolean"}, "formats": _list(text), "sha256": text},
            {"classes": classes, "unit": text, "vitsplit": text, "metrics": free, "maps": _list(whole)},
        ),
        "Bundles": _object(
            {
                "backbone": free,
                "bundles": {"type": "object", "additionalProperties": _ref("Bundle")},
                "limits": free,
            }
        ),
        "Error": _object({"error": _object({"code": text, "message": text}, {"remedy": text})}),
    }
