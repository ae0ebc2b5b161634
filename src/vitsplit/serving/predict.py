"""``POST /v1/predict``: predictions of an image as JSON, PNG, arrays or COCO results.

Shapes: H W pixels, C channels.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from vitsplit.serving.errors import HttpError, invalid
from vitsplit.serving.fields import check_parameters, dump, parameter
from vitsplit.serving.heads import ServedHead
from vitsplit.serving.images import sha256
from vitsplit.serving.service import Result, Service, client_of
from vitsplit.tasks.prediction import MaskForm, ServedFormat

TYPES: Mapping[str, str] = {
    "json": "application/json",
    "png": "image/png",
    "npz": "application/x-npz",
    "coco": "application/json",
}
"""Media types of the formats."""
DIGITS = 18
"""Most digits of a number as ``image_id``."""


async def predict(service: Service, request: Request) -> Response:
    """Answers ``POST /v1/predict``."""
    heads, kind, masks, image_id = _parameters(service, request)
    timing: dict[str, float] = {}
    with service.hold(heads):
        content = await service.read_body(request)
        with service.slots.one("requests", client_of(request)):
            image_HWC = await service.decode(request, content, timing)
            result = await service.predict(request, image_HWC, heads, timing)

            def encode() -> bytes:
                if kind == "json":
                    return to_json(result, heads, masks, sha256(content))
                if kind == "png":
                    ((_, prediction),) = result.predictions.items()
                    return bytes(prediction.png(compress_level=1))
                if kind == "npz":
                    return to_npz(result)
                return dump([entry for one in result.predictions.values() for entry in one.coco_results(image_id)])

            body = await service.in_pool("encode", encode, request, {})
    return Response(body, media_type=TYPES[kind])


def to_json(result: Result, heads: Mapping[str, ServedHead], masks: MaskForm, digest: str) -> bytes:
    """The response in JSON."""
    begun = time.perf_counter()
    predictions = {
        name: {"task": heads[name].task.name} | each.to_json(masks) for name, each in result.predictions.items()
    }
    timing = result.timing | {"encode_ms": round((time.perf_counter() - begun) * 1000, 3)}
    image = {"size": list(result.size), "sha256": digest}
    return dump({"image": image, "predictions": predictions, "timing": timing, "pass": result.passes})


def to_npz(result: Result) -> bytes:
    """The arrays of all predictions, named ``BUNDLE.NAME``."""
    file = io.BytesIO()
    np.savez(file, **dict[str, Any](result.arrays()))
    return file.getvalue()


def _parameters(service: Service, request: Request) -> tuple[dict[str, ServedHead], Any, Any, int | str]:
    check_parameters(request, {"bundles", "format", "masks", "image_id"})
    kind = parameter(request, "format", get_args(ServedFormat))
    masks = parameter(request, "masks", get_args(MaskForm))
    image_id = request.query_params.get("image_id", "0")
    if not image_id or len(image_id) > 1024:
        raise invalid("invalid_parameter", "image_id must have 1 to 1024 characters")
    names = request.query_params.get("bundles")
    heads = service.choose(names)
    offering = {name: head for name, head in heads.items() if kind in head.forms.served_formats}
    if names is None and offering:
        heads = offering
    for head in heads.values():
        if kind not in head.forms.served_formats:
            raise _not_offered(head, kind)
    if kind == "png" and len(heads) > 1:
        raise invalid(
            "invalid_parameter",
            f"a PNG is the picture of one bundle, not of {', '.join(heads)}",
            "Name one: bundles=NAME.",
        )
    return heads, kind, masks, int(image_id) if image_id.isdecimal() and len(image_id) <= DIGITS else image_id


def _not_offered(head: ServedHead, kind: str) -> HttpError:
    name, offered = head.name, head.forms.served_formats
    return invalid(
        "invalid_parameter",
        f"the bundle {name} has no format {kind}",
        f"Its formats: {', '.join(offered) or 'none'}. Name other bundles with bundles=NAME.",
    )
