"""The sentence below each field of a struct, for the pages that are made of structs."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from itertools import pairwise

import msgspec


def meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The string below each field, by the field's name; those of base classes too."""
    found: dict[str, str] = {}
    for base in reversed(struct.__mro__):
        if issubclass(base, msgspec.Struct) and base is not msgspec.Struct:
            found |= _of_module(base.__module__).get(base.__qualname__, {})
    return found


@cache
def _of_module(name: str) -> Mapping[str, Mapping[str, str]]:
    """The meanings of all classes of a module, by the class's name."""
    module = ast.parse(inspect.getsource(sys.modules[name]))
    return {part.name: _of_class(part) for part in module.body if isinstance(part, ast.ClassDef)}


def _of_class(definition: ast.ClassDef) -> Mapping[str, str]:
    return {
        ast.unparse(field.target): ast.literal_eval(text.value)
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
