"""``README.md`` of bundles: a summary of their cards, with the metadata of a model card of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from vitsplit.backbone.catalog import CATALOG
from vitsplit.backbone.models import repository_of
from vitsplit.data.public_classes import ADE20K, CITYSCAPES, COCO
from vitsplit.tasks import IncludedModel, task_config
from vitsplit.tasks.vqa.language_models import LANGUAGE_MODELS

PLACE = "THIS_FOLDER"
# Licenses by the hub's identifiers; others are stated by name.
_LICENSES = frozenset({"apache-2.0", "mit", "cc-by-nc-4.0"})
_LINKS = {"dinov3-license": "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"}
_DATA_SETS = {
    ADE20K: "zhoubolei/scene_parse_150",
    tuple(name for name, _ in CITYSCAPES.values()): "Chris1/cityscapes",
    COCO: "detection-datasets/coco",
}
"""The hub's copies of public data sets, by their classes: a layout such as COCO's is one of custom data too."""
_QUESTION = "What is in the image?"
_HINT = (
    "It was trained with weights from files, which vitsplit does not look for on the hub: put their paths in place of "
    "the names in capitals."
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

Contents = Mapping[str, Any]
"""The contents of ``head.json``, see ``bundle.card_to_dict``."""


@dataclass(frozen=True)
class Weights:
    """What ``head.safetensors`` has.

    Attributes:
        values: Number of values, of trained weights and norm statistics.
        copied: Number of values of trained copies of the backbone's parameters.
        included: The other model that it includes, trained; None: none.
    """

    values: int
    copied: int = 0
    included: IncludedModel | None = None


def model_card(
    cards: Mapping[str, Contents],
    weights: Mapping[str, Weights],
    *,
    place: str = PLACE,
    picture: str | None = None,
) -> str:
    """The text of ``README.md``, in Markdown with YAML front matter.

    Args:
        cards: Contents of the cards by head name, of one backbone. Several are loaded under these names.
        weights: What their weights are, by head name.
        place: What to load: a folder, or the address on the hub.
        picture: Name of a picture of predictions beside the file.
    """
    backbone = next(iter(cards.values()))["backbone"]
    heads = " and ".join(card["task"] for card in cards.values())
    title = f"A {heads} head for {backbone['title']}" if len(cards) == 1 else f"Heads for {backbone['title']}: {heads}"
    asks = any(task_config(card["task"]).answers_questions for card in cards.values())
    ask = f' --ask "{_QUESTION}"' if asks else ""
    files = _files(cards)
    flags = "".join(f" --{name.replace('_', '-')} {place}" for name, place in files.items())
    parts = [
        f"---\n{_metadata(cards, weights, title)}\n---",
        f"# {title}",
        *([f"![Predictions]({picture})"] if picture is not None else []),
        f"Written by vitsplit {next(iter(cards.values()))['vitsplit']}. It needs the frozen backbone "
        f"`{backbone['title']}` (`{backbone['timm_name']}`, weights {backbone['weights_hash'][:12]}, license "
        f"{backbone['licence']}), which is not included and is loaded separately.",
        *(
            f"## Head `{name}`\n\n" * (len(cards) > 1) + _head(card, weights[name].values)
            for name, card in cards.items()
        ),
        "## Use",
        f"```\npip install vitsplit\nvitsplit predict {place} image.jpg{ask}{flags} --out predictions\n```",
        _python(place, cards, files),
        *([_HINT] if files else []),
        "## Limits",
        "Predictions are for images like those of the training data; the metrics are of one validation set, and other "
        "images can differ. Evaluate it on your own data (`vitsplit evaluate`) before use. The bundle runs with the "
        "backbone's weights of the hash above only.",
        "## License",
        _license(cards, weights),
    ]
    return "\n\n".join(parts) + "\n"


def _head(card: Contents, values: int) -> str:
    reached = ", ".join(f"{key} {value:.4g}" for key, value in _figures(card, int | float).items()) or "not evaluated"
    rows = [
        f"- task: {card['task']}",
        f"- values (weights and norm statistics): {values:,}",
        f"- method: {card['config']['method']['name']}, recipe `{card['config']['name']}`",
        f"- validation metrics: {reached}",
    ]
    classes = card["description"].get("classes", ())
    if classes:
        more = f" and {len(classes) - 20} more" * (len(classes) > 20)
        rows.append(f"- classes: {', '.join(classes[:20])}{more}")
    return "\n".join(rows)


def _files(cards: Mapping[str, Contents]) -> dict[str, str]:
    """Options of ``load`` without which the cards' models are not found, with placeholders."""
    found = {}
    if any(card["config"]["backbone"].get("weights") for card in cards.values()):
        found["weights"] = "BACKBONE_WEIGHTS"
    tasks = [card["config"]["task"] for card in cards.values() if "language_model" in card["config"]["task"]]
    if any(task.get("language_weights") or task["language_model"] not in LANGUAGE_MODELS for task in tasks):
        found["language_weights"] = "LANGUAGE_MODEL_FOLDER"
    return found


def _python(place: str, cards: Mapping[str, Contents], files: Mapping[str, str]) -> str:
    name, card = next(iter(cards.items()))
    asks = task_config(card["task"]).answers_questions
    if len(cards) > 1:
        use = f'["{name}"].ask("image.jpg", "{_QUESTION}")' if asks else f'.predict("image.jpg")["{name}"].overlay()'
        last = f"model{use}"
    elif asks:
        last = f'model.ask("image.jpg", "{_QUESTION}")'
    else:
        # Without the name, which depends on the folder that the bundle is in.
        last = '(prediction,) = model.predict("image.jpg").values()\nprediction.overlay()'
    options = "".join(f', {name}="{place}"' for name, place in files.items())
    return f'```python\nimport vitsplit\n\nmodel = vitsplit.load("{place}"{options})\n{last}\n```'


def licenses(backbone: str, included: Iterable[IncludedModel | None]) -> str:
    """The licenses of a backbone and of other models that bundles include, such as ``apache-2.0 and llama2``."""
    others = (each.license or f"license of {each.name}" for each in included if each is not None)
    return " and ".join(dict.fromkeys([backbone, *others]))


def _license(cards: Mapping[str, Contents], weights: Mapping[str, Weights]) -> str:
    parts = [f"The backbone's license is {next(iter(cards.values()))['backbone']['licence']}."]
    for name, each in weights.items():
        whose = f"head `{name}`" if len(cards) > 1 else "the bundle"
        if each.copied and cards[name].get("delta"):
            parts.append(
                f"The trained copies of the backbone's weights in {whose} are stored as bitwise differences, which "
                "restore them where the backbone is available."
            )
        elif each.copied:
            parts.append(
                f"{each.copied:,} values of {whose} are trained copies of the backbone's weights: the backbone's "
                "license applies to them."
            )
        if each.included is not None:
            stated = each.included.license
            parts.append(
                f"The language model {each.included.name} is part of {whose}, tuned: its license, "
                f"{stated or 'which is not known to vitsplit'}, applies to it."
            )
    return " ".join([*parts, "The data set that a head was trained on may have terms of its own."])


def _metadata(cards: Mapping[str, Contents], weights: Mapping[str, Weights], title: str) -> str:
    backbone = next(iter(cards.values()))["backbone"]
    license_name = licenses(backbone["licence"], (each.included for each in weights.values()))
    known = license_name in _LICENSES
    tags = [task_config(card["task"]).pipeline_tag for card in cards.values()]
    results = [result for name, card in cards.items() for result in _results(name, card)]
    data = ModelCardData(
        library_name="vitsplit",
        datasets=_data_sets(cards) or None,
        base_model=_base_models(cards) or None,
        pipeline_tag=next((tag for tag in tags if tag is not None), None),
        license=license_name if known else "other",
        license_name=None if known else re.sub(r"[^a-z0-9.]+", "-", license_name.lower()).strip("-"),
        license_link=_LINKS.get(license_name),
        tags=["vitsplit", *dict.fromkeys([*(card["task"] for card in cards.values()), *filter(None, tags)])],
        eval_results=results or None,
        model_name=title if results else None,
    )
    return data.to_yaml()


def _data_sets(cards: Mapping[str, Contents]) -> list[str]:
    """Repositories of the data sets, as far as they are known public ones."""
    found = []
    for card in cards.values():
        if card["config"]["task"].get("format") == "nyuv2":
            found.append("sayakpaul/nyu_depth_v2")
        found.append(_DATA_SETS.get(tuple(card["description"].get("classes", ())), ""))
    return list(filter(None, dict.fromkeys(found)))


def _base_models(cards: Mapping[str, Contents]) -> list[str]:
    """Repositories of the backbone and the language models, where the cards state them or vitsplit knows the models."""
    found = []
    for card in cards.values():
        found.append(_backbone_repository(card))
        name = str((card["description"].get("language_model") or {}).get("name", ""))
        found.append(LANGUAGE_MODELS[name].repository if name in LANGUAGE_MODELS else name)
    return [name for name in dict.fromkeys(found) if _REPOSITORY.fullmatch(name)]


def _backbone_repository(card: Contents) -> str:
    backbone = card["backbone"]
    repository, stated, _ = backbone["source"].partition(" on the hub")
    if stated:
        return str(repository)
    if backbone["name"] not in CATALOG or card["config"]["backbone"]["random_weights"]:
        return ""
    return repository_of(backbone["name"]) or ""


def _results(name: str, card: Contents) -> list[EvalResult]:
    data = card["config"]["task"].get("format", "auto")
    data = "the validation set" if data in ("auto", "folder") else data
    return [
        EvalResult(
            task_type=task_config(card["task"]).pipeline_tag or card["task"],
            task_name=name,
            dataset_type=data.replace(" ", "-"),
            dataset_name=data,
            metric_type=key,
            metric_value=value,
        )
        for key, value in _figures(card, float).items()
    ]


def _figures(card: Contents, kind: Any) -> dict[str, float]:
    return {
        key: value for key, value in card["metrics"].items() if isinstance(value, kind) and not isinstance(value, bool)
    }
