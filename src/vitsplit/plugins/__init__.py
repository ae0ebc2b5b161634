"""What other packages load of this one, by entry points."""

from __future__ import annotations

from typing import Any


def lmms_eval_models() -> Any:
    """The entry point ``lmms_eval.models``: lmms-eval calls it, and knows ``--model vitsplit`` from then on.

    It names the class without importing it: entry points are read while lmms-eval itself is being imported.

    Returns:
        A ``ModelManifest`` of lmms-eval.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vitsplit", simple_class_path="vitsplit.plugins.lmms.VitSplitLmms")
