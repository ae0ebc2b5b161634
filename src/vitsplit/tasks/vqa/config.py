"""Settings of visual question answering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vitsplit.ranges import LONG_TEXT, MAX_NEW_TOKENS, Length, Opens, Range

Connector = Literal["vitsplit", "vitsplit-release", "mlp2x", "linear"]
Stage = Literal["align", "instruct"]
Conversation = Literal["template", "v1", "plain"]


@dataclass(frozen=True, kw_only=True)
class VqaConfig:
    """Connector, language model, prompts and data of visual question answering."""

    connector: Connector = "vitsplit"
    """From taps to visual tokens: the paper's head, the release's form of it, LLaVA-1.5's two layers, or one layer."""
    visual_grid: Annotated[tuple[int, int] | None, Range(1, 256)] = None
    """Rows and columns that the map is pooled to, one visual token for each cell; None: every patch is a token."""
    stage: Stage = "instruct"
    """What trains: the connector alone (align), or the language model with it (instruct)."""
    start_from: Annotated[str | None, Opens()] = None
    """Run or bundle whose connector (and tuned language model) this one starts with; `--from RUN` is the same."""
    language_model: str = "lmsys/vicuna-7b-v1.5"
    """Short name (smollm2-135m), folder, or hub name of a causal language model of transformers."""
    language_weights: Annotated[str | None, Opens()] = None
    """Folder to read the language model from; None: the hub cache, then the hub."""
    language_width: Annotated[int, Range(1, 2**16)] = 4096
    """Width of its embeddings: what parameters are counted with where the model itself is not read."""
    tune: Literal["full", "lora"] = "full"
    """How the language model trains in the second stage."""
    lora_rank: Annotated[int, Range(1, 4096)] = 128
    """Rank of the adapters."""
    lora_alpha: Annotated[int, Range(1, 2**16)] = 256
    """Scale of the adapters: they are multiplied with alpha / rank."""
    lora_dropout: Annotated[float, Range(0, 1, below=True)] = 0.05
    """Dropout in front of the adapters."""
    quantize: Literal["none", "4bit"] = "none"
    """Keep the frozen language model in 4 bits (NF4), with bitsandbytes; with adapters only."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """The language model's attention. flash_attention_2 needs that package, and `--no-share-image`."""
    gradient_checkpointing: bool = False
    """Compute the language model's layers again in the backward pass: less memory, a third more time."""
    conversation: Conversation = "template"
    """The prompt: the language model's own chat template, LLaVA-1.5's for Vicuna (v1), or image and answer (plain)."""
    system_prompt: Annotated[str | None, Length(0, LONG_TEXT)] = None
    """What the conversation begins with; None: what the template or v1 begin with by themselves."""
    answer_hint: Annotated[str, Length(0, LONG_TEXT)] = ""
    """What is added to every question of a file of questions, such as how long the answer should be."""
    crop_size: Annotated[tuple[int, int], Range(1, 4096)] = (336, 336)
    """Height and width that every image is brought to."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """How: with borders in the mean colour, by cutting off what is too long, or by changing its shape."""
    format: Literal["auto", "questions", "llava"] = "auto"
    """Layout of the data: JSON lines of image, question, answer; or LLaVA's JSON of conversations."""
    train_file: Annotated[str | None, Opens(inside_data=True)] = None
    """File of the training samples, inside the data folder; None: the only one that is named as such."""
    val_file: Annotated[str | None, Opens(inside_data=True)] = None
    """File of the validation samples, inside the data folder; None: the only one that is named as such."""
    image_folder: Annotated[str | None, Opens(inside_data=True)] = None
    """Where image names begin, inside the data folder; None: images/SPLIT, images, or the data folder itself."""
    allow_outside: Annotated[bool, Opens(inside_data=True)] = False
    """Read images whose names lead out of the image folder (absolute, or with ..). For files that you trust."""
    bad_samples: Literal["error", "skip"] = "error"
    """Samples that cannot be used (no such image, no answer, broken): refuse the data, or leave them out."""
    val_every: Annotated[int, Range(2, 10**9)] = 500
    """Without a validation file one image in so many, with all that is said on it, is kept to measure on."""
    share_image: bool = True
    """All questions on an image in one sequence behind its tokens; each sees the image and itself, as if alone."""
    questions_per_image: Annotated[int, Range(1, 10**4)] = 16
    """The most questions of an image in a training sequence, drawn anew every time."""
    group_by_length: bool = False
    """Batches of samples of one kind (with or without image) and about one length, as LLaVA-1.5 in its second stage."""
    shuffle_images: bool = False
    """Give every training sample another sample's image: what can be learnt without seeing."""
    max_length: Annotated[int, Range(1, 10**6)] = 2048
    """Tokens of a training sequence, visual ones among them; what is longer is cut off at the end."""
    max_new_tokens: Annotated[int, Range(1, MAX_NEW_TOKENS)] = 32
    """The most tokens of an answer."""
