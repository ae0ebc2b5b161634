"""The task of visual question answering.

Shapes: B images, D width of the map, H W pixels, W width of the language model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.data.check import Progress, Report
from vitsplit.errors import BundleError, ConfigError
from vitsplit.precision import autocast
from vitsplit.tasks.base import Evaluation, Forward, GraphOutput
from vitsplit.tasks.description import check_hash, fields, line
from vitsplit.tasks.vqa.check import check_files
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.connectors import build_head, build_projection
from vitsplit.tasks.vqa.data import (
    TrainVqa,
    ValVqa,
    ValVqaSample,
    VqaBatch,
    VqaSample,
    collate,
    fit_image,
    load_val_sample,
)
from vitsplit.tasks.vqa.decoder import VisualProjection, VisualTokens, VqaDecoder
from vitsplit.tasks.vqa.generate import Answerer
from vitsplit.tasks.vqa.language import LanguageSource, find_language_model, open_language_model
from vitsplit.tasks.vqa.metrics import VqaMeasurement, VqaMetric
from vitsplit.tasks.vqa.prediction import VqaPrediction
from vitsplit.tasks.vqa.prompts import Prompter
from vitsplit.tasks.vqa.report import metrics_table, write_report
from vitsplit.tasks.vqa.samples import Sample, SampleSet, open_samples
from vitsplit.tasks.vqa.sequence import stack
from vitsplit.types import LayerTaps


class VqaTask:
    """Visual question answering with a language model.

    Args:
        config: Settings.
        language: The language model; None for the connector's shapes only.
        train: Training samples, for training.
        val: Validation samples, for evaluation.
    """

    name: ClassVar[str] = "vqa"
    same_size: ClassVar[bool] = True
    graph_batch: ClassVar[int | None] = None

    def __init__(
        self,
        config: VqaConfig,
        language: LanguageSource | None,
        *,
        train: SampleSet | None = None,
        val: SampleSet | None = None,
    ) -> None:
        self.config = config
        self.language = language
        self.train_set = train
        self.val_set = val
        # Visual tokens per image, set by ``build_decoder``.
        self.num_visual = 1

    @classmethod
    def open(cls, config: VqaConfig, data: Path, splits: tuple[str, ...]) -> VqaTask:
        """Opens the task on a data set: the first of two splits for training, the last for evaluation.

        Raises:
            DataError: The data are invalid.
            WeightsError: The language model is unavailable.
        """
        sets = [open_samples(data, split, config) for split in splits]
        return cls(config, find_language_model(config), train=sets[0] if len(sets) > 1 else None, val=sets[-1])

    @classmethod
    def check_files(cls, config: VqaConfig, root: Path, workers: int, progress: Progress) -> Report:
        """See ``tasks.check_data``."""
        return check_files(config, root, workers, progress)

    @classmethod
    def check_description(cls, config: VqaConfig, description: Any, where: str) -> None:
        """See ``tasks.check_description``."""
        recorded = fields(description, where, required=("language_model",))["language_model"]
        recorded = fields(recorded, f"{where}.language_model", required=("name", "weights_hash"))
        line(recorded["name"], f"{where}.language_model.name")
        check_hash(recorded["weights_hash"], f"{where}.language_model.weights_hash")

    @classmethod
    def from_description(cls, config: VqaConfig, description: Mapping[str, Any]) -> VqaTask:
        """The task of a bundle; without language model if the description has none.

        Raises:
            BundleError: The language model differs from that of the bundle.
        """
        recorded = description.get("language_model")
        if recorded is None:
            return cls(config, None)
        language = find_language_model(config)
        found = language.weights_hash
        if found != recorded["weights_hash"]:
            raise BundleError(
                f"The bundle was trained with {recorded['name']} (weights {recorded['weights_hash'][:16]}), but "
                f"{language.folder} has weights {found[:16]}. Use the original language model."
            )
        return cls(config, language)

    def check_start(self, earlier: Any, description: Mapping[str, Any], folder: Path) -> None:
        """Checks that a bundle's connector was trained for this language model: see ``tasks.base.StartsFromRun``."""
        if not isinstance(earlier, VqaConfig):
            raise BundleError(f"{folder}: a bundle for {earlier.name}, not vqa. Check --from.")
        present, trained = (each["language_model"] for each in (self.describe(), description))
        if trained["weights_hash"] != present["weights_hash"]:
            raise BundleError(
                f"{folder}: its connector was trained for {trained['name']} with weights "
                f"{trained['weights_hash'][:16]}, not for {present['name']} with {present['weights_hash'][:16]}. Train "
                "a first stage for this language model, or use the original one."
            )

    def build_head(self, backbone: Backbone) -> nn.Module:
        """The connector up to its map, in the method's place: see ``VqaConfig.own_head``."""
        return build_head(self.config, backbone)

    def build_decoder(self, name: str, width: int, patch_size: int) -> nn.Module:
        """Projection and language model."""
        config = self.config
        self.num_visual = math.prod(config.visual_grid or [-(-side // patch_size) for side in config.crop_size])
        model = None
        if self.language is not None:
            if config.max_length <= self.num_visual:
                raise ConfigError(
                    f"--max-length {config.max_length} must exceed the {self.num_visual} visual tokens of an image. "
                    "Increase it, or reduce --visual-grid."
                )
            model = open_language_model(self.language, config, num_visual=self.num_visual)
        return VqaDecoder(build_projection(config.connector, width, config.language_width), config.visual_grid, model)

    def prompter(self) -> Prompter:
        """The prompter of the language model."""
        assert self.language is not None, "the task was opened without a language model"
        return Prompter(self.language.tokenizer, self.config.conversation, self.config.system_prompt)

    def train_data(self) -> TrainVqa:
        """The training samples."""
        assert self.train_set is not None, "the task was opened without training samples"
        return TrainVqa(self.train_set, self.config, self.prompter())

    def files(self) -> dict[str, Path]:
        """The files of the training samples, then of the validation samples."""
        return {name: path for each in (self.train_set, self.val_set) if each for name, path in each.files().items()}

    def val_samples(self) -> SampleSet:
        """The validation samples."""
        assert self.val_set is not None, "the task was opened without validation samples"
        return self.val_set

    def collate(self, samples: Sequence[VqaSample]) -> VqaBatch:
        """Samples to a batch."""
        return collate(samples, self.config, self.num_visual)

    def normalizers(self, batch: VqaBatch) -> dict[str, Tensor]:
        """The number of answer tokens."""
        # The first token of a sequence has no prediction.
        return {"answer": batch.tokens.is_answer_BT[:, 1:].sum().double()}

    def targets(self, batch: VqaBatch, taps: LayerTaps) -> Any:
        """The token sequences (teacher forcing)."""
        return batch.tokens

    def loss_sums(self, output: Tensor, batch: VqaBatch, taps: LayerTaps) -> dict[str, Tensor]:
        """The summed negative log-likelihood computed by the decoder."""
        return {"answer": output}

    def val_data(self) -> ValVqa:
        """The validation samples with their images."""
        return ValVqa(self.val_samples(), self.config)

    def val_predictions(
        self, forward: Forward, image_BCHW: Tensor, samples: Sequence[ValVqaSample]
    ) -> list[VqaMeasurement]:
        """Answers to the first question of each conversation, and the likelihood of the reference answers."""
        visual, _ = forward(image_BCHW)
        return [self._measure(visual, row, sample.sample) for row, sample in enumerate(samples)]

    def metric(self) -> VqaMetric:
        """Exact match, set match, and the likelihood of the reference answers."""
        return VqaMetric()

    def _measure(self, visual: VisualTokens, row: int, sample: Sample) -> VqaMeasurement:
        answerer = self._val_answerer(visual, row, sample)
        answers = answerer.answer([conversation[0].question for conversation in sample.conversations])
        has_image = sample.image is not None
        conversations = [
            answerer.prompter.conversation_tokens(each, has_image=has_image) for each in sample.conversations
        ]
        # Conversations of a sample share its image.
        tokens_1NW = visual.tokens_INW[row : row + 1]
        rows, num_visual, device = [0 if has_image else -1], tokens_1NW.shape[1], tokens_1NW.device
        tokens = stack([conversations], rows, max_length=self.config.max_length, num_visual=num_visual).to(device)
        with torch.no_grad(), autocast(device.type, tokens_1NW.dtype):
            loss = float(visual.decoder.answer_loss(tokens_1NW, tokens))
        return VqaMeasurement(answers, loss, int(tokens.is_answer_BT[:, 1:].sum()))

    def open_answerer(self, forward: Forward, sample: Sample) -> Answerer:
        """An answerer for questions on a validation sample."""
        visual, _ = forward(load_val_sample(sample, self.config).image_CHW[None])
        return self._val_answerer(visual, 0, sample)

    def _val_answerer(self, visual: VisualTokens, row: int, sample: Sample) -> Answerer:
        # Training truncates long samples; evaluation must not fail on them.
        return self._answerer(visual, None if sample.image is None else row, cut=True)

    def _answerer(self, visual: VisualTokens, row: int | None, *, cut: bool = False) -> Answerer:
        tokens_NW = None if row is None else visual.tokens_INW[row]
        return Answerer(
            visual.decoder,
            self.prompter(),
            tokens_NW,
            max_new_tokens=self.config.max_new_tokens,
            precision=visual.tokens_INW.dtype,
            cut=cut,
        )

    def predict(self, forward: Forward, image_BCHW: Tensor) -> list[VqaPrediction]:
        """Predictions for images (uint8) of one size."""
        if self.config.fit == "stretch":
            # Batched as in the other tasks, so that the memory format is the same and the backbone pass is shared.
            fitted_BCHW = fit_image(image_BCHW, self.config)
        else:
            fitted_BCHW = torch.stack([fit_image(image_CHW, self.config) for image_CHW in image_BCHW])
        visual, _ = forward(fitted_BCHW)
        images_BHWC = image_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        return [VqaPrediction(image, self._answerer(visual, row)) for row, image in enumerate(images_BHWC)]

    def write_report(self, forward: Forward, evaluation: Evaluation, folder: Path, *, title: str, count: int) -> Path:
        """Writes metrics, and images with questions, answers and reference answers."""
        samples = self.val_samples().samples
        open_answerer = functools.partial(self.open_answerer, forward)
        return write_report(samples, open_answerer, evaluation, folder, title=title, count=count)

    def graph_decoder(self, decoder: nn.Module) -> nn.Module:
        """The projection; see ``tasks.base.GraphTask``."""
        assert isinstance(decoder, VqaDecoder)
        return VisualProjection(decoder)

    def graph_outputs(self, output: VisualTokens | Tensor, taps: LayerTaps) -> dict[str, Tensor]:
        """Visual tokens; see ``tasks.base.GraphTask``."""
        return {"tokens": (output.tokens_INW if isinstance(output, VisualTokens) else output).float()}

    def describe_graph(self) -> dict[str, GraphOutput]:
        """See ``tasks.base.GraphTask``."""
        config = self.config
        return {
            "tokens": GraphOutput(
                "features",
                ("batch", "tokens", config.language_width),
                f"visual tokens: the embeddings of an image in a prompt of {config.language_model}, which is not in "
                f"the graph. The image must have {config.crop_size[0]} x {config.crop_size[1]} pixels (--fit "
                f"{config.fit})",
            )
        }

    def from_graph(self, outputs: Sequence[Mapping[str, Tensor]]) -> Any:
        """Answers need the language model; see ``tasks.base.GraphTask``."""
        raise NotImplementedError("a graph has no answers: see vitsplit.runtime.runtime.WITHOUT_PREDICTIONS")

    def table(self, evaluation: Evaluation) -> Table:
        """The metrics."""
        return metrics_table(evaluation)

    def describe(self) -> dict[str, Any]:
        """The language model: its name and the hash of its weights."""
        assert self.language is not None, "the task was opened without a language model"
        return {"language_model": {"name": self.language.name, "weights_hash": self.language.weights_hash}}
