"""lmms-eval asks a bundle: ``lmms-eval --model vitsplit --model_args run=runs/vqa --tasks mme,pope``.

Needs lmms-eval 0.6 or later (``pip install 'vitsplit[lmms]'``); this module is imported by it alone.
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

from vitsplit.engine.config import Precision
from vitsplit.errors import ConfigError, DataError
from vitsplit.inference.predictor import load_head
from vitsplit.tasks.vqa.predict import ask_without_image
from vitsplit.tasks.vqa.prompts import check_reads_questions

logger = logging.getLogger(__name__)

PLACE = "<image>"
"""Stands in some tasks' texts for the image; a bundle's own prompt has a place for it."""
MAX_NEW_TOKENS = 1024
"""The most tokens of an answer where the task does not say; as in lmms-eval's own models."""


class VitSplitLmms(lmms):
    """A bundle of visual question answering, as lmms-eval sees it: one image, or none, and a text; greedy.

    Args:
        run: A run folder (its best bundle) or a bundle folder.
        weights: File or folder of the backbone's weights, where they cannot be fetched.
        language_weights: See ``vitsplit.load``.
        language_model: See ``vitsplit.load``.
        device: Where to compute; None: the first GPU (with several processes, each its own), else the processor.
        precision: See ``vitsplit.load``.
        batch_size: 1; questions are asked one by one.
        max_batch_size: Of no use here; lmms-eval hands it over.

    Raises:
        ConfigError: Another batch size, or a bundle of another task.
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
            raise ConfigError(f"--batch_size {batch_size}: vitsplit asks questions one by one. Give 1.")
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
            raise ConfigError(f"{run}: a bundle of {self.predictor.task.name}; lmms-eval asks one of vqa.")
        check_reads_questions(self.predictor.task.config, run)
        self.batch_size = 1
        self._last: tuple[str, Any] | None = None
        self._warned: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where it computes; lmms-eval gathers counts there."""
        return self.predictor.backbone.mean_C11.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers, cut off at the task's stop words.

        Args:
            requests: With arguments (text, settings of generation, images of a document, its id, task, split).

        Raises:
            DataError: A document has several images, or something else than images.
        """
        answers = []
        for request in requests:
            text, settings, to_images, doc_id, task, split = request.args
            images = to_images(self.task_dict[task][split][doc_id])
            answers.append(self._answer(text, images, settings, f"{task}, {split} {doc_id}", task))
        return answers

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of all rounds, for tasks that make the next question of what was answered.

        Args:
            requests: As of ``generate_until``, with the function of the next round after that of the images.

        Raises:
            DataError: As of ``generate_until``.
        """
        answers = []
        for request in requests:
            text, settings, to_images, next_round, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            images, said, info, is_over = to_images(document), [], None, False
            while not is_over:
                said.append(self._answer(text, images, settings, f"{task}, {split} {doc_id}", task))
                images, text, is_over, said, info = next_round(
                    document, previous_output=list(said), round_idx=len(said), previous_round_info=info
                )
                said = list(said)
            answers.append(said)
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: a bundle answers, and does not weigh given answers.

        Raises:
            ConfigError: Always; it names the tasks.
        """
        tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise ConfigError(
            f"{tasks}: compares likelihoods of given answers, which vitsplit does not tell. Leave it out."
        )

    def _answer(self, text: str, images: Any, settings: Mapping[str, Any], where: str, task: str) -> str:
        self._warn_of_sampling(settings, task)
        question = text.replace(PLACE, "").strip()
        tokens = int(settings.get("max_new_tokens", MAX_NEW_TOKENS))
        if images:
            answer = self._look(_one_image(images, where)).ask(question, max_new_tokens=tokens)
        else:
            (answer,) = ask_without_image(self.predictor, [question], max_new_tokens=tokens)
        return _until(str(answer), settings.get("until"))

    def _look(self, image: Image.Image) -> Any:
        """The prediction of an image; questions that follow each other on one image share its visual tokens."""
        picture = image.convert("RGB")
        digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
        if self._last is None or self._last[0] != digest:
            self._last = (digest, self.predictor.predict(picture))
        return self._last[1]

    def _warn_of_sampling(self, settings: Mapping[str, Any], task: str) -> None:
        samples = settings.get("do_sample") and (settings.get("temperature") or 0) > 0
        if (samples or (settings.get("num_beams") or 1) > 1) and task not in self._warned:
            self._warned.add(task)
            logger.warning("%s asks for sampling or several beams; vitsplit answers greedily", task)


def _one_image(images: Any, where: str) -> Image.Image:
    images = list(images)
    if len(images) != 1:
        raise DataError(f"{where}: {len(images)} images; a bundle answers on one. Leave the task out.")
    if not isinstance(images[0], Image.Image):
        raise DataError(f"{where}: a {type(images[0]).__name__}, not an image. Leave the task out.")
    return images[0]


def _until(answer: str, stops: str | Sequence[str] | None) -> str:
    """The answer up to the first of the stop words."""
    stops = [stops] if isinstance(stops, str) else stops or []
    return answer[: min([answer.find(stop) for stop in stops if stop and stop in answer], default=len(answer))]
