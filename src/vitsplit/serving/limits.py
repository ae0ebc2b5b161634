"""Limits of the server, which are flags of ``vitsplit serve``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vitsplit.config import Settings
from vitsplit.data.decoding import MAX_PIXELS, DecodingLimits

FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff"}
"""Formats of images that are decoded, recognized by content, and their media types."""
MAX_SCANS = 64
"""Limit of scans of a JPEG; encoders write about ten."""
SCANNED = 10
"""Limit of the pixels of all scans of a JPEG, as a multiple of the pixels of the largest image."""

Seconds = Annotated[float, Field(ge=0.01, le=86_400)]


class Limits(Settings):
    """Limits of requests."""

    max_body_mb: Annotated[float, Field(ge=0.001, le=600)] = 8.0
    """Size limit of a body in MiB."""
    max_megapixels: Annotated[float, Field(ge=0.001, le=MAX_PIXELS / 1e6)] = 16.0
    """Size limit of an image in millions of pixels, checked before it is decoded."""
    header_seconds: Seconds = 5.0
    """Time limit of the header of a request, and of waiting for another request on a connection."""
    body_seconds: Seconds = 5.0
    """Time limit of the body of a request."""
    request_seconds: Seconds = 60.0
    """Time limit of a request after its body, and of sending a part of the response."""
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Number of open connections per worker."""
    queue: Annotated[int, Field(ge=1, le=10_000)] = 32
    """Number of accepted requests per worker, whose decoded images are in memory. Further ones are refused."""
    cached_images: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Number of images per worker whose visual tokens are cached for further questions."""

    @property
    def max_body(self) -> int:
        """Size limit of a body in bytes."""
        return round(self.max_body_mb * 2**20)

    @property
    def decoding(self) -> DecodingLimits:
        """Limits of the decoder."""
        pixels = round(self.max_megapixels * 1e6)
        return DecodingLimits(tuple(FORMATS), pixels, MAX_SCANS, SCANNED * pixels)
