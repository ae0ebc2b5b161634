"""Bundles on a local hub: upload, download, the offline cache, refusals."""

import hashlib
import io
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bundles import write_depth_bundle, write_segmentation_bundle
from huggingface_hub import HfApi, ModelInfo, constants
from local_hub import LocalHub
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from vqa_bundles import write_language_model, write_vqa_bundle

import vitsplit
from vitsplit.backbone.hub import reachable
from vitsplit.bundle import find_bundle, find_bundles, read_card
from vitsplit.cli.main import main
from vitsplit.errors import BundleError, ConfigError, DataError, HubError
from vitsplit.hub_repository import parse_address
from vitsplit.inference.sources import find_head
from vitsplit.serving.server import ServeOptions

FILES = ("head.json", "head.safetensors")


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> Path:
    folder = write_segmentation_bundle(tmp_path_factory.mktemp("pushed") / "rooms")
    (folder / "secret.txt").write_text("not a file of the bundle")
    return folder


@pytest.fixture(scope="session")
def both(tmp_path_factory) -> Path:
    """A run of two heads."""
    run = tmp_path_factory.mktemp("pushed") / "both"
    write_segmentation_bundle(run / "best" / "segmentation")
    write_depth_bundle(run / "best" / "depth")
    return run


def hashes(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def files_at_main(hub: LocalHub, name: str) -> dict[str, bytes]:
    repository = hub.repositories[name]
    return repository.commits[repository.branches["main"]]


def test_pushed_files_are_those_of_the_bundle(hub, rooms):
    url = vitsplit.push(rooms, "me/rooms")
    repository = hub.repositories["me/rooms"]
    assert url == f"{hub.url}/me/rooms/commit/{repository.branches['main']}"
    found = repository.commits[repository.branches["main"]]
    assert set(found) == {*FILES, "README.md"}
    assert {name: found[name] for name in FILES} == files_of(rooms)
    assert hashes(find_bundle("hf://me/rooms")) == hashes(rooms)


def test_pushed_cards_have_no_folders_of_the_machine(hub, rooms, tmp_path):
    written = write_segmentation_bundle(tmp_path / "rooms")
    card = json.loads((written / "head.json").read_text())
    paths = {"weights": "/home/annika-b/dinov2.pth", "cache_folder": "/scratch/annika-b/features"}
    card["config"]["backbone"]["weights"] = paths["weights"]  # as in bundles of earlier versions
    card["config"]["loop"]["cache_folder"] = paths["cache_folder"]
    (written / "head.json").write_text(json.dumps(card))
    vitsplit.push(written, "me/rooms")
    files = files_at_main(hub, "me/rooms")
    assert not [name for name, content in files.items() if b"annika-b" in content]
    card["config"]["backbone"]["weights"] = "dinov2.pth"
    card["config"]["loop"]["cache_folder"] = "features"
    assert json.loads(files["head.json"]) == card
    assert read_card("hf://me/rooms").paths == {"--weights": "dinov2.pth", "--cache-folder": "features"}


def test_a_pushed_bundle_predicts_the_same_elsewhere(hub, rooms, tmp_path, monkeypatch):
    vitsplit.push(rooms, "me/rooms", private=True)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another cache"))
    found = vitsplit.load("hf://me/rooms").predict(image)["segmentation"].mask
    assert np.array_equal(found, vitsplit.load(rooms).predict(image)["segmentation"].mask)


def test_cached_bundles_work_offline(hub, rooms, monkeypatch):
    vitsplit.push(rooms, "me/rooms")
    commit = hub.repositories["me/rooms"].branches["main"]
    find_bundle("hf://me/rooms")
    count = len(hub.requests)
    assert hashes(find_bundle(f"hf://me/rooms@{commit}")) == hashes(rooms)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hashes(find_bundle("hf://me/rooms")) == hashes(rooms)
    assert len(hub.requests) == count
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        find_bundle("hf://me/other")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        vitsplit.push(rooms, "me/rooms")


def test_an_unreachable_hub_leaves_the_cache(hub, rooms, monkeypatch):
    vitsplit.push(rooms, "me/rooms")
    find_bundle("hf://me/rooms")
    hub.close()
    reachable.cache_clear()
    assert hashes(find_bundle("hf://me/rooms")) == hashes(rooms)
    with pytest.raises(HubError, match="unreachable"):
        find_bundle("hf://me/other")


def test_a_revision_is_a_branch(hub, rooms, tmp_path):
    vitsplit.push(rooms, "me/rooms")
    other = write_segmentation_bundle(tmp_path / "other", seed=1)
    vitsplit.push(other, "me/rooms", revision="v2", message="More images")
    assert hashes(find_bundle("hf://me/rooms")) == hashes(rooms)
    assert hashes(find_bundle("hf://me/rooms@v2")) == hashes(other)
    with pytest.raises(HubError, match="v3"):
        find_bundle("hf://me/rooms@v3")


def test_a_new_commit_is_downloaded(hub, rooms, tmp_path):
    vitsplit.push(rooms, "me/rooms")
    find_bundle("hf://me/rooms")
    other = write_segmentation_bundle(tmp_path / "other", seed=1)
    vitsplit.push(other, "me/rooms")
    assert hashes(find_bundle("hf://me/rooms")) == hashes(other)


def test_the_commit_whose_sizes_were_checked_is_downloaded(hub, rooms, tmp_path, monkeypatch):
    other = write_segmentation_bundle(tmp_path / "other", seed=1)
    repository = hub.add("me/rooms", files_of(rooms))
    repository.branches["refs/pr/1"] = first = repository.branches["main"]
    get_info = HfApi.model_info

    def move_after(self: HfApi, name: str, *, revision: str, **options: Any) -> ModelInfo:
        info = get_info(self, name, revision=revision, **options)
        if repository.branches.get(revision) == first:
            repository.commit(files_of(other), revision)
        return info

    monkeypatch.setattr(HfApi, "model_info", move_after)
    for address in ("hf://me/rooms", "hf://me/rooms@refs/pr/1"):
        assert hashes(find_bundle(address)) == hashes(rooms)
        with monkeypatch.context() as offline:
            offline.setattr(constants, "HF_HUB_OFFLINE", True)
            assert hashes(find_bundle(address)) == hashes(rooms)
        assert hashes(find_bundle(address)) == hashes(other)


def test_several_heads_are_one_repository(hub, both, rooms):
    vitsplit.push(rooms, "me/both")
    vitsplit.push(both, "me/both")
    model = vitsplit.load("hf://me/both")
    assert list(model) == ["segmentation", "depth"]
    with pytest.raises(BundleError):
        find_bundle("hf://me/both")
    # The files of the other layout are gone in both directions.
    vitsplit.push(rooms, "me/both")
    assert len(find_bundles("hf://me/both")) == 1


def test_names_of_equal_heads_are_those_of_the_repositories(hub, rooms):
    vitsplit.push(rooms, "me/rooms")
    vitsplit.push(rooms, "me/streets")
    assert list(vitsplit.load("hf://me/rooms", "hf://me/streets")) == ["rooms", "streets"]


def test_the_model_card(hub, rooms, tmp_path):
    picture = tmp_path / "overlay.jpg"
    Image.new("RGB", (8, 8)).save(picture)
    vitsplit.push(rooms, "me/rooms", picture=picture)
    files = files_at_main(hub, "me/rooms")
    _, front, text = files["README.md"].decode().split("---\n", 2)
    data = yaml.safe_load(front)
    assert (data["library_name"], data["pipeline_tag"]) == ("vitsplit", "image-segmentation")
    assert 'vitsplit.load("hf://me/rooms")' in text
    assert "![Predictions](picture.jpg)" in text
    assert "picture.jpg" in files
    with pytest.raises(ConfigError):
        vitsplit.push(rooms, "me/rooms", picture=rooms / "secret.txt")


@pytest.mark.parametrize(("suffix", "kind"), [(".JPG", "JPEG"), (".png", "PNG"), (".webp", "WEBP")])
def test_pictures_are_uploaded_upright_and_without_metadata(hub, rooms, tmp_path, suffix, kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the top is the right side
    exif[ExifTags.Base.Artist] = "annika-b"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    stored = Image.new("RGB", (64, 32), "red")
    stored.paste("blue", (0, 0, 32, 32))
    picture = tmp_path / f"photo{suffix}"
    texts = PngInfo()
    texts.add_text("Author", "annika-b")
    options = {"pnginfo": texts} if kind == "PNG" else {"quality": 95, "xmp": b"annika-b"}
    stored.save(picture, kind, exif=exif, icc_profile=b"annika-b", **options)
    assert b"annika-b" in picture.read_bytes()
    vitsplit.push(rooms, "me/rooms", picture=picture)
    content = files_at_main(hub, "me/rooms")[f"picture{suffix.lower()}"]
    with Image.open(io.BytesIO(content)) as found:
        assert (found.format, found.size, dict(found.getexif())) == (kind, (32, 64), {})
        assert not {"icc_profile", "xmp", "exif", "comment", "Author"} & found.info.keys()
        colors = np.asarray(found.convert("RGB"))
    # The left half of the stored pixels is the upper one.
    assert np.abs(colors[16, 16].astype(int) - (0, 0, 255)).max() < 30
    assert np.abs(colors[48, 16].astype(int) - (255, 0, 0)).max() < 30
    assert b"annika-b" not in content


@pytest.mark.parametrize("content", [b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(100), b""])
def test_pictures_that_cannot_be_decoded_are_not_uploaded(hub, rooms, tmp_path, content):
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(DataError, match=r"photo\.png"):
        vitsplit.push(rooms, "me/rooms", picture=tmp_path / "photo.png")
    assert hub.repositories == {}


def test_a_picture_of_an_earlier_upload_is_removed(hub, rooms, tmp_path):
    for suffix in ("jpg", "png"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"photo.{suffix}")
        vitsplit.push(rooms, "me/rooms", picture=tmp_path / f"photo.{suffix}")
        assert set(files_at_main(hub, "me/rooms")) == {*FILES, "README.md", f"picture.{suffix}"}
    vitsplit.push(rooms, "me/rooms")
    assert set(files_at_main(hub, "me/rooms")) == {*FILES, "README.md"}


def run_code(text: str, place: str | Path = "THIS_FOLDER") -> Any:
    """Runs the Python code of a model card, and returns the value of its last line."""
    (code,) = re.findall(r"```python\n(.*?)\n```", text, flags=re.DOTALL)
    *first, last = code.replace("THIS_FOLDER", str(place)).splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(first), names)
    return eval(last, names)


@pytest.fixture
def photo(tmp_path, monkeypatch) -> None:
    """``image.jpg`` in the working directory."""
    Image.new("RGB", (64, 48)).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("names", [["rooms"], ["segmentation"], ["rooms", "streets"], ["segmentation", "streets"]])
def test_the_code_of_a_model_card_runs(hub, photo, tmp_path, names):
    for name in names:
        write_segmentation_bundle(tmp_path / "run" / "best" / name)
    run = tmp_path / "run" / "best" / "rooms" if names == ["rooms"] else tmp_path / "run"
    vitsplit.push(run, "me/rooms")
    page = files_at_main(hub, "me/rooms")["README.md"].decode()
    assert run_code(page).size == (64, 48)
    written = tmp_path / "run" / "best" / names[0]
    copied = shutil.copytree(written, tmp_path / "copied")
    for folder in (written, copied):
        assert run_code((folder / "README.md").read_text(), folder).size == (64, 48)


def test_the_code_of_several_heads_asks_the_named_one(hub, photo, tmp_path):
    language = write_language_model(tmp_path / "tiny")
    write_vqa_bundle(tmp_path / "run" / "best" / "vqa", language)
    write_depth_bundle(tmp_path / "run" / "best" / "walls")
    vitsplit.push(tmp_path / "run", "me/both")
    page = files_at_main(hub, "me/both")["README.md"].decode()
    assert isinstance(run_code(page.replace("LANGUAGE_MODEL_FOLDER", str(language))), str)


@pytest.mark.parametrize("name", ["rooms", "a/b/c", "me/..", "me/ro oms", "../me", "me--you/a", ""])
def test_names_that_are_not_repositories(name, rooms):
    with pytest.raises(HubError):
        vitsplit.push(rooms, name)
    with pytest.raises(HubError):
        parse_address(f"hf://{name}")


def test_an_address_as_path_is_an_address():
    assert parse_address(Path("hf://me/rooms@refs/pr/1")) == parse_address("hf://me/rooms@refs/pr/1")


def test_private_missing_and_gated_repositories(hub, rooms, monkeypatch):
    hub.add("me/private", files_of(rooms), private=True)
    hub.add("me/gated", files_of(rooms), gated=True)
    find_bundle("hf://me/private")
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "2")
    for name in ("private", "gated", "missing"):
        with pytest.raises(HubError, match="HF_TOKEN") as caught:
            find_bundle(f"hf://me/{name}")
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(HubError, match="HF_TOKEN"):
        vitsplit.push(rooms, "me/private")


@pytest.mark.parametrize(("name", "size"), [("head.safetensors", 1 << 40), ("head.json", 17 << 20)])
def test_large_files_are_not_downloaded(hub, rooms, name, size):
    hub.add("me/large", files_of(rooms), stated_sizes={name: size})
    with pytest.raises(HubError, match=name):
        find_bundle("hf://me/large")
    assert not [each for each in hub.requests if "/resolve/" in each]


def test_other_files_are_not_downloaded(hub, rooms):
    harmful = {name: pickle.dumps(print) for name in ("pytorch_model.bin", "best/x/y/head.json", "model.py")}
    hub.add("me/more", files_of(rooms) | harmful)
    folder = find_bundle("hf://me/more")
    assert {path.name for path in folder.rglob("*") if path.is_file()} == set(FILES)
    hub.add("me/pickle", harmful)
    with pytest.raises(HubError, match="no head bundle"):
        find_bundle("hf://me/pickle")


def test_damaged_bundles_are_not_pushed(hub, rooms, tmp_path):
    (tmp_path / "head.json").write_bytes((rooms / "head.json").read_bytes())
    (tmp_path / "head.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(BundleError):
        vitsplit.push(tmp_path, "me/rooms")
    assert hub.repositories == {}


@pytest.mark.parametrize("revision", [None, "v2"])
def test_private_bundles_are_not_pushed_to_public_repositories(hub, rooms, tmp_path, revision):
    vitsplit.push(rooms, "me/rooms")
    before = dict(hub.repositories["me/rooms"].branches)
    other = write_segmentation_bundle(tmp_path / "other", seed=1)
    with pytest.raises(HubError, match="public"):
        vitsplit.push(other, "me/rooms", private=True, revision=revision)
    assert hub.repositories["me/rooms"].branches == before
    vitsplit.push(rooms, "me/secret", private=True)
    vitsplit.push(other, "me/secret", private=True, revision=revision)
    assert hub.repositories["me/secret"].private


def test_commands(hub, rooms, tmp_path, capsys):
    assert main(["push", str(rooms), "me/rooms", "--private", "--message", "First"]) == 0
    assert capsys.readouterr().out.strip().startswith(f"{hub.url}/me/rooms/commit/")
    assert hub.repositories["me/rooms"].private
    assert main(["info", "hf://me/rooms", "--json"]) == 0
    Image.new("RGB", (64, 48)).save(tmp_path / "image.png")
    assert main(["predict", "hf://me/rooms", str(tmp_path / "image.png"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "image_mask.png").is_file()
    assert main(["evaluate", "hf://me/rooms", "--data", str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_server_and_an_evaluation_find_the_bundle(hub, rooms):
    vitsplit.push(rooms, "me/rooms")
    assert list(ServeOptions(["hf://me/rooms"], None, {}).source().cards) == ["segmentation"]
    assert find_head(Path("hf://me/rooms"))[0].task == "segmentation"
