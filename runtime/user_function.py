"""Functions of the user's own, named in a config as `file.py:function`."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from runtime import errors, files


class UserFunction(NamedTuple):
    """A function of a user's file.

    Attributes:
      function: as the file defines it.
      sha256: of the file, by which what is made with the function and kept is named. What the file
        itself imports is not part of it.
    """

    function: Callable[..., Any]
    sha256: str


def is_named(text: str) -> bool:
    """True if a text has the form of `file.py:function`, and is no name of something built in."""
    return text.rpartition(":")[0].endswith(".py")


def load(text: str, field: str) -> UserFunction:
    """The function that `file.py:function`, the config's `field`, names. The file is executed.

    Raises:
      ValueError: there is no such file, it fails, or it defines no such function; one line.
    """
    name, _, function_name = text.rpartition(":")
    path = files.as_path(name, field)
    if not path.is_file():
        raise ValueError(f"{field}={text!r}: there is no file {path}")
    source = path.read_bytes()
    spec = importlib.util.spec_from_loader(f"user_function_{path.stem}", None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:
        line = getattr(error, "lineno", None) or _line_in(error, str(path))
        where = f"{path}, line {line}" if line else str(path)
        raise ValueError(
            f"{field}={text!r}: {where}: {type(error).__name__}: {errors.one_line(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        ]
        defined = errors.abridged(sorted(names), ", ") if names else "none"
        raise ValueError(
            f"{field}={text!r}: {path} defines no function {function_name!r}; it defines {defined}"
        )
    return UserFunction(function, hashlib.sha256(source).hexdigest())


def _line_in(error: BaseException, path: str) -> int | None:
    """The line of the file at which an error came up, the innermost one."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
