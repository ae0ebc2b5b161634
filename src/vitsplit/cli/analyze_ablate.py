"""``vitsplit analyze ablate``: ablations of the components (Table 6) and of the choice of layers (Tables 7 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import tyro
from pydantic import Field

from vitsplit.analysis.variants import (
    SELECTIONS,
    LeastAlike,
    Variant,
    count_variants,
    part_variants,
    selection_variants,
)
from vitsplit.cli.flags import FromArgv, Prefixed
from vitsplit.cli.study_options import Study, StudyOptions, run_study, settings_of_runs
from vitsplit.methods.split.config import split_settings
from vitsplit.train_config import TrainConfig

NumLayers = Annotated[int, Field(ge=1, le=1000)]
Group = Literal["parts", "selection", "count"]
NOTES = (
    "In the paper, on ADE20K, DINOv2-S and DINOv2-B reach 44.3 and 47.8 mIoU with the frozen last layer, 46.0 and 51.4 "
    "with the prior head, 49.5 and 53.2 with the task head, 50.4 and 54.6 with both added, 51.6 and 55.7 with all "
    "(Table 6); 51.3 and 54.9 with the last layers in place of uniform ones (Table 7), 51.5 and 55.5 with the gate "
    "(Table 9).",
)
STUDY = Study("vitsplit analyze ablate", "Ablation", notes=NOTES, curves=True)


def ablate(
    task_name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]],
    /,
    *,
    options: StudyOptions,
    vary: Annotated[tuple[Group, ...], Field(min_length=1)] = ("parts", "selection"),
    prior: Annotated[tuple[NumLayers, ...], Field(min_length=1)] = (1, 2, 4, 6),
    config: Annotated[TrainConfig, FromArgv(settings_of_runs)],
    own: Annotated[Mapping[str, Sequence[str]], Prefixed()],
) -> int:
    """Train without each component of the method and with each selection of layers, and show the paper's tables.

      parts       Table 6: the frozen last layer, the prior head alone, the task head alone, both added, and all
      selection   Tables 7 and 8: uniform, last, gate and least alike layers, with the recipe's K_p
      count       the values of K_p given by --prior

    Runs are written to OUT/runs. Finished runs with the same settings are reused, so the same command resumes a study
    that was stopped. Every setting of `vitsplit train` is a flag that applies to all runs, or to one variant if its
    name is put before it: --added.lr 1e-4.

    Examples:
        vitsplit analyze ablate segmentation --data my_data --recipe laptop-segmentation-paper --steps 300 \\
            --seeds 0 1 2 --out runs/ablation
        vitsplit analyze ablate segmentation --data my_data --vary selection count --prior 2 4 6 --out runs/layers

    Args:
        task_name: The task.
        options: Options of every study.
        vary: The groups of variants: parts, selection, count.
        prior: Values of K_p for count.
        config: Settings of all runs.
        own: Settings of individual variants.
    """

    def make(config: TrainConfig, least_alike: LeastAlike) -> list[Variant]:
        groups: dict[str, Callable[[], list[Variant]]] = {
            "parts": part_variants,
            "selection": lambda: selection_variants(
                split_settings(config.method, "ablate").num_prior_layers, SELECTIONS, least_alike
            ),
            "count": lambda: count_variants(list(dict.fromkeys(prior))),
        }
        return [variant for name in dict.fromkeys(vary) for variant in groups[name]()]

    return run_study(STUDY, options, config, make, own)
