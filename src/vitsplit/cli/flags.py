"""Command-line flags from settings classes (one per field) and functions (one per parameter), with tyro."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import logging
import re
import sys
import textwrap
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from vitsplit.cli.words import list_value_of, split_by_name, value_of, with_current_names
from vitsplit.config import Settings, checked, former_names, kind_of, override, settings_of
from vitsplit.config_errors import describe_ranges, field_kinds, flag_of, marks, settings_kind
from vitsplit.engine.override import warn_of_another_method, with_method
from vitsplit.errors import ConfigError
from vitsplit.files import shown
from vitsplit.heads import changed
from vitsplit.methods import METHODS, MethodConfig
from vitsplit.train_config import TrainConfig

logger = logging.getLogger("vitsplit")

ConfigT = TypeVar("ConfigT")


_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)


@dataclass(frozen=True)
class FromArgv:
    """Annotation of a parameter whose value is computed from all command-line arguments.

    If the value is a settings class, its fields become flags with these defaults: ``config: Annotated[TrainConfig,
    FromArgv(recipe_of)]`` adds the flags of the recipe that is named in the same command. A tuple of settings is
    changed by the flags together. Any other value is passed as it is.

    Attributes:
        make: Computes the value from the arguments after the verb.
        in_help: Whether the value is a text to append to the description in ``--help``.
    """

    make: Callable[[Sequence[str]], Any]
    in_help: bool = False


@dataclass(frozen=True)
class MethodFlags:
    """Annotation of a parameter that receives, by method, flags that the configuration's own method does not have.

    Attributes:
        default: The methods to compare without ``--methods``.
    """

    default: tuple[str, ...]


@dataclass(frozen=True)
class Prefixed:
    """Annotation of a parameter that receives prefixed flags (``--depth.lr 3e-4``), by prefix."""


def from_flags(base: ConfigT, argv: Sequence[str], *, prog: str = "vitsplit", prefix: str = "") -> ConfigT:
    """Overrides settings by flags: ``--lr 1e-4 --crop-size 448 448 --no-task-head --depth.lr 3e-4``.

    ``--help`` prints all flags with their defaults and exits with status 0. An unknown flag or a value of wrong type
    exits with status 2 and a message.

    Args:
        base: The default settings. In a training configuration, a flag applies to all heads, or to one head if its name
            is put before it.
        argv: Flags and their values.
        prog: Name of the command, for help and errors.
        prefix: Prefix of the flags, such as ``depth.``, for errors.

    Raises:
        ConfigError: A value is out of range; the message names the flag.
    """

    def read(settings: Any, args: Sequence[str]) -> Any:
        settings, args = _with_chosen_method(settings, args)
        defaults = _to_dataclass(settings, with_help=_requests_help(args))
        args = with_current_names(args, former_names(kind_of(settings)))
        parsed = tyro.cli(type(defaults), default=defaults, args=args, prog=prog, description="", config=_STYLE)
        try:
            return override(settings, _changed_values(defaults, parsed))
        except ConfigError as error:
            raise ConfigError(str(error).replace("--", f"--{prefix}", 1)) from None

    config: ConfigT = _read(base, argv, read, prog)
    return config


def call_with_flags(function: Callable[..., Any], argv: Sequence[str], *, prog: str) -> Any:
    """Calls a function with arguments from the command line, and returns its result.

    Every parameter is a flag with the help text of the docstring's ``Args``. Positional-only parameters are positional
    arguments, and a parameter of a settings class is one flag per field.

    Args:
        function: The function. Parameters can be annotated with ranges (``Annotated[int, Field(ge=1)]``), ``FromArgv``,
            ``MethodFlags`` and ``Prefixed``.
        argv: The arguments after the command.
        prog: Name of the command, for help and errors.

    Raises:
        ConfigError: A value is out of range; the message names the flag. Other errors are those of the function.
    """
    kinds = get_type_hints(function, include_extras=True)
    plain, given, remaining = [], {}, list(argv)
    description, settings = [_description(function)], ""
    for name, parameter in inspect.signature(function).parameters.items():
        mark = next((each for each in marks(kinds[name]) if isinstance(each, FromArgv | Prefixed | MethodFlags)), None)
        if isinstance(mark, FromArgv):
            given[name] = mark.make(argv)
            description += [given[name]] * mark.in_help
            settings = name if isinstance(given[name], Settings | tuple) and given[name] else settings
        elif isinstance(mark, Prefixed):
            given[name] = split_by_name(argv)
            remaining = given[name].pop("", [])
        elif isinstance(mark, MethodFlags):
            names = [
                label.rpartition("=")[2].partition(":")[0] for label in list_value_of(argv, "--methods") or mark.default
            ]
            given[name] = {}
            if settings:
                flat = given[settings].flat(*given[settings].heads)
                remaining, given[name] = split_by_method(flat, remaining, names)
        else:
            plain.append(parameter.replace(annotation=kinds[name]))
    text = "\n\n".join(filter(None, description))
    arguments: list[Any] = []

    def read(base: Any, args: Sequence[str]) -> Any:
        """Parses all arguments: settings are returned, the function's own arguments are stored in ``arguments``."""
        base, args = _with_chosen_method(base, args, _flag_names(plain))
        defaults = None if base is None else _to_dataclass(base, _flag_names(plain), with_help=_requests_help(args))
        verb = _with_signature(function, plain, {} if defaults is None else {settings: defaults})
        former = {} if base is None else former_names(kind_of(base))
        args = with_current_names(args if base is not None else _positionals_first(args, plain), former)
        positional, keywords = tyro.cli(verb, args=args, prog=prog, config=_STYLE, description=text)
        parsed = keywords.pop(settings, None)
        arguments[:] = positional, keywords
        return None if base is None else override(base, _changed_values(defaults, parsed))

    bases = given.pop(settings, None)
    read_bases = [_read(base, remaining, read, prog) for base in (bases if isinstance(bases, tuple) else [bases])]
    if settings:
        given[settings] = tuple(read_bases) if isinstance(bases, tuple) else read_bases[0]
    positional, keywords = arguments
    return checked(function)(*positional, **keywords, **given)


def _read(base: Any, argv: Sequence[str], read: Callable[[Any, Sequence[str]], Any], prog: str) -> Any:
    """Overrides settings by flags; in a training configuration, those of all heads.

    Args:
        base: The settings.
        argv: Flags and their values.
        read: Overrides the settings of one head by flags without prefix.
        prog: Name of the command.
    """
    if not isinstance(base, TrainConfig):
        return read(base, argv)
    own = split_by_name(argv, base.heads)
    shared = own.pop("", [])
    if _requests_help(shared) and len(base.heads) > 1:
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
    """The settings with the method of ``--method``, and the arguments without flags that only other methods have.

    Args:
        settings: The settings, with or without a method.
        words: Flags and their values.
        others: Names of flags that are not settings.
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
    for method, args in of_others.items():
        from_flags(with_method(settings, method), args)  # a value that no method could have is refused nevertheless
    for flag in dict.fromkeys(word for found in of_others.values() for word in found if word.startswith("--")):
        warn_of_another_method(flag[2:].partition("=")[0], settings.method.name)
    return settings, shared


def split_by_method(base: Any, argv: Sequence[str], methods: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Splits flags into those of a configuration, and by method those of other methods.

    A flag of the configuration's method is also one of every other method that has it.

    Args:
        base: The configuration, with one method.
        argv: Flags and their values.
        methods: Names of the compared methods.
    """
    own, shared = flag_names(base), list[str]()
    common = {flag_of(field.name) for field in dataclasses.fields(MethodConfig)}
    of_method = {flag_of(field.name) for field in dataclasses.fields(base.method)} - common
    if _requests_help(argv):  # only the flags of the configuration are listed, and other methods may import PyTorch
        return list(argv), {}
    known = {name: flag_names(with_method(base, name)) for name in dict.fromkeys(methods) if name in METHODS.names()}
    by_method: dict[str, list[str]] = {}
    chosen = [shared]
    for word in argv:
        if word.startswith("--"):
            flag = word.partition("=")[0].replace("_", "-")
            differs = flag not in own or flag in of_method
            others = [name for name in known if differs and name != base.method.name and flag in known[name]]
            chosen = [by_method.setdefault(name, []) for name in others]
            if flag in own or not chosen:
                chosen.append(shared)
        for words in chosen:
            words.append(word)
    return shared, by_method


def flag_names(config: Any) -> set[str]:
    """Flags of all settings, including negations of switches."""
    flags = {setting.flag: setting.value for setting in settings_of(config)}
    return {*flags, *(f"--no-{flag[2:]}" for flag, value in flags.items() if isinstance(value, bool))}


def _read_head(head: ConfigT, name: str, argv: Sequence[str], prog: str) -> ConfigT:
    return from_flags(head, argv, prog=f"{prog} --{name}.", prefix=f"{name}.")


def _to_dataclass(base: Any, without: Container[str] = (), *, with_help: bool) -> Any:
    """Converts settings to a dataclass without validation, from which tyro creates flags.

    Args:
        base: The settings; their values are the defaults.
        without: Names of settings to omit, since the function has parameters of the same names.
        with_help: Whether to read help texts from the source.
    """
    fields: list[Any] = []
    cls: Any = type(base)
    texts = setting_texts(cls) if with_help else {}
    texts = {name: text + describe_ranges(field_kinds(cls)[name]) for name, text in texts.items()}
    missing = None if with_help else ""  # without a text, tyro searches the source for one
    if hasattr(cls, "by_name"):
        names = METHODS.names()
        help_text = "The paper's method or a baseline; each has its own settings."
        choice: Any = Annotated[Literal[names], tyro.conf.arg(help=help_text)]
        fields.append(("method", choice, dataclasses.field(default=base.name)))
    for name, kind in field_kinds(cls).items():
        value = getattr(base, name)
        if isinstance(value, Settings):
            value = _to_dataclass(value, without, with_help=with_help)
            kind = type(value)
        elif name in without:
            continue
        flag: Any = Annotated[kind, tyro.conf.arg(help=texts.get(name, missing))]
        fields.append((name, flag, dataclasses.field(default_factory=partial(copy, value))))
    made = dataclasses.make_dataclass(cls.__name__, fields, kw_only=True)
    made.__doc__ = cls.__doc__
    return made()


def setting_texts(cls: Any) -> dict[str, str]:
    """Docstrings of the fields of a settings class, including inherited ones, read from the source."""
    found: dict[str, str] = {}
    for owner in cls.__mro__[::-1]:
        if issubclass(owner, Settings):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
            for field, text in pairwise(definition.body):  # type: ignore[attr-defined]
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return found


def _requests_help(words: Sequence[str]) -> bool:
    return "--help" in words or "-h" in words


def _changed_values(defaults: Any, parsed: Any) -> dict[str, Any]:
    """Values that differ from the defaults, by setting."""
    changes: dict[str, Any] = {}
    for name, old in vars(defaults).items():
        new = getattr(parsed, name)
        if dataclasses.is_dataclass(old):
            changes |= _changed_values(old, new)
        elif new != old:
            changes[name] = new
    return changes


def _with_signature(
    function: Callable[..., Any], plain: Sequence[inspect.Parameter], settings: Mapping[str, Any]
) -> Any:
    """A function that returns its arguments, with the docstring of another, the given parameters, and settings."""

    def collect(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    keyword = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter(name, keyword, default=each, annotation=type(each)) for name, each in settings.items()]
    collect.__doc__ = function.__doc__
    collect.__annotations__ = {each.name: each.annotation for each in (*plain, *extra)}
    collect.__signature__ = inspect.Signature([*plain, *extra])  # type: ignore[attr-defined]
    return collect


def _positionals_first(words: Sequence[str], plain: Sequence[inspect.Parameter]) -> Sequence[str]:
    """Moves positional arguments before the flags, which tyro requires for a variable number of them."""
    if not plain or "..." not in str(plain[0].annotation):
        return words
    values: dict[str, int] = {}
    for each in plain[1:]:
        kinds = field_kinds(each.annotation) if settings_kind(each.annotation) else {each.name: each.annotation}
        values |= {flag_of(name): _count_values(kind) for name, kind in kinds.items()}
    names, flags, missing = [], [], 0
    for word in words:
        if word.startswith("-"):
            flags.append(word)
            missing = 0 if "=" in word else values.get(word.replace("_", "-"), 0)
        elif missing:
            flags.append(word)
            missing -= 1
        else:
            names.append(word)
    return [*names, *flags]


def _count_values(kind: Any) -> int:
    """Maximum number of values of a flag."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return 1 if tyro.conf.UseAppendAction in arguments[1:] else _count_values(arguments[0])
    if origin in (Union, UnionType):
        return max(map(_count_values, arguments))
    if origin is tuple:
        return sys.maxsize if Ellipsis in arguments else len(arguments)
    return 0 if kind in (bool, type(None)) else 1


def _flag_names(parameters: Sequence[inspect.Parameter]) -> set[str]:
    """Names of the flags that tyro creates from parameters."""
    kinds = {each.name: each.annotation for each in parameters}
    return {flag for name, kind in kinds.items() for flag in (field_kinds(kind) if settings_kind(kind) else [name])}


def _description(function: Callable[..., Any]) -> str:
    """The docstring up to the arguments, including examples."""
    return re.split(r"\n(?:Args|Raises|Returns):\n", inspect.getdoc(function) or "")[0].strip()
