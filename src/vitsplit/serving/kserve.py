"""KServe's inference protocol, version 2, over the same heads, with its extension for binary tensors.

A model is a bundle, or several whose names are separated by commas, which share one pass. Its input is ``image``: UINT8
[1, H, W, 3], or BYTES [1] with an image file. Its outputs are those of ``format=npz``.

Shapes: H W pixels, C channels.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from http import HTTPStatus
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vitsplit.serving.errors import HttpError, invalid
from vitsplit.serving.fields import dump, parse_request_json
from vitsplit.serving.heads import ServedHead
from vitsplit.serving.images import decode
from vitsplit.serving.limits import Limits
from vitsplit.serving.service import Result, Service, client_of
from vitsplit.version import __version__

JSON_LENGTH = "inference-header-content-length"
"""Header with the length of the JSON in a body with binary tensors."""
EXTENSION = "binary_tensor_data"
MOST_JSON_VALUES = 1 << 20
"""Limit of the values of a response in JSON, whose encoding stops all other threads; binary data have no limit."""
TYPES = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32"}


def routes(service: Service) -> list[Route]:
    """The routes below ``/v2``."""

    async def server(request: Request) -> Response:
        return JSONResponse({"name": "vitsplit", "version": __version__, "extensions": [EXTENSION]})

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    async def model_ready(request: Request) -> Response:
        name = request.path_params["model"]
        service.choose(name)
        return JSONResponse({"name": name, "ready": service.ready}, 200 if service.ready else 503)

    async def model(request: Request) -> Response:
        return JSONResponse(_metadata(service, request.path_params["model"]))

    async def infer(request: Request) -> Response:
        return await _infer(service, request)

    paths: dict[str, Any] = {"/v2": server, "/v2/health/live": live, "/v2/health/ready": ready}
    for version in ("", "/versions/1"):
        paths[f"/v2/models/{{model}}{version}/ready"] = model_ready
        paths[f"/v2/models/{{model}}{version}"] = model
    found = [Route(path, handler) for path, handler in paths.items()]
    return [
        *found,
        *[Route(f"/v2/models/{{model}}{version}/infer", infer, methods=["POST"]) for version in ("", "/versions/1")],
    ]


def _metadata(service: Service, model: str) -> dict[str, Any]:
    heads = _heads(service, model)
    outputs = [
        {"name": name if len(heads) == 1 else f"{head.name}.{name}", "datatype": TYPES[dtype], "shape": list(shape)}
        for head in heads.values()
        for name, (dtype, shape) in head.forms.array_types.items()
    ]
    return {
        "name": model,
        "versions": ["1"],
        "platform": "vitsplit",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, -1, -1, 3]}],
        "outputs": outputs,
    }


def _heads(service: Service, model: str) -> dict[str, ServedHead]:
    heads = service.choose(model)
    for name, head in heads.items():
        if "npz" not in head.forms.served_formats:
            raise invalid("invalid_parameter", f"the bundle {name} has no arrays")
    return heads


async def _infer(service: Service, request: Request) -> Response:
    model = request.path_params["model"]
    heads = _heads(service, model)
    timing: dict[str, float] = {}
    with service.hold(heads):
        content = await service.read_body(request)
        with service.slots.one("requests", client_of(request)):
            header, binary = _split(content, request.headers.get(JSON_LENGTH))

            def read() -> tuple[NDArray[np.uint8], dict[str, bool] | bool, Any]:
                fields = parse_request_json(header)
                return _image(fields, binary, service.limits), _wanted(fields), fields.get("id")

            image_HWC, wanted, request_id = await service.in_pool("decode", read, request, timing)
            result = await service.predict(request, image_HWC, heads, timing)
            body, length = await service.in_pool(
                "encode", lambda: _encode(model, request_id, result, wanted), request, timing
            )
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, media_type="application/octet-stream", headers={JSON_LENGTH: str(length)})


def _split(content: bytes, length: str | None) -> tuple[bytes, memoryview]:
    """The JSON of a body, and the binary tensors after it."""
    if length is None:
        return content, memoryview(b"")
    if not length.isdecimal() or len(length) > 12 or int(length) > len(content):
        raise invalid("invalid_json", f"{JSON_LENGTH} is not a length within the body")
    return content[: int(length)], memoryview(content)[int(length) :]


def _image(fields: Mapping[str, Any], binary: memoryview, limits: Limits) -> NDArray[np.uint8]:
    """``image_HWC`` of a request."""
    tensor = _only_input(fields)
    if tensor["datatype"] == "BYTES":
        return decode(_encoded_image(tensor, binary), limits)
    return _pixels(tensor, binary, limits.decoding.pixels)


def _only_input(fields: Mapping[str, Any]) -> dict[str, Any]:
    inputs = fields.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise invalid("invalid_json", "inputs must be a list of one tensor")
    tensor: dict[str, Any] = inputs[0]
    if tensor.get("name") != "image" or tensor.get("datatype") not in ("UINT8", "BYTES"):
        raise invalid("invalid_json", "the input must be named image, of datatype UINT8 or BYTES")
    if not isinstance(tensor.get("parameters", {}), dict):
        raise invalid("invalid_json", "parameters must be an object")
    return tensor


def _binary(tensor: Mapping[str, Any], binary: memoryview) -> memoryview | None:
    """The binary data of the input; None if its data are in the JSON."""
    size = tensor.get("parameters", {}).get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size != len(binary):
        raise invalid("invalid_json", f"binary_data_size is not the length of the data after the JSON ({len(binary)})")
    return binary


def _encoded_image(tensor: Mapping[str, Any], binary: memoryview) -> bytes:
    """The file of a BYTES input: after its length in four bytes, or in JSON as base64."""
    found = _binary(tensor, binary)
    if tensor.get("shape") not in ([1], [1, 1]):
        raise invalid("invalid_json", "the shape of BYTES must be [1]")
    if found is not None:
        if len(found) < 4 or int.from_bytes(found[:4], "little") != len(found) - 4:
            raise invalid("invalid_json", "BYTES must be one element after its length in four bytes")
        return bytes(found[4:])
    data = tensor.get("data")
    if not isinstance(data, list) or len(data) != 1 or not isinstance(data[0], str):
        raise invalid("invalid_json", "data of BYTES in JSON must be one string in base64")
    try:
        return base64.b64decode(data[0], validate=True)
    except (binascii.Error, ValueError):
        raise invalid("invalid_json", "data of BYTES in JSON must be in base64") from None


def _pixels(tensor: Mapping[str, Any], binary: memoryview, most_pixels: int) -> NDArray[np.uint8]:
    """``image_HWC`` of a UINT8 input."""
    shape = tensor.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) != 4
        or any(type(side) is not int or not 1 <= side < 1 << 24 for side in shape)
        or (shape[0], shape[3]) != (1, 3)
    ):
        raise invalid("invalid_json", "the shape of UINT8 must be [1, height, width, 3]")
    if shape[1] * shape[2] > most_pixels:
        raise HttpError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "too_large",
            f"the image has more than {most_pixels} pixels",
        )
    found = _binary(tensor, binary)
    try:
        values = np.frombuffer(_bytes(tensor.get("data")) if found is None else found, np.uint8)
    except (ValueError, OverflowError, TypeError):
        raise invalid("invalid_json", "data must be numbers from 0 to 255 in the order of the shape") from None
    if values.size != math.prod(shape):
        raise invalid("invalid_json", f"the shape needs {math.prod(shape)} values, but there are {values.size}")
    return np.array(values).reshape(shape[1:])


def _bytes(data: Any) -> bytes:
    """The values of a tensor in JSON: numbers from 0 to 255, or nested lists of them."""
    for _ in range(3):
        if isinstance(data, list) and data and isinstance(data[0], list):
            data = list(chain.from_iterable(data))
    # Before anything is built of the values: one long text among numbers would make an array of texts of that length.
    if not isinstance(data, list) or set(map(type, data)) != {int}:
        raise TypeError
    return bytes(data)


def _wanted(fields: Mapping[str, Any]) -> dict[str, bool] | bool:
    """Whether each requested output is binary, by name; of all outputs if none is named."""
    general = fields.get("parameters", {})
    default = isinstance(general, dict) and general.get("binary_data_output") is True
    outputs = fields.get("outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise invalid("invalid_json", "outputs must be a list of objects")
    wanted = {}
    for each in outputs:
        parameters = each.get("parameters", {})
        if not isinstance(each.get("name"), str) or not isinstance(parameters, dict):
            raise invalid("invalid_json", "an output must have a name, and parameters must be an object")
        wanted[each["name"]] = parameters.get("binary_data", default) is True
    return wanted or default


def _encode(model: str, request_id: Any, result: Result, wanted: dict[str, bool] | bool) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON if binary tensors follow."""
    arrays = result.arrays(prefix=len(result.predictions) > 1)
    chosen = dict.fromkeys(arrays, wanted) if isinstance(wanted, bool) else wanted
    outputs: list[dict[str, Any]] = []
    binary, in_json = [], 0
    for name, as_binary in chosen.items():
        if name not in arrays:
            raise invalid("invalid_parameter", f"there is no output {name[:100]!r}", f"Outputs: {', '.join(arrays)}.")
        array = arrays[name]
        output: dict[str, Any] = {"name": name, "datatype": TYPES[array.dtype.name], "shape": list(array.shape)}
        if as_binary:
            binary.append(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            in_json += array.size
            if in_json > MOST_JSON_VALUES:
                raise invalid(
                    "invalid_parameter",
                    f"the outputs have more than {MOST_JSON_VALUES} values, the limit in JSON",
                    "Request it as binary data.",
                )
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    response: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": outputs}
    if isinstance(request_id, str):
        response["id"] = request_id
    head = dump(response)
    return head + b"".join(binary), len(head) if binary else None
