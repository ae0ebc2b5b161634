"""Initialization of a run from the weights of an earlier one."""

from __future__ import annotations

from pathlib import Path

from vitsplit.backbone.backbone import Backbone
from vitsplit.bundle import LANGUAGE_MODEL, check_backbone, find_bundle, read_card, read_weights
from vitsplit.errors import BundleError
from vitsplit.model import Head
from vitsplit.tasks.base import StartsFromRun


def start_from(run: str | Path, model: Head, backbone: Backbone, task: StartsFromRun) -> None:
    """Loads the weights of a bundle into a new model.

    All trainable weights must be in the bundle, except those of a language model (first-stage bundles do not have
    them), and the model must have all tensors of the bundle.

    Raises:
        BundleError: There is no bundle, or it has another task, backbone, language model or other tensors.
    """
    folder = find_bundle(run)
    card = read_card(folder)
    task.check_start(card.config.task, card.description, folder)
    check_backbone(card, backbone, folder)
    state = model.upgraded(read_weights(folder, model, card.delta))
    names = model.state_dict()
    unexpected = sorted(
        name for name, tensor in state.items() if name not in names or names[name].shape != tensor.shape
    )
    required = {name for name in model.trainable_state() if not name.startswith(LANGUAGE_MODEL)}
    missing = sorted(required - state.keys())
    if unexpected or missing:
        raise BundleError(
            f"{folder}: its tensors are not those of this run. Unexpected: {', '.join(unexpected[:3]) or 'none'}; "
            f"missing: {', '.join(missing[:3]) or 'none'}. Use the same --connector, --tune and head for both runs."
        )
    model.load_state_dict(state, strict=False)
