"""The model card of bundles, read by the hub's own parser."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from vitsplit.bundle import card_to_dict, read_card
from vitsplit.model_card import model_card

BUNDLES = Path(__file__).parent / "fixtures" / "bundles"
TAGS = {
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
    "detection": "object-detection",
    "vqa": "visual-question-answering",
}


def written(*names: str, tensors: tuple[str, ...] = (), place: str = "THIS_FOLDER", **backbone: str) -> ModelCard:
    cards = {name: read_card(BUNDLES / name) for name in names}
    contents = {
        name: card_to_dict(replace(card, backbone={**card.backbone, **backbone})) for name, card in cards.items()
    }
    return ModelCard(model_card(contents, dict.fromkeys(names, dict.fromkeys(tensors, 1)), place=place))


@pytest.mark.parametrize("task", TAGS)
def test_metadata_of_each_task(task):
    card = read_card(BUNDLES / task)
    data = written(task).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("vitsplit", TAGS[task], "apache-2.0")
    assert data.base_model is None  # the weights are those of a file
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    assert figures == {key: value for key, value in card.metrics.items() if isinstance(value, float)}


def test_several_heads_and_the_repository_of_the_backbone():
    data = written("segmentation", "depth", source="timm/vit_small on the hub").data
    assert data.base_model in ("timm/vit_small", ["timm/vit_small"])
    assert {"segmentation", "depth", "depth-estimation"} <= set(data.tags)
    assert {result.task_type for result in data.eval_results} == {"image-segmentation", "depth-estimation"}


def test_a_license_that_the_hub_does_not_know_is_named():
    card = written("segmentation", tensors=("head.task_head.blocks.0.norm1.weight",), licence="dinov3-license")
    assert (card.data.license, card.data.license_name) == ("other", "dinov3-license")
    assert card.data.license_link.startswith("https://ai.meta.com/")
    assert "copy of the backbone's last blocks" in card.text
    assert "copy of the backbone" not in written("segmentation").text


def test_the_code_compiles_and_names_the_address():
    for name in TAGS:
        text = written(name, place="hf://me/rooms").text
        (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        compile(code, name, "exec")
        assert text.count("hf://me/rooms") == 2


def test_names_of_classes_cannot_change_the_metadata():
    card = read_card(BUNDLES / "segmentation")
    contents = card_to_dict(replace(card, backbone=card.backbone | {"title": "x\": y\nlicense: mit # --- '"}))
    assert ModelCard(model_card({"segmentation": contents}, {"segmentation": {}})).data.license == "apache-2.0"
