"""The model for lmms-eval, with stand-ins for the few names of lmms-eval that it uses and a task of a few documents."""

from __future__ import annotations

import importlib
import logging
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.vqa.config import Conversation, VqaConfig

RED, BLUE = (Image.new("RGB", (4, 3), color) for color in ("red", "blue"))


class Lmms:
    """The part of lmms_eval.api.model.lmms that models use."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@dataclass(frozen=True)
class Manifest:
    """lmms_eval.models.registry_v2.ModelManifest."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


@dataclass
class Request:
    """lmms_eval.api.instance.Instance."""

    args: tuple[Any, ...]
    task_name: str = "colors"


class Bundle:
    """Says the color of an image's corner and the question; records its inputs."""

    def __init__(self, task: str = "vqa", conversation: Conversation = "template") -> None:
        self.task = SimpleNamespace(name=task, config=VqaConfig(conversation=conversation))
        self.backbone = SimpleNamespace(mean_C11=torch.zeros(3, 1, 1))
        self.looked: list[Any] = []
        self.tokens: list[int | None] = []

    def predict(self, image: Any) -> Any:
        self.looked.append(image)
        pixel = image.getpixel((0, 0))

        def ask(question: str, *, max_new_tokens: int | None = None) -> str:
            self.tokens.append(max_new_tokens)
            return f"{pixel} {question}"

        return SimpleNamespace(ask=ask)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    names = {
        "lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.models": {},
        "lmms_eval.api.instance": {"Instance": Request}, "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models.registry_v2": {"ModelManifest": Manifest},
    }  # fmt: skip
    for name, content in names.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules.pop("vitsplit.plugins.lmms", None)
    yield importlib.import_module("vitsplit.plugins.lmms")
    sys.modules.pop("vitsplit.plugins.lmms", None)


@pytest.fixture
def bundle(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    bundle = Bundle()
    monkeypatch.setattr(plugin, "load_head", lambda run, **_: bundle)

    def without_image(predictor: Any, questions: Sequence[str], *, max_new_tokens: int) -> list[str]:
        assert predictor is bundle
        return [f"blind {question}" for question in questions]

    monkeypatch.setattr(plugin, "ask_without_image", without_image)
    return bundle


@pytest.fixture
def model(plugin: ModuleType, bundle: Bundle) -> Any:
    # As lmms-eval makes it of --model_args run=runs/vqa, with what it adds itself.
    model = plugin.VitSplitLmms(run="runs/vqa", batch_size=1)
    documents = [{"image": [RED]}, {"image": [RED.copy()]}, {"image": [BLUE]}, {"image": []}, {"image": [RED, BLUE]},
                 {"image": ["film.mp4"]}]  # fmt: skip
    model.task_dict["colors"] = {"test": documents}
    return model


def request(text: str, doc: int, **settings: Any) -> Request:
    return Request((text, settings, lambda document: document["image"], doc, "colors", "test"))


def test_the_entry_point_names_the_class(plugin: ModuleType) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (location,) = project["entry-points"]["lmms_eval.models"].values()
    module, _, attribute = location.partition(":")
    manifest = getattr(importlib.import_module(module), attribute)()
    assert isinstance(manifest, Manifest)
    assert manifest.model_id == "vitsplit"
    path, _, name = str(manifest.simple_class_path).rpartition(".")
    found = getattr(importlib.import_module(path), name)
    assert issubclass(found, Lmms)
    assert found.is_simple  # lmms-eval refuses the class as this kind of model otherwise


def test_answers_are_in_the_order_of_requests(model: Any, bundle: Bundle) -> None:
    answers = model.generate_until([
        request("<image>\nwhat?", 0, max_new_tokens=7, until=["\n\n"]),
        request("who?", 1),
        request("where?", 2, until="er"),
        request("why?", 3, max_new_tokens=7),
    ])  # fmt: skip
    assert answers == ["(255, 0, 0) what?", "(255, 0, 0) who?", "(0, 0, 255) wh", "blind why?"]
    assert bundle.tokens == [7, 1024, 1024]
    assert len(bundle.looked) == 2  # the second document has the same image


def test_multi_round_tasks(model: Any, bundle: Bundle) -> None:
    seen = []

    def next_round(document: Any, *, previous_output: list[str], round_idx: int, previous_round_info: Any) -> Any:
        seen.append((list(previous_output), round_idx, previous_round_info))
        if round_idx == 2:
            return None, None, True, previous_output, None
        return [BLUE], "and now?", False, previous_output, "info"

    arguments = ("what?", {}, lambda document: document["image"], next_round, 0, "colors", "test")
    rounds = ["(255, 0, 0) what?", "(0, 0, 255) and now?"]
    assert model.generate_until_multi_round([Request(arguments)]) == [rounds]
    assert seen == [(rounds[:1], 1, None), (rounds, 2, "info")]


def test_unsupported_requests_are_errors(model: Any, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                         caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    with pytest.raises(DataError, match="colors, test 4: 2 images"):
        model.generate_until([request("what?", 4)])
    with pytest.raises(DataError, match="colors, test 5: a str, not an image"):
        model.generate_until([request("what?", 5)])
    with pytest.raises(ConfigError, match="colors: "):
        model.loglikelihood([request("what?", 0)])
    with caplog.at_level(logging.WARNING):
        model.generate_until([request("what?", 0, do_sample=True, temperature=0.7)] * 2)
    assert [record.message for record in caplog.records] == [
        "colors requests sampling or beam search, but vitsplit decodes greedily"
    ]
    monkeypatch.setattr(plugin, "load_head", lambda run, **_: Bundle(conversation="plain"))
    with pytest.raises(ConfigError, match="--stage instruct --from runs/vqa"):
        plugin.VitSplitLmms(run="runs/vqa")
    with pytest.raises(ConfigError, match="--batch_size 8"):
        plugin.VitSplitLmms(run="runs/vqa", batch_size="8")
    monkeypatch.setattr(plugin, "load_head", lambda run, **_: Bundle("depth"))
    with pytest.raises(ConfigError, match="runs/depth"):
        plugin.VitSplitLmms(run="runs/depth")
