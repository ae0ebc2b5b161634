"""The description of KServe's inference protocol (``serving.kserve``) in ``/openapi.json``."""

from __future__ import annotations

from vitsplit.serving.openapi_forms import as_json, binary_file, operation, ref, success
from vitsplit.tasks.json_schema import INTEGER, TEXT, Schema, list_schema, object_schema


def paths() -> Schema:
    """The paths below ``/v2``; those of a model have a second form with its only version."""
    error = "InferenceError"
    ready_state = object_schema({"ready": {"type": "boolean"}}, {"name": TEXT})
    live_state = object_schema({"live": {"type": "boolean"}})
    about = object_schema({"name": TEXT, "version": TEXT, "extensions": list_schema(TEXT)})
    found: Schema = {
        "/v2": {
            "get": operation(
                "serverMetadata", "Name, version and extensions of the server.", as_json(about), error=error
            )
        },
        "/v2/health/live": {
            "get": operation("serverLive", "Whether the process runs.", as_json(live_state), error=error)
        },
        "/v2/health/ready": {
            "get": operation(
                "serverReady", "Whether it accepts work.", as_json(ready_state) | _not_ready(ready_state), error=error
            )
        },
    }
    for version, suffix in (("", ""), ("/versions/1", "OfVersion")):
        model = f"/v2/models/{{model}}{version}"
        where = {"name": "model", "in": "path", "required": True, "schema": TEXT}
        where["description"] = "Name of a bundle, or names separated by commas, which share one pass of the backbone."
        infer = operation(
            f"modelInfer{suffix}",
            "Predictions as arrays. A body or response with binary tensors is the JSON, of the length in the header "
            "Inference-Header-Content-Length, followed by their data.",
            success({"application/json": ref("InferenceResponse"), "application/octet-stream": binary_file()}),
            body={
                "required": True,
                "content": {
                    "application/json": {"schema": ref("InferenceRequest")},
                    "application/octet-stream": {"schema": binary_file()},
                },
            },
            errors=(400, 404, 408, 413, 415, 503),
            error=error,
        )
        metadata = operation(
            f"modelMetadata{suffix}",
            "Inputs and outputs.",
            as_json(ref("ModelMetadata")),
            errors=(400, 404),
            error=error,
        )
        ready = operation(
            f"modelReady{suffix}",
            "Whether it accepts work.",
            as_json(ready_state) | _not_ready(ready_state),
            errors=(400, 404),
            error=error,
        )
        found[model] = {"parameters": [where], "get": metadata}
        found[f"{model}/ready"] = {"parameters": [where], "get": ready}
        found[f"{model}/infer"] = {"parameters": [where], "post": infer}
    return found


def _not_ready(state: Schema) -> Schema:
    return {"503": {"description": "Not ready.", "content": {"application/json": {"schema": state}}}}


def schemas() -> Schema:
    """The schemas that the paths refer to."""
    form: Schema = {"name": TEXT, "datatype": TEXT, "shape": list_schema(INTEGER)}
    parameters: Schema = {"type": "object"}
    data = {"description": "The values in the order of the shape, if they are not binary."}
    described = list_schema(object_schema(form))
    return {
        "ModelMetadata": object_schema(
            {"name": TEXT, "versions": list_schema(TEXT), "platform": TEXT, "inputs": described, "outputs": described}
        ),
        "InferenceRequest": object_schema(
            {
                "inputs": list_schema(
                    object_schema(
                        {
                            "name": {"const": "image"},
                            "datatype": {"enum": ["UINT8", "BYTES"]},
                            "shape": list_schema(INTEGER) | {"description": "[1, height, width, 3], or [1] for BYTES."},
                        },
                        {"data": data, "parameters": parameters},
                    )
                )
                | {"minItems": 1, "maxItems": 1}
            },
            {
                "id": TEXT,
                "parameters": parameters,
                "outputs": list_schema(object_schema({"name": TEXT}, {"parameters": parameters})),
            },
        ),
        "InferenceResponse": object_schema(
            {
                "model_name": TEXT,
                "model_version": TEXT,
                "outputs": list_schema(object_schema(form, {"data": data, "parameters": parameters})),
            },
            {"id": TEXT},
        ),
        "InferenceError": object_schema({"error": TEXT}),
    }
