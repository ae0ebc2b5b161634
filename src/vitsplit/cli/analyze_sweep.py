"""``vitsplit analyze sweep``: grid search over K_t, K_p and the selection of prior layers (Fig. 11, Table 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import tyro
from pydantic import Field

from vitsplit.analysis.variants import LeastAlike, Variant, sweep_variants
from vitsplit.cli.flags import FromArgv, Prefixed
from vitsplit.cli.study_options import Study, StudyOptions, run_study, settings_of_runs
from vitsplit.train_config import TrainConfig

Selection = Literal["uniform", "last", "gate", "least-alike"]
NumLayers = Annotated[int, Field(ge=1, le=1000)]
STUDY = Study("vitsplit analyze sweep", "Sweep over K_t, K_p and selection", grid=True)


def sweep(
    task_name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]],
    /,
    *,
    options: StudyOptions,
    tuned: Annotated[tuple[Annotated[int, Field(ge=0, le=1000)], ...], Field(min_length=1)] = (1, 2, 3, 4),
    prior: Annotated[tuple[NumLayers, ...], Field(min_length=1)] = (2, 4),
    select: Annotated[tuple[Selection, ...], Field(min_length=1)] = ("uniform",),
    config: Annotated[TrainConfig, FromArgv(settings_of_runs)],
    own: Annotated[Mapping[str, Sequence[str]], Prefixed()],
) -> int:
    """Train with every K_t, K_p and selection of prior layers, and show accuracy against cost (Fig. 11, Table 7).

    Runs are written to OUT/runs. Finished runs with the same settings are reused, so the same command resumes a study
    that was stopped, and a larger study trains only the missing runs. Every setting of `vitsplit train` is a flag that
    applies to all runs, or to one variant if its name is put before it: --kt3-kp4-uniform.lr 1e-4.

    Examples:
        vitsplit analyze sweep segmentation --data my_data --tuned 1 2 3 4 6 --prior 4 --out runs/sweep --steps 300
        vitsplit analyze sweep segmentation --data my_data --tuned 0 3 6 9 12 --prior 4 --tune-blocks lora
        vitsplit analyze sweep depth --data my_depth --tuned 3 --prior 2 4 --select uniform last least-alike \\
            --seeds 0 1 2 --out runs/selection

    Args:
        task_name: The task.
        options: Options of every study.
        tuned: Values of K_t, from 0 (the frozen last layer) to the number of layers.
        prior: Values of K_p.
        select: Selection of prior layers: uniform (Eq. 2), last, gate (Appendix B), or least-alike (the layers with the
            lowest similarity by CKA on up to 64 training images; see `vitsplit analyze layers`).
        config: Settings of all runs.
        own: Settings of individual variants.
    """

    def make(config: TrainConfig, least_alike: LeastAlike) -> list[Variant]:
        return sweep_variants(
            list(dict.fromkeys(tuned)), list(dict.fromkeys(prior)), list(dict.fromkeys(select)), least_alike
        )

    return run_study(STUDY, options, config, make, own)
