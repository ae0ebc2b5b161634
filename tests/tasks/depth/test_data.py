import os
import pickle
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from depth_files import RNG, millimeters, write_map, write_set
from PIL import Image

from vitsplit.data.images import read_image
from vitsplit.errors import DataError
from vitsplit.tasks.depth import data
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.data import collate, keep_range, load_depth, median_depth, unit_warning
from vitsplit.tasks.depth.layouts import open_depth_set
from vitsplit.tasks.depth.transforms import TrainDepth

METERS = RNG.uniform(0.5, 9.0, (6, 8)).astype(np.float32)


def save_exr(path, channels):
    OpenEXR = pytest.importorskip("OpenEXR")
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


@pytest.mark.parametrize(
    ("name", "values", "scale", "meters"),
    [
        ("mm.png", np.array([[1500, 65535]], np.uint16), 0.001, [[1.5, 65.535]]),
        ("kitti.png", np.array([[256, 20481]], np.uint16), 1 / 256, [[1.0, 80.00390625]]),
        ("bytes.png", np.array([[255, 51]], np.uint8), 1 / 25.5, [[10.0, 2.0]]),
        ("mm.tif", np.array([[1500, 40000]], np.uint16), 0.001, [[1.5, 40.0]]),
        ("long.tif", np.array([[1_500_000, 40]], np.int32), 1e-6, [[1.5, 4e-5]]),
        ("metres.tif", np.array([[1.5, 0.25]], np.float32), None, [[1.5, 0.25]]),
        ("millimetres.tif", np.array([[1500, 250]], np.float32), 0.001, [[1.5, 0.25]]),
        ("metres.npy", np.array([[1.5, 0.25]], np.float64), None, [[1.5, 0.25]]),
        ("half.npy", np.array([[[1.5, 0.25]]], np.float16), None, [[1.5, 0.25]]),
        ("big_endian.npy", np.array([[1500, 250]], ">u2"), 0.001, [[1.5, 0.25]]),
    ],
)
def test_supported_formats(tmp_path, name, values, scale, meters):
    write_map(tmp_path / name, values)
    depth = load_depth(tmp_path / name, scale)
    assert depth.dtype == torch.float32
    assert depth.numpy() == pytest.approx(np.array(meters), rel=1e-6)


def test_exr(tmp_path):
    for name, channels in {
        "one.exr": {"V": METERS},
        "blender.exr": {"ViewLayer.Combined.A": METERS + 1, "ViewLayer.Depth.Z": METERS},
        "rgb.exr": {"R": METERS, "G": METERS + 1, "B": METERS + 2},
    }.items():
        save_exr(tmp_path / name, channels)
        assert np.array_equal(load_depth(tmp_path / name, None).numpy(), METERS)
    save_exr(tmp_path / "normals.exr", {"nx": METERS, "ny": METERS})
    with pytest.raises(DataError, match=r"normals\.exr: .*nx, ny"):
        load_depth(tmp_path / "normals.exr", None)
    (tmp_path / "broken.exr").write_bytes(b"no exr")
    with pytest.raises(DataError, match=r"broken\.exr: "):
        load_depth(tmp_path / "broken.exr", None)


def test_missing_exr_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(DataError, match=r"pip install 'vitsplit\[exr\]'"):
        load_depth(tmp_path / "a.exr", None)


def test_non_positive_and_non_finite_depths_are_invalid(tmp_path):
    write_map(tmp_path / "a.npy", np.array([[0.0, -1.0, np.nan, np.inf, -np.inf, 1e300, 2.0]]))
    assert load_depth(tmp_path / "a.npy", None).tolist() == [[0, 0, 0, 0, 0, 0, 2]]


def test_keep_range_excludes_both_ends():
    depth = torch.tensor([0.0, 0.001, 0.0011, 9.99, 10.0, 11.0])
    assert keep_range(depth, 0.001, 10.0).tolist() == pytest.approx([0, 0, 0.0011, 9.99, 0, 0])
    assert keep_range(depth, 0.001, None).tolist() == pytest.approx([0, 0, 0.0011, 9.99, 10, 11])


def test_files_that_are_not_depth_maps_are_named(tmp_path):
    write_map(tmp_path / "a.npy", np.array([[1, 2]], np.int32))
    with pytest.raises(DataError, match=r"a\.npy: .*--depth-scale"):
        load_depth(tmp_path / "a.npy", None)
    Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: .*RGB"):
        load_depth(tmp_path / "b.png", 0.001)
    write_map(tmp_path / "c.npy", np.ones((3, 4, 5), np.float32))
    with pytest.raises(DataError, match=r"c\.npy: .*\[3, 4, 5\]"):
        load_depth(tmp_path / "c.npy", None)
    (tmp_path / "d.npy").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"d\.npy: "):
        load_depth(tmp_path / "d.npy", None)
    np.save(tmp_path / "e.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"e\.npy: "):
        load_depth(tmp_path / "e.npy", None)


def test_a_size_mismatch_is_an_error(tmp_path):
    write_set(tmp_path, [millimeters(size=(12, 16))])
    write_map(tmp_path / "depth/train/0.png", millimeters(size=(6, 8)))
    with pytest.raises(DataError, match=r"8x6 .*images/train/0\.png .*16x12"):
        open_depth_set(tmp_path, "train").load(0)


@pytest.mark.parametrize(
    ("values", "config", "reason"),
    [
        (np.zeros((12, 16), np.uint16), DepthConfig(), "every value is 0, negative or not finite"),
        (
            millimeters(20_000, 30_000),
            DepthConfig(max_depth=10.0),
            r"below --max-depth 10 m\): .* 2",
        ),
    ],
)
def test_training_rejects_a_map_without_valid_pixels(tmp_path, values, config, reason):
    data = open_depth_set(write_set(tmp_path, [millimeters(), values]), "train")
    with pytest.raises(DataError, match=rf"depth/train/1\.png: no pixel has a valid depth.*{reason}"):
        TrainDepth(data, config)[1, 0]


def test_training_samples_depend_only_on_index_and_seed(tmp_path):
    data = open_depth_set(write_set(tmp_path, [millimeters(size=(40, 50)) for _ in range(2)]), "train")
    samples = TrainDepth(data, DepthConfig(crop_size=(16, 20)))
    again = pickle.loads(pickle.dumps(samples))
    assert torch.equal(samples[0, 7].image_CHW, again[0, 7].image_CHW)
    assert torch.equal(samples[0, 7].depth_HW, again[0, 7].depth_HW)
    assert not torch.equal(samples[0, 7].depth_HW, samples[0, 8].depth_HW)
    batch = collate([samples[0, 7], samples[1, 9]])
    assert batch.image_BCHW.shape == (2, 3, 16, 20) and batch.depth_BHW.shape == (2, 16, 20)
    assert batch.names == [str(pair[0]) for pair in data.items]


@pytest.mark.parametrize(("median", "warns"), [(0.0099, True), (0.011, False), (990.0, False), (1010.0, True)])
def test_an_implausible_median_depth_is_warned_about(median, warns):
    depth = torch.tensor([[median, median, 0.0, 0.0, 0.0, 0.0, 5 * median]])
    message = unit_warning(depth, Path("a.png"))
    assert (message is not None) == warns
    if message:
        assert "--depth-scale" in message and "a.png" in message and f"{median:g} m" in message


def test_an_invalid_map_gives_no_unit_warning():
    assert unit_warning(torch.zeros(2, 3), Path("a.png")) is None


@pytest.mark.realdata
@pytest.mark.skipif("VITSPLIT_DATA" not in os.environ, reason="VITSPLIT_DATA does not point to the labeled sets")
def test_nyuv2():
    data = open_depth_set(Path(os.environ["VITSPLIT_DATA"]) / "nyuv2", "val", depth_scale=1 / 25.5)
    assert len(data) == 159
    for index in range(0, 159, 40):
        depth = data.load(index).depth_HW
        assert depth.shape == (240, 320) and depth.min() > 0.7 and depth.max() <= 10.0001


def npy(shape, dtype="<f4", data=b""):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


BROKEN_NPY = {
    "a terabyte": npy((2**19, 2**19)),
    "too many pixels": npy((20_000, 20_000)),
    "too long a side": npy((2**70, 1)),
    "negative": npy((-2, -3), data=bytes(24)),
    "cut": npy((6, 8), data=bytes(100)),
    "empty": npy((0, 8)),
    "no header": npy((6, 8))[:9],
    "a long header": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"{" * 1000,
    "objects": npy((1, 1), "|O", pickle.dumps(np.ones(1))),
    "structures": npy((1, 1), [("a", "<f4"), ("b", "<f4")], bytes(8)),
    "complex": npy((1, 1), "<c8", bytes(8)),
    "text": npy((1, 1), "<U4", bytes(16)),
    "truths": npy((1, 2), "|b1", bytes(2)),
    "no dtype": npy((1, 1), "nonsense"),
    "a program": b"\x93NUMPY\x01\x00\x40\x00"
    + b"{'descr': __import__('os').getcwd(), 'fortran_order': 0, 'shape': (1,)}",
}


@pytest.mark.parametrize("content", BROKEN_NPY.values(), ids=BROKEN_NPY)
def test_invalid_arrays_are_rejected_without_reading(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a\.npy") as caught:
            load_depth(path, None)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000  # bytes
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000


def test_the_array_writer_of_these_tests_agrees_with_numpy(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy(METERS.shape, data=METERS.tobytes()))
    assert np.array_equal(load_depth(tmp_path / "a.npy", None), METERS)


def test_archives_and_pipes_are_rejected(tmp_path):
    np.savez(tmp_path / "a.npz", METERS)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    os.mkfifo(tmp_path / "b.npy")
    os.mkfifo(tmp_path / "c.png")
    for name in ("a.npy", "b.npy", "c.png"):
        with pytest.raises(DataError, match=name):
            load_depth(tmp_path / name, None)


def test_invalid_exr_files_are_rejected(tmp_path):
    save_exr(tmp_path / "a.exr", {"Z": METERS})
    content = (tmp_path / "a.exr").read_bytes()
    window = content.index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
    huge = content[:window] + np.array([0, 0, 99_999, 99_999], "<i4").tobytes() + content[window + 16 :]
    for broken in (huge, content[:-10], content[:100], b"", b"\x76\x2f\x31\x01" + b"\xff" * 200):
        (tmp_path / "a.exr").write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.exr"):
            load_depth(tmp_path / "a.exr", None)
    (tmp_path / "a.exr").unlink()
    os.mkfifo(tmp_path / "a.exr")
    with pytest.raises(DataError, match=r"a\.exr"):
        load_depth(tmp_path / "a.exr", None)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_orientation_is_applied_to_maps(tmp_path, orientation, name):
    """The map of an image with an EXIF rotation: red is the depth in millimeters."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    depth = RNG.integers(1, 255, (5, 8), dtype=np.uint8)
    Image.fromarray(depth.astype(np.uint16)).save(tmp_path / name, exif=exif)
    Image.fromarray(np.stack([depth] * 3, -1)).save(tmp_path / "image.png", exif=exif)
    expected = read_image(tmp_path / "image.png")[0].numpy() / np.float32(1000)
    assert load_depth(tmp_path / name, 0.001).numpy() == pytest.approx(expected)
    if orientation == 6:
        assert np.array_equal(read_image(tmp_path / "image.png")[0], np.rot90(depth, -1))


def test_the_median_of_a_large_map_is_subsampled(monkeypatch):
    depth = torch.from_numpy(RNG.uniform(0.5, 9.0, (300, 400)).astype(np.float32))
    depth[::3] = 0.0
    exact = float(np.median(depth[depth > 0]))
    assert median_depth(depth) == pytest.approx(exact, rel=1e-4)
    monkeypatch.setattr(data, "MEDIAN_PIXELS", 5000)
    assert median_depth(depth) == pytest.approx(exact, rel=0.05)
    assert median_depth(torch.zeros(300, 400)) is None
