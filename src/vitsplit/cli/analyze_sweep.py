"""``vitsplit analyze sweep``: K_t x K_p x selection, trained and compared (Fig. 11, Table 7)."""

from __future__ import annotations

import argparse

from vitsplit.analysis.variants import SELECTIONS, sweep_variants
from vitsplit.cli.study_options import MakeVariants, run_study, study_parser
from vitsplit.cli.values import whole

DESCRIPTION = """\
Trains with every K_t, K_p and selection of the prior layers, and shows quality against cost (Fig. 11, Table 7).

Every run is an ordinary one, in OUT/runs. Finished runs are recognised by their settings and kept, so the same command
goes on where it stopped, and a wider one trains only what is new. Every setting of `vitsplit train` is a flag here too,
and is that of all runs; with a variant's name before it, it is that of one: --kt3-kp4-uniform.lr 1e-4.

  vitsplit analyze sweep segmentation --data my_data --tuned 1 2 3 4 6 --prior 4 --out runs/sweep --steps 300
  vitsplit analyze sweep depth --data my_depth --tuned 3 --prior 2 4 --select uniform last least-alike --seeds 0 1 2 \\
      --out runs/selection

--select: uniform (Eq. 2), last, gate (Appendix B), least-alike (the layers that CKA tells apart best on up to 64
training images; see `vitsplit analyze layers`).
"""


def main(argv: list[str]) -> int:
    """Runs the verb; the exit status is 128 + the signal's number if a signal stopped it."""
    parser = study_parser("sweep", DESCRIPTION)
    parser.add_argument(
        "--tuned", metavar="K_T", type=whole(1, 1000), nargs="+", default=[1, 2, 3, 4], help="K_t; default: 1 2 3 4"
    )
    parser.add_argument(
        "--prior", metavar="K_P", type=whole(1, 1000), nargs="+", default=[2, 4], help="K_p; default: 2 4"
    )
    parser.add_argument(
        "--select",
        metavar="HOW",
        nargs="+",
        choices=SELECTIONS,
        default=["uniform"],
        help=f"how prior layers are chosen, of {', '.join(SELECTIONS)}; default: uniform",
    )
    return run_study(parser, argv, _variants, title="Which layers, and how many", grid=True)


def _variants(options: argparse.Namespace) -> MakeVariants:
    tuned, prior, how = (list(dict.fromkeys(each)) for each in (options.tuned, options.prior, options.select))
    return lambda config, least_alike: sweep_variants(tuned, prior, how, least_alike)
