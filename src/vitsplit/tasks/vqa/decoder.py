"""Projects the connector's map to visual tokens, and computes the loss with the language model.

Shapes: B sequences, S tokens of a sequence, I images, N visual tokens, D width of the map, h w its grid, W width of the
language model, A answers' tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.nn.bins import pool_by_matrix
from vitsplit.tasks.vqa.connectors import pool
from vitsplit.tasks.vqa.sequence import TokenBatch, expand


class VisualTokens(NamedTuple):
    """Visual tokens of images.

    Attributes:
        tokens_INW: The visual tokens.
        decoder: The decoder that computed them.
    """

    tokens_INW: Tensor
    decoder: VqaDecoder


class VqaDecoder(nn.Module):
    """Pools and projects the map, and in training computes the language modeling loss of the answers.

    A frozen language model is cast to the compute precision on first use.

    Args:
        projection: Projection of each token from D to W.
        visual_grid: Rows and columns of the visual tokens; None: one per patch.
        language_model: A causal language model of transformers, optionally with adapters; None: for counting
            parameters only.
    """

    def __init__(
        self, projection: nn.Module, visual_grid: tuple[int, int] | None, language_model: nn.Module | None
    ) -> None:
        super().__init__()
        self.projection = projection
        self.visual_grid = visual_grid
        self.language_model: Any = language_model

    def forward(self, map_BDhw: Tensor, targets: TokenBatch | None = None) -> VisualTokens | Tensor:
        """The visual tokens of the maps, or with targets the summed negative log-likelihood of the answers.

        Returns:
            ``VisualTokens``, or a scalar float32.
        """
        visual = VisualTokens(self.projection(pool(map_BDhw, self.visual_grid)), self)
        return visual if targets is None else self.answer_loss(visual.tokens_INW, targets)

    def answer_loss(self, tokens_INW: Tensor, batch: TokenBatch) -> Tensor:
        """The sum over all answers' tokens of ``-log p(token | image, question, tokens before it)``, float32 scalar.

        Logits are computed at answer tokens only.
        """
        sequences = expand(batch, tokens_INW.shape[1])
        embedded_BSW = self.embed(sequences.ids_BS, sequences.visual_BS, sequences.image_B, tokens_INW)
        hidden_BSW = self.base_model(
            inputs_embeds=embedded_BSW,
            attention_mask=self._mask(sequences.mask, embedded_BSW.dtype),
            position_ids=sequences.position_BS,
            use_cache=False,
        ).last_hidden_state
        # Each token is predicted at the position before it; the first token of an answer at the last token of its
        # question, which directly precedes it.
        learned_BS = sequences.is_answer_BS[:, 1:]
        logits_AV = self.to_logits(hidden_BSW[:, :-1][learned_BS])
        loss = F.cross_entropy(logits_AV.float(), sequences.ids_BS[:, 1:][learned_BS], reduction="sum")
        # Include the projection in the graph even if no sequence has an image.
        return loss + 0.0 * tokens_INW.float().sum()

    def _mask(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """The mask in the format of the language model's attention.

        A 4-d mask is passed through to the attention; the eager implementation adds it to the scores.
        """
        if mask.dim() < 4 or self.causal_model.config.get_text_config()._attn_implementation != "eager":
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def embed(self, ids_BS: Tensor, visual_BS: Tensor, image_B: Tensor, tokens_INW: Tensor) -> Tensor:
        """Embeddings of text and visual tokens, ``(B, S, W)``."""
        self._round_frozen()
        words_BSW = self.language_model.get_input_embeddings()(ids_BS)
        seen_BSW = tokens_INW.to(words_BSW.dtype)[image_B.clamp(min=0)[:, None], visual_BS.clamp(min=0)]
        return torch.where(visual_BS[..., None] >= 0, seen_BSW, words_BSW)

    @property
    def causal_model(self) -> Any:
        """The causal language model without the PEFT wrapper (adapters remain in its layers)."""
        model = self.language_model
        return model.get_base_model() if isinstance(model, _adapted()) else model

    @property
    def base_model(self) -> Any:
        """The language model without output layer: embeddings to hidden states."""
        return self.causal_model.base_model

    def to_logits(self, hidden_AW: Tensor) -> Tensor:
        """Hidden states to logits, scaled as in the language model's forward pass."""
        logits_AV = self.causal_model.get_output_embeddings()(hidden_AW)
        settings = self.causal_model.config.get_text_config().to_dict()
        if settings.get("logit_scale"):  # Cohere
            logits_AV = logits_AV * settings["logit_scale"]
        if settings.get("logits_scaling"):  # Granite
            logits_AV = logits_AV / settings["logits_scaling"]
        if cap := settings.get("final_logit_softcapping"):  # Gemma 2
            logits_AV = cap * torch.tanh(logits_AV / cap)
        return logits_AV

    def _round_frozen(self) -> None:
        """Casts frozen weights to the compute precision once; autocast would cast them at every use."""
        device = next(self.language_model.parameters()).device.type
        if not torch.is_autocast_enabled(device):
            return
        dtype = torch.get_autocast_dtype(device)
        for parameter in self.language_model.parameters():
            if not parameter.requires_grad and parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(dtype)


class VisualProjection(nn.Module):
    """The part of a decoder before the language model, with pooling in a form that can be exported.

    Args:
        decoder: The decoder, whose weights are shared.
    """

    def __init__(self, decoder: VqaDecoder) -> None:
        super().__init__()
        self.projection, self.visual_grid = decoder.projection, decoder.visual_grid

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """``(B, D, h, w)`` to visual tokens ``(B, N, W)``."""
        if self.visual_grid is not None:
            map_BDhw = pool_by_matrix(map_BDhw, self.visual_grid)
        tokens: Tensor = self.projection(pool(map_BDhw, None))
        return tokens


def _adapted() -> Any:
    from peft import PeftModel

    return PeftModel
