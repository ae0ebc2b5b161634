"""Training on generated scenes with a tiny language model, from data to answers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_language import WIDTH, tiny_folder, tiny_model
from transformers import AutoModelForCausalLM

import vitsplit
from small_run import SMALL_RUN
from vitsplit.api import train_stages
from vitsplit.engine.override import override
from vitsplit.errors import BundleError, ConfigError
from vitsplit.model import Head
from vitsplit.recipes import recipe
from vitsplit.recipes.starting_point import stage_file
from vitsplit.saved_config import config_to_dict
from vitsplit.tasks.vqa import task as task_module
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.language import find_language_model

SETTINGS = {
    **{name: value for name, value in SMALL_RUN.items() if name != "image_scale"},
    "recipe": "laptop-vqa",
    "language_width": WIDTH,
    "lora_rank": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.1,
    "visual_grid": (2, 2),
    "max_new_tokens": 4,
    "questions_per_image": 3,
    "lr": 1e-2,
    "num_prior_layers": 2,
}

STAGE_SETTINGS = {name: value for name, value in SETTINGS.items() if name != "recipe"}


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("language") / "tiny")


@pytest.fixture
def opened(monkeypatch):
    """The language models that were opened, in order."""
    models, original = [], task_module.open_language_model

    def spy(*args, **options):
        models.append(original(*args, **options))
        return models[-1]

    monkeypatch.setattr(task_module, "open_language_model", spy)
    return models


def train(data, out, language, **settings):
    return vitsplit.train(data=data, out=out, language_model=str(language), **{**SETTINGS, **settings})


def saved(result):
    return load_file(result.run / "last" / "head.safetensors")


def weights(model):
    """Weights of a language model by name, with or without adapters."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): parameter.detach()
        for name, parameter in model.named_parameters()
        if "lora_" not in name
    }


def unchanged(model, language):
    """Names of the weights that equal those on disk bit for bit, and of the others."""
    before = dict(AutoModelForCausalLM.from_pretrained(language).named_parameters())
    after = weights(model)
    assert after.keys() == before.keys()
    same = {name for name in before if torch.equal(before[name], after[name].to(before[name].dtype))}
    return same, before.keys() - same


def is_connector(name):
    return name.startswith(("head.", "decoder.projection."))


@pytest.mark.parametrize("connector", ["vitsplit", "mlp2x", "linear"])
def test_align_trains_only_the_connector(scenes, tmp_path, language, opened, connector):
    result = train(scenes, tmp_path / "run", language, stage="align", connector=connector)
    assert unchanged(opened[0], language)[1] == set()
    state = saved(result)
    assert state and all(is_connector(name) for name in state)
    assert "decoder.projection.0.weight" in state if connector == "mlp2x" else "decoder.projection.weight" in state
    assert {"exact_match", "set_match", "answer_loss", "likelihood", "questions", "images"} <= result.metrics.keys()
    assert result.metrics["images"] == 3


def test_only_adapters_of_the_language_model_are_trained(scenes, tmp_path, language, opened):
    result = train(scenes, tmp_path / "run", language, tune="lora")
    assert unchanged(opened[0], language)[1] == set()
    state = saved(result)
    adapters = {name: tensor for name, tensor in state.items() if not is_connector(name)}
    assert adapters and all("lora_" in name for name in adapters)
    # Seven linear layers in each of two blocks; the second matrix begins at zero.
    assert len(adapters) == 2 * 7 * 2
    assert all(tensor.abs().max() > 0 for name, tensor in adapters.items() if "lora_B" in name)


def test_full_tuning_changes_and_saves_the_language_model(scenes, tmp_path, language, opened):
    result = train(scenes, tmp_path / "run", language, tune="full")
    same, changed = unchanged(opened[0], language)
    assert changed and not same
    model = {name.removeprefix("decoder.language_model."): t for name, t in saved(result).items()
             if not is_connector(name)}  # fmt: skip
    assert model.keys() == weights(opened[0]).keys(), "a shared weight once"
    predictor = vitsplit.load(result.run / "last", language_weights=language)
    loaded = weights(predictor.model.decoder.language_model)
    for name, parameter in weights(opened[0]).items():
        assert torch.equal(loaded[name].float(), parameter.float()), name
    halved = vitsplit.load(result.run / "last", language_weights=language, precision="bf16")
    halved.predict(next((scenes / "images" / "val").iterdir()))["vqa"].ask("what is there?")
    assert {p.dtype for p in halved.model.decoder.language_model.parameters()} == {torch.bfloat16}, "nothing trains"


def test_the_second_stage_starts_from_the_connector_of_the_first(scenes, tmp_path, language):
    def config(name, **settings):
        return override(recipe(name), {**STAGE_SETTINGS, "language_model": str(language), **settings})

    # The rate is so small that the second stage does not change its initial weights.
    stages = config("laptop-vqa-align"), config("laptop-vqa", lr=1e-12, weight_decay=0.0)
    result = train_stages(*stages, data=scenes, out=tmp_path / "two")
    assert result.run == tmp_path / "two" / "instruct"
    first = load_file(tmp_path / "two" / "align" / "last" / "head.safetensors")
    second = saved(result)
    assert first.keys() == {name for name in second if is_connector(name)}
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-6)
    fresh = saved(train(scenes, tmp_path / "fresh", language, lr=1e-12, weight_decay=0.0))
    assert not torch.allclose(fresh["decoder.projection.weight"], first["decoder.projection.weight"], atol=1e-4)
    # Settings of both stages exist from the start, for a first stage that is stopped and resumed.
    for stage, settings in zip(("align", "instruct"), stages, strict=True):
        assert json.loads(stage_file(tmp_path / "two", stage).read_text()) == json.loads(
            json.dumps(config_to_dict(settings))
        )


def test_a_stage_rejects_another_language_model(scenes, tmp_path):
    folder = tiny_folder(tmp_path / "language")
    train(scenes, tmp_path / "first", folder, steps=1, stage="align")
    tiny_folder(folder, seed=1)  # another one of the same name
    with pytest.raises(BundleError, match=r"connector .*trained for"):
        train(scenes, tmp_path / "second", folder, start_from=str(tmp_path / "first"))


@pytest.fixture(scope="module")
def result(scenes, tmp_path_factory, language):
    """A finished run with adapters."""
    return train(scenes, tmp_path_factory.mktemp("runs") / "run", language)


def test_a_bundle_answers_questions(scenes, tmp_path, language, result):
    evaluation, task = vitsplit.evaluate(vitsplit.load(result.run / "best", language_weights=language), data=scenes)
    for name in ("answer_loss", "exact_match", "questions"):
        assert evaluation.metrics[name] == pytest.approx(result.metrics[name], rel=1e-4)
    predictor = vitsplit.load(result.run, language_weights=language)
    path = next((scenes / "images" / "val").iterdir())
    prediction = predictor.predict(path)
    questions = ["how many objects are there?", "is there a ball?"]
    answers = prediction.ask_many(questions)
    assert answers == [predictor.predict(path)["vqa"].ask(question) for question in questions]
    assert prediction.answerer.prefills == 1 and prediction.image.shape == (48, 64, 3)
    page = task.write_report(predictor.forward, evaluation, tmp_path / "page", title="Questions", count=2)
    text = page.read_text()
    assert text.count("<img") == 2 and "how many objects are there?" in text
    figures = json.loads((tmp_path / "page" / "metrics.json").read_text())
    assert figures["answer_loss"] == pytest.approx(evaluation.metrics["answer_loss"])


def test_metrics_equal_question_by_question_evaluation(scenes, language, result):
    """Reference metrics from the file, one question at a time, with transformers' loss of the whole text."""
    evaluation, task = vitsplit.evaluate(vitsplit.load(result.run / "last", language_weights=language), data=scenes)
    predictor = vitsplit.load(result.run / "last", language_weights=language)
    rows = [json.loads(line) for line in (scenes / "questions_val.jsonl").read_text().splitlines()]
    right, loss, count = 0, 0.0, 0
    prompter, model = task.prompter(), predictor.model.decoder.language_model
    words = model.get_input_embeddings().weight
    for row in rows:
        prediction = predictor.predict(scenes / "images" / "val" / row["image"])
        right += prediction.ask(row["question"]).lower().rstrip(".") == row["answer"].lower()
        visual_NW = prediction.answerer.tokens_NW
        before = prompter.question_ids(row["question"], has_image=True)
        answer = prompter.tokenizer(row["answer"] + "<|im_end|>", add_special_tokens=False).input_ids
        embedded = [each for token in before + answer for each in (visual_NW if token < 0 else [words[token]])]
        labels = [-100] * (len(embedded) - len(answer)) + answer
        with torch.no_grad():
            output = model(inputs_embeds=torch.stack(embedded)[None], labels=torch.tensor([labels]))
        loss, count = loss + float(output.loss) * len(answer), count + len(answer)
    assert evaluation.metrics["questions"] == len(rows)
    assert evaluation.metrics["exact_match"] == pytest.approx(right / len(rows))
    assert evaluation.metrics["answer_loss"] == pytest.approx(loss / count, rel=1e-4)


def test_another_language_model_is_rejected(scenes, tmp_path):
    folder = tiny_folder(tmp_path / "language")
    result = train(scenes, tmp_path / "run", folder, steps=1)
    recorded = json.loads((result.run / "last" / "head.json").read_text())["description"]["language_model"][
        "weights_hash"
    ]
    tiny_folder(folder, seed=1)
    with pytest.raises(BundleError) as error:
        vitsplit.load(result.run / "last", language_weights=folder)
    message = str(error.value)
    assert recorded[:16] in message and "was trained with" in message
    found = find_language_model(VqaConfig(language_model=str(folder))).weights_hash
    assert found != recorded and found[:16] in message


def test_another_width_is_named(scenes, tmp_path, language):
    with pytest.raises(ConfigError, match=f"--language-width {WIDTH}"):
        train(scenes, tmp_path / "run", language, language_width=16)


@pytest.mark.parametrize("settings", [{}, {"tune": "full", "gradient_checkpointing": True}])
def test_a_resumed_run_equals_an_uninterrupted_one(scenes, tmp_path, language, monkeypatch, settings):
    settings = {"steps": 4, "checkpoint_every": 1, **settings}
    whole = train(scenes, tmp_path / "whole", language, **settings)
    original, left = task_module.collate, [3]

    def stops(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(task_module, "collate", stops)
        with pytest.raises(KeyboardInterrupt):
            train(scenes, tmp_path / "run", language, **settings)
    resumed = vitsplit.train(data=scenes, out=tmp_path / "run", resume=True, task="vqa")
    first, second = saved(whole), saved(resumed)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_shared_weights_are_saved_at_most_once(tmp_path):
    frozen = Head(torch.nn.Linear(2, 2), tiny_model(tied=True).requires_grad_(False))
    assert frozen.trainable_state().keys() == {"head.weight", "head.bias"}
    full = Head(torch.nn.Linear(2, 2), tiny_model(tied=True))
    state = full.trainable_state()
    assert "decoder.model.embed_tokens.weight" in state and "decoder.lm_head.weight" not in state
    save_file(state, tmp_path / "state.safetensors")
    other = Head(torch.nn.Linear(2, 2), tiny_model(seed=1, tied=True))
    other.load_trainable_state(load_file(tmp_path / "state.safetensors"))
    for name, tensor in full.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert other.decoder.lm_head.weight is other.decoder.model.embed_tokens.weight
