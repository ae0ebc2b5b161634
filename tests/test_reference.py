"""Public names, which are those of the reference, document their arguments, results, errors, shapes and an example."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from vitsplit import errors
from vitsplit.config import Settings

PAGES = sorted((Path(__file__).parents[1] / "docs" / "reference").glob("*.md"))
DIRECTIVE = re.compile(r"^\.\. auto(function|class|module):: (\S+)\n((?:   :.*\n)*)", flags=re.MULTILINE)
SHAPE, DTYPE = re.compile(r"\((?:[A-Zh0-9][\w, *]*)?\)"), re.compile(r"\b(uint8|int64|float32|float64|bool)\b")
UNIT = re.compile(r"\b(RGB|pixels|meters|class \w+|probab\w+|in 0..1|0 to 2|features|tokens|without unit|bool)\b")


def find(path: str) -> Any:
    """The object of a dotted path."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        return functools.reduce(getattr, parts[count:], module)
    raise AssertionError(path)


def public() -> Iterator[tuple[str, Any]]:
    """Functions, classes and their public methods and properties, by dotted path."""
    for page in PAGES:
        for kind, path, options in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            found = find(path)
            if kind == "module":
                own = {f"{path}.{name}": value for name, value in vars(found).items() if name[0] != "_"}
                yield from (each for each in own.items() if getattr(each[1], "__module__", "") == path)
                continue
            yield path, found
            if ":members:" in options:
                for name, member in vars(found).items():
                    if not isinstance(member, FunctionType | classmethod | property):
                        continue
                    if name[0] != "_" or (name == "__call__" and "__call__" in options):
                        yield f"{path}.{name}", member


def own_signature(found: Any) -> tuple[Any, inspect.Signature]:
    """A function, or the written constructor of a class, and its signature without ``self``; None if there is none."""
    if inspect.isclass(found):
        found = vars(found).get("__init__")
    found = getattr(found, "__func__", found)
    if not inspect.isfunction(found) or found.__module__.partition(".")[0] != "vitsplit":
        return None, inspect.Signature()
    try:
        inspect.getsource(found)
    except OSError:  # the constructor of a dataclass
        return None, inspect.Signature()
    signature = inspect.signature(found)
    others = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    return found, signature.replace(parameters=others)


def sections(found: Any) -> dict[str, str]:
    """The sections of a docstring in Google's style; the text before them has the empty name."""
    text = inspect.getdoc(found) or ""
    headings = r"^(Args|Returns|Yields|Raises|Attributes|Example):\n"
    before, *parts = re.split(headings, text, flags=re.MULTILINE)
    return {"": before} | {name: textwrap.dedent(part) for name, part in zip(parts[::2], parts[1::2], strict=True)}


def entries(section: str) -> dict[str, str]:
    """The entries of a section by name; of ``A, B: ...``, both."""
    found = re.findall(r"^([\w*, ]+): (.*?)(?=^\S|\Z)", section, flags=re.MULTILINE | re.DOTALL)
    return {name.strip("* "): text for names, text in found for name in names.split(",")}


def raised(function: Any) -> set[str]:
    """Errors of vitsplit that the body of a function raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = {ast.unparse(each.exc) for each in ast.walk(tree) if isinstance(each, ast.Raise) and each.exc}
    return {name for name in (each.partition("(")[0].rpartition(".")[2] for each in found) if hasattr(errors, name)}


def lacks_array(annotation: Any, text: str) -> bool:
    """Whether an annotation is an array, and its text does not give shape, data type and unit."""
    is_array = re.search(r"\b(Tensor|NDArray)\b", str(annotation)) is not None
    return is_array and not (SHAPE.search(text) and DTYPE.search(text) and UNIT.search(text))


def problems(found: Any) -> Iterator[str]:
    """What the documentation of a public name lacks."""
    told = sections(found)
    if not told[""].strip():
        yield "description"
    arrays: list[tuple[str, Any, str]] = []
    function, signature = own_signature(found)
    if function is not None:
        arguments, known = entries(told.get("Args", "")), entries(told.get("Raises", ""))
        yield from (f"argument {name}" for name in signature.parameters if name not in arguments)
        arrays += [(name, each.annotation, arguments.get(name, "")) for name, each in signature.parameters.items()]
        if signature.return_annotation not in ("None", "NoReturn", inspect.Signature.empty):
            if signature.parameters and not told.keys() & {"Returns", "Yields"}:
                yield "result"
            arrays.append(("result", signature.return_annotation, told.get("Returns", told.get("Yields", ""))))
        for name in raised(function):
            if not any(base.__name__ in known for base in getattr(errors, name).__mro__):
                yield f"error {name}"
    if isinstance(found, property):
        arrays.append(("value", inspect.signature(found.fget).return_annotation, told[""]))
    if dataclasses.is_dataclass(found) and not issubclass(found, Settings):
        attributes = entries(told.get("Attributes", ""))
        fields = dataclasses.fields(found)
        yield from (f"attribute {each.name}" for each in fields if each.name not in attributes)
        arrays += [(each.name, each.type, attributes.get(each.name, "")) for each in fields]
    yield from (f"shape, data type or unit: {name}" for name, *array in arrays if lacks_array(*array))
    # The example of a method is that of its class; those of settings and recipes are those of `train`.
    takes_arguments = bool(signature.parameters) or dataclasses.is_dataclass(found)
    is_method = (inspect.isfunction(found) and "." in found.__qualname__) or isinstance(found, classmethod | property)
    is_settings = inspect.isclass(found) and issubclass(found, Settings)
    if takes_arguments and not is_method and not is_settings and "Example" not in told:
        yield "example"


@pytest.mark.parametrize(("path", "found"), [pytest.param(*each, id=each[0]) for each in public()])
def test_public_names_document_what_they_take_return_and_raise(path: str, found: Any) -> None:
    assert list(problems(found)) == []


def test_missing_documentation_is_found() -> None:
    def predict(image_BCHW: Tensor, scale: float) -> NDArray[np.float32]:
        """Predicts.

        Args:
            image_BCHW: Images.
        """
        raise errors.DataError("...")

    predict.__module__ = "vitsplit.test"
    predict.__qualname__ = "predict"
    arrays = ["shape, data type or unit: image_BCHW", "shape, data type or unit: result"]
    assert sorted(problems(predict)) == sorted(["argument scale", "result", "error DataError", "example", *arrays])
