"""A language model of a few thousand weights with a tokenizer and ChatML, as a folder or in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vitsplit.tasks.vqa.decoder import VqaDecoder

WIDTH = 32
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "user\nwhat is on the desk?", "assistant\na book", "system\nhow many chairs are there in the room?",
    "ASSISTANT: two", "USER: what is left of the tree?", "the color of the house is red",
    "A chat between a curious user and a helper.",
]  # fmt: skip


def tiny_tokenizer(*, eos: str = "<|im_end|>", bos: str | None = None) -> Any:
    """Byte-level, so that every text can be written, with a few longer tokens; ``bos`` begins every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    if bos:
        begin = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = begin
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos, pad_token=SPECIAL[0])
    fast.chat_template = CHATML
    return fast


def tiny_model(*, seed: int = 0, tied: bool = False) -> Any:
    """Random weights, large enough that the output depends on the input."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


def tiny_folder(folder: Path, *, seed: int = 0, tied: bool = True) -> Path:
    """The same on disk, as transformers saves it."""
    tiny_model(seed=seed, tied=tied).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_decoder(model: Any, *, seed: int = 0) -> VqaDecoder:
    """A decoder whose maps are already as wide as the language model."""
    torch.manual_seed(seed)
    return VqaDecoder(torch.nn.Identity(), None, model).eval()
