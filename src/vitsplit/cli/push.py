"""``vitsplit push RUN namespace/name``: uploads bundles to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vitsplit.cli.values import Switch


def push(
    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]],
    repository: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAMESPACE/NAME")]],
    /,
    private: Switch = False,
    revision: str | None = None,
    message: str | None = None,
    picture: Path | None = None,
    delta: Switch = False,
    weights: str | None = None,
) -> int:
    """Upload a bundle, or the heads of a run, to the Hugging Face hub.

    The repository gets head.json, head.safetensors and a generated model card (README.md), and no other file of the
    folder. head.json has the settings of the run, and of paths in them the last part only. The token is that of
    HF_TOKEN or `hf auth login`. Everywhere a RUN is accepted, hf://NAMESPACE/NAME[@REVISION] then loads it.

    Examples:
        vitsplit push runs/first me/rooms --private
        vitsplit push runs/both me/rooms --revision v2 --message "More images" --picture overlay.jpg
        vitsplit push runs/first me/rooms --delta
        vitsplit predict hf://me/rooms photos/ --out predictions

    Args:
        run: A run folder (its best bundles) or a bundle folder.
        repository: The repository, created if it does not exist.
        private: Create the repository as a private one; an existing public one is an error.
        revision: The branch, created if it does not exist; None: main.
        message: Message of the commit; None: one that names the folder.
        picture: A picture of predictions for the model card, uploaded without its metadata.
        delta: Store copies of the backbone's weights (the task head) as bitwise differences to them, for backbones
            whose license forbids passing on copies; loading restores every bit. Needs the backbone.
        weights: Weights of the backbone for --delta, if they cannot be downloaded.
    """
    from vitsplit.publishing import push as upload

    url = upload(
        run,
        repository,
        private=private,
        revision=revision,
        message=message,
        picture=picture,
        delta=delta,
        weights=weights,
    )
    print(url)
    return 0
