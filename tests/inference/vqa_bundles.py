"""Bundles of visual question answering for tests: a tiny random language model, a tiny random backbone, no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from bundles import BACKBONE, write_bundle

from vitsplit.backbone.config import BackboneConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.language import find_language_model
from vitsplit.train_config import LoopConfig, one_head

WIDTH = 32
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write_language_model(folder: Path, *, seed: int = 0) -> Path:
    """A Llama of two layers whose tokens are letters, and whose weights are so large that its answers differ."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    printable = [*map(chr, range(33, 127)), "\u0120", "\u010a"]  # the last two are a space and a line's end
    vocabulary = {letter: index for index, letter in enumerate(["<end>", *printable])}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=WIDTH,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                bos_token_id=None,
                eos_token_id=0,
                initializer_range=0.4,
            )
        )
    model.save_pretrained(folder)
    return folder


def write_vqa_bundle(
    folder: Path,
    language: Path,
    *,
    backbone: str = BACKBONE,
    seed: int = 0,
    task: dict[str, Any] | None = None,
    **split: Any,
) -> Path:
    """A bundle that sees images as 48 x 64 pixels and six tokens; its answers are noise, and depend on the image."""
    settings = {
        "language_model": "tiny", "language_weights": str(language), "language_width": WIDTH, "stage": "align",
        "crop_size": (48, 64), "fit": "stretch", "visual_grid": (2, 3), "max_new_tokens": 8,
    } | (task or {})  # fmt: skip
    config = one_head(
        task=VqaConfig(**settings),
        backbone=BackboneConfig(backbone=backbone, random_weights=True),
        method=SplitConfig(**({"num_tuned_layers": 1, "num_prior_layers": 1, "selection": "last"} | split)),
        loop=LoopConfig(precision="fp32", seed=seed),
    )
    found = find_language_model(config.task)
    description = {"language_model": {"name": found.name, "weights_hash": found.weights_hash}}
    return write_bundle(folder, config, description)


def answers_of(path: Path) -> list[dict[str, str]]:
    """What an answers file says."""
    return list(json.loads(path.read_text(encoding="utf-8")))
