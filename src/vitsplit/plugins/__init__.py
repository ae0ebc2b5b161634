"""Entry points that other packages load."""

from __future__ import annotations

from typing import Any


def lmms_eval_models() -> Any:
    """The entry point ``lmms_eval.models``, which registers ``--model vitsplit`` in lmms-eval.

    The class is not imported here, since entry points are loaded while lmms-eval is being imported.

    Returns:
        A ``ModelManifest`` of lmms-eval.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vitsplit", simple_class_path="vitsplit.plugins.lmms.VitSplitLmms")
