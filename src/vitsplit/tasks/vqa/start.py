"""What a stage begins with: the connector of an earlier run, and what that run made of the language model."""

from __future__ import annotations

from pathlib import Path

from vitsplit.backbone.frozen import Backbone
from vitsplit.bundle import check_backbone, find_bundle, read_card, read_weights
from vitsplit.errors import BundleError
from vitsplit.model import Head
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.task import VqaTask

LANGUAGE_MODEL = "decoder.language_model."


def start_from(run: str | Path, model: Head, backbone: Backbone, task: VqaTask) -> None:
    """Puts the weights of a bundle into a new model.

    The connector must be the same. A language model that the bundle tuned is taken over if it is tuned in the same way
    here; a bundle of the first stage has none.

    Raises:
        BundleError: There is no bundle, it is not one of this task, or it has another connector, backbone, language
            model or tuning.
    """
    config = task.config
    folder = find_bundle(run)
    card = read_card(folder)
    said = card.config.task
    if not isinstance(said, VqaConfig):
        raise BundleError(f"{folder}: a bundle for {card.task}; a stage starts from one for vqa. Check --from.")
    check_backbone(card, backbone, folder)
    if said.language_model != config.language_model:
        raise BundleError(
            f"{folder}: its connector was trained for {said.language_model}, and this run has {config.language_model}. "
            "Train a first stage for this language model."
        )
    trained_with, present = card.description["language_model"], task.describe()["language_model"]
    if trained_with["weights_hash"] != present["weights_hash"]:
        raise BundleError(
            f"{folder}: its connector was trained for {trained_with['name']} of weights "
            f"{trained_with['weights_hash'][:16]}, which are now {present['weights_hash'][:16]}. Train a first stage "
            "for this language model, or give the one that it was trained for."
        )
    state = model.upgraded(read_weights(folder))
    names = model.state_dict()
    strange = sorted(name for name, tensor in state.items() if name not in names or names[name].shape != tensor.shape)
    connector = {name for name in model.trainable_state() if not name.startswith(LANGUAGE_MODEL)}
    missing = sorted(connector - state.keys())
    if strange or missing:
        raise BundleError(
            f"{folder}: cannot start this run (connector {config.connector}, tune {config.tune}); its bundle has "
            f"connector {said.connector}, tune {said.tune} in stage {said.stage}. Not here: "
            f"{', '.join(strange[:3]) or 'none'}; not there: {', '.join(missing[:3]) or 'none'}. Give both runs the "
            "same --connector, --tune and head."
        )
    model.load_state_dict(state, strict=False)
