"""Reading questions, answers and conversations on images; invalid samples are reported.

Two formats are supported. JSON Lines with one question each::

    {"image": "0003.jpg", "question": "what is on the desk?", "answer": "book"}

and LLaVA's JSON, a list of conversations, with or without an image::

    {"id": "7", "image": "coco/train2017/7.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is on the desk?"}, {"from": "gpt", "value": "A book."}]}
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.data.folders import preview, relative_names
from vitsplit.errors import DataError
from vitsplit.files import LARGE_FILE, inside, is_file, parse_json, read_json, read_text, shown, string
from vitsplit.tasks.vqa.config import PLACE, VqaConfig
from vitsplit.tasks.vqa.prompts import Turn

LONGEST_TEXT = 1 << 20
"""Length limit in characters of a question or an answer."""

logger = logging.getLogger(__name__)

Conversation = tuple[Turn, ...]


@dataclass(frozen=True)
class Sample:
    """An optional image with one or several independent conversations.

    Attributes:
        image: The file; None for text only.
        conversations: Questions and answers.
        name: What to call it in an error.
    """

    image: Path | None
    conversations: tuple[Conversation, ...]
    name: str

    @property
    def length(self) -> int:
        """Approximate length in words, for grouping by length."""
        words = sum(len(f"{turn.question} {turn.answer}".split()) for each in self.conversations for turn in each)
        return words + 128 * (self.image is not None)


@dataclass(frozen=True)
class Problem:
    """An invalid sample: the kind of problem, and its location."""

    kind: str
    where: str


@dataclass(frozen=True)
class SampleSet:
    """One split of a data set.

    Attributes:
        file: Its file.
        split: Its name.
        samples: Valid samples.
        problems: Invalid samples.
    """

    file: Path
    split: str
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def files(self) -> dict[str, Path]:
        """The file of questions and the images in the order of the samples, by relative path."""
        images = [sample.image for sample in self.samples if sample.image is not None]
        return relative_names(self.file.parent, [self.file, *images])

    @property
    def num_questions(self) -> int:
        """Number of questions in all samples."""
        return sum(len(conversation) for sample in self.samples for conversation in sample.conversations)


def open_samples(data: Path, split: str, config: VqaConfig) -> SampleSet:
    """Reads one split.

    Without a validation file, every ``val_every``-th image of the training file with all its conversations is used for
    validation (a sample without image counts as one).

    Raises:
        DataError: The file is missing or cannot be read, has invalid samples (unless skipped), or no valid ones.
    """
    file, is_own = _find(data, split, config)
    if split == "train":
        is_own = _find(data, "val", config)[1]  # without a validation file, its samples are part of this one
    found = read_samples(file, split, config, data if data.is_dir() else data.parent)
    if found.problems:
        message = describe_problems(found)
        if config.bad_samples == "error":
            raise DataError(f"{message} Correct them, or skip them with --bad-samples skip.")
        logger.warning("%s They are skipped.", message)
    samples = found.samples
    if not is_own:
        keys = [sample.image or sample.name for sample in samples]
        place = {key: index for index, key in enumerate(dict.fromkeys(keys))}
        every, kept = config.val_every, split == "train"
        samples = tuple(
            sample for sample, key in zip(samples, keys, strict=True) if (place[key] % every != every - 1) == kept
        )
    if not samples:
        raise DataError(f"{file}: no samples for {split}. Check the file, or lower --val-every.")
    return SampleSet(file, split, samples, found.problems)


def describe_problems(found: SampleSet) -> str:
    """Describes the problems of a file in one sentence."""
    by_kind: dict[str, list[str]] = {}
    for problem in found.problems:
        by_kind.setdefault(problem.kind, []).append(problem.where)
    listed = "; ".join(f"{len(where)} with {kind} ({preview(where)})" for kind, where in by_kind.items())
    return f"{found.file}: {len(found.problems)} invalid samples: {listed}."


def read_samples(file: Path, split: str, config: VqaConfig, root: Path) -> SampleSet:
    """Reads all samples of a file, valid and invalid."""
    is_llava = config.format == "llava" or (config.format == "auto" and file.suffix == ".json")
    read = _llava(file, split, config, root) if is_llava else _questions(file, split, config, root)
    samples: list[Sample] = []
    problems: list[Problem] = []
    for item in read:
        if isinstance(item, Sample) and item.image is None and config.conversation == "plain":
            item = Problem("no image, which --conversation plain requires", item.name)
        (problems if isinstance(item, Problem) else samples).append(item)  # type: ignore[arg-type]
    # In plain conversations, only the first answer would directly follow the image.
    if config.share_image and config.conversation != "plain" and not is_llava:
        samples = _by_image(samples)
    return SampleSet(file, split, tuple(samples), tuple(problems))


def _find(data: Path, split: str, config: VqaConfig) -> tuple[Path, bool]:
    """The file of a split, and whether it is a separate file (else the training file, to be split)."""
    named = {"train": config.train_file, "val": config.val_file}.get(split)
    if data.is_file():
        if named is not None:
            return data.parent / named, True
        return (data if split == "train" else _find(data, "train", config)[0]), False
    if not data.is_dir():
        raise DataError(f"{data}: file or folder not found. Check the path.")
    if named is not None:
        if not is_file(data / named):
            raise DataError(f"{data / named}: file not found. Check --{split}-file.")
        return data / named, True
    files = sorted(path for path in data.iterdir() if path.suffix in (".json", ".jsonl"))
    own = [path for path in files if path.stem.endswith(split)]
    if len(own) == 1:
        return own[0], True
    if split == "val" and not own:
        return _find(data, "train", config)[0], False
    names = ", ".join(path.name for path in own or files) or "none"
    what = f"several files of {split} samples" if own else f"no file of {split} samples (*{split}.jsonl, *{split}.json)"
    raise DataError(f"{data}: {what}: {names}. Choose the file with --{split}-file.")


def _questions(file: Path, split: str, config: VqaConfig, root: Path) -> Iterator[Sample | Problem]:
    """Reads JSON Lines of image (or null), question and answer."""
    images = _Images(root, split, config)
    # Not splitlines, which also splits at characters that JSON allows inside strings.
    for number, line in enumerate(read_text(file, limit=LARGE_FILE).split("\n"), start=1):
        where = f"{file.name}:{number}"
        if not line.strip():
            continue
        try:
            entry = parse_json(line, where)
            if not isinstance(entry, dict) or not {"question", "answer", "image"} <= entry.keys():
                raise DataError(f"{where} is {shown(entry)}, not an object with question, answer and image.")
            question = _as_text(entry["question"], where)
            answer = "" if entry["answer"] is None else _as_text(entry["answer"], where)
        except DataError as error:
            yield Problem("invalid lines", str(error))
            continue
        image = images.find(entry["image"], where)  # null: no image
        if isinstance(image, Problem):
            yield image
        elif not answer.strip():
            yield Problem("no answer", where)
        else:
            yield Sample(image, ((Turn(_hinted(question, config), answer.strip()),),), where)


def _as_text(value: Any, where: str) -> str:
    """A string, or a number converted to one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return shown(value)
    return string(value, f"{where}: a question or an answer", LONGEST_TEXT, advice="")


def _hinted(question: str, config: VqaConfig) -> str:
    text = question.replace(PLACE, "").strip()
    return f"{text} {config.answer_hint}".strip() if config.answer_hint else text


def _by_image(samples: Sequence[Sample]) -> list[Sample]:
    """Merges samples of the same image; those without image stay separate."""
    groups: dict[Path, list[Sample]] = {}
    alone = []
    for sample in samples:
        if sample.image is None:
            alone.append(sample)
        else:
            groups.setdefault(sample.image, []).append(sample)
    shared = [
        Sample(image, tuple(each for sample in group for each in sample.conversations), str(image))
        for image, group in groups.items()
    ]
    return [*shared, *alone]


def _llava(file: Path, split: str, config: VqaConfig, root: Path) -> Iterator[Sample | Problem]:
    """Reads LLaVA's JSON."""
    entries = read_json(file, limit=LARGE_FILE, advice="Copy the file again, or use --format questions.")
    if not isinstance(entries, list):
        raise DataError(f"{file}: not a list of conversations. For JSON lines use --format questions.")
    images = _Images(root, split, config)
    for index, entry in enumerate(entries):
        yield _llava_sample(entry, f"{file.name}[{index}]", images)


def _llava_sample(entry: Any, where: str, images: _Images) -> Sample | Problem:
    try:
        if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
            raise DataError(f"{where} is {shown(entry)}, not an object with conversations.")
        where = f"{where} (id {shown(entry['id'])})" if "id" in entry else where
        messages = []
        for each in entry["conversations"]:
            if not isinstance(each, dict) or not {"from", "value"} <= each.keys():
                raise DataError(f"{where} has {shown(each)}, not an object with from and value.")
            messages.append((string(each["from"], f"{where}: 'from'", advice=""), _as_text(each["value"], where)))
        name = entry.get("image")
    except DataError as error:
        return Problem("invalid conversations", str(error))
    if messages and messages[0][0] != "human":
        messages = messages[1:]  # as in LLaVA, a conversation starts with a question
    if (
        len(messages) < 2
        or len(messages) % 2
        or any(who != ("human", "gpt")[i % 2] for i, (who, _) in enumerate(messages))
    ):
        return Problem("conversations that do not alternate question and answer", where)
    if not all(text.strip() for _, text in messages[1::2]):
        return Problem("no answer", where)
    places = sum(text.count(PLACE) for who, text in messages if who == "human")
    if name is not None and places != 1:
        return Problem("an image without exactly one <image> in the conversation", f"{where}: {places}")
    if name is None and places:
        return Problem("<image> in the conversation but no image", where)
    image = images.find(name, where)
    if isinstance(image, Problem):
        return image
    # The image is moved to the start, as in LLaVA.
    texts = [text.replace(PLACE, "").strip() for _, text in messages]
    turns = tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))
    return Sample(image, (turns,), where)


class _Images:
    """Finds the images of a split."""

    def __init__(self, root: Path, split: str, config: VqaConfig) -> None:
        if config.image_folder is not None:
            self.folders = [root / config.image_folder]
        else:
            # With a split training file, validation images are among the training images.
            self.folders = [root / "images" / split, root / "images" / "train", root / "images", root]
        self.allow_outside = config.allow_outside

    def find(self, name: Any, where: str) -> Path | Problem | None:
        """The file of an image; None for a sample without image."""
        if name is None:
            return None
        try:
            text = string(name, f"{where}: the image", advice="")
            if text and not self.allow_outside:
                inside(self.folders[0], text, where, advice="")
        except DataError as error:
            return Problem("images outside the image folder (--allow-outside reads them)", str(error))
        found = next((folder / text for folder in self.folders if is_file(folder / text)), None)
        return found if found is not None else Problem("no such image", f"{where}: {shown(text)}")
