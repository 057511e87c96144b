"""Checks at run time what the annotations of a package say: of shapes by jaxtyping, of all else by beartype alone.

jaxtyping's own hook wraps every function so that names of axes can be bound in it, which makes calls several times
slower than beartype's check and is needed only where an annotation has a shape.
"""

import dataclasses
import inspect
from typing import Any

import jaxtyping
from beartype import beartype
from jaxtyping._decorator import _destring_annotation, jaxtyped


def check_types(package: str) -> None:
    """Has every function and dataclass of a package checked that is imported from now on."""
    jaxtyping.jaxtyped = lambda *, typechecker: checked  # the hook writes it above each function
    jaxtyping.install_import_hook(package, None)


def checked(fn: Any) -> Any:
    """A decorator of functions, methods, properties and dataclasses."""
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(checked(fn.__func__))
    if isinstance(fn, property):
        return property(*(one and checked(one) for one in (fn.fget, fn.fset, fn.fdel)))
    if inspect.isclass(fn):
        if dataclasses.is_dataclass(fn) and "__init__" in vars(fn):
            fn.__init__ = checked(fn.__init__)
        return fn
    hints = fn.__annotations__
    if "<locals>" in fn.__qualname__ and "jaxtyping" not in repr(hints):
        return fn  # to compile a check whenever it is made takes longer than all else
    for name, hint in hints.items():
        if "'" in repr(hint):  # it names what is defined later, or imported for the type checker only
            hints[name] = _destring_annotation(hint, fn.__globals__)
    shaped = any("jaxtyping" in repr(hint) for hint in hints.values())
    # Given a checker, jaxtyping would look at the arguments once more after the call.
    return jaxtyped(beartype(fn), typechecker=None) if shaped else beartype(fn)
