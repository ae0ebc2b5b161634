"""Visual question answering: LLaVA-1.5 with ViT-Split as its connector (Section 4.4, Table 4), and a small one.

Two stages: ``align`` trains the connector only, ``instruct`` the connector and the language model, initialized from
the first stage (``--from``). ``vitsplit train vqa --stage both`` runs both.

Paper: "the same hyperparameter settings as the original LLaVA-1.5" (Appendix A.3): 558 K captions at 1e-3, batch size
256; 665 K conversations at 2e-5, batch size 128; one epoch each, cosine decay after 3 % of warm-up, no weight decay,
bf16; K_t = K_p = 1, from the last block (Table 10: b = 23). Its 512 x 512 pixels are assumed to be an error: the
release uses 336. As in LLaVA, a sequence has at most 2048 tokens including the image's 576, and the cosine starts after
the warm-up. Release: 5e-4 in the first stage, batch size 256 in the second, and another head, ``--connector
vitsplit-release``.
"""

from __future__ import annotations

import math
from dataclasses import replace

from vitsplit.backbone.config import BackboneConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.train_config import LoopConfig, OptimConfig, TrainConfig, one_head

ALIGN_SAMPLES, INSTRUCT_SAMPLES = 558_128, 665_298


def llava15_7b_align() -> TrainConfig:
    """LLaVA-1.5's first stage: CLIP-L/14-336, Vicuna-7B, the connector only, on 558 K captions."""
    return one_head(
        name="llava15-7b-align",
        task=VqaConfig(stage="align", conversation="plain", format="llava", fit="crop", gradient_checkpointing=True),
        backbone=BackboneConfig(backbone="clip-large-336"),
        method=SplitConfig(num_tuned_layers=1, num_prior_layers=1, selection="last"),
        optim=_llava(lr=1e-3, steps=ALIGN_SAMPLES // 256),
        loop=LoopConfig(steps=ALIGN_SAMPLES // 256, batch_size=256, precision="bf16"),
    )


def llava15_7b_instruct() -> TrainConfig:
    """LLaVA-1.5's second stage: connector and language model on 665 K conversations (Table 4)."""
    align, steps = llava15_7b_align(), INSTRUCT_SAMPLES // 128
    return align.change(
        name="llava15-7b-instruct",
        task=replace(align.task, stage="instruct", conversation="v1", fit="pad", group_by_length=True),
        optim=_llava(lr=2e-5, steps=steps),
        loop=replace(align.loop, steps=steps, batch_size=128),
    )


def llava15_7b_align_release() -> TrainConfig:
    """The release's first stage: half LLaVA-1.5's learning rate, and the release's head (182,475,776 parameters)."""
    align = llava15_7b_align()
    return align.change(
        name="llava15-7b-align-release",
        task=replace(align.task, connector="vitsplit-release"),
        optim=replace(align.optim, lr=5e-4),
    )


def llava15_7b_instruct_release() -> TrainConfig:
    """The release's second stage: batch size 256, and the release's head (182,475,776 parameters)."""
    instruct, steps = llava15_7b_instruct(), INSTRUCT_SAMPLES // 256
    return instruct.change(
        name="llava15-7b-instruct-release",
        task=replace(instruct.task, connector="vitsplit-release"),
        optim=_llava(lr=2e-5, steps=steps),
        loop=replace(instruct.loop, steps=steps, batch_size=256, accumulate=2),
    )


def laptop_vqa() -> TrainConfig:
    """Questions about custom images on a laptop: DINOv2-S, 48 visual tokens, SmolLM2-135M with LoRA, in an hour.

    Three copied blocks, four prior layers and images of 252 x 336 pixels, as in the other laptop recipes, so all can
    share a backbone pass. Connector and LoRA are trained together; with few samples a first stage (``--stage both``) is
    not needed. The batch size is eight images, with at most eight questions each.
    """
    return one_head(
        name="laptop-vqa",
        task=VqaConfig(
            visual_grid=(6, 8),
            language_model="smollm2-135m",
            language_width=576,
            tune="lora",
            lora_rank=32,
            lora_alpha=64,
            lora_dropout=0.0,
            questions_per_image=8,
            crop_size=(252, 336),
            fit="stretch",
            max_new_tokens=16,
        ),
        backbone=BackboneConfig(backbone="dinov2-small"),
        method=SplitConfig(num_tuned_layers=3, num_prior_layers=4, first_prior_layer=2),
        optim=OptimConfig(
            lr=5e-4, task_head_lr_scale=0.3, weight_decay=0.01, decay_norms=False, schedule="one-cycle", clip_norm=1.0
        ),
        loop=LoopConfig(steps=240, batch_size=8),
    )


def laptop_vqa_align() -> TrainConfig:
    """The first stage of laptop-vqa: the connector only, with a quarter of the steps."""
    recipe = laptop_vqa()
    return recipe.change(
        name="laptop-vqa-align",
        task=replace(recipe.task, stage="align"),
        optim=replace(recipe.optim, lr=1e-3),
        loop=replace(recipe.loop, steps=60),
    )


STAGES = {
    "laptop-vqa": ("laptop-vqa-align", "laptop-vqa"),
    "llava15-7b": ("llava15-7b-align", "llava15-7b-instruct"),
    "llava15-7b-release": ("llava15-7b-align-release", "llava15-7b-instruct-release"),
}
"""The recipes of both stages by common name."""


def _llava(*, lr: float, steps: int) -> OptimConfig:
    return OptimConfig(
        lr=lr,
        task_head_lr_scale=1.0,
        weight_decay=0.0,
        schedule="warmup-cosine",
        warmup_steps=math.ceil(0.03 * steps),  # rounded as in transformers
        warmup_start=0.0,
        clip_norm=1.0,
    )
