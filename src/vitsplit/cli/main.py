"""The ``vitsplit`` command: a verb is a function, imported only when it is called; tyro makes its flags."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from vitsplit.version import __version__

VERBS = {
    "train": ("train:train", "train a head bundle on your images"),
    "evaluate": ("evaluate:evaluate", "measure a bundle on labelled images, with a page of pictures"),
    "predict": ("predict:predict", "run bundles on images, folders and videos"),
    "chat": ("chat:chat", "talk with a bundle about an image, in the terminal"),
    "info": ("info:info", "parameters, layers and multiply-adds of a recipe or a bundle, without weights"),
    "recipes": ("recipes:recipes", "list the recipes: the paper's rows, and small ones for a laptop"),
    "backbones": ("backbones:backbones", "list the frozen models, with sizes and licences"),
    "data check": ("data:check", "check a data set before training on it"),
    "data prepare": ("data:prepare", "make a data set of published files"),
    "analyze cka": ("analyze_cka:cka", "how alike the layers of frozen models are, and where they divide in two"),
    "analyze features": ("analyze_features:features", "the map of every layer, of frozen models and of trained ones"),
    "analyze layers": ("analyze_layers:layers", "which layers to copy and to read, for a backbone and your images"),
    "analyze sweep": ("analyze_sweep:sweep", "train with every K_t, K_p and selection, and compare"),
    "analyze ablate": ("analyze_ablate:ablate", "train without each part of the method, and compare"),
    "bench train-step": ("bench_train_step:train_step", "time, memory and multiply-adds of a training step, by method"),
    "bench predict": ("bench_predict:predict", "time of a prediction, by method and by bundles that share a backbone"),
    "bench accuracy": ("bench_accuracy:accuracy", "methods on your data, with equal steps or equal seconds"),
    "demo": ("demo:demo", "train on generated scenes and show the result in a page, in minutes"),
}
"""Verb to ``module:function`` (in ``vitsplit.cli``) and one line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status: 0 done, 2 an error that the user can put right."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-V"], ["--version"]):
        print(f"vitsplit {__version__}")
        return 0
    verb = next((verb for verb in VERBS if words[: len(verb.split())] == verb.split()), None)
    if verb is not None:
        return _run(verb, words[len(verb.split()) :])
    group = words[0] if words and any(each.startswith(f"{words[0]} ") for each in VERBS) else ""
    wrong = [word for word in words[bool(group) :][:1] if word not in ("-h", "--help", "help")]
    if wrong:
        near = [each for each in VERBS if each.startswith(f"{group} " * bool(group))]
        print(f"error: there is no verb '{f'{group} {wrong[0]}'.strip()}'. Verbs: {', '.join(near)}.", file=sys.stderr)
        return 2
    print(usage(group), end="")
    return 0


def usage(group: str = "") -> str:
    """The text of ``vitsplit --help``, or of ``vitsplit GROUP --help``."""
    shown = {verb: text for verb, (_, text) in VERBS.items() if verb.startswith(f"{group} " * bool(group))}
    rows = "\n".join(f"  {verb:<17} {text}" for verb, text in shown.items())
    return (
        f"usage: vitsplit {group or 'VERB'} {'VERB ' * bool(group)}[options]\n\n"
        "One frozen vision foundation model, many dense-prediction models (ViT-Split, ICCV 2025).\n\n"
        f"verbs:\n{rows}\n\n"
        "options:\n  --help     this text; after a verb, that verb's own help\n  --version  the version\n\n"
        "Start with:  vitsplit demo\n"
        "Your data:   vitsplit train segmentation --data FOLDER --out runs/first\n"
    )


def _run(verb: str, words: Sequence[str]) -> int:
    import logging

    from vitsplit.cli.flags import call_with_flags
    from vitsplit.cli.values import refuse_empty_words
    from vitsplit.errors import VitsplitError

    logging.basicConfig(format="%(message)s")
    logging.getLogger("vitsplit").setLevel(logging.INFO)
    module, _, function = VERBS[verb][0].partition(":")
    try:
        refuse_empty_words(words)
        run = getattr(importlib.import_module(f"vitsplit.cli.{module}"), function)
        return int(call_with_flags(run, words, prog=f"vitsplit {verb}") or 0)
    except SystemExit as stop:  # of tyro: after --help, or where flags are wrong
        flags_first = bool(words) and words[0].startswith("-") and not words[0].startswith("--head")
        if stop.code and flags_first and any(not word.startswith("-") for word in words):
            # Which flags there are depends on the task, the recipe or the run.
            print(f"Name tasks, recipes and runs before flags: vitsplit {verb} NAME {words[0]} ...", file=sys.stderr)
        return int(stop.code or 0)
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
