"""Inputs of the package by area: a valid input, how it is corrupted, its reader, and the rule for a correct success.

The rules here restate what each format allows. They know nothing of the readers.
"""

import functools
import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from mutations import changed_bytes, changed_json, not_a_file
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

SIZE = (40, 30)
"""Width and height of the images of all data sets here."""


@dataclass(frozen=True)
class Broken:
    """A broken input.

    Attributes:
        what: The change.
        file: The file that was changed.
        content: The new content of a JSON file; NotImplemented if it is not JSON, None if unknown.
    """

    what: str
    file: Path
    content: Any = None


@dataclass(frozen=True)
class Area:
    """One reader.

    Attributes:
        name: Its name.
        count: Malformed inputs in the tests.
        build: Writes a valid input into an empty folder.
        corrupt: Corrupts it.
        use: Reads it. What it returns is given to ``accept``.
        accept: Whether a success is correct, given the result and the corruption.
        names: Names that an error may contain instead of the file name.
    """

    name: str
    count: int
    build: Callable[[Path], None]
    corrupt: Callable[[Path, random.Random], Broken]
    use: Callable[[Path], Any]
    accept: Callable[[Any, Broken], bool]
    names: tuple[str, ...] = ()


def corrupt_json(*names: str) -> Callable[[Path, random.Random], Broken]:
    """Changes one of some JSON files, or replaces it."""

    def corrupt(folder: Path, generator: random.Random) -> Broken:
        file = folder / generator.choice(names)
        kind = generator.random()
        if kind < 0.05:
            return Broken(not_a_file(file, generator), file, NotImplemented)
        if kind < 0.2:
            content, what = changed_bytes(file.read_bytes(), generator)
            file.write_bytes(content)
            return Broken(what, file, strict_json(content))
        text, value, what = changed_json(json.loads(file.read_text()), generator)
        file.write_text(text)
        return Broken(what, file, value)

    return corrupt


def corrupt_bytes(*names: str) -> Callable[[Path, random.Random], Broken]:
    """Changes one of some files, or replaces it."""

    def corrupt(folder: Path, generator: random.Random) -> Broken:
        file = folder / generator.choice(names)
        if generator.random() < 0.1:
            return Broken(not_a_file(file, generator), file, NotImplemented)
        content, what = changed_bytes(file.read_bytes(), generator)
        file.write_bytes(content)
        return Broken(what, file)

    return corrupt


def corrupt_lines(name: str) -> Callable[[Path, random.Random], Broken]:
    """Changes one line of a file of JSON lines, or replaces the file."""

    def corrupt(folder: Path, generator: random.Random) -> Broken:
        if generator.random() < 0.3:
            return corrupt_bytes(name)(folder, generator)
        file = folder / name
        lines = file.read_text().splitlines()
        place = generator.randrange(len(lines))
        lines[place], value, what = changed_json(json.loads(lines[place]), generator)
        file.write_text("\n".join(lines) + "\n")
        return Broken(f"line {place + 1}: {what}", file, value)

    return corrupt


def strict_json(content: bytes) -> Any:
    """The value, or NotImplemented where the standard allows none."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError
        return dict(pairs)

    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=once, parse_constant=float.fromhex)
    except (ValueError, RecursionError):
        return NotImplemented


def picture(seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Noise."""
    width, height = SIZE
    generator = np.random.default_rng(seed)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(generator.integers(0, 3 if mode == "P" else 256, shape, dtype=np.uint8))


def images(folder: Path, names: tuple[str, ...]) -> None:
    """Images in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        picture(seed).save(folder / name)


# --- rules for values -----------------------------------------------------------------------------


def is_int(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return type(value) is int and least <= value <= most


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return type(value) in (int, float) and abs(value) < 1e308 and least <= value <= most


def is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= 1024


# --- classes.json ---------------------------------------------------------------------------------


def build_classes(folder: Path) -> None:
    content = {
        "names": ["wall", "floor", "bed"],
        "colours": [[10, 20, 30], "#00ff7f", [0, 0, 255]],
        "labels": {"0": "wall", "1": "floor", "2": "bed", "7": "bed", "255": "ignore"},
    }
    (folder / "classes.json").write_text(json.dumps(content))


def is_color(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) == 7 and value[0] == "#" and all(c in "0123456789abcdefABCDEF" for c in value[1:])
    return isinstance(value, list) and len(value) == 3 and all(is_int(part, 0, 255) for part in value)


def classes_rule(content: Any) -> bool:
    if isinstance(content, list):
        content = {"names": content}
    if not isinstance(content, dict) or content.keys() - {"names", "colours", "labels"}:
        return False
    names, colors = content.get("names"), content.get("colours")
    if not isinstance(names, list) or not 1 <= len(names) <= 255 or not all(map(is_name, names)):
        return False
    if len(set(names)) < len(names):
        return False
    if colors not in (None, []) and not (
        isinstance(colors, list) and len(colors) == len(names) and all(map(is_color, colors))
    ):
        return False
    if "labels" not in content:
        return True
    labels = content["labels"]
    keys_right = isinstance(labels, dict) and all(
        isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 9 and int(key) <= 65_535
        for key in labels
    )
    return (
        keys_right
        and bool(set(labels.values()) & set(names))
        and all(isinstance(value, str) and value in (*names, "ignore") for value in labels.values())
    )


def read_classes(folder: Path) -> Any:
    from vitsplit.data.classes import read_classes

    return read_classes(folder / "classes.json")


# --- depth.json -----------------------------------------------------------------------------------


def build_scale(folder: Path) -> None:
    (folder / "depth.json").write_text(json.dumps({"scale": 0.001}))


def scale_rule(content: Any) -> bool:
    return isinstance(content, dict) and is_number(content.get("scale"), 1e-300)


def read_scale(folder: Path) -> Any:
    from vitsplit.tasks.depth.layouts import read_scale

    return read_scale(folder / "depth.json")


# --- detection ------------------------------------------------------------------------------------


def build_coco(folder: Path) -> None:
    images(folder / "images" / "train", ("a.png", "b.png"))
    width, height = SIZE
    content = {
        "images": [
            {"id": 3, "file_name": "a.png", "width": width, "height": height},
            {"id": 4, "file_name": "b.png", "width": width, "height": height},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 2, "bbox": [1, 2, 10.5, 8], "area": 84.0, "iscrowd": 0,
             "segmentation": [[1, 2, 11.5, 2, 11.5, 10, 1, 10]]},
            {"id": 2, "image_id": 4, "category_id": 9, "bbox": [0, 0, 20, 30], "area": 600, "iscrowd": 1,
             "segmentation": {"size": [height, width], "counts": [0, 600, 600]}},
            {"id": 5, "image_id": 4, "category_id": 9, "bbox": [0, 0, 20, 30], "area": 600, "iscrowd": 0,
             "segmentation": {"size": [height, width], "counts": compressed([0, 600, 600])}},
        ],
        "categories": [{"id": 2, "name": "cup"}, {"id": 9, "name": "lamp"}],
    }  # fmt: skip
    (folder / "annotations").mkdir()
    (folder / "annotations" / "train.json").write_text(json.dumps(content))


def compressed(counts: list[int]) -> str:
    """COCO's compressed run lengths: differences to the run before last, 5 bits a character, from 48 on."""
    text = ""
    for place, count in enumerate(counts):
        rest = count - counts[place - 2] if place > 2 else count
        while True:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(48 + (bits | 32 * more))
            if not more:
                break
    return text


def decompressed(text: str) -> list[int] | None:
    counts: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        while True:
            if place == len(text) or not 48 <= ord(text[place]) < 48 + 64 or shift > 60:
                return None
            code = ord(text[place]) - 48
            value |= (code & 31) << shift
            shift += 5
            place += 1
            if not code & 32:
                if code & 16:
                    value |= -1 << shift
                break
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def coco_rule(content: Any) -> bool:
    try:
        return _coco_rule(content)
    except (TypeError, KeyError, AttributeError):
        return False


def _coco_rule(content: Any) -> bool:
    categories, photos, objects = (content[key] for key in ("categories", "images", "annotations"))
    if not all(isinstance(each, list) for each in (categories, photos, objects)):
        return False
    for entries in (categories, photos, objects):
        if not all(is_int(entry["id"], 0, 2**63) for entry in entries):
            return False
        if len({entry["id"] for entry in entries}) < len(entries):
            return False
    names = [category["name"] for category in categories]
    if not all(map(is_name, names)) or len(set(names)) < len(names):
        return False
    if not all(photo["file_name"] in ("a.png", "b.png") for photo in photos):
        return False
    if not all(is_int(photo[side], 1, 10**6) for photo in photos for side in ("width", "height")):
        return False
    sizes = {photo["id"]: (photo["width"], photo["height"]) for photo in photos}
    known = {category["id"] for category in categories}
    return bool(photos) and all(_object_rule(each, sizes, known) for each in objects)


def _object_rule(each: Any, sizes: dict[int, tuple[int, int]], known: set[int]) -> bool:
    if not is_int(each["image_id"]) or each["image_id"] not in sizes:
        return False
    if not is_int(each["category_id"]) or each["category_id"] not in known:
        return False
    width, height = sizes[each["image_id"]]
    box = each["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)) or min(box[2:]) < 0:
        return False
    if min(box[:2]) < -1 or box[0] + box[2] > width + 1 or box[1] + box[3] > height + 1:
        return False
    if each.get("iscrowd") not in (None, 0, 1) or isinstance(each.get("iscrowd"), float):
        return False
    if each.get("area") is not None and not is_number(each["area"], 0):
        return False
    shape = each.get("segmentation")
    if not shape and shape in (None, [], {}):
        return True
    if isinstance(shape, dict):
        return _runs_rule(shape, width, height)
    return isinstance(shape, list) and all(
        isinstance(part, list) and len(part) % 2 == 0 and all(map(is_number, part)) for part in shape
    )


def _runs_rule(shape: Any, width: int, height: int) -> bool:
    counts = shape["counts"]
    counts = decompressed(counts) if isinstance(counts, str) else counts
    fits = shape["size"] == [height, width] and not any(isinstance(side, bool) for side in shape["size"])
    return fits and counts is not None and all(is_int(n, 0) for n in counts) and sum(counts) == width * height


def read_detection(folder: Path) -> Any:
    from vitsplit.tasks.detection.layouts import open_detection_set

    return open_detection_set(folder, "train")


def detection_result_rule(data: Any) -> bool:
    """Whatever the labels' format: boxes and labels that can be trained on."""
    for item in data.items:
        for each in item.annotations:
            x, y, w, h = each.box
            inside = x >= -1 and y >= -1 and x + w <= item.width + 1 and y + h <= item.height + 1
            if not (all(map(math.isfinite, each.box)) and w > 0 and h > 0 and inside):
                return False
            if not 0 <= each.label < len(data.classes) or type(each.crowd) is not bool:
                return False
    return True


def accept_coco(data: Any, broken: Broken) -> bool:
    return broken.content is not NotImplemented and coco_rule(broken.content) and detection_result_rule(data)


def build_yolo(folder: Path) -> None:
    images(folder / "images" / "train", ("a.png", "b.png"))
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n1 0.1 0.1 0.9 0.1 0.9 0.8\n")
    (folder / "labels" / "train" / "b.txt").write_text("1 0.25 0.25 0.25 0.25\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nnc: 2\nnames:\n  0: cup\n  1: lamp\n")


LAUGHING_YAML = "x0: &x0 [a]\n" + "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 12))
YAML = (
    "&a [*a, *a, *a]", f"{LAUGHING_YAML}names: *x11\n", "names: [1, 2]\n? [a]\n: b\n", "names: " + "[" * 5000,
    "names: !!python/object/apply:os.system [true]\n", "names: {0: a, 0: b}\n", "names: {0: a, 2: b}\n",
    "names: []\n", "names:\n- a\n- a\n", "names: 2024-01-01\n", "names: {-1: a}\n", "names: {1.0: a, 0: b}\n",
    "\t- x", "names: 'x\n", "%YAML 9.9\n---\nnames: [a]\n", "names: [" + "x" * 10**6 + "]\n",
    "names: [" + ", ".join(f"c{n}" for n in range(300)) + "]\n",
)  # fmt: skip
"""Files of names that none of can be used."""


def corrupt_yolo(folder: Path, generator: random.Random) -> Broken:
    if generator.random() < 0.3:
        return corrupt_bytes("data.yaml", "labels/train/a.txt", "labels/train/b.txt")(folder, generator)
    if generator.random() < 0.5:
        text = generator.choice(YAML)
        (folder / "data.yaml").write_text(text)
        return Broken(text[:40], folder / "data.yaml", NotImplemented)
    file = folder / "labels" / "train" / "a.txt"
    words = file.read_text().split(" ")
    words[generator.randrange(len(words))] = generator.choice(
        [
            "nan",
            "inf",
            "-1",
            "1.5",
            "2",
            "1e999",
            "0x1",
            "1_0",
            "",
            "cup",
            "-0.5",
            "9" * 5000,
            "\x00",
            "\u0663",
            "1e-400",
        ]
    )
    file.write_text(" ".join(words))
    return Broken(f"a.txt: {' '.join(words)[:60]!r}", file)


def accept_yolo(data: Any, broken: Broken) -> bool:
    return broken.content is not NotImplemented and detection_result_rule(data)


def build_voc(folder: Path) -> None:
    images(folder / "JPEGImages", ("a.png", "b.png"))
    (folder / "Annotations").mkdir()
    width, height = SIZE
    for name in ("a", "b"):
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><size><width>{width}</width><height>{height}</height>"
            "<depth>3</depth></size><object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin>"
            "<ymin>2</ymin><xmax>20</xmax><ymax>25</ymax></bndbox></object></annotation>"
        )
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]><annotation>&j;</annotation>"
)


def corrupt_voc(folder: Path, generator: random.Random) -> Broken:
    if generator.random() < 0.4:
        return corrupt_bytes("Annotations/a.xml", "Annotations/b.xml", "ImageSets/Main/train.txt")(folder, generator)
    if generator.random() < 0.3:
        file = folder / "ImageSets" / "Main" / "train.txt"
        line = generator.choice(["../a", "/etc/passwd", "missing", "a/../../a", "a\x00", "x" * 100_000])
        file.write_text(f"a\n{line}\n")
        return Broken(f"line {line[:30]!r}", file, NotImplemented)
    file = folder / "Annotations" / "a.xml"
    if generator.random() < 0.3:
        entity = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><name>&x;</name></annotation>'
        file.write_text(generator.choice([LAUGHS, entity, "<a>" * 100_000, "<annotation/>", "<annotation></b>"]))
        return Broken("an attack", file)
    text = file.read_text()
    old = generator.choice([">1<", ">2<", ">20<", ">25<", ">40<", ">30<", ">cat<", ">0<"])
    new = generator.choice(
        ["nan", "inf", "-5", "1e9", "1_0", "", "x", "0", "1000000", "9" * 5000, "1.5", "dog", "\u0663"]
    )
    file.write_text(text.replace(old, f">{new}<"))
    return Broken(f"{old} = {new[:20]!r}", file)


def accept_voc(data: Any, broken: Broken) -> bool:
    return broken.content is not NotImplemented and detection_result_rule(data)


# --- lists of depth maps --------------------------------------------------------------------------


def build_list(folder: Path) -> None:
    images(folder / "sync" / "room", ("a.png", "b.png"))
    for name in ("a", "b"):
        picture(mode="L").save(folder / "sync" / "room" / f"{name}_depth.png")
    (folder / "nyu_train.txt").write_text("/room/a.png /room/a_depth.png 518.8\n/room/b.png /room/b_depth.png 518.8\n")


def corrupt_list(folder: Path, generator: random.Random) -> Broken:
    if generator.random() < 0.5:
        return corrupt_bytes("nyu_train.txt")(folder, generator)
    file = folder / "nyu_train.txt"
    line = generator.choice(
        ["../../../etc/passwd ../../../etc/passwd 1", "/room/a.png", "/room/a.png /missing.png 518", "a\x00b c 1",
         f"{'x/' * 2000}a.png /room/a_depth.png 1", "/room/a.png /../../outside.png 518", "\u2028", "\x0b a"]
    )  # fmt: skip
    file.write_text(file.read_text() + line + "\n")
    return Broken(f"line {line[:40]!r}", file, None if not line.strip() else NotImplemented)


def read_depth_list(folder: Path) -> Any:
    from vitsplit.tasks.depth.layouts import open_depth_set

    return open_depth_set(folder, "train")


def accept_list(data: Any, broken: Broken) -> bool:
    root = broken.file.parent.resolve()
    files = [file for pair in data.items for file in pair]
    return broken.content is not NotImplemented and all(
        file.is_file() and file.resolve().is_relative_to(root) for file in files
    )


# --- questions ------------------------------------------------------------------------------------


def build_questions(folder: Path) -> None:
    images(folder / "images", ("a.png", "b.png"))
    rows = [
        {"image": "a.png", "question": "what is this?", "answer": "noise"},
        {"image": "b.png", "question": "how many?", "answer": 3},
        {"image": None, "question": "two and two?", "answer": "four"},
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def question_rule(row: Any) -> bool:
    def is_text(value: Any) -> bool:
        return isinstance(value, str) or is_number(value)

    if not isinstance(row, dict) or not {"image", "question", "answer"} <= row.keys():
        return False
    return row["image"] in (None, "a.png", "b.png") and is_text(row["question"]) and is_text(row["answer"])


def read_questions(folder: Path) -> Any:
    from vitsplit.tasks.vqa.config import VqaConfig
    from vitsplit.tasks.vqa.samples import open_samples

    return open_samples(folder, "train", VqaConfig(val_every=1000))


def accept_questions(data: Any, broken: Broken) -> bool:
    folder = broken.file.parent.resolve()
    files = [sample.image.resolve() for sample in data.samples if sample.image is not None]
    return (
        broken.content is not NotImplemented
        and (broken.content is None or question_rule(broken.content))
        and all(file.is_relative_to(folder) for file in files)
    )


def build_llava(folder: Path) -> None:
    images(folder / "images", ("a.png",))
    rows = [
        {"id": "7", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat is this?"},
                                                       {"from": "gpt", "value": "Noise."}]},
        {"id": 8, "conversations": [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}]},
    ]  # fmt: skip
    (folder / "train.json").write_text(json.dumps(rows))


def llava_rule(content: Any) -> bool:
    try:
        for row in content:
            texts = [turn["value"] for turn in row["conversations"]]
            who = [turn["from"] for turn in row["conversations"]]
            if not all(isinstance(text, str) or is_number(text) for text in texts):
                return False
            if who[:1] != ["human"]:
                who, texts = who[1:], texts[1:]
            if len(who) < 2 or who != ["human", "gpt"] * (len(who) // 2):
                return False
            if row.get("image") not in (None, "a.png"):
                return False
        return isinstance(content, list) and bool(content)
    except (TypeError, KeyError, AttributeError):
        return False


def accept_llava(data: Any, broken: Broken) -> bool:
    return broken.content is not NotImplemented and (broken.content is None or llava_rule(broken.content))


# --- images ---------------------------------------------------------------------------------------

KINDS = ("a.png", "a.jpg", "a.bmp", "a.tif", "a.webp", "a.ppm")


def build_images(folder: Path) -> None:
    for name in KINDS:
        picture().save(folder / name)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(out) (w) file pop\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'


def corrupt_image(folder: Path, generator: random.Random) -> Broken:
    file = folder / generator.choice(KINDS)
    kind = generator.random()
    if kind < 0.1:
        file.write_bytes(generator.choice([POSTSCRIPT, SVG]))
        return Broken("not a format for photographs", file, NotImplemented)
    if kind < 0.2:
        width = generator.choice([20_000, 60_000, 2**31 - 1])
        header = bytearray(file.read_bytes())
        if file.suffix == ".png":
            import zlib

            header[16:24] = width.to_bytes(4, "big") * 2
            header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
        elif file.suffix == ".bmp":
            header[18:26] = width.to_bytes(4, "little") * 2
        elif file.suffix == ".ppm":
            header[: header.index(b"255")] = f"P6\n{width} {width}\n".encode()
        else:
            return corrupt_bytes(file.name)(folder, generator)
        file.write_bytes(bytes(header))
        return Broken(f"{width} pixels a side, says its header", file, NotImplemented)
    return corrupt_bytes(file.name)(folder, generator)


def read_images(folder: Path) -> Any:
    from vitsplit.data.images import read_image

    return {file: read_image(file) for file in sorted(folder.iterdir())}


def accept_image(found: Any, broken: Broken) -> bool:
    """A change may leave an image whole; a decoder then gives what Pillow gives by itself."""
    if broken.content is NotImplemented:
        return False
    with Image.open(io.BytesIO(broken.file.read_bytes())) as image:
        array_HWC = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return np.array_equal(found[broken.file].permute(1, 2, 0).numpy(), array_HWC)


def build_masks(folder: Path) -> None:
    images(folder / "images" / "train", ("a.png", "b.png"))
    (folder / "masks" / "train").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        picture(mode="P").save(folder / "masks" / "train" / name)
    (folder / "classes.json").write_text(json.dumps(["one", "two", "three"]))


def corrupt_masks(folder: Path, generator: random.Random) -> Broken:
    file = folder / "masks" / "train" / "a.png"
    kind = generator.randrange(6)
    if kind == 0:
        Image.fromarray(np.full(SIZE[::-1], 77, dtype=np.uint8)).save(file)
        return Broken("a value that is no class", file, NotImplemented)
    if kind == 1:
        picture(3).save(file)
        return Broken("colours", file, NotImplemented)
    if kind == 2:
        Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(file)
        return Broken("another size", file, NotImplemented)
    return corrupt_bytes("masks/train/a.png", "masks/train/b.png", "classes.json")(folder, generator)


def read_masks(folder: Path) -> Any:
    from vitsplit.tasks.segmentation.data import load_mask
    from vitsplit.tasks.segmentation.layouts import open_segmentation_set

    data = open_segmentation_set(folder, "train")
    from vitsplit.data.images import read_image
    from vitsplit.tasks.segmentation.data import require_same_size

    masks = []
    for image, mask in data.items:
        mask_HW = load_mask(mask, data.labels)
        require_same_size(read_image(image).shape[-2:], mask_HW, image, mask)
        masks.append(mask_HW)
    return masks


def accept_masks(masks: Any, broken: Broken) -> bool:
    values = {int(value) for mask_HW in masks for value in mask_HW.unique()}
    return broken.content is not NotImplemented and values <= {0, 1, 2, 255}


def build_depth_maps(folder: Path) -> None:
    values_HW = np.random.default_rng(0).uniform(1, 5, SIZE[::-1]).astype(np.float32)
    np.save(folder / "a.npy", values_HW)
    Image.fromarray(values_HW).save(folder / "a.tif")
    Image.fromarray((values_HW * 1000).astype(np.uint16)).save(folder / "a.png")


def corrupt_depth_map(folder: Path, generator: random.Random) -> Broken:
    if generator.random() < 0.4:
        file = folder / "a.npy"
        header = generator.choice([
            {"descr": "|O", "fortran_order": False, "shape": (30, 40)},
            {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)},
            {"descr": "<f4", "fortran_order": False, "shape": (-30, -40)},
            {"descr": "<c8", "fortran_order": False, "shape": (30, 40)},
            {"descr": "<U9", "fortran_order": False, "shape": (30, 40)},
            {"descr": "<f4", "fortran_order": False, "shape": ()},
        ])  # fmt: skip
        text = repr(header).encode().ljust(117) + b"\n"
        file.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4800))
        return Broken(f"header {header}", file, NotImplemented)
    return corrupt_bytes("a.npy", "a.tif", "a.png")(folder, generator)


def read_depth_maps(folder: Path) -> Any:
    from vitsplit.tasks.depth.files import read_values

    return {file: read_values(file) for file in sorted(folder.iterdir())}


def accept_depth_map(found: Any, broken: Broken) -> bool:
    values_HW = found[broken.file]
    return broken.content is not NotImplemented and values_HW.ndim == 2 and values_HW.dtype.kind in "uif"


# --- bundles --------------------------------------------------------------------------------------


def build_bundle(task: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        import shutil

        shutil.copytree(_good_bundle(task), folder, dirs_exist_ok=True)

    return build


_BUNDLES: dict[str, Path] = {}


def _good_bundle(task: str) -> Path:
    import tempfile

    import bundles

    if task not in _BUNDLES:
        write = getattr(bundles, f"write_{task}_bundle")
        _BUNDLES[task] = write(Path(tempfile.mkdtemp(prefix="vitsplit-good-")) / task)
    return _BUNDLES[task]


MOST = {
    **dict.fromkeys(("crop_size", "image_scale", "test_stride", "train_sides", "anchor_sizes", "border"), 1e5),
    **dict.fromkeys(("test_scales", "scale_range", "rotate"), 1e3),
    **dict.fromkeys(("num_tuned_layers", "num_prior_layers", "first_prior_layer", "prior_layers"), 1e3),
    **dict.fromkeys(("max_class_ratio", "flip", "photometric", "dropout", "rotate_share"), 1),
    **dict.fromkeys(("color_share", "colour_share"), 1),
    **dict.fromkeys(("score_threshold", "nms_threshold", "ema", "drop_path"), 1),
    **dict.fromkeys(("pyramid_width", "max_detections", "sampled_proposals", "batch_size"), 1e5),
}
"""The largest values of settings that decide what memory and time a card asks for, or that are shares."""
PATHS = (("backbone", "weights"), ("loop", "cache_folder"))
"""Settings that name something to be opened: no card is followed there."""


def card_rule(old: Any, new: Any, at: tuple[str, ...] = ()) -> bool:
    """Whether a changed card can be accepted: values of the same type and of a plausible size."""
    if at[:1] == ("metrics",):
        return True
    if isinstance(old, dict):
        if not isinstance(new, dict) or new.keys() - old.keys():
            return at == () and isinstance(new, dict) and new.keys() >= old.keys()
        return all(key not in new or card_rule(old[key], new[key], (*at, key)) for key in old)
    if isinstance(old, list):
        return isinstance(new, list) and all(card_rule(old[0] if old else item, item, at) for item in new)
    if old is None or new is None:
        return isinstance(new, NoneType | str | int | float | list)
    if isinstance(old, bool) or isinstance(new, bool):
        return type(old) is type(new)
    if isinstance(old, int | float):
        return is_number(new, -1, MOST.get(at[-1], 1e12))
    return isinstance(new, str) and len(new) <= 4096


def accept_bundle(found: Any, broken: Broken) -> bool:
    predictor, values = found
    good = json.loads((_good_bundle(predictor.card.task) / "head.json").read_text())
    if any(getattr(getattr(predictor.card.config, part), name) is not None for part, name in PATHS):
        return False
    return broken.content is not NotImplemented and card_rule(good, broken.content) and values


def read_bundle(folder: Path) -> Any:
    import torch

    from vitsplit.inference.predictor import load_head

    predictor = load_head(folder, device="cpu")
    output, _ = predictor.forward(torch.full((1, 3, 48, 64), 100, dtype=torch.uint8))
    tensors = [output] if isinstance(output, torch.Tensor) else []
    return predictor, all(bool(tensor.isfinite().all()) for tensor in tensors)


def corrupt_weights(folder: Path, generator: random.Random) -> Broken:
    import torch

    file = folder / "head.safetensors"
    if generator.random() < 0.4:
        content = file.read_bytes()
        head = 8 + int.from_bytes(content[:8], "little")
        if generator.random() < 0.7:  # in the header, where every byte counts
            changed, what = changed_bytes(content[:head], generator)
            file.write_bytes(changed + content[head:])
        else:
            cut = generator.randrange(len(content))
            file.write_bytes(content[:cut])
            what = f"cut at {cut}"
        return Broken(what, file)
    if generator.random() < 0.1:
        return Broken(not_a_file(file, generator), file, NotImplemented)
    state = load_file(file)
    name = generator.choice(sorted(name for name, tensor in state.items() if tensor.is_floating_point()))
    tensor = state[name]
    match generator.randrange(9):
        case 0:
            tensor.view(-1)[0], what = math.nan, "NaN"
        case 1:
            tensor.view(-1)[-1], what = -math.inf, "an infinity"
        case 2:
            state[name], what = tensor.long(), "integers"
        case 3:
            state[name], what = tensor.to(torch.complex64), "complex numbers"
        case 4:
            state[name], what = tensor[None].contiguous(), "one more dimension"
        case 5:
            del state[name]
            what = "missing"
        case 6:
            state["surplus"], what = tensor.clone(), "a surplus tensor"
        case 7:
            state[name], what = tensor.bool(), "booleans"
        case _:
            state[name], what = torch.cat([tensor.view(-1)] * 3), "another size"
    save_file(state, file)
    return Broken(f"{name}: {what}", file, NotImplemented)


def accept_weights(found: Any, broken: Broken) -> bool:
    return broken.content is not NotImplemented and found[1]


# --- checkpoints of backbones ------------------------------------------------------------


def build_checkpoint(folder: Path) -> None:
    import shutil

    shutil.copytree(_good_checkpoints(), folder, dirs_exist_ok=True)


@functools.cache
def _good_checkpoints() -> Path:
    import tempfile

    import timm
    import torch

    folder = Path(tempfile.mkdtemp(prefix="vitsplit-good-"))
    torch.manual_seed(0)
    state = timm.create_model("vit_tiny_patch16_224", depth=12).state_dict()
    state = {name: tensor.half() for name, tensor in state.items()}
    torch.save(state, folder / "model.pth")
    save_file(state, folder / "model.safetensors")
    return folder


def corrupt_checkpoint(folder: Path, generator: random.Random) -> Broken:
    file = folder / generator.choice(["model.pth", "model.safetensors"])
    if generator.random() < 0.2:
        return Broken(not_a_file(file, generator), file, NotImplemented)
    content = file.read_bytes()
    if generator.random() < 0.2:
        file.write_bytes(content[: generator.randrange(len(content) - 100_000)])
        return Broken("cut", file, NotImplemented)
    # Where names, shapes and code stand: at the beginning, in an archive at the end too.
    ends = [slice(0, 20_000), slice(len(content) - 20_000, len(content))][: 2 if file.suffix == ".pth" else 1]
    part = generator.choice(ends)
    changed, what = changed_bytes(content[part], generator)
    file.write_bytes(content[: part.start] + changed + content[part.stop :])
    return Broken(what, file)


def read_checkpoint(folder: Path) -> Any:
    from vitsplit.backbone import load_backbone

    return [load_backbone("vit_tiny_patch16_224", weights=file) for file in sorted(folder.iterdir())]


def accept_checkpoint(found: Any, broken: Broken) -> bool:
    """Changed values are another model with another hash; they must be finite."""
    finite = all(bool(tensor.isfinite().all()) for each in found for tensor in each.parameters())
    return broken.content is not NotImplemented and finite


# --- settings and runs ----------------------------------------------------------------------------


def build_settings(folder: Path) -> None:
    from vitsplit.recipes import recipe
    from vitsplit.saved_config import config_to_dict

    (folder / "config.json").write_text(json.dumps(config_to_dict(recipe("laptop-segmentation"))))


def read_settings(folder: Path) -> Any:
    from vitsplit.recipes.starting_point import starting_config

    return starting_config("segmentation", config_file=folder / "config.json")


def accept_settings(config: Any, broken: Broken) -> bool:
    from vitsplit.recipes import recipe
    from vitsplit.saved_config import config_to_dict

    good = json.loads(json.dumps(config_to_dict(recipe("laptop-segmentation"))))
    return broken.content is not NotImplemented and card_rule(good, broken.content) and set(broken.content) <= set(good)


def build_state(folder: Path) -> None:
    content = {
        "step": 12, "seconds": 3.5, "evaluated": 6, "finished": False, "window": {"loss": 1.5}, "window_steps": 2,
        "standings": {"depth": {"best_score": 0.5, "best_step": 6, "best_metrics": {"miou": 0.5}, "last_score": 0.5,
                           "last_metrics": {"miou": 0.5}, "score_name": "miou", "without_gain": 0}},
        "loss_scale": {}, "samples": 23, "processes": 1, "backbone_hash": "ab" * 32, "description": {"classes": ["a"]},
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(content))


def state_rule(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    whole = all(is_int(content.get(key, 0), 0, 1e15) for key in ("step", "evaluated", "window_steps", "samples"))
    seconds = content.get("seconds", 0)
    objects = all(
        isinstance(content.get(key, {}), dict) for key in ("window", "standings", "loss_scale", "description")
    )
    return whole and is_number(seconds, 0) and objects and is_int(content.get("processes", 1), 1, 1e6)


def read_run_state(folder: Path) -> Any:
    from vitsplit.engine.checkpoint import read_state

    return read_state(folder, ["depth"])


def accept_state(_: Any, broken: Broken) -> bool:
    return broken.content is not NotImplemented and state_rule(broken.content)


def build_metrics(folder: Path) -> None:
    rows = [
        {"step": 1, "loss": 2.5, "lr": 1e-3},
        {"step": 1, "eval": {"miou": 0.1}},
        {"step": 2, "loss": None, "lr": 1e-3},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(folder: Path) -> Any:
    from vitsplit.engine.run_folder import RunFolder

    run = RunFolder(folder)
    run.truncate_metrics(5)
    return list(run.read_metrics())


def accept_metrics(_: Any, broken: Broken) -> bool:
    row = broken.content
    return row is None or (isinstance(row, dict) and is_int(row.get("step"), 0, 1e15))


def build_results(folder: Path) -> None:
    images(folder, ("a.png",))
    width, height = SIZE
    entries = [
        {"image_id": "a", "category_id": 2, "category": "cup", "bbox": [1.0, 2.0, 10.5, 8.0], "score": 0.9},
        {"image_id": "a", "category_id": 9, "category": "lamp", "bbox": [0.0, 0.0, 20.0, 30.0], "score": 1,
         "segmentation": {"size": [height, width], "counts": compressed([0, 600, 600])}},
    ]  # fmt: skip
    (folder / "a_detections.json").write_text(json.dumps(entries))


def read_labels(folder: Path) -> Any:
    from vitsplit.inference.label_tools.images import HeadLabels, LabeledImage
    from vitsplit.tasks.detection.prediction import read_results

    labels = HeadLabels("things", ("cup", "lamp"), ("#c81e1e", "#1e1ec8"), (2, 9), True, 0.5)
    return list(LabeledImage(folder / "a.png", "a.png", folder / "a_detections.json", read_results, labels).regions())


def accept_labels(_: Any, broken: Broken) -> bool:
    try:
        return isinstance(broken.content, list) and all(map(_labels_rule, broken.content))
    except (TypeError, KeyError, AttributeError):
        return False


def _labels_rule(entry: Any) -> bool:
    if not is_int(entry["category_id"]) or entry["category_id"] not in (2, 9) or not is_number(entry["score"], 0, 1):
        return False
    box, shape = entry.get("bbox"), entry.get("segmentation")
    if entry["score"] < 0.5:
        return True
    if shape is not None:
        return isinstance(shape, dict) and _runs_rule(shape, *SIZE)
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) and min(box[2:]) >= 0


def build_log(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "victim.png").write_text("not to be touched")
    rows = [
        {"bundles": {"segmentation": "ab" * 32}},
        {"name": "a", "input": "a.jpg", "bytes": 7, "modified_ns": 9, "files": ["a_mask.png", "a_overlay.jpg"]},
        {"name": "b", "input": "b.jpg", "bytes": 7, "modified_ns": 9, "files": ["b_mask.png"]},
    ]
    (folder / "out" / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def corrupt_log(folder: Path, generator: random.Random) -> Broken:
    file = folder / "out" / "predictions.jsonl"
    if generator.random() < 0.25:
        return corrupt_bytes("out/predictions.jsonl")(folder, generator)
    lines = file.read_text().splitlines()
    if generator.random() < 0.4:
        row = json.loads(lines[1])
        row["files"] = [generator.choice(["../victim.png", str(folder / "victim.png"), "a/../../victim.png", ""])]
        lines[1] = json.dumps(row)
        file.write_text("\n".join(lines) + "\n")
        return Broken(f"files {row['files']}", file, NotImplemented)
    place = generator.randrange(1, len(lines))
    lines[place], value, what = changed_json(json.loads(lines[place]), generator)
    file.write_text("\n".join(lines) + "\n")
    return Broken(what, file, value)


def read_log(folder: Path) -> Any:
    from vitsplit.inference.prediction_log import PredictionLog

    log = PredictionLog(folder / "out", {"bundles": {"segmentation": "cd" * 32}}, overwrite=True)
    try:
        log.begin()
    finally:
        log.close()
        assert (folder / "victim.png").read_text() == "not to be touched"
    return True


def accept_log(_: Any, broken: Broken) -> bool:
    if broken.content is NotImplemented:
        # The end of a command that was killed is dropped; that is no reason to refuse the folder.
        return False
    if broken.content is None:
        return True
    row = broken.content
    files = row.get("files") if isinstance(row, dict) else None
    return isinstance(files, list) and all(is_name(name) for name in files)


BUNDLE = ("head.safetensors", "case")
"""What an error may name in place of a card: the weights that do not fit it, or the folder of both."""
AREAS = (
    Area("classes", 120, build_classes, corrupt_json("classes.json"), read_classes,
         lambda _, broken: broken.content is not NotImplemented and classes_rule(broken.content)),
    Area("depth scale", 40, build_scale, corrupt_json("depth.json"), read_scale,
         lambda _, broken: broken.content is not NotImplemented and scale_rule(broken.content)),
    Area("coco", 200, build_coco, corrupt_json("annotations/train.json"), read_detection, accept_coco, ("train.json",)),
    Area("yolo", 80, build_yolo, corrupt_yolo, read_detection, accept_yolo, ("data.yaml", "labels", "classes.json")),
    Area("voc", 80, build_voc, corrupt_voc, read_detection, accept_voc,
         ("Annotations", "train.txt", "a.xml", "b.xml", "classes.json")),
    Area("depth lists", 40, build_list, corrupt_list, read_depth_list, accept_list),
    Area("questions", 80, build_questions, corrupt_lines("train.jsonl"), read_questions, accept_questions),
    Area("conversations", 80, build_llava, corrupt_json("train.json"), read_questions, accept_llava),
    Area("images", 120, build_images, corrupt_image, read_images, accept_image),
    Area("masks", 60, build_masks, corrupt_masks, read_masks, accept_masks),
    Area("depth maps", 60, build_depth_maps, corrupt_depth_map, read_depth_maps, accept_depth_map),
    Area("segmentation cards", 60, build_bundle("segmentation"), corrupt_json("head.json"), read_bundle, accept_bundle,
         BUNDLE),
    Area("depth cards", 40, build_bundle("depth"), corrupt_json("head.json"), read_bundle, accept_bundle, BUNDLE),
    Area("detection cards", 40, build_bundle("detection"), corrupt_json("head.json"), read_bundle, accept_bundle,
         BUNDLE),
    Area("weights", 60, build_bundle("segmentation"), corrupt_weights, read_bundle, accept_weights),
    Area("checkpoints", 24, build_checkpoint, corrupt_checkpoint, read_checkpoint, accept_checkpoint),
    Area("settings", 80, build_settings, corrupt_json("config.json"), read_settings, accept_settings),
    Area("states of runs", 80, build_state, corrupt_json("state.json"), read_run_state, accept_state, ("checkpoint",)),
    Area("logs of training", 60, build_metrics, corrupt_lines("metrics.jsonl"), read_metrics, accept_metrics),
    Area("detections of images", 80, build_results, corrupt_json("a_detections.json"), read_labels, accept_labels),
    Area("logs of predictions", 60, build_log, corrupt_log, read_log, accept_log),
)  # fmt: skip
