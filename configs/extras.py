"""Packages that only some of the program needs: those of the extras in pyproject.toml."""

from __future__ import annotations

import importlib.util


def missing(*modules: str) -> list[str]:
    """The modules that are not installed; none is imported."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def require(what: str, extra: str, otherwise: str = "", **packages: str) -> None:
    """Refuses what needs packages that are not installed, in one line with the cure.

    Args:
      what: the subject of that line: "data set digits".
      extra: of pyproject.toml, which has the packages.
      otherwise: another cure, which follows: ", or name the folder ...".
      packages: their names on an index by those of their modules.

    Raises:
      ImportError: some of them are not installed.
    """
    lacking = [packages[name] for name in missing(*packages)]
    if lacking:
        raise ImportError(
            f"{what} needs {' and '.join(lacking)}: pip install -e '.[{extra}]'{otherwise}"
        )
