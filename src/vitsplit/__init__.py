"""vitsplit: one frozen vision foundation model, many dense-prediction models (ViT-Split, ICCV 2025).

>>> import vitsplit
>>> vitsplit.train(data="my_data", out="runs/first")  # doctest: +SKIP
>>> vitsplit.load("runs/first").predict("image.jpg").overlay()  # doctest: +SKIP
>>> vitsplit.load("runs/first", "runs/depth").predict("image.jpg")["depth"]  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "MultiPredictor",
    "Predictor",
    "TrainResult",
    "VitsplitError",
    "__version__",
    "evaluate",
    "load",
    "predict",
    "train",
]

if TYPE_CHECKING:
    from vitsplit.api import TrainResult, evaluate, load, predict, train
    from vitsplit.errors import VitsplitError
    from vitsplit.inference.multitask import MultiPredictor
    from vitsplit.inference.predictor import Predictor

_MODULE_OF = {"MultiPredictor": "inference.multitask", "Predictor": "inference.predictor", "VitsplitError": "errors"}


def __getattr__(name: str) -> Any:
    """Imports the public names when they are first used, so that ``import vitsplit`` costs nothing."""
    if name in __all__:
        import importlib

        return getattr(importlib.import_module(f"vitsplit.{_MODULE_OF.get(name, 'api')}"), name)
    raise AttributeError(f"module 'vitsplit' has no attribute '{name}'")
