"""Predictions of many images on one or several machines, into a table: ``Predictor`` for Ray Data and Daft."""

from typing import TYPE_CHECKING, Any

__all__ = ["Predictor"]

if TYPE_CHECKING:
    from vitsplit.cluster.predictor import Predictor


def __getattr__(name: str) -> Any:
    """Imports public names on first use."""
    if name in __all__:
        from vitsplit.cluster import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module 'vitsplit.cluster' has no attribute '{name}'")
