"""Base of settings: frozen dataclasses with validated fields, and conversion from and to JSON and the command line.

::

    class LoopConfig(Settings):
        steps: Annotated[int, Field(ge=1, le=10**9)] = 40_000
        \"\"\"Optimizer steps.\"\"\"

Values are checked from every source: the constructor, ``dataclasses.replace``, JSON files, flags. Booleans are not
accepted as integers, numbers must be finite, strings have a maximum length. Upper limits are above any useful value:
they catch typing errors, and untrusted files that ask for gigabytes or days.

Every field is one flag (``--steps 100``) whose help is the field's docstring, so names are unique
within a configuration.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator, validate_call
from pydantic.dataclasses import dataclass as pydantic_dataclass

from vitsplit.config_errors import field_kinds, flag_of, marks, message, settings_kind, suggestion
from vitsplit.errors import ConfigError
from vitsplit.files import LONGEST_NAME, inside, shown

LONG_TEXT = 1 << 16
"""Maximum number of characters of a long string, such as a system prompt."""
MAX_PIXELS = 2**25
"""Maximum number of pixels of a crop or a resized image; larger images are processed in tiles."""
MAX_SIDE = 8192
"""Maximum side of a crop or a resized image, in pixels."""

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
"""Side of an image in pixels."""
Size = tuple[Side, Side]
"""Height and width, or longest and shortest side, in pixels."""
Margin = Annotated[int, Field(ge=0, le=MAX_SIDE)]
"""Pixels that are cropped from a side of an image."""
Factor = Annotated[float, Field(ge=0.01, le=100)]
"""Scale factor of an image's size."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A probability or fraction."""
Name = Annotated[str, Field(min_length=1)]
"""A non-empty string, such as a path: an empty path would be the current folder."""
LongText = Annotated[str, Field(max_length=LONG_TEXT)]
"""A long string, such as a prompt."""
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""Random seed."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Precision of a forward pass; auto: chosen for the device."""
MaxNewTokens = Annotated[int, Field(ge=1, le=2**14)]
"""Maximum number of tokens of an answer."""

ConfigT = TypeVar("ConfigT")

_STRICT = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, str_max_length=LONGEST_NAME,
    validate_by_name=True, validate_by_alias=True, loc_by_alias=False,
)  # fmt: skip
STRICT_FIELDS = ConfigDict(strict=True, extra="forbid")
"""``__pydantic_config__`` for dataclasses that ``from_dict`` reads and that are not settings."""
_MODEL_NAME = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
class _Checked:
    """Turns every subclass into a frozen pydantic dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        pydantic_dataclass(frozen=True, kw_only=True, config=_STRICT)(cls)
        validate = cls.__init__

        @functools.wraps(validate)
        def checked_init(self: Any, **values: Any) -> None:
            # Lists are accepted as tuples, as in JSON.
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            try:
                validate(self, **values)
            except ValidationError as error:
                raise ConfigError(message(error, cls, values)) from None

        cls.__init__ = checked_init  # type: ignore[method-assign]


class Settings(_Checked):
    """Base of all settings classes: subclasses are frozen dataclasses with keyword arguments, checked by pydantic.

    Raises:
        ConfigError: (by every subclass) A value has a wrong type or is out of range; the message has the flag, the
            value and the range.
    """

    @field_validator("*")
    @classmethod
    def _without_control_characters(cls, value: Any) -> Any:
        for text in value if isinstance(value, tuple | dict) else (value,):
            if isinstance(text, str) and _CONTROL.search(text):
                raise ValueError(f"contains a control character: {shown(text)}. Remove it.")
        return value


def Former(name: str) -> Any:  # noqa: N802  (named like the other annotations: Field, Opens)
    """Annotates a field with its name in an earlier version, accepted in JSON, and as a flag with a warning.

    ``color_share: Annotated[float, Former("colour_share")] = 0.5``
    """
    return Field(validation_alias=name)


@dataclasses.dataclass(frozen=True)
class Opens:
    """Annotates a setting that is a path: a file or folder that vitsplit opens.

    Paths in a bundle's card are ignored (``bundle.read_card``); those in a configuration file are used for reading
    only, with a warning.

    Attributes:
        writes: Whether vitsplit writes to the path.
        inside_data: Whether the path is relative to the data folder, and harmless unless it leads out of it.
        or_name: Whether the value may be a name instead, of a model or a repository on the hub.
    """

    writes: bool = False
    inside_data: bool = False
    or_name: bool = False

    def leads_out(self, value: str | bool) -> bool:
        """Whether the path can lead to files that the user has not given."""
        if isinstance(value, bool):  # a flag that allows paths out of the data folder
            return value
        if self.or_name:
            return not _MODEL_NAME.fullmatch(value)
        if not self.inside_data:
            return True
        try:
            inside(Path("data"), value, "", error=ConfigError)
        except ConfigError:
            return True
        return False

    def without_folders(self, value: str) -> str:
        """The last part of a path out of the bundle, after ``..`` if it led out of the data; else the value itself."""
        if not self.leads_out(value):
            return value
        name = PureWindowsPath(value).name or "?"
        return f"../{name}" if self.inside_data else name


class Setting(NamedTuple):
    """One setting of a configuration: its place (field names), annotation and value."""

    place: tuple[str, ...]
    kind: Any
    value: Any
    prefix: str = ""

    @property
    def flag(self) -> str:
        """The flag, such as ``--crop-size``, or ``--depth.lr`` for one of several heads."""
        return flag_of(self.prefix + self.place[-1])

    @property
    def opens(self) -> Opens | None:
        """The annotation ``Opens``, if the setting is a path."""
        return next((mark for mark in getattr(self.kind, "__metadata__", ()) if isinstance(mark, Opens)), None)


def check_pixels(flag: str, size: tuple[int, int], scale: float = 1.0) -> None:
    """Refuses a height and width whose product exceeds ``MAX_PIXELS``.

    Raises:
        ConfigError: The message names the flag.
    """
    if size[0] * size[1] * scale**2 > MAX_PIXELS:
        at = f"{flag} {size[0]} {size[1]}" + (f" at a scale of {scale:g}" if scale != 1 else "")
        raise ConfigError(f"{at}: the maximum is {MAX_PIXELS:,} pixels. Use a smaller size.")


def settings_of(config: Any, place: tuple[str, ...] = (), prefix: str = "") -> Iterator[Setting]:
    """All settings of a configuration, including those of nested groups."""
    cls: Any = type(config)
    kinds = field_kinds(cls)
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), (*place, field.name)
        if isinstance(value, Settings):
            yield from settings_of(value, here, prefix)
        elif isinstance(value, Mapping) and value and all(isinstance(each, Settings) for each in value.values()):
            for name, group in value.items():
                yield from settings_of(group, (*here, name), f"{name}." if len(value) > 1 else prefix)
        else:
            yield Setting(here, kinds[field.name], value, prefix)


def with_value(config: Any, place: tuple[str, ...], value: Any) -> Any:
    """The configuration with one setting changed."""
    name, *rest = place
    if isinstance(config, Mapping):
        return {**config, name: with_value(config[name], tuple(rest), value)}
    new = with_value(getattr(config, name), tuple(rest), value) if rest else value
    return dataclasses.replace(config, **{name: new})


def override(config: ConfigT, settings: Mapping[str, Any]) -> ConfigT:
    """The configuration with some fields changed by their bare names: ``{"steps": 100, "crop_size": (448, 448)}``.

    Raises:
        ConfigError: There is no such field (close names are suggested), or a value has a wrong type or is out of range.
    """
    known = {setting.place[-1] for setting in settings_of(config)}
    former = former_names(kind_of(config))
    settings = {former.get(name, name): value for name, value in settings.items()}
    for name in settings:
        if name not in known:
            raise ConfigError(f"There is no setting {shown(name)}. {suggestion(name, known)}")
    return _overridden(config, settings)


def _overridden(config: Any, settings: Mapping[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Settings):
            changes[field.name] = _overridden(value, settings)
        elif field.name in settings:
            new = settings[field.name]
            changes[field.name] = str(new) if isinstance(new, Path) else new
    return dataclasses.replace(config, **changes) if changes else config


def changed_settings(before: Any, after: Any) -> dict[str, Any]:
    """The settings with which ``override`` turns ``before`` into ``after``."""
    old = {setting.place: setting.value for setting in settings_of(before)}
    return {new.place[-1]: new.value for new in settings_of(after) if new.value != old[new.place]}


def to_dict(config: Any) -> dict[str, Any]:
    """The settings, including nested ones, as JSON-serializable values: tuples become lists, paths become strings."""
    plain: dict[str, Any] = _plain(config)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        name = getattr(value, "name", None) if hasattr(value, "by_name") else None
        return fields if name is None else {"name": name, **fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(cls: Any, data: Any, source: str, where: str = "") -> Any:
    """Reads settings written by ``to_dict`` or by hand. Missing keys have their defaults.

    A field that may be of several classes (with a class method ``by_name``) has the key ``name`` to select the class.

    Args:
        cls: The settings class; a generic one with its argument, as in ``HeadConfig[SegmentationConfig]``.
        data: The parsed JSON.
        source: Its file, for error messages.
        where: Prefix of keys in error messages, such as ``method.``.

    Raises:
        ConfigError: A key is unknown (similar ones are suggested) or missing, or a value has a wrong type or is out of
            range. The message has the file and the key.
    """
    chosen = _chosen_by_name(cls, data, source) if isinstance(data, dict) else {}
    rest = {key: value for key, value in data.items() if key not in chosen} if chosen else data
    try:
        read = TypeAdapter(cls).validate_json(json.dumps(rest))
    except ValidationError as error:
        raise ConfigError(message(error, cls, rest, source, where)) from None
    return dataclasses.replace(read, **chosen) if chosen else read


def _chosen_by_name(cls: Any, data: Mapping[str, Any], source: str) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for field, kind in field_kinds(cls).items():
        by_name = getattr(settings_kind(kind), "by_name", None)
        if by_name is not None and isinstance(data.get(field), dict):
            values = dict(data[field])
            name = values.pop("name", None)
            if not isinstance(name, str):
                raise ConfigError(f"{source}: '{field}.name' must be a string, not {shown(name)}.")
            try:
                named = by_name(name)
            except ConfigError as error:
                raise ConfigError(f"{source}: '{field}.name': {error}") from error
            chosen[field] = from_dict(named, values, source, f"{field}.")
    return chosen


def former_names(kind: Any) -> dict[str, str]:
    """Former to current field names of a settings class and its nested classes, see ``Former``."""
    found: dict[str, str] = {}
    if settings_kind(kind) is not None:
        for name, inner in field_kinds(kind).items():
            found |= former_names(inner)
            found |= {mark.validation_alias: name for mark in marks(inner) if getattr(mark, "validation_alias", None)}
    return found


def kind_of(config: Any) -> Any:
    """The class of a configuration; a generic one with its argument, as in ``HeadConfig[SegmentationConfig]``."""
    cls: Any = type(config)
    parameters = getattr(cls, "__parameters__", ())
    if not parameters:
        return cls
    hints = typing.get_type_hints(cls)
    values = {kind: getattr(config, name) for name, kind in hints.items() if kind in parameters}
    return cls[tuple(type(values[each]) for each in parameters)]


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a function so that its arguments are checked against its annotations.

    Raises:
        ConfigError: (by the decorated function) The message has the flag, the value and the range.
    """
    signature = inspect.signature(function)
    call = validate_call(config=_STRICT)(function)

    @functools.wraps(function)
    def check_and_call(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except ValidationError as error:
            raise ConfigError(message(error, function, signature.bind(*args, **kwargs).arguments)) from None

    return check_and_call
