"""Token ids and answer masks of conversations, against texts written by hand."""

import pytest
from tiny_language import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vitsplit.errors import ConfigError
from vitsplit.tasks.vqa.prompts import IMAGE, PLACE, V1_SYSTEM, Prompter, Turn

TURNS = (Turn("what is on the desk?", "a book"), Turn("how many?", "two, grün ☂ and red"))
CHATML = [
    ("<|im_start|>user\n<image>\nwhat is on the desk?<|im_end|>\n<|im_start|>assistant\n", False),
    ("a book<|im_end|>", True),
    ("\n<|im_start|>user\nhow many?<|im_end|>\n<|im_start|>assistant\n", False),
    ("two, grün ☂ and red<|im_end|>", True),
]
V1 = [
    (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nwhat is on the desk? ASSISTANT:",
        False,
    ),
    (" a book</s>", True),
    ("USER: how many? ASSISTANT:", False),
    (" two, grün ☂ and red</s>", True),
]
PLAIN = [("<image>", False), ("a book\n", True)]


def without_image(pieces):
    return [(piece.replace("<image>\n", "").replace("<image>", ""), answer) for piece, answer in pieces]


def of(conversation, **options):
    if conversation == "template":
        return Prompter(tiny_tokenizer(), "template", **options)
    return Prompter(tiny_tokenizer(eos="</s>", bos="<s>"), conversation, **options)


def brute_force(tokenizer, pieces):
    """Ids and mask: a token is an answer's if the text that the tokens before it decode to ends in an answer."""
    text = "".join(piece for piece, _ in pieces)
    answer_of_char = [answer for piece, answer in pieces for _ in piece]
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids, mask, offset = list(begin), [False] * len(begin), 0
    for number, chunk in enumerate(text.split(PLACE)):
        if number:
            ids.append(IMAGE)
            mask.append(False)
            offset += len(PLACE)
        chunk_ids = tokenizer(chunk, add_special_tokens=False).input_ids
        for index, token in enumerate(chunk_ids):
            before = tokenizer.decode(chunk_ids[:index], clean_up_tokenization_spaces=False)
            # Half a character decodes to a replacement that is not in the text.
            done = next((i for i, (a, b) in enumerate(zip(before, chunk, strict=False)) if a != b), len(before))
            ids.append(token)
            mask.append(answer_of_char[offset + min(done, len(chunk) - 1)])
        offset += len(chunk)
    return ids, mask


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize(("conversation", "turns", "pieces"), [
    ("template", TURNS, CHATML), ("template", TURNS[:1], CHATML[:2]),
    ("v1", TURNS, V1), ("v1", TURNS[:1], V1[:2]), ("plain", TURNS[:1], PLAIN),
])  # fmt: skip
def test_ids_and_answer_masks_equal_a_reference(conversation, turns, pieces, has_image):
    prompter = of(conversation)
    pieces = pieces if has_image else without_image(pieces)
    tokens = prompter.conversation_tokens(turns, has_image=has_image)
    ids, mask = brute_force(prompter.tokenizer, pieces)
    assert tokens.ids == ids
    assert tokens.is_answer == mask
    assert tokens.ids.count(IMAGE) == has_image
    learned = [token for token, answer in zip(tokens.ids, tokens.is_answer, strict=True) if answer]
    assert prompter.tokenizer.decode(learned) == "".join(piece for piece, answer in pieces if answer)


def metaspace_tokenizer():
    """A tokenizer of Llama's form: a space is a character of its own, and one stands before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    texts = [V1_SYSTEM, "USER: ASSISTANT:\n", *(text for turn in TURNS for text in (turn.question, turn.answer))]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    begin = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    tokenizer.post_processor = begin
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_llama_spaces_are_tokenized_as_in_llava():
    """LLaVA breaks the text at the image, and both halves into tokens by themselves: each begins with a space."""
    tokenizer = metaspace_tokenizer()
    tokens = Prompter(tokenizer, "v1").conversation_tokens(TURNS, has_image=True)
    before, after = "".join(piece for piece, _ in V1).split("<image>")
    halves = [tokenizer(half, add_special_tokens=False).input_ids for half in (before, after)]
    assert tokens.ids == [tokenizer.bos_token_id, *halves[0], IMAGE, *halves[1]]
    runs = []
    for token, answer, learned in zip(tokens.ids, tokens.is_answer, [False, *tokens.is_answer], strict=False):
        if answer and not learned:
            runs.append([])
        if answer:
            runs[-1].append(token)
    texts = ["".join(tokenizer.convert_ids_to_tokens(run)).replace("\u2581", " ") for run in runs]
    assert [text.strip() for text in texts] == ["a book</s>", "two, grün ☂ and red</s>"]


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_template_equals_transformers(system):
    prompter = of("template", system_prompt=system)
    messages = [{"role": "system", "content": system}] * (system is not None)
    for index, turn in enumerate(TURNS):
        messages.append({"role": "user", "content": "§\n" * (index == 0) + turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    place = prompter.tokenizer("§\n", add_special_tokens=False).input_ids
    line = prompter.tokenizer("\n", add_special_tokens=False).input_ids
    expected = list(prompter.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
    at = next(i for i in range(len(expected)) if expected[i : i + len(place)] == place)
    expected[at : at + len(place)] = [IMAGE, *line]
    # The template writes a line break after the last answer, which is not part of the loss.
    assert prompter.conversation_tokens(TURNS, has_image=True).ids + line == expected
    messages[0 if system is None else 1]["content"] = TURNS[0].question
    expected = list(prompter.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
    assert prompter.conversation_tokens(TURNS, has_image=False).ids + line == expected


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize("conversation", ["template", "v1", "plain"])
def test_a_question_is_a_prefix_of_its_conversation(conversation, has_image):
    prompter = of(conversation)
    for number in (1, 2) if conversation != "plain" else (1,):
        whole = prompter.conversation_tokens(TURNS[:number], has_image=has_image)
        *history, last = TURNS[:number]
        asked = prompter.question_ids(last.question, history, has_image=has_image)
        assert whole.ids[: len(asked)] == asked
        assert whole.is_answer[len(asked)] and not whole.is_answer[len(asked) - 1 : len(asked)].count(True)
        assert all(whole.is_answer[len(asked) :])


def test_a_system_prompt_replaces_the_default():
    prompter = of("v1", system_prompt="Be brief.")
    ids = prompter.question_ids("why?", has_image=False)
    assert prompter.tokenizer.decode(ids) == "<s>Be brief. USER: why? ASSISTANT:"
    assert prompter.tokenizer.decode(of("v1").question_ids("why?", has_image=False)).startswith(f"<s>{V1_SYSTEM} USER:")


@pytest.mark.parametrize("conversation", ["template", "v1", "plain"])
def test_the_image_tag_is_plain_text_without_an_image(conversation):
    prompter = of(conversation)
    turn = Turn("what does <image> mean?", "the tag <image> stands for a picture")
    alone = prompter.conversation_tokens([turn], has_image=False)
    assert IMAGE not in alone.ids
    assert "the tag <image> stands for a picture" in prompter.tokenizer.decode(alone.ids)
    with_image = prompter.conversation_tokens([turn], has_image=True)
    assert with_image.ids.count(IMAGE) == 1
    assert "the tag <image> stands" in prompter.tokenizer.decode(with_image.ids[with_image.ids.index(IMAGE) + 1 :])


def test_a_tokenizer_without_a_template_is_rejected():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="--conversation v1"):
        Prompter(tokenizer, "template")
    Prompter(tokenizer, "v1")


def test_a_template_that_rewrites_earlier_turns_is_rejected():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ m['content'] }}|{% endif %}{% endfor %}"
    )
    prompter = Prompter(tokenizer, "template")
    prompter.conversation_tokens(TURNS[:1], has_image=True)
    with pytest.raises(ConfigError, match="--conversation v1"):
        prompter.conversation_tokens(TURNS, has_image=True)
