"""The ``vitsplit`` command: one thin module per verb, imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys

from vitsplit.version import __version__

# verb -> (module, one line of help); `data` has verbs of its own in its module.
VERBS = {
    "train": ("vitsplit.cli.train", "train a head bundle on your images"),
    "evaluate": ("vitsplit.cli.evaluate", "measure a bundle on labelled images, with a page of pictures"),
    "predict": ("vitsplit.cli.predict", "run bundles on images, folders and videos"),
    "chat": ("vitsplit.cli.chat", "talk with a bundle about an image, in the terminal"),
    "info": ("vitsplit.cli.info", "parameters, layers and multiply-adds of a recipe or a bundle, without weights"),
    "recipes": ("vitsplit.cli.recipes", "list the recipes: the paper's rows, and small ones for a laptop"),
    "backbones": ("vitsplit.cli.backbones", "list the frozen models, with sizes and licences"),
    "data": ("vitsplit.cli.data", "check a data set before training on it"),
    "analyze": ("vitsplit.cli.analyze", "look into layers, choose them, and compare variants of the method"),
    "bench": ("vitsplit.cli.bench", "how fast things are on this machine, measured side by side"),
    "demo": ("vitsplit.cli.demo", "train on generated scenes and show the result in a page, in minutes"),
}


def usage() -> str:
    """The text of ``vitsplit --help``."""
    rows = "\n".join(f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items())
    return (
        "usage: vitsplit VERB [options]\n\n"
        "One frozen vision foundation model, many dense-prediction models (ViT-Split, ICCV 2025).\n\n"
        f"verbs:\n{rows}\n\n"
        "options:\n  --help     this text; after a verb, that verb's own help\n  --version  the version\n\n"
        "Start with:  vitsplit demo\n"
        "Your data:   vitsplit train segmentation --data FOLDER --out runs/first\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit status: 0 done, 2 an error that the user can put right."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"vitsplit {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"error: there is no verb '{verb}'. Verbs: {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    import logging

    from vitsplit.cli.values import refuse_empty_words
    from vitsplit.errors import VitsplitError

    logging.basicConfig(format="%(message)s")
    logging.getLogger("vitsplit").setLevel(logging.INFO)
    try:
        refuse_empty_words(rest)
        run = importlib.import_module(VERBS[verb][0]).main
        return int(run(rest) or 0)
    except VitsplitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (such as `head`) has seen enough. What is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A full disk, a folder without permission: the message names the file.
        print(f"error: {error}. {_remedy(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        return 130


def _remedy(error: OSError) -> str:
    """What can be done where the system refuses to read or to write."""
    import errno

    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return "Make room on that disk, or give a folder on another one with --out."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return "Give a folder that can be written with --out, or change what is there."
    return "Check the file, and the disk or network that it is on."


if __name__ == "__main__":
    sys.exit(main())
