"""The one grammar for a method and its parameters, as text.

``fastv:k=2,keep_ratio=0.25+h2o:heavy=0.25``: parts joined by ``+``, each a name and, behind a
colon, its parameters separated by ``,`` or ``;`` (lmms-eval's ``--model_args`` splits at commas
itself).  Lists are written ``2/6/15`` or ``[2,6,15]``.  Every command and the lmms-eval plugin read
methods with this module, so a text that works in one place works everywhere.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynllava.errors import UserError

from .checks import DEEPEST

if TYPE_CHECKING:
    from .base import Method

_NONE = ("none", "null")
_TRUE = ("true", "yes", "on")
_FALSE = ("false", "no", "off")
_EXAMPLE = "fastv:k=2,keep_ratio=0.25"


@dataclasses.dataclass(frozen=True)
class MethodText:
    """A method as it was written.

    Attributes
    ----------
    name : str
        Registered name, or names joined by ``+``.
    parameters : dict
        Values of the parameters' own types; those of a composition are prefixed with the part's
        name (``fastv_k``), as :func:`dynllava.methods.create` takes them.
    """

    name: str
    parameters: dict[str, Any]

    def create(self) -> Method:
        """Return the method; what fits no model at all is refused.

        Raises
        ------
        UserError
            For parameters, or parts of a composition, without a plan at any depth.
        """
        from . import create

        method = create(self.name, **self.parameters)
        method.plan(DEEPEST)
        return method


def parse(text: str) -> MethodText:
    """Read ``NAME[:PARAMETER=VALUE,...][+NAME...]``.

    Parameters
    ----------
    text : str
        For instance ``fastv``, ``fastv:k=2;keep_ratio=0.25`` or ``fastv:k=2+h2o:heavy=0.25``.

    Raises
    ------
    UserError
        For an unknown name or parameter (with the nearest known one), a value of another type, a
        parameter given twice.
    """
    # A plus sign that starts no name belongs to a number (1e+5).
    parts = [_parse_part(part) for part in re.split(r"\+(?=[A-Za-z_]|$)", text.strip())]
    if len(parts) == 1:
        return parts[0]
    merged = {f"{part.name}_{key}": value for part in parts for key, value in _items(part)}
    return MethodText("+".join(part.name for part in parts), merged)


def parse_with(text: str, pairs: Iterable[str] = ()) -> MethodText:
    """Read a method, and further ``NAME=VALUE`` pairs for it (``--method-args``)."""
    method = parse(text)
    given = dict(method.parameters)
    for pair in pairs:
        key, value = _pair(pair)
        if key in given:
            raise UserError(f"{method.name}: {key} is given twice")
        given[key] = convert(method.name, key, value)
    return MethodText(method.name, given)


def render(name: str, parameters: Mapping[str, Any], separator: str = ",") -> str:
    """Return the text that :func:`parse` reads back to ``name`` and ``parameters``.

    ``separator`` is ``";"`` for lmms-eval's ``--model_args``.
    """
    texts = []
    names = name.split("+")
    for part in names:
        prefix = f"{part}_" if len(names) > 1 else ""
        own = {
            key.removeprefix(prefix): value
            for key, value in parameters.items()
            if key.startswith(prefix)
        }
        body = separator.join(f"{key}={render_value(value)}" for key, value in own.items())
        texts.append(f"{part}:{body}" if body else part)
    return "+".join(texts)


def check_name(name: str) -> None:
    """Raise :class:`UserError`, with the nearest known name, unless ``name`` is a method."""
    from . import names

    known = names()
    if name not in known:
        raise UserError(f"method={name!r}: {nearest(name, known)}accepted are {', '.join(known)}")


def accepted(name: str) -> dict[str, Any]:
    """Return {parameter: type} of a method or a composition (there with prefixed names)."""
    from . import registry

    parts = name.split("+")
    if len(parts) > 1:
        return {f"{part}_{key}": kind for part in parts for key, kind in accepted(part).items()}
    check_name(name)
    method = registry()[name]
    hints = _hints(method)
    return {
        field.name: hints.get(field.name, Any) for field in dataclasses.fields(method) if field.init
    }


def check_parameters(name: str, given: Iterable[str]) -> None:
    """Raise :class:`UserError`, with the nearest known one, for a parameter ``name`` has not."""
    known = accepted(name)
    for key in given:
        if key not in known:
            listed = ", ".join(known) if known else "no parameters"
            raise UserError(
                f"{name} has no parameter {key!r}: {nearest(key, known)}accepted are {listed}"
            )


def convert(name: str, key: str, value: Any) -> Any:
    """Return ``value`` as the type of a method's parameter.

    Parameters
    ----------
    name : str
        Method or composition.
    key : str
        Its parameter.
    value
        Text as typed, or a plain value (a number that another parser has read already).

    Raises
    ------
    UserError
        If the method has no such parameter, or the value is of another type.
    """
    check_parameters(name, [key])
    kind = accepted(name)[key]
    kinds = _alternatives(kind)
    if isinstance(value, str):
        found = _from_text(value.strip(), kinds)
    else:
        found = _from_value(value, kinds)
    if found is _REFUSED:
        wanted = " or ".join(dict.fromkeys(filter(None, map(_describe, kinds))))
        raise UserError(f"{name}: {key}={value!r}: accepted is {wanted}")
    return found


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"did you mean X? "``, or nothing where no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}? " if close else ""


_REFUSED = object()


def _items(part: MethodText) -> Iterable[tuple[str, Any]]:
    return part.parameters.items()


def _parse_part(text: str) -> MethodText:
    name, colon, body = text.partition(":")
    name = name.strip()
    if not name or (colon and not body.strip()):
        raise UserError(f"method {text!r}: accepted is NAME or NAME:PARAMETER=VALUE, as {_EXAMPLE}")
    check_name(name)
    parameters: dict[str, Any] = {}
    for pair in _split(body):
        key, value = _pair(pair)
        if key in parameters:
            raise UserError(f"{name}: {key} is given twice")
        parameters[key] = convert(name, key, value)
    return MethodText(name, parameters)


def _split(body: str) -> list[str]:
    """Split at commas and semicolons outside of brackets."""
    return [item for item in re.split(r"[,;](?![^\[]*\])", body) if item.strip()]


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"method parameter {text!r}: accepted is NAME=VALUE, as in {_EXAMPLE}")
    return key.strip(), value.strip()


def _hints(method: type) -> dict[str, Any]:
    """Return the parameters' types; a type that cannot be looked up accepts anything."""
    try:
        return typing.get_type_hints(method)
    except (NameError, TypeError):
        return {}


def _alternatives(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _item_kind(kind: Any) -> Any | None:
    """Return the type of a sequence's items, or None for any other type."""
    origin = typing.get_origin(kind)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        arguments = [item for item in typing.get_args(kind) if item is not Ellipsis]
        return arguments[0] if arguments else Any
    return None


def _describe(kind: Any) -> str:
    item = _item_kind(kind)
    if item is not None:
        return f"a list of {_describe(item).removeprefix('a ').removeprefix('an ')}s as 2/6/15"
    return {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a text",
        type(None): "none",
    }.get(kind, "a value")


def _from_text(text: str, kinds: tuple[Any, ...]) -> Any:
    """Return ``text`` as the first of ``kinds`` that it fits."""
    lowered = text.lower()
    if type(None) in kinds and lowered in _NONE:
        return None
    for kind in kinds:
        item = _item_kind(kind)
        if item is not None and (text.startswith("[") or str not in kinds):
            return _list(text, item)
        if kind is bool and lowered in (*_TRUE, *_FALSE):
            return lowered in _TRUE
        if kind is int and re.fullmatch(r"[+-]?\d{1,18}", text):
            return int(text)
        if kind is float and (number := _number(text)) is not None:
            return number
    if str in kinds:
        return text
    return _from_json(text) if Any in kinds else _REFUSED


def _list(text: str, item: Any) -> Any:
    parts = text.strip("[]").split("," if text.startswith("[") else "/")
    values = [_from_text(part.strip(), (item,)) for part in parts if part.strip()]
    return _REFUSED if not values or _REFUSED in values else tuple(values)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _from_json(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return tuple(value) if isinstance(value, list) else value


def _from_value(value: Any, kinds: tuple[Any, ...]) -> Any:
    """Return a value that is no text as one of ``kinds``: 2.0 is an integer, 2 a number."""
    if Any in kinds or any(isinstance(kind, type) and type(value) is kind for kind in kinds):
        return value
    for kind in kinds:
        item = _item_kind(kind)
        if item is not None and isinstance(value, (list, tuple)):
            values = [_from_value(entry, (item,)) for entry in value]
            return _REFUSED if _REFUSED in values else tuple(values)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if kind is int and math.isfinite(value) and value == int(value):
            return int(value)
        if kind is float and math.isfinite(value):
            return float(value)
        if kind is str:
            return f"{value:g}" if isinstance(value, float) else str(value)
    return _REFUSED


def render_value(value: Any) -> str:
    """Return the text that :func:`convert` reads back to ``value``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "/".join(map(render_value, value))
    return repr(value) if isinstance(value, float) else str(value)
