"""``vitsplit bench train-step``."""

import json

from vitsplit.cli.main import main

TINY = ["--backbone", "vit_tiny_patch16_224", "--num-tuned-layers", "2", "--size", "32", "48", "--num-classes", "3"]
QUICK = ["--steps", "2", "--warmup", "0", "--precision", "fp32", "--no-memory", "--no-product", "--device", "cpu"]
METHODS = ["--methods", "vitsplit", "linear-probe"]


def test_tables_and_a_page_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["bench", "train-step", *METHODS, *TINY, *QUICK, "--out", str(tmp_path / "bench")]) == 0
    output = capsys.readouterr()
    assert "ade20k-small, 2 random images of 32 x 48 pixels, fp32" in output.out
    assert "by multiply-adds" in output.out and "linear-probe" in output.out
    assert "page:" in output.err
    found = json.loads((tmp_path / "bench" / "train-step.json").read_text())
    assert found["methods"].keys() == {"vitsplit", "linear-probe"} and found["num_classes"] == 3


def test_json_output(capsys):
    assert main(["bench", "train-step", "laptop-segmentation", *METHODS, *TINY, *QUICK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"] == "laptop-segmentation"
    assert found["methods"]["vitsplit"]["trained_parameters"] > found["methods"]["linear-probe"]["trained_parameters"]


def test_without_a_verb_the_verbs_are_listed(capsys):
    assert main(["bench"]) == 0
    assert "train-step" in capsys.readouterr().out
    assert main(["bench", "train-stop"]) == 2
    output = capsys.readouterr().err
    assert "'bench train-stop'" in output and "bench train-step" in output


def test_help_lists_the_settings_of_training(capsys):
    assert main(["bench", "train-step", "--help"]) == 0
    output = capsys.readouterr().out
    assert "--no-memory" in output and "--num-prior-layers" in output


def test_an_invalid_flag_is_named(capsys):
    for words, expected in ((["--num-tuned-layer", "2"], "--num-tuned-layers"), (["ade20k-tiny"], "'ade20k-tiny'")):
        assert main(["bench", "train-step", *words]) == 2
        assert expected in capsys.readouterr().err
