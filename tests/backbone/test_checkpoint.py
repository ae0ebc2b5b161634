"""Checkpoints in every naming give the same model; other files are rejected."""

import argparse
import hashlib
import os
import pickle
import random
import re
import zipfile

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from tiny_backbones import KINDS, image, tiny_backbone, tiny_model

from vitsplit.backbone import checkpoint
from vitsplit.backbone.models import build_model
from vitsplit.errors import WeightsError
from vitsplit.types import TapRequest

SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 3}


def empty(kind, **overrides):
    with init_empty_weights(include_buffers=False):
        return build_model(kind, **{**SMALL, **KINDS[kind], **overrides})


def assert_same(model, other):
    one, two = dict(model.named_parameters()), dict(other.named_parameters())
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert checkpoint.weights_hash(model) == checkpoint.weights_hash(other)


@pytest.mark.parametrize("kind", KINDS)
def test_timm_naming_in_safetensors(kind, tmp_path):
    source = tiny_model(kind)
    extra = {"head.weight": torch.zeros(3, 48), "head.bias": torch.zeros(3)}
    save_file({**source.state_dict(), **extra}, tmp_path / "model.safetensors")
    model = empty(kind)
    checkpoint.load_weights(model, checkpoint.read_checkpoint(checkpoint.find_file(tmp_path)), "here")
    assert_same(model, source)
    pixels = torch.randn(1, 3, 64, 64) if model.patch_embed.patch_size[0] == 16 else torch.randn(1, 3, 70, 70)
    with torch.no_grad():  # buffers are not meta tensors either
        assert torch.equal(model.forward_features(pixels), source.forward_features(pixels))
    assert not any(value.requires_grad for value in model.parameters())


def test_half_precision_becomes_float32(tmp_path):
    source = tiny_model("mae-base")
    torch.save({name: value.half() for name, value in source.state_dict().items()}, tmp_path / "half.pth")
    model = empty("mae-base")
    checkpoint.load_weights(model, checkpoint.read_checkpoint(tmp_path / "half.pth"), "here")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert torch.equal(model.pos_embed, source.pos_embed.half().float())


@pytest.mark.parametrize("envelope", ["", "model", "teacher"])
def test_the_dinov2_release(envelope, tmp_path):
    source = tiny_model("dinov2-small")
    state = {**source.state_dict(), "mask_token": torch.zeros(1, 48)}
    if envelope == "teacher":  # as DINOv2's training writes it
        state = {f"backbone.{name}": value for name, value in state.items()} | {"dino_head.mlp.0.weight": torch.ones(2)}
    wrapped = {envelope: state, "args": argparse.Namespace(lr=1), "epoch": 3} if envelope else state
    torch.save(wrapped, tmp_path / "dinov2_vits14_pretrain.pth")
    model = empty("dinov2-small")
    checkpoint.load_weights(model, checkpoint.read_checkpoint(checkpoint.find_file(tmp_path)), "here")
    assert_same(model, source)


def test_the_dinov2_release_with_registers():
    """The first position is that of the class token; registers have no position."""
    generator = torch.Generator().manual_seed(0)
    state = dict(tiny_model("dinov2-small-reg").state_dict())
    token, position, registers = (torch.randn(1, n, 48, generator=generator) for n in (1, 26, 4))
    del state["reg_token"]
    state |= {"cls_token": token, "pos_embed": position, "register_tokens": registers, "mask_token": torch.zeros(1, 48)}
    backbone = tiny_backbone("dinov2-small-reg")
    checkpoint.load_weights(backbone.model, state, "here")
    taps = backbone(image(70, 70), TapRequest(tokens=frozenset({0}), pixels=True))
    with torch.no_grad():  # prepare_tokens_with_masks of the release
        patches = backbone.model.patch_embed.proj(taps.pixels_BCHW).flatten(2).mT
        want = torch.cat([token.expand(2, -1, -1), patches], 1) + position
        want = torch.cat([want[:, :1], registers.expand(2, -1, -1), want[:, 1:]], 1)
    torch.testing.assert_close(taps.tokens[0], want)


def test_the_sam_release():
    source = tiny_model("sam-base")
    state = {"prompt_encoder.x": torch.zeros(1)}
    for name, value in source.state_dict().items():
        state["image_encoder." + name.replace("mlp.fc", "mlp.lin")] = value
    state["image_encoder.neck.0.weight"] = torch.zeros(2, 2)
    model = empty("sam-base")
    checkpoint.load_weights(model, state, "here")
    assert_same(model, source)


def test_the_dinov3_release(capsys):
    """Storage tokens, LayerScale modules, and a query-key-value bias that the released models hold at zero."""
    source = tiny_model("dinov3-small")
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    state = {"mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.zeros(4)}
    for name, value in source.state_dict().items():
        state[re.sub("reg_token|gamma_[12]", lambda match: names[match[0]], name)] = value
    state |= {f"blocks.{index}.attn.qkv.bias": torch.zeros(144) for index in range(4)}
    model = empty("dinov3-small")
    checkpoint.load_weights(model, state, "here")
    assert_same(model, source)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("written_by", ["save_pretrained", "state_dict"])
def test_transformers(registers, swiglu, written_by, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 70, "patch_size": 14}
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{name}Config")(**sizes, use_swiglu_ffn=swiglu)
    torch.manual_seed(0)
    source = getattr(transformers, f"{name}Model")(config).eval()
    for value in source.parameters():
        torch.nn.init.normal_(value, std=0.2)
    if written_by == "save_pretrained":
        source.save_pretrained(tmp_path)
    else:
        torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    kind = "dinov2-small-reg" if registers else "dinov2-small"
    giant = {}
    if swiglu:  # what makes DINOv2-giant differ
        from timm.layers import SwiGLUPacked

        giant = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 2 * 128 / 48}
    model = empty(kind, **giant)
    checkpoint.load_weights(model, checkpoint.read_checkpoint(checkpoint.find_file(tmp_path)), "here")
    pixels = torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        want = source(pixels).last_hidden_state
        torch.testing.assert_close(model.eval().forward_features(pixels), want, rtol=1e-5, atol=1e-5)


def damaged(change):
    state = dict(tiny_model("dinov2-small").state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda s: s.pop("blocks.2.norm1.bias"),
            r"1 of the model's \d+ tensors are missing \(blocks\.2\.norm1\.bias\)",
        ),
        (lambda s: s.update({"norm.bias": torch.zeros(7)}), r"norm\.bias is \(7,\), the model has \(48,\)"),
        (lambda s: s.update({"blocks.4.norm1.bias": torch.zeros(48)}), r"blocks\.4\.norm1\.bias is not in the model"),
        (
            lambda s: s.update({"pos_embed": torch.zeros(1, 50, 48)}),
            r"no tensor has the size of pos_embed \(1, 26, 48\)",
        ),
        (
            lambda s: s.update({"patch_embed.proj.weight": torch.zeros(48, 3, 16, 16)}),
            "size of patch_embed.proj.weight",
        ),
    ],
)
def test_tensors_of_another_model_are_rejected_by_name(change, expected):
    with pytest.raises(WeightsError, match=rf"^some/file\.pth: .*{expected}"):
        checkpoint.load_weights(empty("dinov2-small"), damaged(change), "some/file.pth")


def test_an_unknown_naming_is_rejected_with_the_keys_of_the_file():
    with pytest.raises(WeightsError, match=r"encoder\.conv1\.weight"):
        checkpoint.load_weights(empty("mae-base"), {"encoder.conv1.weight": torch.zeros(3)}, "f")


class Payload:
    def __reduce__(self):
        return print, ("executed",)


def test_unreadable_files(tmp_path, capsys):
    with pytest.raises(WeightsError, match="nowhere"):
        checkpoint.find_file(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="contains no checkpoint"):
        checkpoint.find_file(tmp_path)
    for name in ("a.pth", "b.safetensors", "c.bin"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(WeightsError, match=re.escape(f"{tmp_path / name}")):
            checkpoint.read_checkpoint(tmp_path / name)
    with pytest.raises(WeightsError, match=r"3 checkpoints \(a\.pth, b\.safetensors, c\.bin\)"):
        checkpoint.find_file(tmp_path)
    whole = tmp_path / "whole.pth"
    torch.save(tiny_model("mae-base").state_dict(), whole)
    whole.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match=r"whole\.pth"):
        checkpoint.read_checkpoint(whole)
    torch.save(torch.zeros(3), whole)
    with pytest.raises(WeightsError, match="a Tensor, not a state dict"):
        checkpoint.read_checkpoint(whole)
    torch.save({"model": Payload()}, whole)
    with pytest.raises(WeightsError, match="is not a plain state dict"):
        checkpoint.read_checkpoint(whole)
    assert "executed" not in capsys.readouterr().out


def test_the_hash_covers_names_shapes_and_bytes():
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
        model.bias.copy_(torch.tensor([0.5]))
    # IEEE 754, little endian, the names in alphabetical order.
    text = b"bias torch.float32 (1,)\n" + bytes.fromhex("0000003f")
    text += b"weight torch.float32 (1, 2)\n" + bytes.fromhex("0000803f00000040")
    assert checkpoint.weights_hash(model) == hashlib.sha256(text).hexdigest()
    assert checkpoint.weights_hash(model.double()) == hashlib.sha256(text).hexdigest()


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["new", "legacy", "plain pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, how):
    file, marker = tmp_path / "weights.pth", tmp_path / "ran"
    if how == "plain pickle":
        file.write_bytes(pickle.dumps({"a": Marker(marker)}))
    else:
        torch.save({"a": Marker(marker)}, file, _use_new_zipfile_serialization=how == "new")
    with pytest.raises(WeightsError) as caught:
        checkpoint.read_checkpoint(file)
    message = str(caught.value)
    assert not marker.exists() and str(file) in message and "executed" in message
    assert "weights_only" not in message and "safe_globals" not in message and "\n" not in message
    if how == "new":
        assert "open" in message, "what it refers to is named"


def test_a_torchscript_archive(tmp_path):
    file = tmp_path / "traced.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(file))
    with pytest.raises(WeightsError, match="TorchScript") as caught:
        checkpoint.read_checkpoint(file)
    assert "weights_only" not in str(caught.value)


def test_an_archive_that_expands_beyond_its_size_is_rejected(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000, 1000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert file.stat().st_size < 40_000
    with pytest.raises(WeightsError, match="expands to 4,"):
        checkpoint.read_checkpoint(file)


def test_damaged_files_raise_one_error_type(tmp_path):
    """Checkpoints with random bytes changed, truncated, and repeated."""
    rng = random.Random(0)
    for style in (True, False):
        torch.save({"model": {"a": torch.zeros(3, 5), "b": torch.ones(2)}, "epoch": 3}, tmp_path / "whole.pth",
                   _use_new_zipfile_serialization=style)  # fmt: skip
        whole = (tmp_path / "whole.pth").read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(rng.randrange(1, 6)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            file = tmp_path / "broken.pth"
            file.write_bytes(content[: rng.choice([len(content), len(content), rng.randrange(len(content))])])
            try:
                state = checkpoint.read_checkpoint(file)
            except WeightsError as error:
                assert str(file) in str(error) and "weights_only" not in str(error)
            else:
                assert isinstance(state, dict)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_rejected(value):
    model = tiny_model("dinov2-small")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["blocks.0.norm1.bias"][1] = value
    with pytest.raises(WeightsError, match=r"blocks\.0\.norm1\.bias"):
        checkpoint.load_weights(empty("dinov2-small"), state, "the file")


@pytest.mark.parametrize("kind", [torch.int32, torch.complex64, torch.bool])
def test_unsupported_tensor_types_are_rejected(kind):
    state = dict(tiny_model("dinov2-small").state_dict())
    state["blocks.0.norm1.bias"] = state["blocks.0.norm1.bias"].to(kind)
    with pytest.raises(WeightsError, match=r"blocks\.0\.norm1\.bias is torch\."):
        checkpoint.load_weights(empty("dinov2-small"), state, "the file")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_only_regular_files_of_a_folder_are_checkpoints(tmp_path, ending):
    os.mkfifo(tmp_path / f"x.{ending}")
    with pytest.raises(WeightsError, match="contains no checkpoint"):
        checkpoint.find_file(tmp_path)
    with pytest.raises(WeightsError):
        checkpoint.find_file(tmp_path / f"x.{ending}")
