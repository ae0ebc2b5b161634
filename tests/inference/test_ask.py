"""Questions to bundles. Oracles: a decoding loop by hand without cache, each bundle alone, and counters of passes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import write_depth_bundle, write_segmentation_bundle
from torch import Tensor
from vqa_bundles import write_language_model, write_vqa_bundle

import vitsplit
from vitsplit.backbone.backbone import Backbone
from vitsplit.errors import BundleError, ConfigError, WeightsError
from vitsplit.tasks.vqa.generate import Answerer
from vitsplit.tasks.vqa.predict import ask_without_image
from vitsplit.tasks.vqa.prompts import IMAGE, Turn

QUESTIONS = ["What?", "How many chairs are there in this room, and of what colour are they?", "a", "Is it a lamp?"]


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language") / "tiny")


@pytest.fixture(scope="module")
def runs(language: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        "segmentation": write_segmentation_bundle(root / "rooms", num_tuned_layers=2, seed=1),
        "depth": write_depth_bundle(root / "far", num_tuned_layers=3, selection="last", num_prior_layers=3, seed=2),
        "vqa": write_vqa_bundle(root / "asked", language, seed=3),
    }


@pytest.fixture(scope="module")
def model(runs: dict[str, Path], language: Path) -> Any:
    return vitsplit.load(runs["vqa"], language_weights=language)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@torch.no_grad()
def by_hand(answerer: Answerer, question: str, length: int, history: Sequence[Turn] = ()) -> str:
    """One question, alone, without cache or padding: the whole sequence is read again for every token."""
    language, tokenizer = answerer.decoder.language_model, answerer.prompter.tokenizer
    words = language.get_input_embeddings().weight
    ids = answerer.prompter.question_ids(question, history, has_image=answerer.tokens_NW is not None)
    rows = [answerer.tokens_NW if token == IMAGE else words[token][None] for token in ids]
    sequence_SW = torch.cat([row.float() for row in rows if row is not None])
    output: list[int] = []
    while len(output) < length:
        logits_V = language(inputs_embeds=sequence_SW[None], use_cache=False).logits[0, -1]
        output.append(int(logits_V.argmax()))
        if output[-1] == tokenizer.eos_token_id:
            break
        sequence_SW = torch.cat([sequence_SW, words[output[-1]][None]])
    return str(tokenizer.decode(output, skip_special_tokens=True)).strip()


class Counts:
    """Counts passes of the backbone and the connector, and lengths of the language model's inputs."""

    def __init__(self) -> None:
        self.backbone, self.connector = 0, 0
        self.read: list[int] = []


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    from transformers import LlamaModel

    from vitsplit.methods.split.head import SplitHead
    from vitsplit.tasks.vqa.decoder import VqaDecoder

    counted = Counts()
    backbone, head, decoder, llama = Backbone.forward, SplitHead.forward, VqaDecoder.forward, LlamaModel.forward

    def count_backbone(self: Any, *args: Any, **kwargs: Any) -> Any:
        counted.backbone += 1
        return backbone(self, *args, **kwargs)

    def count_head(self: Any, *args: Any, **kwargs: Any) -> Any:
        counted.connector += 1
        return head(self, *args, **kwargs)

    def count_decoder(self: Any, *args: Any, **kwargs: Any) -> Any:
        counted.connector += 1
        return decoder(self, *args, **kwargs)

    def count_llama(self: Any, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        counted.read.append(int((input_ids if inputs_embeds is None else inputs_embeds).shape[1]))
        return llama(self, input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(Backbone, "forward", count_backbone)
    monkeypatch.setattr(SplitHead, "forward", count_head)
    monkeypatch.setattr(VqaDecoder, "forward", count_decoder)
    monkeypatch.setattr(LlamaModel, "forward", count_llama)
    return counted


def test_batched_answers_equal_single_answers(model: Any, image: np.ndarray) -> None:
    prediction = model.predict(image)
    expected = [by_hand(prediction.answerer, question, 12) for question in QUESTIONS]
    assert len(set(expected)) == len(expected), "a comparison that tells nothing apart"
    assert prediction.ask_many(QUESTIONS, max_new_tokens=12) == expected
    assert [prediction.ask(question, max_new_tokens=12) for question in QUESTIONS] == expected
    assert prediction.answerer.prefills == 1
    other = model.predict(255 - image)
    assert other.ask_many(QUESTIONS, max_new_tokens=12) != expected
    assert model.ask(image, QUESTIONS, max_new_tokens=12) == expected
    assert model.ask(image, QUESTIONS[1], max_new_tokens=12) == expected[1]
    assert model.ask(image, QUESTIONS[1]) == by_hand(prediction.answerer, QUESTIONS[1], 8)  # the bundle's default


def test_conversations_and_streams_equal_the_reference(model: Any, image: np.ndarray) -> None:
    prediction = model.predict(image)
    history = [Turn("What?", "a lamp"), Turn("Where?", "on the desk")]
    expected = by_hand(prediction.answerer, "Is it red?", 12, history)
    assert expected != by_hand(prediction.answerer, "Is it red?", 12)
    assert prediction.ask("Is it red?", history=history, max_new_tokens=12) == expected
    pieces = list(prediction.stream("Is it red?", history=history, max_new_tokens=12))
    assert "".join(pieces).strip() == expected
    assert [turn.answer for turn in prediction.asked] == [expected, expected]
    assert prediction.answerer.prefills == 1


def test_without_an_image(model: Any) -> None:
    answerer = Answerer(model.model.decoder, model.task.prompter(), None, max_new_tokens=12)
    expected = [by_hand(answerer, question, 12) for question in QUESTIONS]
    assert ask_without_image(model, QUESTIONS, max_new_tokens=12) == expected


@pytest.mark.parametrize("size", [(48, 64), (120, 160), (33, 44)])
def test_three_tasks_share_one_pass_with_equal_predictions(
    runs: dict[str, Path], language: Path, size: tuple[int, int], counts: Counts
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    options = {"segmentation": {}, "depth": {}, "vqa": {"language_weights": language}}
    alone = {name: vitsplit.load(run, **options[name]).predict(image) for name, run in runs.items()}
    expected = alone["vqa"].ask_many(QUESTIONS)
    together = vitsplit.load(*runs.values(), language_weights=language)
    counts.backbone = 0
    answers = together.predict(image)
    assert counts.backbone == 1
    assert together.describe_passes() == "1 pass at 48x64 for segmentation, depth and vqa"
    assert torch.equal(answers["vqa"].answerer.tokens_NW, alone["vqa"].answerer.tokens_NW)
    assert answers["vqa"].ask_many(QUESTIONS) == expected
    assert counts.backbone == 1
    assert len(np.unique(alone["segmentation"].mask)) > 1 and len(np.unique(alone["depth"].depth)) > 1
    assert np.array_equal(answers["segmentation"].mask, alone["segmentation"].mask)
    assert np.array_equal(answers["depth"].depth, alone["depth"].depth)


def test_the_second_question_reuses_the_encoded_image(model: Any, image: np.ndarray, counts: Counts) -> None:
    prediction = model.predict(image)
    assert (counts.backbone, counts.connector, counts.read) == (1, 2, [])  # head and decoder
    prompter = prediction.answerer.prompter
    # "[user]", six visual tokens for one; then the question, with its line's end, and how an answer begins.
    prefix = prompter.question_ids("What?", has_image=True).index(IMAGE) + 6
    question = len("\nWhat?") + 1 + len("[assistant]")
    assert prefix == len("[user]") + 6
    prediction.ask("What?", max_new_tokens=3)
    assert counts.read == [prefix, question, 1, 1]
    counts.read.clear()
    prediction.ask("Where?", max_new_tokens=3)
    assert counts.read == [question + 1, 1, 1]
    counts.read.clear()
    prediction.ask_many(["What?", "Where?"], max_new_tokens=2)
    assert counts.read == [question + 1, 1]
    assert (counts.backbone, counts.connector) == (1, 2)


def test_threads_can_share_an_image(model: Any, image: np.ndarray) -> None:
    pictures = [image, 255 - image]
    quiet = [model.predict(picture) for picture in pictures]
    expected = {(row, q): quiet[row].ask(q, max_new_tokens=12) for row in range(2) for q in QUESTIONS}
    assert len(set(expected.values())) == len(expected)
    busy = [model.predict(picture) for picture in pictures]
    start = threading.Barrier(8)

    def ask(key: tuple[int, str]) -> str:
        start.wait(timeout=60)
        return str(busy[key[0]].ask(key[1], max_new_tokens=12))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, expected)) == list(expected.values())
    assert [each.answerer.prefills for each in busy] == [1, 1]


def test_closing_a_stream_stops_the_language_model(model: Any, image: np.ndarray, counts: Counts) -> None:
    prediction = model.predict(image)
    stream = prediction.stream("Is it a lamp?", max_new_tokens=400)
    next(stream)
    stream.close()
    # Prefix, question, and then one token per step; the whole answer would be 401. Nothing continues in the background.
    seen = len(counts.read)
    assert 2 <= seen < 395
    assert prediction.asked == []
    prediction.ask("What?", max_new_tokens=2)
    assert len(counts.read) == seen + 2


def test_selection_of_the_vqa_bundle(runs: dict[str, Path], language: Path, image: np.ndarray, counts: Counts) -> None:
    expected = vitsplit.load(runs["vqa"], language_weights=language).ask(image, "What?")
    model = vitsplit.load(*runs.values(), language_weights=language)
    counts.backbone = 0
    assert model.ask(image, "What?") == expected
    assert counts.backbone == 1
    assert model.ask(image, ["What?"]) == [expected]
    assert list(model.only(["vqa"]).predict(image)) == ["vqa"]
    model.drop("vqa")
    with pytest.raises(ConfigError, match="segmentation: segmentation, depth: depth"):
        model.ask(image, "What?")
    with pytest.raises(ConfigError, match="depth"):
        model["depth"].ask(image, "What?")
    both = vitsplit.load({"mine": runs["vqa"], "yours": runs["vqa"]}, language_weights=language)
    with pytest.raises(ConfigError, match=r"mine, yours.*model\['mine'\]"):
        both.ask(image, "What?")
    assert both["yours"].ask(image, "What?") == expected


def test_location_of_the_language_model(
    runs: dict[str, Path], language: Path, image: np.ndarray, tmp_path: Path
) -> None:
    moved = write_language_model(tmp_path / "was here")
    run = write_vqa_bundle(tmp_path / "run", moved, seed=3)
    # The folder in a card is shown but not opened, whether it exists or not.
    expected = vitsplit.load(run, language_weights=moved).ask(image, "What?")
    for _ in range(2):
        for load in (lambda: vitsplit.load(run), lambda: vitsplit.load(runs["depth"], run)):
            with pytest.raises(WeightsError, match=r"was here.*--language-weights PATH"):
                load()
        if moved.exists():
            moved.rename(tmp_path / "is here")
    assert vitsplit.load(run, language_weights=tmp_path / "is here").ask(image, "What?") == expected
    together = vitsplit.load(runs["depth"], run, language_weights=tmp_path / "is here")
    assert together.ask(image, "What?") == expected
    together.drop("vqa")
    together.add(run, language_weights=tmp_path / "is here")
    assert together.ask(image, "What?") == expected
    shutil.copytree(language, tmp_path / "another")
    write_language_model(tmp_path / "another", seed=7)
    with pytest.raises(BundleError, match="original language model"):
        vitsplit.load(run, language_weights=tmp_path / "another")
    with pytest.raises(ConfigError, match="--language-weights"):
        vitsplit.load(runs["depth"], language_weights=language)


def test_questions_on_a_batch_are_answered_per_image(model: Any, image: np.ndarray) -> None:
    image_BCHW: Tensor = torch.from_numpy(np.stack([image, 255 - image])).permute(0, 3, 1, 2)
    for prediction in model.predict_batch(image_BCHW):
        assert prediction.ask("What?", max_new_tokens=12) == by_hand(prediction.answerer, "What?", 12)
