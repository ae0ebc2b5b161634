"""``vitsplit analyze sweep``: K_t x K_p x selection, trained and compared (Fig. 11, Table 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import tyro
from pydantic import Field

from vitsplit.analysis.runs import Variant
from vitsplit.analysis.variants import LeastAlike, sweep_variants
from vitsplit.cli.flags import FromWords, Prefixed
from vitsplit.cli.study_options import Study, StudyOptions, run_study, settings_of_runs
from vitsplit.train_config import TrainConfig

Selection = Literal["uniform", "last", "gate", "least-alike"]
NumLayers = Annotated[int, Field(ge=1, le=1000)]
STUDY = Study("vitsplit analyze sweep", "Which layers, and how many", grid=True)


def sweep(
    learn: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]],
    /,
    *,
    options: StudyOptions,
    tuned: Annotated[tuple[NumLayers, ...], Field(min_length=1)] = (1, 2, 3, 4),
    prior: Annotated[tuple[NumLayers, ...], Field(min_length=1)] = (2, 4),
    select: Annotated[tuple[Selection, ...], Field(min_length=1)] = ("uniform",),
    config: Annotated[TrainConfig, FromWords(settings_of_runs)],
    own: Annotated[Mapping[str, Sequence[str]], Prefixed()],
) -> int:
    """Train with every K_t, K_p and selection of the prior layers, and show quality against cost (Fig. 11, Table 7).

    Every run is an ordinary one, in OUT/runs. Finished runs are recognised by their settings and kept, so the same
    command continues where it stopped, and a wider one trains only what is new. Every setting of `vitsplit train` is a
    flag here too, and is that of all runs; with a variant's name before it, it is that of one:
    --kt3-kp4-uniform.lr 1e-4.

    Examples:
        vitsplit analyze sweep segmentation --data my_data --tuned 1 2 3 4 6 --prior 4 --out runs/sweep --steps 300
        vitsplit analyze sweep depth --data my_depth --tuned 3 --prior 2 4 --select uniform last least-alike \\
            --seeds 0 1 2 --out runs/selection

    Args:
        learn: The task.
        options: Options of every study.
        tuned: K_t.
        prior: K_p.
        select: How prior layers are chosen: uniform (Eq. 2), last, gate (Appendix B), or least-alike (the layers that
            CKA tells apart best on up to 64 training images; see `vitsplit analyze layers`).
        config: Settings of all runs.
        own: Settings of single variants.
    """

    def make(config: TrainConfig, least_alike: LeastAlike) -> list[Variant]:
        return sweep_variants(
            list(dict.fromkeys(tuned)), list(dict.fromkeys(prior)), list(dict.fromkeys(select)), least_alike
        )

    return run_study(STUDY, options, config, make, own)
