import json
import time

import pytest

from vitsplit.data.classes import ClassList, default_colors, read_classes, suggest_classes
from vitsplit.errors import DataError


def write(tmp_path, content):
    path = tmp_path / "classes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def message(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_classes(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_list_of_names(tmp_path):
    scheme = read_classes(write(tmp_path, ["sky", "road"]))
    assert scheme.classes.names == ("sky", "road")
    assert scheme.lookup[[0, 1, 2, 254, 255]].tolist() == [0, 1, -1, -1, 255]


def test_colors_as_triples_and_as_hex(tmp_path):
    scheme = read_classes(write(tmp_path, {"names": ["a", "b"], "colours": [[1, 2, 3], "#ff8000"]}))
    assert scheme.classes.colors == ((1, 2, 3), (255, 128, 0))


def test_labels_merge_and_ignore(tmp_path):
    labels = {"3": "road", "7": "road", "1000": "sky", "0": "ignore"}
    lookup = read_classes(write(tmp_path, {"names": ["sky", "road"], "labels": labels})).lookup
    assert [lookup[value] for value in (3, 7, 1000, 0, 255)] == [1, 1, 0, 255, 255]
    assert sorted(set(range(len(lookup))) - {value for value in range(len(lookup)) if lookup[value] < 0}) == [
        0, 3, 7, 255, 1000,
    ]  # fmt: skip


def test_label_255_can_be_a_class(tmp_path):
    lookup = read_classes(write(tmp_path, {"names": ["no", "yes"], "labels": {"0": "no", "255": "yes"}})).lookup
    assert lookup[0] == 0 and lookup[255] == 1


def test_mask_colors_map_to_classes(tmp_path):
    content = {"names": ["sky"], "mask_colours": {"#000000": "ignore", "#4682b4": "sky"}}
    assert read_classes(write(tmp_path, content)).mask_colors == {(0, 0, 0): 255, (70, 130, 180): 0}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('["sky", ]', "not valid JSON"),
        ([], "empty"),
        ({"classes": ["a"]}, '"names"'),
        ("3", '"names"'),
        (["sky", "sky"], "class 'sky'"),
        (["sky", " "], "empty name"),
        ([1, 2], "list of strings"),
        ([str(k) for k in range(256)], "256 classes"),
        ({"names": ["a", "b"], "colours": [[0, 0, 0]]}, "1 colors for 2 classes"),
        ({"names": ["a"], "colours": [[0, 0, 256]]}, "[0, 0, 256] is not a color"),
        ({"names": ["a"], "colours": ["#00zz00"]}, "not a color"),
        ({"names": ["a"], "labels": {"1": "b"}}, "'b'"),
        ({"names": ["a"], "labels": {"one": "a"}}, "'one'"),
        ({"names": ["a"], "labels": {"1": "ignore"}}, "ignores everything"),
        ({"names": ["a"], "lables": {"1": "a"}}, "'lables'"),
        ({"names": ["a"], "labels": {"1": "a"}, "mask_colours": {"#000000": "a"}}, "Give one of them"),
        ('{"names": ["a"], "labels": {"1": "a", "1": "ignore"}}', "'1'"),
    ],
)
def test_broken_files_are_named_with_the_reason(tmp_path, content, expected):
    assert expected in message(tmp_path, content)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="not found"):
        read_classes(tmp_path / "classes.json")


def test_255_classes_are_possible():
    assert len(ClassList(tuple(map(str, range(255))))) == 255


def test_suggestion_can_be_saved_and_read(tmp_path):
    for values in ([0, 1, 2, 255], [3, 7, 255]):
        lookup = read_classes(write(tmp_path, suggest_classes(values))).lookup
        assert [lookup[value] for value in values] == [*range(len(values) - 1), 255]
    scheme = read_classes(write(tmp_path, suggest_classes([], ["#000000", "#ffffff"])))
    assert scheme.mask_colors == {(0, 0, 0): 0, (255, 255, 255): 1}


def test_default_colors_are_distinct_and_do_not_depend_on_the_count():
    colors = default_colors(255)
    assert colors[:7] == default_colors(7)
    assert len(set(colors)) == 255
    assert all(0 <= part <= 255 for color in colors for part in color)
    near = min(
        sum(abs(x - y) for x, y in zip(a, b, strict=True)) for i, a in enumerate(colors[:20]) for b in colors[:i]
    )
    assert near > 40


@pytest.mark.parametrize(
    "color", ["#-12345", "#+12345", "#1_2345", "# 12345", "#12345", "#1234567", "#١٢٣٤٥٦", 7, True]
)
def test_nonstandard_numbers_are_rejected_as_colors(tmp_path, color):
    assert "is not a color" in message(tmp_path, {"names": ["a"], "colours": [color]})
    if isinstance(color, str):
        assert "is not a color" in message(tmp_path, {"names": ["a"], "mask_colours": {color: "a"}})


@pytest.mark.parametrize("key", ["-1", "+1", "1_0", "\u0661", " 1", "1.0", "65536", "9" * 5000, ""])
def test_nonstandard_numbers_are_rejected_as_mask_values(tmp_path, key):
    text = message(tmp_path, {"names": ["a"], "labels": {key: "a"}})
    assert "Keys are mask values" in text and len(text) < 1000


@pytest.mark.parametrize(
    "content",
    [
        {"names": ["a"], "labels": {"1": ["a"]}},
        {"names": ["a"], "labels": {"1": None}},
        {"names": ["a"], "labels": {"1": "a", "01": "ignore"}},
        {"names": ["a"], "mask_colours": {"#ff0000": "a", "#FF0000": "ignore"}},
        {"names": ["a"], "colours": False},
        {"names": ["a"], "colours": {}},
        {"names": ["a\nb"]},
        {"names": ["a\x1b[31m"]},
        ["a" * 2000],
        '["\\ud800"]',
    ],
)
def test_values_of_the_wrong_type_are_rejected(tmp_path, content):
    text = message(tmp_path, content)
    assert "classes.json" in text and len(text) < 1000


def test_many_classes_are_rejected_in_linear_time(tmp_path):
    names = [f"class {k}" for k in range(30_000)]
    for content in (
        names,
        {"names": names, "colours": [[0, 0, 0]] * 30_000},
        {"names": names, "labels": {"1": "class 1"}},
    ):
        begun = time.perf_counter()
        text = message(tmp_path, content)
        assert time.perf_counter() - begun < 2.0  # comparing all pairs of keys or names takes minutes
        assert "30000 classes" in text and "255" in text and len(text) < 1000
