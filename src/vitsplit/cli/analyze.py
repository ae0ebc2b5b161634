"""``vitsplit analyze``: what models see, which layers to use, and what each part of the method is worth."""

from __future__ import annotations

import importlib

from vitsplit.errors import ConfigError

# verb -> (module, one line of help); imported only when it is called.
VERBS = {
    "cka": ("vitsplit.cli.analyze_cka", "how alike the layers of frozen models are, and where they divide in two"),
    "features": ("vitsplit.cli.analyze_features", "the map of every layer, of frozen models and of trained ones"),
    "layers": ("vitsplit.cli.analyze_layers", "which layers to copy and to read, for a backbone and your images"),
    "sweep": ("vitsplit.cli.analyze_sweep", "train with every K_t, K_p and selection, and compare"),
    "ablate": ("vitsplit.cli.analyze_ablate", "train without each part of the method, and compare"),
}


def main(argv: list[str]) -> int:
    """Runs ``vitsplit analyze VERB`` and returns the exit status.

    Raises:
        ConfigError: There is no such verb.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if argv else 2
    verb, *rest = argv
    if verb not in VERBS:
        raise ConfigError(f"There is no verb 'analyze {verb}'. Verbs: {', '.join(VERBS)}.")
    return int(importlib.import_module(VERBS[verb][0]).main(rest) or 0)


def usage() -> str:
    """The text of ``vitsplit analyze --help``."""
    rows = "\n".join(f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items())
    return (
        "usage: vitsplit analyze VERB [options]\n\n"
        "Look into models, and find out what is worth its cost on your data.\n\n"
        f"verbs:\n{rows}\n\nAfter a verb, --help is that verb's own help.\n"
    )
