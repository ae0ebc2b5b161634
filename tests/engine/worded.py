"""The tiny task with a tiny language model in its decoder. Shapes: B batch, D width, h w grid, S tokens, V words."""

import os
import signal
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from tiny import CLASSES, TinyTask
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT = (3, 1, 4)


class WordedDecoder(nn.Module):
    """Reads the map as tokens after a prompt; the first logits of each are its patch's.

    As decoders of real language models do, it calls their parts one by one: embeddings, layers, logits.
    """

    def __init__(self, width: int, *, tied: bool, frozen: bool, checkpointed: bool, adapted: bool) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=19,
            hidden_size=width,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
        model = LlamaForCausalLM(config).requires_grad_(not frozen)
        self.scale_1 = nn.Parameter(torch.ones(1))  # fewer rows than there are processes
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        adapters = LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False)
        self.language_model = get_peft_model(model, adapters) if adapted else model
        self.adapted = adapted

    def forward(self, map_BDhw: Tensor) -> Tensor:
        model = self.language_model.get_base_model() if self.adapted else self.language_model
        ids_BS = torch.tensor(PROMPT, device=map_BDhw.device).expand(len(map_BDhw), -1)
        words_BSD = model.get_input_embeddings()(ids_BS)
        patches_BSD = (map_BDhw * self.scale_1).flatten(2).transpose(1, 2).to(words_BSD.dtype)
        tokens_BSD = torch.cat([words_BSD, patches_BSD], 1)
        hidden_BSD = model.base_model(inputs_embeds=tokens_BSD, use_cache=False).last_hidden_state
        logits_BSV = model.get_output_embeddings()(hidden_BSD[:, len(PROMPT) :])
        return logits_BSV[..., : CLASSES + 1].transpose(1, 2).unflatten(2, map_BDhw.shape[2:])


@dataclass
class WordedTask(TinyTask):
    """``interrupt_at`` and ``terminate_at``: the micro-batch after which this process is interrupted or terminated."""

    tied: bool = False
    frozen: bool = False
    checkpointed: bool = False
    adapted: bool = False
    interrupt_at: int | None = None
    terminate_at: int | None = None
    fetched: int = 0

    def build_decoder(self, width: int, patch_size: int) -> nn.Module:
        return WordedDecoder(
            width, tied=self.tied, frozen=self.frozen, checkpointed=self.checkpointed, adapted=self.adapted
        )

    def collate(self, samples):
        self.fetched += 1
        if self.fetched == self.interrupt_at:
            raise KeyboardInterrupt
        if self.fetched == self.terminate_at and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().collate(samples)
