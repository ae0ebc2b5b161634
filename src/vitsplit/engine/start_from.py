"""Initialization of a stage from the connector and language model of an earlier run."""

from __future__ import annotations

from pathlib import Path

from vitsplit.backbone.backbone import Backbone
from vitsplit.bundle import check_backbone, find_bundle, read_card, read_weights
from vitsplit.errors import BundleError
from vitsplit.model import Head
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.task import VqaTask

LANGUAGE_MODEL = "decoder.language_model."


def start_from(run: str | Path, model: Head, backbone: Backbone, task: VqaTask) -> None:
    """Loads the weights of a bundle into a new model.

    The connector must be the same, and so must the tuning of the language model, if the bundle contains its weights
    (first-stage bundles do not).

    Raises:
        BundleError: There is no bundle, or it has another task, connector, backbone, language model or tuning.
    """
    config = task.config
    folder = find_bundle(run)
    card = read_card(folder)
    earlier = card.config.task
    if not isinstance(earlier, VqaConfig):
        raise BundleError(f"{folder}: a bundle for {card.task}, not vqa. Check --from.")
    check_backbone(card, backbone, folder)
    if earlier.language_model != config.language_model:
        raise BundleError(
            f"{folder}: its connector was trained for {earlier.language_model}, not {config.language_model}. Train a "
            "first stage for this language model."
        )
    trained_with, present = card.description["language_model"], task.describe()["language_model"]
    if trained_with["weights_hash"] != present["weights_hash"]:
        raise BundleError(
            f"{folder}: its connector was trained for {trained_with['name']} with weights "
            f"{trained_with['weights_hash'][:16]}, not {present['weights_hash'][:16]}. Train a first stage for this "
            "language model, or use the original one."
        )
    state = model.upgraded(read_weights(folder))
    names = model.state_dict()
    unexpected = sorted(
        name for name, tensor in state.items() if name not in names or names[name].shape != tensor.shape
    )
    connector = {name for name in model.trainable_state() if not name.startswith(LANGUAGE_MODEL)}
    missing = sorted(connector - state.keys())
    if unexpected or missing:
        raise BundleError(
            f"{folder}: cannot initialize this run (connector {config.connector}, tune {config.tune}) from connector "
            f"{earlier.connector}, tune {earlier.tune}, stage {earlier.stage}. Unexpected tensors: "
            f"{', '.join(unexpected[:3]) or 'none'}; missing: {', '.join(missing[:3]) or 'none'}. Use the same "
            "--connector, --tune and head for both runs."
        )
    model.load_state_dict(state, strict=False)
