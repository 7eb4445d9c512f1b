"""Checkouts of other people's code: which project one is. Standard library only."""

from __future__ import annotations

import importlib
import pathlib
from typing import NamedTuple


class Project(NamedTuple):
    """A project whose code is run from a checkout.

    Attributes:
      source: where it is published.
      sign: a file of it, and a line that this file has, by which a checkout is known.
    """

    source: str
    sign: tuple[str, str]


# The first whose sign is there: score_flow has all the signs of score_sde.
PROJECTS = {
    "edm": Project("github.com/NVlabs/edm", ("training/networks.py", "class SongUNet")),
    "score_flow": Project(
        "github.com/yang-song/score_flow", ("bound_likelihood.py", "def get_likelihood_bound_fn")
    ),
    "torch": Project("github.com/yang-song/score_sde_pytorch", ("models/utils.py", "import torch")),
    "jax": Project("github.com/yang-song/score_sde", ("models/utils.py", "import jax")),
}


def kind(path: str | pathlib.Path) -> str:
    """The key of `PROJECTS` of the checkout at `path`.

    Raises:
      ValueError: the folder is a checkout of none of them.
    """
    for name, project in PROJECTS.items():
        file, line = pathlib.Path(path) / project.sign[0], project.sign[1]
        if file.is_file() and any(text.startswith(line) for text in file.read_text().splitlines()):
            return name
    sources = ", ".join(project.source for project in PROJECTS.values())
    raise ValueError(f"--peer={path} is no checkout of any of these: {sources}")


def require(package: str, install: str = "") -> None:
    """Raises a ValueError, in one line, where a package is missing.

    Args:
      install: what pip installs it by, if that is another name.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"this peer needs {package}: pip install {install or package}") from error
