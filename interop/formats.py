"""The format of a file of weights, by its content; and the reader of safetensors."""

from __future__ import annotations

import os
import pathlib
import pickle
import re

import numpy as np
import safetensors
import safetensors.numpy

from interop import edm_pickle, pth
from runtime import errors

FORMATS = {
    "pth": "PyTorch (.pth, .bin, guided-diffusion's .pt)",
    "flax": "official JAX checkpoint (Flax msgpack)",
    "edm": "pickle of EDM's networks (.pkl)",
    "safetensors": "safetensors",
    "diffusers": "diffusers folder (config.json and weights)",
}

WEIGHTS = re.compile(r"\.(pth|pt|bin|ckpt|pkl|safetensors)$|^checkpoint_\d+$")  # names of files


def recognise(path: str | os.PathLike[str]) -> str:
    """A key of `FORMATS`. The first bytes decide: reading may still refuse the file.

    Where they are those of no format, the ending `.safetensors` does: its reader says what is
    broken.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: none of the known formats, or no file at all, as a pipe, which has no end.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"--source={path}: there is no such file or folder")
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"--source={path} is a pipe, socket or device, not a file or folder")
    if run := _run_of(path):
        raise ValueError(
            f"--source={path} is a run of this program, and needs no import: any mode reads it "
            f"with --workdir={run} and its own --config; --mode=export writes it for diffusers"
        )
    if path.is_dir():
        if (path / "config.json").is_file():
            return "diffusers"
        raise ValueError(f"{path} has no config.json, as a diffusers folder would{_advice(path)}")
    with path.open("rb") as file:
        head = file.read(16)
    if pth.is_pth(path):
        return "pth"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return "safetensors"
    if edm_pickle.is_edm(path):
        return "edm"
    if path.suffix == ".safetensors":  # its length is broken, which may look like a msgpack map
        return "safetensors"
    if head[:1] == pickle.PROTO and head[1:2] <= bytes([pickle.HIGHEST_PROTOCOL]):
        raise ValueError(
            f"{path} is a plain pickle, which may do anything when it is read; wanted is what "
            "torch.save(model.state_dict(), path) writes"
        )
    if head and (head[0] >> 4 == 0x8 or head[0] in (0xDE, 0xDF)):  # a msgpack map
        return "flax"
    raise ValueError(f"{path} is in no known format; known: {', '.join(FORMATS.values())}")


def _advice(folder: pathlib.Path) -> str:
    """What to name instead of a folder that files of weights are in, if any are."""
    names = sorted(x.name for x in folder.iterdir() if WEIGHTS.search(x.name) and x.is_file())
    return f"; name one file in it: {errors.abridged(names, ', ')}" if names else ""


def _run_of(path: pathlib.Path) -> pathlib.Path | None:
    """The workdir that `path` is, or is among the checkpoints of; None of what is none."""
    for folder in (path, *path.absolute().parents):
        if (folder / "checkpoints").is_dir() and (folder / "config.json").is_file():
            inside = folder is path or path.absolute().is_relative_to(
                folder.absolute() / "checkpoints"
            )
            return folder if inside else None
    return None


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a .safetensors file by name.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged, or of another format.
    """
    try:
        return safetensors.numpy.load_file(path)
    except OSError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as safetensors: {text}") from error
