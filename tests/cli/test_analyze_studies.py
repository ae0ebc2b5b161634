"""``vitsplit analyze sweep`` and ``ablate`` on generated scenes."""

import json

import pytest

from vitsplit.analysis.cost import count_parameters, shape_model
from vitsplit.analysis.variants import part_variants, sweep_variants
from vitsplit.cli.main import main
from vitsplit.engine.override import override
from vitsplit.recipes import recipe

QUICK = [
    *("--backbone", "vit_tiny_patch16_224", "--random-weights", "--steps", "1", "--batch-size", "2"),
    *("--crop-size", "48", "64", "--image-scale", "None", "--workers", "0", "--precision", "fp32", "--track"),
]


def test_a_sweep_has_every_combination():
    found = sweep_variants([1, 3], [2, 4], ["last", "least-alike"], lambda count: tuple(range(5, 5 + count)))
    splits = [override(recipe("ade20k-small"), variant.settings).method for variant in found]
    assert {(s.num_tuned_layers, s.num_prior_layers, s.selection, s.prior_layers) for s in splits} == {
        *((t, p, "last", ()) for t in (1, 3) for p in (2, 4)),
        *((t, 2, "explicit", (5, 6)) for t in (1, 3)),
        *((t, 4, "explicit", (5, 6, 7, 8)) for t in (1, 3)),
    }
    assert len({variant.name for variant in found}) == len(found) == 8


# The variants of Table 6 by hand, S and B.
COUNTED = {
    "small": (1_240_470, 3_220_008, 6_566_166, 8_545_704, 10_230_330),
    "base": (4_840_086, 12_633_000, 26_108_310, 33_901_224, 40_514_490),
}


@pytest.mark.parametrize("size", COUNTED)
def test_the_parts_have_the_parameters_of_table_6(size):
    for variant, counted in zip(part_variants(), COUNTED[size], strict=True):
        backbone, model = shape_model(override(recipe(f"ade20k-{size}"), variant.settings))
        assert count_parameters(model, backbone)["trainable"] == counted


def test_an_ablation_end_to_end(scenes, tmp_path, capsys):
    out = tmp_path / "study"
    words = ["analyze", "ablate", "segmentation", "--data", str(scenes), "--out", str(out), *QUICK]
    assert main(words) == 0
    output = capsys.readouterr()
    assert "8 runs: 9 variants, 1 seeds" in output.err  # the uniform layers are those of the full method
    assert "frozen last layer" in output.out and "least-alike layers" in output.out
    found = json.loads((out / "results.json").read_text())
    names = [each["name"] for each in found["variants"]]
    assert names == [
        *("frozen", "prior", "task", "added", "full"),
        *("layers-uniform", "layers-last", "layers-gate", "layers-least-alike"),
    ]
    by_name = {each["name"]: each for each in found["variants"]}
    assert by_name["full"]["runs"] == by_name["layers-uniform"]["runs"]
    assert by_name["frozen"]["parameters"] < by_name["prior"]["parameters"] < by_name["full"]["parameters"]
    layers = by_name["layers-least-alike"]["settings"]["prior_layers"]
    config = json.loads((out / "runs" / "layers-least-alike-seed0" / "config.json").read_text())
    assert config["heads"]["segmentation"]["method"]["prior_layers"] == layers and len(layers) == 4
    page = (out / "index.html").read_text()
    assert "<svg" in page and 'src="http' not in page and 'href="http' not in page
    times = {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("*.safetensors")}
    assert times and main(words) == 0
    assert {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("*.safetensors")} == times


def test_a_sweep_plots_both_settings(scenes, tmp_path):
    out = tmp_path / "sweep"
    words = ["analyze", "sweep", "segmentation", "--data", str(scenes), "--out", str(out), *QUICK]
    assert main([*words, "--tuned", "1", "2", "--prior", "2", "--seeds", "0", "1"]) == 0
    names = {path.name for path in (out / "runs").iterdir()}
    assert names == {f"kt{tuned}-kp2-uniform-seed{seed}" for tuned in (1, 2) for seed in (0, 1)}
    for each in json.loads((out / "results.json").read_text())["variants"]:
        first, second = (run["score"] for run in each["runs"])
        assert each["mean"] == pytest.approx((first + second) / 2)
        assert each["spread"] == pytest.approx(abs(first - second) / 2**0.5)
    assert (out / "grid.png").is_file() and (out / "cost.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "segmentation", "--out", "x"], "--data"),
        (
            ["sweep", "segmentation", "--data", "D", "--out", "OUT", "--tuned", "13"],
            "K_t = 13, K_p = 2, uniform: --num-tuned-layers 13",
        ),
        (
            ["ablate", "segmentation", "--data", "D", "--out", "OUT", "--method", "linear-probe"],
            "--method linear-probe",
        ),
        (["slice"], "analyze slice"),
    ],
)
def test_errors_are_raised_before_training(words, message, scenes, tmp_path, capsys):
    words = [{"D": str(scenes), "OUT": str(tmp_path / "out")}.get(word, word) for word in words]
    quick = QUICK * (words[0] != "slice" and "OUT" not in words and "--data" in words)
    assert main(["analyze", *words, *quick]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()
