"""One-line messages about invalid values, with suggestions."""

import reprlib
import typing
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

LONGEST_WORD = 60  # characters; difflib takes quadratic time, and longer words are not typos
MOST_DIGITS = 40
LIKE_A_KEY = 0.6  # similarity, as defined by difflib, from which on a key is suggested
LIKE_A_CHOICE = 0.4  # the same for values: there are few, so even a less similar one is probably meant


class _Bounded(reprlib.Repr):
    """A repr that never visits all of a value: a few YAML aliases can stand for billions of items."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 3
        self.maxstring = self.maxother = LONGEST_WORD

    def repr_int(self, x: int, level: int) -> str:
        """Return the digits of a number, or how many it has: Python refuses to print thousands of digits."""
        digits = int(abs(x).bit_length() * 0.30103) + 1
        return repr(x) if digits <= MOST_DIGITS else f"a number of about {digits} digits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        """Return the first bytes."""
        return repr(x) if len(x) <= LONGEST_WORD else f"{x[:LONGEST_WORD]!r}..."

    def repr_ordereddict(self, x: dict[Any, Any], level: int) -> str:
        """Return a YAML !!omap like any other mapping."""
        return self.repr_dict(x, level)


shown = _Bounded().repr
"""``shown(value)`` is its repr in one line of at most a few hundred characters."""


def nearest(word: object, known: Iterable[str], likeness: float = LIKE_A_KEY) -> list[str]:
    """Return the known word most similar to `word`, in a list; an empty list if none is similar."""
    if not isinstance(word, str) or len(word) > LONGEST_WORD:
        return []
    return get_close_matches(word, list(known), n=1, cutoff=likeness)


def did_you_mean(names: Iterable[str]) -> str:
    """Return the end of a message that suggests these names; "" without names."""
    text = " or ".join(names)
    return f"; did you mean {text}?" if text else ""


def one_line(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Return the first error of pydantic as "key.path: what is wrong, found what".

    Parameters
    ----------
    error
        The error of pydantic.
    model
        The model that was validated; its keys may be suggested.
    """
    first, *rest = error.errors(include_url=False)
    keys, value, kind = first["loc"], first["input"], first["type"]
    where = ".".join(_plain(key) for key in keys)
    fields = dict(_fields(model)) if model else {}
    path = tuple(key for key in keys if isinstance(key, str))
    if kind == "extra_forbidden":
        see = f"; see: {getattr(model, 'printed_by', 'glann params')}"
        text = f"{where}: unknown key{did_you_mean(_keys_meant(keys, fields)) or see}"
    elif kind == "value_error":  # raised by our validators: the message starts with the key
        text = ".".join(filter(None, (where, str(first["ctx"]["error"]))))
    elif kind == "missing":
        text = f"{where}: {first['msg'].lower()}"
    elif kind == "string_pattern_mismatch" and path in fields:  # users should not have to read patterns
        text = f"{where}: should be {fields[path].description}, found {shown(value)}"
    else:
        text = f"{where}: {first['msg'].removeprefix('Input ').lower()}, found {shown(value)}"
        if kind == "literal_error" and path in fields:
            choices = [choice for choice in _choices(fields[path].annotation) if isinstance(choice, str)]
            text += did_you_mean(nearest(value, choices, LIKE_A_CHOICE))
    return text + (f" (and {len(rest)} more)" if rest else "")


def _plain(key: int | str) -> str:
    return (
        str(key) if isinstance(key, int) or (key.isidentifier() and len(key) <= LONGEST_WORD) else shown(key)
    )


def _fields(
    model: type[BaseModel], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield the path of every key in a model, without the indices of list items, and its field."""
    for name, field in model.model_fields.items():
        path = (*above, name)
        yield path, field
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _fields(part, path)


def _choices(annotation: Any) -> Iterator[object]:
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
    else:
        for part in typing.get_args(annotation):
            yield from _choices(part)


def _keys_meant(keys: tuple[int | str, ...], fields: dict[tuple[str, ...], FieldInfo]) -> list[str]:
    """Return the same key in other sections (at most two), or else a key with a similar spelling."""
    *above, key = keys
    section = tuple(part for part in above if isinstance(part, str))
    same = [path for path in fields if path[-1] == key]
    if same:
        same.sort(key=lambda path: path[: len(section)] != section)  # those in this section first
        return [".".join(path) for path in same[:2]]
    here = {path[-1]: ".".join(map(str, (*above, path[-1]))) for path in fields if path[:-1] == section}
    elsewhere = {path[-1]: ".".join(path) for path in fields}
    return [here[name] for name in nearest(key, here)] or [
        elsewhere[name] for name in nearest(key, elsewhere)
    ]
