"""The loss of answers, against the language model's loss and against single conversations."""

import itertools

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_language import WIDTH, tiny_decoder, tiny_model, tiny_tokenizer

from vitsplit.tasks.vqa.connectors import pool
from vitsplit.tasks.vqa.decoder import VisualTokens, VqaDecoder
from vitsplit.tasks.vqa.prompts import IMAGE, Prompter, Turn
from vitsplit.tasks.vqa.sequence import stack

N = 6
PROMPTER = Prompter(tiny_tokenizer(), "template")
TURNS = [
    (Turn("what is on the desk?", "a book"),),
    (Turn("how many chairs?", "two"), Turn("and the color of the house?", "red")),
    (Turn("why?", "I do not know at all"),),
]


@pytest.fixture(scope="module")
def decoder():
    return tiny_decoder(tiny_model().double())


def visual(images, seed=0):
    return torch.randn(images, N, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(turns, *, has_image=True):
    return PROMPTER.conversation_tokens(turns, has_image=has_image)


def loss(decoder, tokens_INW, rows, images):
    return decoder.answer_loss(tokens_INW, stack(rows, images, max_length=2048))


def loss_of_transformers(model, tokens_NW, conversation):
    """The sum over one conversation, given as embeddings, with the label -100 outside answers."""
    embedded, labels = [], []
    for token, answer in zip(conversation.ids, conversation.is_answer, strict=True):
        if token == IMAGE:
            embedded += list(tokens_NW)
            labels += [-100] * len(tokens_NW)
        else:
            embedded.append(model.get_input_embeddings().weight[token])
            labels.append(token if answer else -100)
    output = model(inputs_embeds=torch.stack(embedded)[None], labels=torch.tensor([labels]))
    return output.loss * sum(label != -100 for label in labels)


@pytest.mark.parametrize("has_image", [True, False])
def test_the_loss_equals_transformers(decoder, has_image):
    tokens_INW = visual(1)
    for turns in TURNS:
        conversation = tokens(turns, has_image=has_image)
        ours = loss(decoder, tokens_INW, [[conversation]], [0 if has_image else -1])
        theirs = loss_of_transformers(decoder.language_model, tokens_INW[0], conversation)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_packed_conversations_are_independent(decoder):
    tokens_INW = visual(2)
    conversations = [tokens(turns) for turns in TURNS]
    alone = [float(loss(decoder, tokens_INW, [[each]], [1])) for each in conversations]
    assert len(set(alone)) == 3
    for order in itertools.permutations(range(3)):
        packed = loss(decoder, tokens_INW, [[conversations[i] for i in order]], [1])
        assert float(packed) == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize("several", [True, False])
def test_the_loss_of_a_mixed_batch_is_the_sum_of_its_parts(decoder, several):
    tokens_INW = visual(2)
    text = tokens((Turn("one and one?", "two, of course, and nothing else in the world"),), has_image=False)
    rows = [[tokens(TURNS[1])], [text], [tokens(turns) for turns in (TURNS if several else TURNS[:1])]]
    images = [1, -1, 0]
    together = loss(decoder, tokens_INW, rows, images)
    apart = sum(
        float(loss(decoder, tokens_INW, [[each]], [image]))
        for row, image in zip(rows, images, strict=True) for each in row
    )  # fmt: skip
    assert float(together) == pytest.approx(apart, rel=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_attention_implementation_separates_conversations(attention):
    model = tiny_model().double()
    model.set_attn_implementation(attention)
    decoder = tiny_decoder(model)
    tokens_INW = visual(1)
    conversations = [tokens(turns) for turns in TURNS]
    expected = sum(float(loss_of_transformers(model, tokens_INW[0], each)) for each in conversations)
    assert float(loss(decoder, tokens_INW, [conversations], [0])) == pytest.approx(expected, rel=1e-5)


def test_gradients_equal_transformers(decoder):
    ours_INW, theirs_INW = visual(1).requires_grad_(), visual(1).requires_grad_()
    conversations = [tokens(turns) for turns in TURNS]
    loss(decoder, ours_INW, [conversations], [0]).backward()
    sum(loss_of_transformers(decoder.language_model, theirs_INW[0], each) for each in conversations).backward()
    assert ours_INW.grad.abs().max() > 1e-3
    assert torch.allclose(ours_INW.grad, theirs_INW.grad, rtol=1e-4, atol=1e-5)


def test_text_without_images_gives_zero_connector_gradients():
    projection = torch.nn.Linear(4, WIDTH)
    decoder = VqaDecoder(projection, None, tiny_model().requires_grad_(False))
    text = stack([[tokens(TURNS[0], has_image=False)]], [-1], max_length=100)
    value = decoder(torch.randn(1, 4, 2, 3), text)
    value.backward()
    assert float(value) > 0
    assert torch.equal(projection.weight.grad, torch.zeros_like(projection.weight))
    decoder(torch.randn(1, 4, 2, 3), stack([[tokens(TURNS[0])]], [0], max_length=100)).backward()
    assert projection.weight.grad.abs().max() > 0


def test_without_targets_the_visual_tokens_are_returned():
    projection = torch.nn.Linear(4, WIDTH)
    map_BDhw = torch.randn(2, 4, 6, 8)
    decoder = VqaDecoder(projection, (2, 2), None)
    output = decoder(map_BDhw)
    assert isinstance(output, VisualTokens) and output.decoder is decoder
    cells = [map_BDhw[:, :, 3 * r : 3 * r + 3, 4 * c : 4 * c + 4].mean((2, 3)) for r in range(2) for c in range(2)]
    assert torch.allclose(output.tokens_INW, projection(torch.stack(cells, 1)), atol=1e-6)
    assert torch.equal(pool(map_BDhw, None)[:, 1 * 8 + 5], map_BDhw[:, :, 1, 5])


SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5}  # fmt: skip


@pytest.mark.parametrize("config", [
    transformers.LlamaConfig(**SMALL),
    transformers.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0),
    transformers.CohereConfig(**SMALL, logit_scale=0.25),
    transformers.GraniteConfig(**SMALL, logits_scaling=4.0),
    transformers.Qwen2Config(**SMALL),
])  # fmt: skip
def test_logits_equal_the_language_model(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    decoder = VqaDecoder(torch.nn.Identity(), None, model)
    ids_BS = torch.randint(0, 40, (2, 7))
    with torch.no_grad():
        hidden_BSW = decoder.base_model(input_ids=ids_BS).last_hidden_state
        expected_BSV = model(input_ids=ids_BS).logits
        plain_BSV = F.linear(hidden_BSW, model.get_output_embeddings().weight)
        assert torch.allclose(decoder.to_logits(hidden_BSW), expected_BSV, atol=1e-5)
    is_scaled = isinstance(config, transformers.Gemma2Config | transformers.CohereConfig | transformers.GraniteConfig)
    assert is_scaled != torch.allclose(plain_BSV, expected_BSV, atol=1e-3), "the scale matters here"


def test_adapters_are_applied_to_the_layers():
    from peft import LoraConfig, get_peft_model

    model = tiny_model()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    decoder = tiny_decoder(adapted)
    tokens_INW, conversation = visual(1).float(), tokens(TURNS[0])
    merged = loss_of_transformers(adapted, tokens_INW[0], conversation)
    with adapted.disable_adapter():
        bare = loss_of_transformers(adapted, tokens_INW[0], conversation)
    assert float(loss(decoder, tokens_INW, [[conversation]], [0])) == pytest.approx(float(merged), rel=1e-5)
    assert abs(float(merged) - float(bare)) > 1e-2
