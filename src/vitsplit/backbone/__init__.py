"""The frozen backbone: names, weights, and one pass from images to taps.

``vitsplit.backbone.catalog`` needs neither torch nor timm; everything else is imported lazily.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitsplit.backbone.backbone import Backbone, BackboneInfo
    from vitsplit.backbone.catalog import CATALOG, BackboneSpec
    from vitsplit.backbone.weights import load_backbone, meta_backbone, open_backbone

__all__ = ["CATALOG", "Backbone", "BackboneInfo", "BackboneSpec", "load_backbone", "meta_backbone", "open_backbone"]

_MODULE_OF = {
    "CATALOG": "catalog",
    "BackboneSpec": "catalog",
    "Backbone": "backbone",
    "BackboneInfo": "backbone",
    "load_backbone": "weights",
    "meta_backbone": "weights",
    "open_backbone": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
