"""Generated answers, against transformers' generation without a cache."""

import re
import threading

import pytest
import torch
from tiny_language import WIDTH, tiny_decoder, tiny_model, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.generate import BATCH, Answerer
from vitsplit.tasks.vqa.prediction import VqaPrediction
from vitsplit.tasks.vqa.prompts import IMAGE, Prompter, Turn

N, NEW = 6, 12
PROMPTER = Prompter(tiny_tokenizer(), "template")
QUESTIONS = ["what is on the desk?", "why?", "how many chairs are there in the room, do you think?", "left or right?"]
HISTORY = (Turn("what is on the desk?", "a book"), Turn("whose?", "mine"))


@pytest.fixture(scope="module")
def decoder():
    return tiny_decoder(tiny_model())


def visual(seed=0):
    return torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(seed))


def answerer(decoder, tokens_NW, **options):
    return Answerer(decoder, PROMPTER, tokens_NW, max_new_tokens=NEW, **options)


def ids_of_transformers(decoder, tokens_NW, question, history=(), max_new_tokens=NEW):
    """The whole prompt as embeddings, without a key-value cache."""
    model = decoder.language_model
    ids = PROMPTER.question_ids(question, history, has_image=tokens_NW is not None)
    words = model.get_input_embeddings().weight
    rows = [row for token in ids for row in (tokens_NW if token == IMAGE else [words[token]])]
    with torch.no_grad():
        written = model.generate(
            inputs_embeds=torch.stack(list(rows))[None],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=False,
            pad_token_id=PROMPTER.tokenizer.pad_token_id,
        )
    return written[0].tolist()


def by_transformers(*args, **options):
    return PROMPTER.tokenizer.decode(ids_of_transformers(*args, **options), skip_special_tokens=True).strip()


@pytest.mark.parametrize("tokens_NW", [visual(), None], ids=["image", "none"])
def test_a_prompt_longer_than_the_context_is_rejected_or_truncated(decoder, tokens_NW, monkeypatch, caplog):
    longest = max(QUESTIONS, key=len)
    has_image, num_visual = tokens_NW is not None, 0 if tokens_NW is None else N
    tokens = len(PROMPTER.question_ids(longest, has_image=has_image)) + max(num_visual - 1, 0)
    settings = decoder.causal_model.config
    monkeypatch.setattr(settings, "max_position_embeddings", tokens)
    expected = by_transformers(decoder, tokens_NW, longest)
    assert answerer(decoder, tokens_NW).answer([longest]) == [expected]  # it just fits
    monkeypatch.setattr(settings, "max_position_embeddings", tokens - 1)
    one = answerer(decoder, tokens_NW)
    for ask in (lambda: one.answer(QUESTIONS), lambda: one.continue_conversation(longest)):
        with pytest.raises(DataError, match=f"{tokens - 1} tokens, including {num_visual} of the image"):
            ask()
    with pytest.raises(DataError, match="start a new conversation"):
        list(one.stream("why?", (Turn(longest, longest),)))
    cutting = answerer(decoder, tokens_NW, cut=True)
    with caplog.at_level("WARNING", logger="vitsplit"):
        (answer,) = cutting.answer([longest])
    kept = int(re.search(r"truncated to (\d+) characters", caplog.text)[1])
    assert answer == by_transformers(decoder, tokens_NW, longest[:kept])
    assert len(longest) / 2 < kept < len(longest)


def test_an_oversized_question_is_rejected_before_tokenization(decoder, monkeypatch):
    long = "why? " * 200_000
    cut = answerer(decoder, visual(), cut=True)._prompt(long)
    assert len(cut) + N - 1 <= cut_window(decoder)
    monkeypatch.setattr(PROMPTER, "question_ids", lambda *_, **__: pytest.fail("broken into tokens"))
    with pytest.raises(DataError, match="has 1000000 characters"):
        answerer(decoder, visual()).answer([long])


def cut_window(decoder):
    return decoder.causal_model.config.max_position_embeddings


@pytest.mark.parametrize("tokens_NW", [visual(), visual(1), None], ids=["image", "another", "none"])
def test_answers_equal_transformers(decoder, tokens_NW):
    expected = [by_transformers(decoder, tokens_NW, question) for question in QUESTIONS]
    assert len(set(expected)) > 1, "what is asked matters"
    one = answerer(decoder, tokens_NW)
    assert one.answer(QUESTIONS) == expected
    assert [one.answer([question])[0] for question in QUESTIONS] == expected
    assert [one.continue_conversation(question) for question in QUESTIONS] == expected
    assert one.answer(QUESTIONS[::-1]) == expected[::-1]
    assert one.prefills == (0 if tokens_NW is None else 1)


def test_answers_depend_on_the_image(decoder):
    assert answerer(decoder, visual()).answer(QUESTIONS) != answerer(decoder, visual(1)).answer(QUESTIONS)


def test_more_questions_than_the_batch_size(decoder):
    many = [f"question {'?' * (n % 5)} number {n}" for n in range(BATCH + 3)]
    one = answerer(decoder, visual())
    assert one.answer(many) == [by_transformers(decoder, visual(), question) for question in many]
    assert one.prefills == 1
    assert one.answer([]) == []


def test_a_conversation_continues_from_its_history(decoder):
    one = answerer(decoder, visual())
    answers = [one.continue_conversation("why?", HISTORY[:length]) for length in range(3)]
    assert answers == [by_transformers(decoder, visual(), "why?", HISTORY[:length]) for length in range(3)]
    assert len(set(answers)) == 3
    assert one.prefills == 1


@pytest.mark.parametrize("tokens_NW", [visual(), None], ids=["image", "none"])
def test_a_stream_equals_the_answer(decoder, tokens_NW):
    one = answerer(decoder, tokens_NW)
    for question in QUESTIONS:
        pieces = list(one.stream(question, HISTORY))
        assert "".join(pieces).strip() == by_transformers(decoder, tokens_NW, question, HISTORY)
    assert len(pieces) > 1


def test_a_failed_stream_raises(decoder):
    with pytest.raises(RuntimeError, match=r"shape|size|match"):
        list(answerer(decoder, torch.randn(N, WIDTH + 1)).stream("why?"))


def test_closing_a_stream_stops_the_language_model(decoder):
    threads = threading.active_count()
    stream = answerer(decoder, visual()).stream("why?", max_new_tokens=2000)
    next(stream)
    stream.close()
    assert threading.active_count() == threads


def test_the_number_of_tokens_can_be_set(decoder):
    one = answerer(decoder, visual())
    for number in (1, 5):
        assert one.answer(QUESTIONS, max_new_tokens=number) == [
            by_transformers(decoder, visual(), question, max_new_tokens=number) for question in QUESTIONS
        ]


def test_answers_end_at_the_end_token():
    """The third token of the answer to one question is used as the end token."""
    ends = tiny_decoder(tiny_model())
    free = {question: ids_of_transformers(ends, visual(), question) for question in QUESTIONS}
    stop = free["why?"][2]
    assert stop not in free["why?"][:2] and len(free["why?"]) == NEW
    ends.language_model.generation_config.eos_token_id = [PROMPTER.tokenizer.eos_token_id, stop]
    expected = []
    for ids in free.values():
        ids = ids[: ids.index(stop) + 1] if stop in ids else ids
        expected.append(PROMPTER.tokenizer.decode(ids, skip_special_tokens=True).strip())
    assert answerer(ends, visual()).answer(QUESTIONS) == expected, "one ends, and the others go on"


class Casts(TorchDispatchMode):
    """Counts how often each weight is cast."""

    def __init__(self, weights):
        super().__init__()
        self.count = {weight.data_ptr(): 0 for weight in weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.count:
            self.count[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def test_trainable_weights_are_cast_once():
    decoder = tiny_decoder(tiny_model().requires_grad_())
    one = answerer(decoder, visual().bfloat16())
    one.answer(["why?"])  # the image is encoded
    with Casts(decoder.language_model.parameters()) as casts:
        one.answer(QUESTIONS)
    assert set(casts.count.values()) == {0, 1}, "norms and words stay as they are"


def test_threads_encode_the_image_once(decoder):
    one = answerer(decoder, visual())
    answers = {}
    threads = [
        threading.Thread(target=lambda q=question: answers.update({q: one.answer([q])[0]})) for question in QUESTIONS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {question: by_transformers(decoder, visual(), question) for question in QUESTIONS}
    assert one.prefills == 1


def test_adapters_are_used_for_answers():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    adapted = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    decoder = tiny_decoder(adapted)
    expected = [by_transformers(decoder, visual(), question) for question in QUESTIONS]
    assert answerer(decoder, visual()).answer(QUESTIONS) == expected
    with adapted.disable_adapter():
        assert answerer(decoder, visual()).answer(QUESTIONS) != expected


def test_a_prediction_records_its_questions(decoder, tmp_path):
    import json

    import numpy as np

    prediction = VqaPrediction(np.full((48, 64, 3), 200, np.uint8), answerer(decoder, visual()))
    expected = [by_transformers(decoder, visual(), question) for question in QUESTIONS]
    assert prediction.ask(QUESTIONS[0]) == expected[0]
    assert prediction.ask_many(QUESTIONS[1:3]) == expected[1:3]
    assert "".join(prediction.stream(QUESTIONS[3])).strip() == expected[3]
    assert prediction.asked == [Turn(*pair) for pair in zip(QUESTIONS, expected, strict=True)]
    json_path, jpg_path = prediction.save(tmp_path / "new", "x")
    saved = json.loads(json_path.read_text(encoding="utf-8"))
    assert [(each["question"], each["answer"]) for each in saved] == list(zip(QUESTIONS, expected, strict=True))
    assert jpg_path.stat().st_size > 0 and prediction.overlay().size == (64, 48)
