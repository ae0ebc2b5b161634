"""vitsplit: one frozen vision foundation model, many dense-prediction models (ViT-Split, ICCV 2025).

>>> import vitsplit
>>> vitsplit.train(data="my_data", out="runs/first")  # doctest: +SKIP
>>> vitsplit.load("runs/first").predict("image.jpg")["segmentation"].overlay()  # doctest: +SKIP
>>> vitsplit.load("runs/first", "runs/depth").predict("image.jpg")["depth"]  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from vitsplit.version import __version__

__all__ = [
    "Predictor",
    "TrainResult",
    "VitsplitError",
    "__version__",
    "evaluate",
    "export",
    "import_checkpoint",
    "load",
    "predict",
    "push",
    "serve",
    "train",
]

if TYPE_CHECKING:
    from vitsplit.api import TrainResult, evaluate, export, load, predict, serve, train
    from vitsplit.errors import VitsplitError
    from vitsplit.importing.convert import import_checkpoint
    from vitsplit.inference.predictor import Predictor
    from vitsplit.publishing import push

_MODULE_OF = {
    "Predictor": "inference.predictor",
    "VitsplitError": "errors",
    "import_checkpoint": "importing.convert",
    "push": "publishing",
}


def __getattr__(name: str) -> Any:
    """Imports public names on first use, which keeps ``import vitsplit`` fast."""
    if name in __all__:
        import importlib

        return getattr(importlib.import_module(f"vitsplit.{_MODULE_OF.get(name, 'api')}"), name)
    if name == "MultiPredictor":
        import warnings

        from vitsplit.inference.predictor import Predictor

        warnings.warn("vitsplit.MultiPredictor has been renamed to vitsplit.Predictor.", FutureWarning, stacklevel=2)
        return Predictor
    raise AttributeError(f"module 'vitsplit' has no attribute '{name}'")
