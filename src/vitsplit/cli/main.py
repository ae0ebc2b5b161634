"""The ``vitsplit`` command. Each verb is a function, imported on demand, with flags created by tyro."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from vitsplit.version import __version__

VERBS = {
    "train": ("train:train", "train a head bundle on a data set"),
    "evaluate": ("evaluate:evaluate", "evaluate a bundle on labeled images, with a page of pictures"),
    "predict": ("predict:predict", "run bundles on images, folders and videos"),
    "rank": ("rank:rank", "order unlabeled images by what labeling them would teach a bundle"),
    "export": ("export:export", "write heads and backbone as one ONNX, OpenVINO or PyTorch graph"),
    "import": ("import_checkpoint:import_checkpoint", "convert a checkpoint of the authors' release to a bundle"),
    "push": ("push:push", "upload bundles to the Hugging Face hub"),
    "serve": ("serve:serve", "serve many bundles behind one backbone pass over HTTP"),
    "chat": ("chat:chat", "hold a conversation about an image in the terminal"),
    "info": ("info:info", "layers, parameters and multiply-adds of a recipe or bundle"),
    "recipes": ("recipes:recipes", "list the recipes: those of the paper, and small ones for a laptop"),
    "backbones": ("backbones:backbones", "list the frozen models, with sizes and licenses"),
    "data check": ("data:check", "check a data set before training on it"),
    "data prepare": ("data:prepare", "convert a published data set"),
    "analyze cka": ("analyze_cka:cka", "similarity of the layers of frozen models, and their best split"),
    "analyze features": ("analyze_features:features", "feature maps of all layers of frozen and trained models"),
    "analyze layers": ("analyze_layers:layers", "propose K_t and prior layers for a backbone and images"),
    "analyze sweep": ("analyze_sweep:sweep", "train with every K_t, K_p and selection of layers"),
    "analyze ablate": ("analyze_ablate:ablate", "train without each component of the method"),
    "bench train-step": ("bench_train_step:train_step", "time, memory and multiply-adds of training steps, by method"),
    "bench predict": ("bench_predict:predict", "prediction time, by method and by number of bundles on a backbone"),
    "bench runtimes": ("bench_runtimes:runtimes", "prediction time of exported graphs against PyTorch"),
    "bench accuracy": ("bench_accuracy:accuracy", "accuracy of methods with equal steps or equal training time"),
    "demo": ("demo:demo", "train on generated scenes in minutes, and write a page of results"),
}
"""Verb to ``module:function`` (in ``vitsplit.cli``) and one line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status: 0 for success, 2 for an error of the user or system."""
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
        "options:\n  --help     show this help; after a verb, the help of the verb\n  --version  show the version\n\n"
        "Start with:  vitsplit demo\n"
        "Your data:   vitsplit train segmentation --data FOLDER --out runs/first\n"
    )


def _run(verb: str, words: Sequence[str]) -> int:
    import logging

    from vitsplit.cli.flags import call_with_flags
    from vitsplit.cli.values import check_arguments
    from vitsplit.errors import VitsplitError

    logging.basicConfig(format="%(message)s")
    logging.getLogger("vitsplit").setLevel(logging.INFO)
    module, _, function = VERBS[verb][0].partition(":")
    try:
        check_arguments(words)
        run = getattr(importlib.import_module(f"vitsplit.cli.{module}"), function)
        return int(call_with_flags(run, words, prog=f"vitsplit {verb}") or 0)
    except SystemExit as stop:  # raised by tyro after --help or for invalid flags
        if stop.code and (subject := _late_subject(words)):
            # The available flags depend on the task, recipe or run.
            print(f"Put {subject} before all flags: vitsplit {verb} {subject} {words[0]} ...", file=sys.stderr)
        return int(stop.code or 0)
    except VitsplitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (such as `head`) has closed the pipe. Buffered output must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Such as a full disk or missing permission; the message names the file.
        print(f"error: {error}. {_remedy(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _late_subject(words: Sequence[str]) -> str | None:
    """The first task, recipe or run folder, if flags precede it."""
    from pathlib import Path

    from vitsplit.recipes import RECIPES
    from vitsplit.tasks import TASKS

    if not words or not words[0].startswith("-"):
        return None
    names = {*TASKS.names(), *RECIPES}
    return next((word for word in words if word in names or Path(word, "config.json").is_file()), None)


def _remedy(error: OSError) -> str:
    """The remedy for an error of the operating system."""
    import errno

    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return "Free disk space, or give a folder on another disk with --out."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return "Give a writable folder with --out, or change its permissions."
    return "Check the file and its disk or network."


if __name__ == "__main__":
    sys.exit(main())
