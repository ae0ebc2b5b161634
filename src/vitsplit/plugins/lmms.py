"""Evaluation of a bundle with lmms-eval: ``lmms-eval --model vitsplit --model_args run=runs/vqa --tasks mme,pope``.

Needs lmms-eval 0.6 or later (``pip install 'vitsplit[lmms]'``), which imports this module.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image

from vitsplit.config import Precision
from vitsplit.errors import ConfigError, DataError
from vitsplit.inference.predictor import load_head
from vitsplit.tasks.vqa.predict import ask_without_image
from vitsplit.tasks.vqa.prompts import check_reads_questions

logger = logging.getLogger(__name__)

PLACEHOLDER = "<image>"
"""Placeholder of the image in some tasks' texts, which is removed."""
MAX_NEW_TOKENS = 1024
"""Default length limit of an answer, as in lmms-eval's models."""


class VitSplitLmms(lmms):
    """A bundle of visual question answering as a model of lmms-eval: text with at most one image, greedy decoding.

    Args:
        run: A run folder (its best bundle) or a bundle folder.
        weights: File or folder of the backbone's weights.
        language_weights: See ``vitsplit.load``.
        language_model: See ``vitsplit.load``.
        device: Device; None: the first GPU (with several processes, one each), else the CPU.
        precision: See ``vitsplit.load``.
        batch_size: Must be 1.
        max_batch_size: Ignored.

    Raises:
        ConfigError: The batch size is not 1, or the bundle is of another task.
    """

    is_simple = True

    def __init__(
        self,
        run: str,
        weights: str | None = None,
        language_weights: str | None = None,
        language_model: str | None = None,
        device: str | None = None,
        precision: Precision | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if str(batch_size) != "1":
            raise ConfigError(f"--batch_size {batch_size}: must be 1.")
        if device is None and int(os.environ.get("WORLD_SIZE", "1")) > 1 and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        self.predictor = load_head(
            run,
            weights=weights,
            language_weights=language_weights,
            language_model=language_model,
            device=device,
            precision=precision,
        )
        if self.predictor.task.name != "vqa":
            raise ConfigError(f"{run}: a bundle for {self.predictor.task.name}, but lmms-eval needs one for vqa.")
        check_reads_questions(self.predictor.task.config, run)
        self.batch_size = 1
        self._last: tuple[str, Any] | None = None
        self._warned: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Device of the model, used by lmms-eval."""
        return self.predictor.backbone.mean_C11.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers, truncated at the task's stop strings.

        Args:
            requests: Requests with arguments (text, generation settings, function of images, document id, task,
                split).

        Raises:
            DataError: A document has several images, or other media.
        """
        answers = []
        for request in requests:
            text, settings, to_images, doc_id, task, split = request.args
            images = to_images(self.task_dict[task][split][doc_id])
            answers.append(self._answer(text, images, settings, f"{task}, {split} {doc_id}", task))
        return answers

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answers of all rounds, for multi-round tasks.

        Args:
            requests: As in ``generate_until``, with the function of the next round after that of the images.

        Raises:
            DataError: As in ``generate_until``.
        """
        answers = []
        for request in requests:
            text, settings, to_images, next_round, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            images, answered, info, is_over = to_images(document), [], None, False
            while not is_over:
                answered.append(self._answer(text, images, settings, f"{task}, {split} {doc_id}", task))
                images, text, is_over, answered, info = next_round(
                    document, previous_output=list(answered), round_idx=len(answered), previous_round_info=info
                )
                answered = list(answered)
            answers.append(answered)
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported.

        Raises:
            ConfigError: Always; the message names the tasks.
        """
        tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise ConfigError(f"{tasks}: log-likelihoods are not supported. Omit these tasks.")

    def _answer(self, text: str, images: Any, settings: Mapping[str, Any], where: str, task: str) -> str:
        self._warn_of_sampling(settings, task)
        question = text.replace(PLACEHOLDER, "").strip()
        tokens = int(settings.get("max_new_tokens", MAX_NEW_TOKENS))
        if images:
            answer = self._encode(_one_image(images, where)).ask(question, max_new_tokens=tokens)
        else:
            (answer,) = ask_without_image(self.predictor, [question], max_new_tokens=tokens)
        return _until(str(answer), settings.get("until"))

    def _encode(self, image: Image.Image) -> Any:
        """The prediction of an image; consecutive questions about one image share its visual tokens."""
        picture = image.convert("RGB")
        digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
        if self._last is None or self._last[0] != digest:
            self._last = (digest, self.predictor.predict(picture))
        return self._last[1]

    def _warn_of_sampling(self, settings: Mapping[str, Any], task: str) -> None:
        samples = settings.get("do_sample") and (settings.get("temperature") or 0) > 0
        if (samples or (settings.get("num_beams") or 1) > 1) and task not in self._warned:
            self._warned.add(task)
            logger.warning("%s requests sampling or beam search, but vitsplit decodes greedily", task)


def _one_image(images: Any, where: str) -> Image.Image:
    images = list(images)
    if len(images) != 1:
        raise DataError(f"{where}: {len(images)} images, but only one is supported. Omit the task.")
    if not isinstance(images[0], Image.Image):
        raise DataError(f"{where}: a {type(images[0]).__name__}, not an image. Omit the task.")
    return images[0]


def _until(answer: str, stops: str | Sequence[str] | None) -> str:
    """The answer up to the first stop string."""
    stops = [stops] if isinstance(stops, str) else stops or []
    return answer[: min([answer.find(stop) for stop in stops if stop and stop in answer], default=len(answer))]
