"""``vitsplit demo``: from nothing to two trained bundles and a page of results."""

from __future__ import annotations

import tyro

from vitsplit.engine.config import DemoConfig
from vitsplit.ranges import check_ranges

DESCRIPTION = """\
Generates a small set of scenes with exact labels, trains a segmentation and a depth bundle on one frozen backbone with
real pretrained weights, evaluates them, and writes one self-contained HTML page (figures, curves, pictures of both from
one pass). Under six minutes of training on two cores. The last line of the output is the page's path.
"""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    config = tyro.cli(DemoConfig, prog="vitsplit demo", description=DESCRIPTION, args=argv)
    check_ranges(config)
    from vitsplit.demo import run_demo

    page = run_demo(config, say=print)
    print(page)
    return 0
