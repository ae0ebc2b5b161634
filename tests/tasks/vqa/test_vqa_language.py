"""Conversion of a language model in GGUF, against the model that it was written from."""

import json

import pytest
import torch
from gguf import GGUFWriter, TokenType
from tiny_language import CHATML, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from vitsplit.tasks.vqa.language import _convert

NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(path, model, tokenizer):
    config, written = model.config, GGUFWriter(path, "llama")
    written.add_block_count(config.num_hidden_layers)
    written.add_context_length(config.max_position_embeddings)
    written.add_embedding_length(config.hidden_size)
    written.add_feed_forward_length(config.intermediate_size)
    written.add_head_count(config.num_attention_heads)
    written.add_head_count_kv(config.num_key_value_heads)
    written.add_layer_norm_rms_eps(config.rms_norm_eps)
    written.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    written.add_vocab_size(config.vocab_size)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens) | {token["content"] for token in described["added_tokens"]}
    written.add_tokenizer_model("gpt2")
    written.add_tokenizer_pre("smollm")
    written.add_token_list(vocabulary)
    written.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in vocabulary])
    written.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    written.add_bos_token_id(tokenizer.convert_tokens_to_ids("<|im_start|>"))
    written.add_eos_token_id(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    written.add_chat_template(CHATML)
    for name, tensor in model.state_dict().items():
        parts = name.removeprefix("model.").removesuffix(".weight").split(".")
        block = f"blk.{parts[1]}." if parts[0] == "layers" else ""
        place = ".".join(parts[2:] if block else parts)
        if place in (
            "self_attn.q_proj",
            "self_attn.k_proj",
        ):  # rotary positions: llama.cpp pairs neighbors, transformers halves
            heads = config.num_attention_heads if "q_proj" in place else config.num_key_value_heads
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
        written.add_tensor(f"{block}{NAMES[place]}.weight", tensor.contiguous().numpy())
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("gguf")
    write_gguf(root / "tiny.gguf", tiny_model(), tiny_tokenizer())
    _convert(root / "tiny.gguf", root / "folder")
    return root / "folder"


def test_a_converted_model_equals_the_original(converted):
    ids_BT = torch.tensor([[5, 17, 30, 8, 250, 61]])
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)(ids_BT).logits
        expected = tiny_model()(ids_BT).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_converted_tokenizer_equals_the_original(converted):
    found, expected = AutoTokenizer.from_pretrained(converted), tiny_tokenizer()
    text = "<|im_start|>user\nhow many chairs are there in the room?<|im_end|>\n"
    assert found(text).input_ids == expected(text).input_ids
    assert found.eos_token == "<|im_end|>"
    assert found.chat_template == CHATML
