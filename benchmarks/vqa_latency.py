"""Time to the first token of the first and second question on an image, by component.

    python benchmarks/vqa_latency.py RUN --image desk.jpg

Vision: backbone and connector. Prefix: the language model reads the tokens before the question, which include the
image. Question: the rest, which is reading the question and generating a token. The second question reuses the visual
tokens and the prefix. Each round starts from the image; medians of the rounds after a warm-up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import vitsplit
from vitsplit.analysis.measure import Spread, Stopwatch
from vitsplit.data.images import read_image
from vitsplit.report import screen_table

WARM_UP = 1
PARTS = ("backbone", "connector", "prefix", "question")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--questions", nargs=2, default=["What is on the desk?", "What color is the wall?"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--precision")
    parser.add_argument("--language-weights")
    options = parser.parse_args()
    model = vitsplit.load(options.run, precision=options.precision, language_weights=options.language_weights)["vqa"]
    facts = measure(model, read_image(options.image), options.questions, options.rounds)
    print(json.dumps(facts))
    Console().print(table(facts))


def mark_calls(owner: Any, name: str, watch: Stopwatch, part: str) -> None:
    """Assigns the time of a method to a part of the stopwatch; the remaining time is that of the question."""
    function: Callable[..., Any] = getattr(owner, name)

    def marked(*args: Any, **kwargs: Any) -> Any:
        watch.mark("question")
        result = function(*args, **kwargs)
        watch.mark(part)
        return result

    setattr(owner, name, marked)


def measure(model: Any, image_CHW: torch.Tensor, questions: list[str], rounds: int) -> dict[str, Any]:
    device = model.backbone.mean_C11.device
    watch = Stopwatch(device)
    mark_calls(model.backbone, "forward", watch, "backbone")
    mark_calls(model.model, "forward", watch, "connector")
    spent: list[list[dict[str, float]]] = [[], []]
    for index in range(WARM_UP + rounds):
        watch.start()
        prediction = model.predict(image_CHW)
        mark_calls(prediction.answerer, "_begin", watch, "prefix")
        for which, question in enumerate(questions):
            prediction.ask(question, max_new_tokens=1)
            whole, parts = watch.stop("question")
            if index >= WARM_UP:
                spent[which].append({**dict.fromkeys(PARTS, 0.0), **parts, "whole": whole})
            watch.start()
        assert prediction.answerer.prefills == 1
    first, second = (
        {part: Spread.of([each[part] for each in several]).median for part in (*PARTS, "whole")} for several in spent
    )
    vision = [each["backbone"] + each["connector"] for each in (first, second)]
    return {
        "visual_tokens": len(prediction.answerer.tokens_NW),
        "precision": str(model.backbone.precision).removeprefix("torch."),
        "device": device.type,
        "rounds": rounds,
        "first_seconds": first,
        "second_seconds": second,
        # As a share of the first question's total time; 0 means that the work was not repeated.
        "vision_share_first": vision[0] / first["whole"],
        "vision_share_second": vision[1] / second["whole"],
        "vision_second_to_first": vision[1] / vision[0],
        "first_token_speed_up": first["whole"] / second["whole"],
    }


def table(facts: dict[str, Any]) -> Table:
    whole = facts["first_seconds"]["whole"]
    rows = [
        [part, *(f"{facts[which][part] / whole:.1%}" for which in ("first_seconds", "second_seconds"))]
        for part in (*PARTS, "whole")
    ]
    title = "time to the first token, as shares of the first question's"
    return screen_table(["", "first question", "second question"], rows, title=title)


if __name__ == "__main__":
    main()
