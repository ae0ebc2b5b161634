"""Flags, made by tyro: of a settings class one for each field, of a function one for each parameter."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import logging
import re
import textwrap
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from vitsplit.cli.words import list_of, split_by_name, value_of, with_current_names
from vitsplit.config import Settings, checked, former_names, kind_of, override, settings_of
from vitsplit.config_errors import describe_ranges, field_kinds, flag_of, marks, settings_kind
from vitsplit.engine.override import warn_of_another_method, with_method
from vitsplit.errors import ConfigError
from vitsplit.files import shown
from vitsplit.heads import changed
from vitsplit.methods import METHODS
from vitsplit.train_config import TrainConfig

logger = logging.getLogger("vitsplit")

ConfigT = TypeVar("ConfigT")


_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)


@dataclass(frozen=True)
class FromWords:
    """Marks a parameter of a verb whose value, or default, is made from all words of the command line.

    Settings that are made from words are the defaults of their fields' flags: ``config: Annotated[TrainConfig,
    FromWords(recipe_of)]`` gives a verb the flags of a recipe that is named on the same line. What is made and is no
    settings class is the parameter's value, and no flag. Several settings, as a tuple, are each changed by the flags.

    Attributes:
        make: From the words after the verb.
        in_help: Whether it is a text that stands under the description in ``--help``.
    """

    make: Callable[[Sequence[str]], Any]
    in_help: bool = False


@dataclass(frozen=True)
class OfMethods:
    """Marks a parameter that receives, by method, the flags that only methods other than the settings' have.

    Attributes:
        usual: The methods that are compared where ``--methods`` does not name them.
    """

    usual: tuple[str, ...]


@dataclass(frozen=True)
class Prefixed:
    """Marks a parameter that receives the flags with a name before them (``--depth.lr 3e-4``), by that name."""


def from_flags(base: ConfigT, argv: Sequence[str], *, prog: str = "vitsplit", prefix: str = "") -> ConfigT:
    """The settings with some changed by flags: ``--lr 1e-4 --crop-size 448 448 --no-task-head --depth.lr 3e-4``.

    With ``--help`` all flags are printed with the values of ``base``, and the process ends with status 0. A flag that
    does not exist, or a value of a wrong type, ends it with status 2 and a message.

    Args:
        base: Where the settings that are not named come from. Of a run's configuration, a flag is that of all heads, or
            with a head's name before it that of one.
        argv: Flags and their values.
        prog: The command as it was called, for help and errors.
        prefix: What stood before the flags' names, such as ``depth.``, for errors.

    Raises:
        ConfigError: A value is out of its range; names the flag.
    """

    def read(settings: Any, words: Sequence[str]) -> Any:
        settings, words = _with_chosen_method(settings, words)
        form = _form(settings, with_help=_asks_for_help(words))
        words = with_current_names(words, former_names(kind_of(settings)))
        filled = tyro.cli(type(form), default=form, args=words, prog=prog, description="", config=_STYLE)
        try:
            return override(settings, _filled(form, filled))
        except ConfigError as error:
            raise ConfigError(str(error).replace("--", f"--{prefix}", 1)) from None

    config: ConfigT = _read(base, argv, read, prog)
    return config


def call_with_flags(function: Callable[..., Any], argv: Sequence[str], *, prog: str) -> Any:
    """Calls a function with arguments from the command line, and returns its result.

    Every parameter is a flag with the help of the docstring's ``Args``, positional-only ones are positional, and a
    parameter that is a settings class is one flag for each of its fields.

    Args:
        function: Its parameters may carry ranges (``Annotated[int, Field(ge=1)]``), ``FromWords`` and ``Prefixed``.
        argv: The words after the command.
        prog: The command, for help and errors.

    Raises:
        ConfigError: A value is out of its range; names the flag. Otherwise what the function raises.
    """
    kinds = get_type_hints(function, include_extras=True)
    plain, given, words = [], {}, list(argv)
    description, settings = [_description(function)], ""
    for name, parameter in inspect.signature(function).parameters.items():
        mark = next((each for each in marks(kinds[name]) if isinstance(each, FromWords | Prefixed | OfMethods)), None)
        if isinstance(mark, FromWords):
            given[name] = mark.make(argv)
            description += [given[name]] * mark.in_help
            settings = name if isinstance(given[name], Settings | tuple) and given[name] else settings
        elif isinstance(mark, Prefixed):
            given[name] = split_by_name(argv)
            words = given[name].pop("", [])
        elif isinstance(mark, OfMethods):
            names = [label.partition(":")[0] for label in list_of(argv, "--methods") or mark.usual]
            given[name] = {}
            if settings:
                flat = given[settings].flat(*given[settings].heads)
                words, given[name] = split_by_method(flat, words, names)
        else:
            plain.append(parameter.replace(annotation=kinds[name]))
    text = "\n\n".join(filter(None, description))
    arguments: list[Any] = []

    def read(base: Any, words: Sequence[str]) -> Any:
        """Reads all words, those of the function's own parameters too."""
        base, words = _with_chosen_method(base, words, _flag_names(plain))
        form = None if base is None else _form(base, _flag_names(plain), with_help=_asks_for_help(words))
        verb = _signed(function, plain, {} if form is None else {settings: form})
        former = {} if base is None else former_names(kind_of(base))
        words = with_current_names(words if base is not None else _names_first(words, plain), former)
        args, kwargs = tyro.cli(verb, args=words, prog=prog, config=_STYLE, description=text)
        filled = kwargs.pop(settings, None)
        arguments[:] = args, kwargs
        return None if base is None else override(base, _filled(form, filled))

    bases = given.pop(settings, None)
    read_bases = [_read(base, words, read, prog) for base in (bases if isinstance(bases, tuple) else [bases])]
    if settings:
        given[settings] = tuple(read_bases) if isinstance(bases, tuple) else read_bases[0]
    args, kwargs = arguments
    return checked(function)(*args, **kwargs, **given)


def _read(base: Any, argv: Sequence[str], read: Callable[[Any, Sequence[str]], Any], prog: str) -> Any:
    """Settings with those changed that flags name, of each head where there are several.

    Args:
        base: The settings.
        argv: Flags and their values.
        read: Is given settings without heads and the words without heads' names.
        prog: The command as it was called.
    """
    if not isinstance(base, TrainConfig):
        return read(base, argv)
    own = split_by_name(argv, base.heads)
    shared = own.pop("", [])
    if _asks_for_help(shared) and len(base.heads) > 1:
        with contextlib.suppress(SystemExit):
            read(base.flat(next(iter(base.heads))), shared)
        for name, head in base.heads.items():
            with contextlib.suppress(SystemExit):
                _read_head(head, name, ["--help"], prog)
        raise SystemExit(0)
    return changed(
        base,
        lambda flat: read(flat, shared),
        lambda name, head: _read_head(head, name, own[name], prog) if name in own else head,
    )


def _with_chosen_method(settings: Any, words: Sequence[str], others: Container[str] = ()) -> tuple[Any, Sequence[str]]:
    """The settings with the method that ``--method`` names, and the words without flags that only other methods have.

    Args:
        settings: The settings, with a method or without.
        words: Flags and their values.
        others: Names of flags that are no settings.
    """
    if not hasattr(settings, "method"):
        return settings, words
    name = value_of(words, "--method")
    if name is not None and name not in METHODS.names():
        raise ConfigError(f"--method must be one of {', '.join(METHODS.names())}, not {shown(name)}.")
    settings = settings if name is None else with_method(settings, name)
    known = {*flag_names(settings), *former_names(kind_of(settings)), "--help", "--method"}
    given = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    if all(flag in known or flag[2:].replace("-", "_") in others for flag in given):
        return settings, words
    shared, of_others = split_by_method(settings, words, METHODS.names())
    for flag in dict.fromkeys(word for found in of_others.values() for word in found if word.startswith("--")):
        warn_of_another_method(flag[2:].partition("=")[0], settings.method.name)
    return settings, shared


def split_by_method(base: Any, argv: Sequence[str], methods: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Flags and their values: those of a configuration, and by method those that others of the methods alone have.

    Args:
        base: The configuration, of one method.
        argv: Flags and their values.
        methods: Names of methods that are compared.
    """
    known = {name: flag_names(with_method(base, name)) for name in dict.fromkeys(methods) if name in METHODS.names()}
    own, shared = flag_names(base), list[str]()
    by_method: dict[str, list[str]] = {}
    chosen = [shared]
    for word in argv:
        if word.startswith("--"):
            flag = word.partition("=")[0].replace("_", "-")
            others = [name for name, flags in known.items() if flag in flags and flag not in own]
            chosen = [by_method.setdefault(name, []) for name in others] or [shared]
        for words in chosen:
            words.append(word)
    return shared, by_method


def flag_names(config: Any) -> set[str]:
    """The flag of every setting; with its negation where it is a switch."""
    flags = {setting.flag: setting.value for setting in settings_of(config)}
    return {*flags, *(f"--no-{flag[2:]}" for flag, value in flags.items() if isinstance(value, bool))}


def _read_head(head: ConfigT, name: str, argv: Sequence[str], prog: str) -> ConfigT:
    return from_flags(head, argv, prog=f"{prog} --{name}.", prefix=f"{name}.")


def _form(base: Any, without: Container[str] = (), *, with_help: bool) -> Any:
    """The settings as plain dataclasses, which hold any value: what tyro makes flags of, and fills.

    Args:
        base: The settings; their values are the defaults.
        without: Names of settings that are no flags, because a verb's own parameters have them.
        with_help: Whether the help is shown: it is read from the source.
    """
    fields: list[Any] = []
    cls: Any = type(base)
    texts = _help(cls) if with_help else {}
    if hasattr(cls, "by_name"):
        names = METHODS.names()
        help_text = "The paper's method, or one that it is compared with; each has settings of its own."
        choice: Any = Annotated[Literal[names], tyro.conf.arg(help=help_text)]
        fields.append(("method", choice, dataclasses.field(default=base.name)))
    for name, kind in field_kinds(cls).items():
        value = getattr(base, name)
        if isinstance(value, Settings):
            value = _form(value, without, with_help=with_help)
            kind = type(value)
        elif name in without:
            continue
        flag: Any = Annotated[kind, tyro.conf.arg(help=texts.get(name))]
        fields.append((name, flag, dataclasses.field(default_factory=partial(copy, value))))
    form = dataclasses.make_dataclass(cls.__name__, fields, kw_only=True)
    form.__doc__ = cls.__doc__
    return form()


def _help(cls: Any) -> dict[str, str]:
    """The fields' docstrings, each with the field's range."""
    found: dict[str, str] = {}
    for owner in cls.__mro__[::-1]:
        if issubclass(owner, Settings):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
            for field, text in pairwise(definition.body):  # type: ignore[attr-defined]
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    name, words = ast.unparse(field.target), " ".join(ast.literal_eval(text.value).split())
                    found[name] = words + describe_ranges(field_kinds(cls)[name])
    return found


def _asks_for_help(words: Sequence[str]) -> bool:
    return "--help" in words or "-h" in words


def _filled(form: Any, filled: Any) -> dict[str, Any]:
    """The values that flags have changed, by the names of their settings."""
    changes: dict[str, Any] = {}
    for name, old in vars(form).items():
        new = getattr(filled, name)
        if dataclasses.is_dataclass(old):
            changes |= _filled(old, new)
        elif new != old:
            changes[name] = new
    return changes


def _signed(function: Callable[..., Any], plain: Sequence[inspect.Parameter], forms: Mapping[str, Any]) -> Any:
    """A function with the help of another that returns its arguments: of the same parameters, and forms."""

    def collect(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    keyword = inspect.Parameter.KEYWORD_ONLY
    shown = [inspect.Parameter(name, keyword, default=form, annotation=type(form)) for name, form in forms.items()]
    collect.__doc__ = function.__doc__
    collect.__annotations__ = {each.name: each.annotation for each in (*plain, *shown)}
    collect.__signature__ = inspect.Signature([*plain, *shown])  # type: ignore[attr-defined]
    return collect


def _names_first(words: Sequence[str], plain: Sequence[inspect.Parameter]) -> Sequence[str]:
    """The words in an order that tyro takes: of a verb with any number of names, those between flags come first."""
    if not plain or "..." not in str(plain[0].annotation):
        return words
    values: dict[str, int] = {}
    for each in plain[1:]:
        kinds = field_kinds(each.annotation) if settings_kind(each.annotation) else {each.name: each.annotation}
        values |= {flag_of(name): _count_values(kind) for name, kind in kinds.items()}
    names, flags, wanted = [], [], 0
    for word in words:
        if word.startswith("-"):
            flags.append(word)
            wanted = 0 if "=" in word else values.get(word.replace("_", "-"), 0)
        elif wanted:
            flags.append(word)
            wanted -= 1
        else:
            names.append(word)
    return [*names, *flags]


def _count_values(kind: Any) -> int:
    """How many words follow a flag."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _count_values(arguments[0])
    if origin in (Union, UnionType):
        return max(map(_count_values, arguments))
    if origin is tuple:
        return 1 if Ellipsis in arguments else len(arguments)
    return 0 if kind in (bool, type(None)) else 1


def _flag_names(parameters: Sequence[inspect.Parameter]) -> set[str]:
    """The names of the flags that tyro makes of parameters."""
    kinds = {each.name: each.annotation for each in parameters}
    return {flag for name, kind in kinds.items() for flag in (field_kinds(kind) if settings_kind(kind) else [name])}


def _description(function: Callable[..., Any]) -> str:
    """The docstring as it stands, examples with it, up to the arguments."""
    return re.split(r"\n(?:Args|Raises|Returns):\n", inspect.getdoc(function) or "")[0].strip()
