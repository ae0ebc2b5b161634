"""Images in the bodies of requests.

Shapes: H W pixels, C channels.
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.decoding import decode_array
from vitsplit.errors import DataError, ImageFormatError, ImageTooLargeError
from vitsplit.serving.errors import HttpError, refused
from vitsplit.serving.limits import FORMATS, Limits


def decode(content: bytes, limits: Limits) -> NDArray[np.uint8]:
    """Decodes an image: ``image_HWC``, RGB.

    Raises:
        HttpError: It is not an image of an accepted format, damaged, or too large.
    """
    try:
        return decode_array(content, "image", limits.decoding)
    except ImageTooLargeError:
        raise HttpError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "too_large",
            f"the image has more than {limits.decoding.pixels} pixels",
            "Scale it down.",
        ) from None
    except ImageFormatError:
        raise HttpError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_type",
            "the body is not an image of a supported format",
            f"Send a file of {', '.join(FORMATS.values())}.",
        ) from None
    except DataError as error:
        raise refused("invalid_image", error) from None


def sha256(content: bytes) -> str:
    """Identifies an image."""
    return hashlib.sha256(content).hexdigest()
