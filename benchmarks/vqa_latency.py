"""Time to the first token of the first and of the second question on an image, by whose work it is, in one run.

    python benchmarks/vqa_latency.py RUN --image desk.jpg

Vision: backbone and connector. Prefix: the language model reads what stands before a question, which holds the image.
Question: all else, which is that it reads the question and writes a token. The second question finds the visual tokens
and the prefix done. Each round begins with the image anew; medians of the rounds after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import vitsplit
from vitsplit.data.images import read_image

WARM_UP = 1
PARTS = ("backbone", "connector", "prefix", "question")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--questions", nargs=2, default=["What is on the desk?", "What colour is the wall?"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--precision")
    parser.add_argument("--language-weights")
    options = parser.parse_args()
    model = vitsplit.load(options.run, precision=options.precision, language_weights=options.language_weights)
    facts = measure(model, read_image(options.image), options.questions, options.rounds)
    print(json.dumps(facts))
    Console().print(table(facts))


class Watch:
    """Adds up the seconds of a function of an object, which it takes the place of."""

    def __init__(self, owner: Any, name: str, device: torch.device) -> None:
        self.device, self.calls = device, list[float]()
        self._function: Callable[..., Any] = getattr(owner, name)
        setattr(owner, name, self._timed)

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        started = now(self.device)
        result = self._function(*args, **kwargs)
        self.calls.append(now(self.device) - started)
        return result

    def take(self) -> float:
        """The seconds since the last time."""
        seconds = sum(self.calls)
        self.calls.clear()
        return seconds


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(model: Any, image_CHW: torch.Tensor, questions: list[str], rounds: int) -> dict[str, Any]:
    device = model.backbone.mean_C11.device
    backbone, connector = Watch(model.backbone, "forward", device), Watch(model.model, "forward", device)
    spent: list[list[dict[str, float]]] = [[], []]
    for index in range(WARM_UP + rounds):
        started = now(device)
        prediction = model.predict(image_CHW)
        prefix = Watch(prediction.answerer, "_begin", device)
        for which, question in enumerate(questions):
            prediction.ask(question, max_new_tokens=1)
            whole = now(device) - started
            parts = {"backbone": backbone.take(), "connector": connector.take(), "prefix": prefix.take()}
            parts["question"] = whole - sum(parts.values())
            if index >= WARM_UP:
                spent[which].append({**parts, "whole": whole})
            started = now(device)
        assert prediction.answerer.prefills == 1
    first, second = (
        {part: statistics.median(each[part] for each in several) for part in (*PARTS, "whole")} for several in spent
    )
    vision = [each["backbone"] + each["connector"] for each in (first, second)]
    return {
        "visual_tokens": len(prediction.answerer.tokens_NW),
        "precision": str(model.backbone.precision).removeprefix("torch."),
        "device": device.type,
        "rounds": rounds,
        "first_seconds": first,
        "second_seconds": second,
        # Of the first question's whole time; a share of nothing says that the work was not done again.
        "vision_share_first": vision[0] / first["whole"],
        "vision_share_second": vision[1] / second["whole"],
        "vision_second_to_first": vision[1] / vision[0],
        "first_token_speed_up": first["whole"] / second["whole"],
    }


def table(facts: dict[str, Any]) -> Table:
    shown = Table(title="time to the first token, as shares of the first question's")
    shown.add_column("")
    for column in ("first question", "second question"):
        shown.add_column(column, justify="right")
    whole = facts["first_seconds"]["whole"]
    for part in (*PARTS, "whole"):
        shown.add_row(part, *(f"{facts[which][part] / whole:.1%}" for which in ("first_seconds", "second_seconds")))
    return shown


if __name__ == "__main__":
    main()
