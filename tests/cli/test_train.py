"""``vitsplit train``: which words say what to learn from what."""

import re

import pytest

from vitsplit.cli.main import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("multi", "Give --task TASK=FOLDER for each"),
        ("multi --task depth=DATA --data DATA", r"--data DATA: every head of a joint run has its own data"),
        ("multi --task depth=DATA --recipe ade20k-small", r"--recipe ade20k-small: every head of a joint run"),
        ("multi --task vqa=DATA", "'vqa' is no task that others are trained with"),
        ("multi --task depth=DATA --segmentation.lr 1", "this run has no segmentation head"),
        ("multi --task depth=DATA --depth.flip 0.1", "Give it to all: --flip"),
        ("depth --task depth=DATA", "--task depth=DATA goes with `vitsplit train multi`"),
        ("depth", "Give their folder with --data FOLDER"),
        ("depth --data DATA --depth.lr 1", "There is no flag --depth.lr"),
    ],
)
def test_one_message_says_what_is_wrong(words, said, capsys):
    assert main(["train", *words.split()]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.startswith("error: ") and error.count("\n") == 1
