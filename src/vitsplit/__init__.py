"""vitsplit: one frozen vision foundation model, many dense-prediction models (ViT-Split, ICCV 2025).

>>> import vitsplit
>>> vitsplit.train(data="my_data", out="runs/first")  # doctest: +SKIP
>>> vitsplit.load("runs/first").predict("image.jpg").overlay()  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["TrainResult", "VitsplitError", "__version__", "evaluate", "load", "predict", "train"]

if TYPE_CHECKING:
    from vitsplit.api import TrainResult, evaluate, load, predict, train
    from vitsplit.errors import VitsplitError


def __getattr__(name: str) -> Any:
    """Imports the public functions when they are first used, so that ``import vitsplit`` costs nothing."""
    if name == "VitsplitError":
        from vitsplit.errors import VitsplitError

        return VitsplitError
    if name in __all__:
        from vitsplit import api

        return getattr(api, name)
    raise AttributeError(f"module 'vitsplit' has no attribute '{name}'")
