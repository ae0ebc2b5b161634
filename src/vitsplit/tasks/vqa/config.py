"""Settings of visual question answering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vitsplit.config import LongText, MaxNewTokens, Name, Opens, check_pixels
from vitsplit.errors import ConfigError
from vitsplit.tasks import IncludedModel, Score, TaskConfig
from vitsplit.tasks.vqa.language_models import LANGUAGE_MODELS

Connector = Literal["vitsplit", "vitsplit-release", "mlp2x", "linear"]
Stage = Literal["align", "instruct"]
Conversation = Literal["template", "v1", "plain"]
PLACE = "<image>"
"""Where an image goes in a text."""
_MODEL = Opens(or_name=True)


class VqaConfig(TaskConfig):
    """Connector, language model, prompts and data of visual question answering."""

    name: ClassVar[str] = "vqa"
    location: ClassVar[str] = "vitsplit.tasks.vqa.task:VqaTask"
    prediction: ClassVar[str] = "vitsplit.tasks.vqa.prediction:VqaPrediction"
    default_recipe: ClassVar[str | None] = "laptop-vqa"
    pipeline_tag: ClassVar[str | None] = "visual-question-answering"
    answers_questions: ClassVar[bool] = True
    scores: ClassVar[Mapping[str, Score]] = {
        "exact_match": Score("exact match", "exact_match"),
        "likelihood": Score("likelihood", "likelihood"),
    }

    connector: Connector = "vitsplit"
    """Head and projection to visual tokens: the paper's, the release's, LLaVA-1.5's MLP, or one linear layer."""
    visual_grid: tuple[Annotated[int, Field(ge=1, le=256)], Annotated[int, Field(ge=1, le=256)]] | None = None
    """Rows and columns of visual tokens, by average pooling; None: one per patch."""
    stage: Stage = "instruct"
    """Trainable parts: the connector only (align), or also the language model (instruct)."""
    start_from: Annotated[Name | None, Opens()] = None
    """Run or bundle to initialize the connector (and tuned language model) from; same as `--from RUN`."""
    language_model: Annotated[str, _MODEL] = "lmsys/vicuna-7b-v1.5"
    """Short name (smollm2-135m), folder, or hub name of a causal language model of transformers."""
    language_weights: Annotated[Name | None, Opens()] = None
    """Folder to read the language model from; None: the hub cache, then the hub."""
    language_width: Annotated[int, Field(ge=1, le=2**16)] = 4096
    """Width of its embeddings, for counting parameters without loading it."""
    tune: Literal["full", "lora"] = "full"
    """Tuning of the language model in the second stage."""
    lora_rank: Annotated[int, Field(ge=1, le=4096)] = 128
    """LoRA rank."""
    lora_alpha: Annotated[int, Field(ge=1, le=2**16)] = 256
    """LoRA alpha: adapters are scaled by alpha / rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """LoRA dropout."""
    quantize: Literal["none", "4bit"] = "none"
    """Load the frozen language model in 4 bits (NF4) with bitsandbytes; requires LoRA."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention implementation of the language model; flash_attention_2 needs flash-attn and `--no-share-image`."""
    gradient_checkpointing: bool = False
    """Recompute the language model's layers in the backward pass: less memory, a third more time."""
    conversation: Conversation = "template"
    """Prompt format: the language model's chat template, LLaVA-1.5's for Vicuna (v1), or image and answer (plain)."""
    system_prompt: LongText | None = None
    """System prompt; None: default of the template or v1."""
    answer_hint: LongText = ""
    """Text appended to every question, such as an instruction on the answer's length."""
    crop_size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]] = (336, 336)
    """Height and width of the input images."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """Resizing: pad with the mean color, center crop, or stretch."""
    format: Literal["auto", "questions", "llava"] = "auto"
    """Format of the data: JSON Lines of image, question, answer; or LLaVA's JSON of conversations."""
    train_file: Annotated[Name | None, Opens(inside_data=True)] = None
    """File of training samples in the data folder; None: the only one named accordingly."""
    val_file: Annotated[Name | None, Opens(inside_data=True)] = None
    """File of validation samples in the data folder; None: the only one named accordingly."""
    image_folder: Annotated[Name | None, Opens(inside_data=True)] = None
    """Folder of the images in the data folder; None: images/SPLIT, images, or the data folder."""
    allow_outside: Annotated[bool, Opens(inside_data=True)] = False
    """Allow image names outside of the image folder (absolute, or with ..). For trusted files only."""
    bad_samples: Literal["error", "skip"] = "error"
    """Invalid samples (missing image or answer, malformed): raise an error, or skip them."""
    val_every: Annotated[int, Field(ge=2, le=10**9)] = 500
    """Without a validation file, every n-th image with its conversations is used for validation."""
    share_image: bool = True
    """Put all questions on an image in one sequence, with an attention mask that separates them."""
    questions_per_image: Annotated[int, Field(ge=1, le=10**4)] = 16
    """Maximum number of questions per image in a training sequence, sampled randomly."""
    group_by_length: bool = False
    """Batches of samples of one kind (with or without image) and similar length, as in LLaVA-1.5's second stage."""
    shuffle_images: bool = False
    """Use another sample's image for every training sample, as a baseline without visual information."""
    max_length: Annotated[int, Field(ge=1, le=10**6)] = 2048
    """Maximum length of a training sequence including visual tokens; longer ones are truncated."""
    max_new_tokens: MaxNewTokens = 32
    """Maximum length of an answer in tokens."""

    @property
    def language_name(self) -> str:
        """The language model's name; of one in a folder, that of the folder."""
        return _MODEL.without_folders(self.language_model)

    @property
    def tunes_language_model(self) -> bool:
        """Whether the weights of the language model itself are trained."""
        return self.stage == "instruct" and self.tune == "full"

    @property
    def included_model(self) -> IncludedModel | None:
        """The language model, if its weights are trained."""
        if not self.tunes_language_model:
            return None
        known = LANGUAGE_MODELS.get(self.language_name)
        return IncludedModel(self.language_name, known.license if known else None)

    @property
    def own_head(self) -> str | None:
        """Every connector but the paper's reads the frozen model in its own way."""
        return None if self.connector == "vitsplit" else f"--connector {self.connector}"

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_pixels("--crop-size", self.crop_size)
        if PLACE in (self.system_prompt or ""):
            raise ConfigError(f"--system-prompt must not contain {PLACE}, the placeholder of the image.")
        return self
