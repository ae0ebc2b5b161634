"""The description of the HTTP API, ``/openapi.json``, for the heads that are loaded."""

from __future__ import annotations

from typing import get_args

from vitsplit.serving import openapi_kserve
from vitsplit.serving.limits import FORMATS
from vitsplit.serving.openapi_forms import as_json, binary_file, operation, ref, success
from vitsplit.serving.service import Service
from vitsplit.tasks import TASKS, task_config
from vitsplit.tasks.json_schema import CLASSES, INTEGER, MASK, NUMBER, SIZE, TEXT, Schema, list_schema, object_schema
from vitsplit.tasks.prediction import MaskForm, ServedFormat
from vitsplit.version import __version__

PYTHON = """import json, urllib.request

with open("photo.jpg", "rb") as file:
    request = urllib.request.Request(URL + "/v1/predict", data=file.read(), headers={"Content-Type": "image/jpeg"})
with urllib.request.urlopen(request) as response:
    predictions = json.load(response)["predictions"]
print({name: prediction["task"] for name, prediction in predictions.items()})
"""
"""A client, for which ``URL`` is the address of the server."""
ASK = """import json, urllib.parse, urllib.request

query = urllib.parse.urlencode({"question": "What is on the desk?"})
with open("photo.jpg", "rb") as file:
    request = urllib.request.Request(f"{URL}/v1/ask?{query}", data=file.read(), headers={"Content-Type": "image/jpeg"})
with urllib.request.urlopen(request) as response:
    for line in response:
        if line.startswith(b"data: "):
            print(json.loads(line.removeprefix(b"data: ")))
"""
"""One that asks a question."""
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
            "schemas": _schemas(service),
            "securitySchemes": {"administrator": {"type": "http", "scheme": "bearer"}},
        },
    }


def _paths(service: Service) -> Schema:
    names = list(service.heads)
    predict = operation(
        "predict",
        "Predictions of an image by one pass of the backbone.",
        success(
            {"application/json": ref("Predictions"), "image/png": binary_file(), "application/x-npz": binary_file()}
        ),
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
    ask = operation(
        "ask",
        "An answer about an image, as server-sent events.",
        success({"text/event-stream": {"type": "string"}}),
        parameters=[
            _parameter("question", {"type": "string"}, "The question, if the body is an image."),
            _parameter("bundle", {"type": "string"}, "Name of the bundle, if several answer questions."),
            _parameter("max_new_tokens", {"type": "integer", "minimum": 1}, "Length limit of the answer in tokens."),
        ],
        body={
            "required": True,
            "content": {**_image_body()["content"], "application/json": {"schema": ref("Question")}},
        },
        errors=(400, 404, 408, 413, 415, 503),
    )
    ask["x-codeSamples"] = [{"lang": "Python", "source": ASK}]
    return {
        "/v1/predict": {"post": predict},
        "/v1/ask": {"post": ask},
        "/v1/bundles": {"get": operation("bundles", "The loaded bundles.", as_json(ref("Bundles")))},
        "/v1/bundles/{name}": {
            "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
            "put": _administration(
                "add", "Adds a bundle from below the root of the bundles.",
                {"201": {"description": "The bundle.", "content": {"application/json": {"schema": ref("Bundle")}}}},
                {"required": True, "content": {"application/json": {"schema": ref("Folder")}}},
            ),
            "delete": _administration("remove", "Removes a bundle.", {"204": {"description": "Removed."}}),
        },
        "/healthz": {"get": operation("healthz", "Whether the process runs.", as_json({"type": "object"}))},
        "/readyz": {"get": operation("readyz", "Whether it accepts work.", as_json({"type": "object"}), errors=(503,))},
        "/metrics": {"get": operation("metrics", "For Prometheus.", success({"text/plain": {"type": "string"}}))},
        **openapi_kserve.paths(),
    }  # fmt: skip


def _administration(name: str, summary: str, responses: Schema, body: Schema | None = None) -> Schema:
    found = operation(name, summary, responses, body=body, errors=(400, 401, 403, 404, 409, 503))
    return found | {"security": [{"administrator": []}]}


def _parameter(name: str, schema: Schema, text: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _image_body() -> Schema:
    return {"required": True, "content": {media_type: {"schema": binary_file()} for media_type in FORMATS.values()}}


def _predictions(service: Service) -> Schema:
    """The schema of each task's predictions: of built-in tasks, and of those of the heads."""
    tasks = dict.fromkeys([*TASKS.built_in, *(head.task.name for head in service.heads.values())])
    kinds = {name: task_config(name).prediction_type() for name in tasks}
    return {
        name.capitalize(): kind.json_schema
        | {
            "required": ["task", *kind.json_schema["required"]],
            "properties": {"task": {"const": name}} | kind.json_schema["properties"],
        }
        for name, kind in kinds.items()
        if "json" in kind.served_formats
    }


def _schemas(service: Service) -> Schema:
    free = {"type": "object"}
    predictions = _predictions(service)
    return {
        "Predictions": {
            "anyOf": [
                object_schema(
                    {
                        "image": object_schema({"size": SIZE, "sha256": TEXT}),
                        "predictions": {"type": "object", "additionalProperties": ref("Prediction")},
                        "timing": {"type": "object", "additionalProperties": NUMBER},
                        "pass": list_schema(ref("Pass")),
                    }
                ),
                list_schema(ref("CocoResult")),
            ]
        },
        "Prediction": {"anyOf": [ref(name) for name in predictions]},
        **predictions,
        "Pass": object_schema(
            {"size": SIZE, "bundles": list_schema(TEXT)},
            {"blocks": INTEGER, "of": INTEGER, "maps": list_schema(INTEGER), "count": INTEGER},
        ),
        "CocoResult": object_schema(
            {"image_id": {"type": ["integer", "string"]}, "category_id": INTEGER, "score": NUMBER},
            {"bbox": list_schema(NUMBER), "segmentation": MASK},
        ),
        "Question": object_schema(
            {"image_sha256": TEXT, "question": TEXT}, {"bundle": TEXT, "max_new_tokens": INTEGER}
        ),
        "Folder": object_schema({"path": TEXT}),
        "Bundle": object_schema(
            {
                "task": TEXT,
                "needs_question": {"type": "boolean"},
                "formats": list_schema(TEXT),
                "sha256": TEXT,
                "license": TEXT,
            },
            {"classes": CLASSES, "unit": TEXT, "vitsplit": TEXT, "metrics": free, "maps": list_schema(INTEGER)},
        ),
        "Bundles": object_schema(
            {
                "backbone": free,
                "bundles": {"type": "object", "additionalProperties": ref("Bundle")},
                "limits": free,
            }
        ),
        "Error": object_schema({"error": object_schema({"code": TEXT, "message": TEXT}, {"remedy": TEXT})}),
        **openapi_kserve.schemas(),
    }
