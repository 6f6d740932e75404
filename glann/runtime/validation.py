"""What is wrong with a value and what to do about it, in one line of bounded length."""

import reprlib
import typing
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

LONGEST_WORD = 60  # characters; difflib takes quadratic time, and nobody misspells a longer one
MOST_DIGITS = 40
LIKE_A_KEY, LIKE_A_CHOICE = (
    0.6,
    0.4,
)  # of difflib's 1; choices are few, so that even a far one is likely meant


class _Bounded(reprlib.Repr):
    """repr that never walks all of a value: a few aliases in YAML stand for billions of items."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 3
        self.maxstring = self.maxother = LONGEST_WORD

    def repr_int(self, x: int, level: int) -> str:
        """Return the digits of a number; Python refuses to write thousands of them."""
        digits = int(abs(x).bit_length() * 0.30103) + 1
        return repr(x) if digits <= MOST_DIGITS else f"a number of about {digits} digits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        """Return the first bytes."""
        return repr(x) if len(x) <= LONGEST_WORD else f"{x[:LONGEST_WORD]!r}..."

    def repr_ordereddict(self, x: dict[Any, Any], level: int) -> str:
        """Return a YAML !!omap as any other mapping."""
        return self.repr_dict(x, level)


shown = _Bounded().repr
"""``shown(value)``: repr in one line of some hundred characters at most."""


def nearest(word: object, known: Iterable[str], likeness: float = LIKE_A_KEY) -> list[str]:
    """Return the known word that is most like `word`, as a list of one, or of none if none is like it."""
    if not isinstance(word, str) or len(word) > LONGEST_WORD:
        return []
    return get_close_matches(word, list(known), n=1, cutoff=likeness)


def did_you_mean(names: Iterable[str]) -> str:
    """Return the end of a message that suggests these names, "" if there are none."""
    text = " or ".join(names)
    return f"; did you mean {text}?" if text else ""


def one_line(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Say the first of pydantic's complaints as "key.path: what is wrong, found what".

    Parameters
    ----------
    error
        What pydantic raised.
    model
        The model that refused, whose other keys may be suggested.
    """
    first, *rest = error.errors(include_url=False)
    keys, value, kind = first["loc"], first["input"], first["type"]
    where = ".".join(_plain(key) for key in keys)
    fields = dict(_fields(model)) if model else {}
    path = tuple(key for key in keys if isinstance(key, str))
    if kind == "extra_forbidden":
        text = f"{where}: unknown key{did_you_mean(_keys_meant(keys, fields)) or '; see: glann params'}"
    elif kind == "value_error":  # ours: the message starts with the key
        text = ".".join(filter(None, (where, str(first["ctx"]["error"]))))
    elif kind == "missing":
        text = f"{where}: {first['msg'].lower()}"
    elif kind == "string_pattern_mismatch" and path in fields:  # the pattern itself is not for people
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
    """Yield the path of every key below a model, without the numbers of list items, and its field."""
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
    """Return the same key of other sections, at most two, or else one that is spelt like it."""
    *above, key = keys
    section = tuple(part for part in above if isinstance(part, str))
    same = [path for path in fields if path[-1] == key]
    if same:
        same.sort(key=lambda path: path[: len(section)] != section)  # first those further down this section
        return [".".join(path) for path in same[:2]]
    here = {path[-1]: ".".join(map(str, (*above, path[-1]))) for path in fields if path[:-1] == section}
    elsewhere = {path[-1]: ".".join(path) for path in fields}
    return [here[name] for name in nearest(key, here)] or [
        elsewhere[name] for name in nearest(key, elsewhere)
    ]
