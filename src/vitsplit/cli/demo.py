"""``vitsplit demo``: trains two bundles on generated scenes and writes a page of results."""

from __future__ import annotations

from vitsplit.demo_config import DemoConfig


def demo(config: DemoConfig = DemoConfig()) -> int:  # noqa: B008  (frozen)
    """Train on generated scenes and show the results.

    Generates a small data set of scenes with exact labels, trains a segmentation and a depth bundle on one frozen
    pretrained backbone, evaluates them, and writes a self-contained HTML page with metrics, training curves and
    predictions. Training takes less than six minutes on two cores. The last line of the output is the path of the page.

    Args:
        config: Settings of the demo.
    """
    from vitsplit.demo import run_demo

    page = run_demo(config, log=print)
    print(page)
    return 0
