"""``vitsplit demo``: from nothing to two trained bundles and a page of results."""

from __future__ import annotations

from vitsplit.demo_config import DemoConfig


def demo(config: DemoConfig = DemoConfig()) -> int:  # noqa: B008  (frozen)
    """Train on generated scenes and show the result.

    Generates a small set of scenes with exact labels, trains a segmentation and a depth bundle on one frozen backbone
    with real pretrained weights, evaluates them, and writes one self-contained HTML page (figures, curves, pictures of
    both from one pass). Under six minutes of training on two cores. The last line of the output is the page's path.

    Args:
        config: Settings of the demo.
    """
    from vitsplit.demo import run_demo

    page = run_demo(config, say=print)
    print(page)
    return 0
