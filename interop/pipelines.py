"""Folders of diffusers pipelines: a network, perhaps its average, and their scheduler.

| file | what it says |
|---|---|
| `model_index.json` | the class of the pipeline, and of each of its parts |
| `scheduler/scheduler_config.json` | the SDE and the prediction; see `schedulers` |
| `unet/config.json` and weights | the network; see `diffusers` |
| `unet_ema/` | its average, where a training script has left one |
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interop import diffusers, schedulers
from runtime import errors, files

INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"
NETWORKS = ("unet", "unet_ema")
CLASSES = {
    "DDPMScheduler": "DDPMPipeline",
    "DDIMScheduler": "DDIMPipeline",
    "ScoreSdeVeScheduler": "ScoreSdeVePipeline",
}


def network_folder(path: pathlib.Path) -> pathlib.Path:
    """The folder of the network in a pipeline, its average where that is alone; else `path`."""
    folders = [path / name for name in NETWORKS]
    return next((folder for folder in folders if (folder / "config.json").is_file()), path)


def root_of(folder: pathlib.Path) -> pathlib.Path:
    """The folder of the pipeline that a network's folder is in, or else that folder."""
    resolved = folder.resolve()
    return resolved.parent if resolved.name in NETWORKS else folder


def average_of(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder of the averaged weights that stands beside the network's."""
    beside = root_of(folder) / "unet_ema"
    named = folder.resolve().name == "unet"
    return beside if named and (beside / "config.json").is_file() else None


def find_scheduler(folders: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """The first scheduler_config.json in the folders or in a `scheduler` below them."""
    places = [folder / part for folder in folders for part in ("", "scheduler")]
    files = [place / SCHEDULER for place in places]
    return next((path for path in files if path.is_file()), None)


def read_index(pipeline: pathlib.Path) -> dict[str, Any]:
    """model_index.json of a pipeline; empty where there is none.

    Raises:
      ValueError: it is damaged; its network sees something else than pixels, such as the codes of
        an auto-encoder, which is then one of its parts.
    """
    path = pipeline / INDEX
    if not path.is_file():
        return {}
    index = diffusers.read_json(path)
    others = [
        f"{name} ({value[-1]})"
        for name, value in index.items()
        if name not in (*NETWORKS, "scheduler") and _is_part(value)
    ]
    if others:
        raise ValueError(
            f"{path}: a {index.get('_class_name')!s:.60} has {errors.abridged(others, ', ')}; "
            f"served are pipelines of pixels, which have {', '.join(NETWORKS)} and scheduler alone"
        )
    return index


def _is_part(value: Any) -> bool:
    """True of ["diffusers", "UNet2DModel"]; [None, None] is a part that was left out."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[-1], str)


def read_scheduler(path: pathlib.Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """scheduler_config.json; its class by model_index.json where it does not say it itself.

    Raises:
      ValueError: it is damaged.
    """
    part = index.get("scheduler")
    named = {"_class_name": part[-1]} if _is_part(part) and part is not None else {}
    return named | diffusers.read_json(path)


def unread(folder: pathlib.Path, pipeline: pathlib.Path) -> list[str]:
    """Names of what stands in a pipeline's folder and is not read, if `folder` is in one."""
    if folder.resolve() == pipeline.resolve():
        return []
    used = {*NETWORKS, "scheduler", INDEX, SCHEDULER}
    if folder.resolve().name == "unet_ema":
        used.remove("unet")
    return sorted(
        path.name for path in pipeline.iterdir() if path.name not in used and path.name[0] != "."
    )


def unread_fields(scheduler: Mapping[str, Any]) -> list[str]:
    """One line on what a scheduler says of sampling."""
    fields = schedulers.unread(scheduler)
    return [f"of {SCHEDULER} {errors.abridged(fields, ' ', 20)}"] if fields else []


def descriptions(network: dict[str, Any], scheduler: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The files of JSON of a pipeline, by their place in its folder."""
    kind = scheduler["_class_name"]
    index = {
        "_class_name": CLASSES[kind],
        "scheduler": ["diffusers", kind],
        "unet": ["diffusers", network["_class_name"]],
    }
    return {INDEX: index, f"scheduler/{SCHEDULER}": scheduler, "unet/config.json": network}


def write(
    folder: str | os.PathLike[str],
    network: dict[str, Any],
    scheduler: dict[str, Any],
    tensors: diffusers.Tensors,
) -> None:
    """Writes a pipeline into a new folder, which appears whole or not at all.

    Raises:
      ValueError: there is something at `folder` already.
      OSError: it could not be written.
    """
    folder = pathlib.Path(folder)
    diffusers.refuse_filled(folder)
    with files.whole(folder) as partial:
        for place, value in descriptions(network, scheduler).items():
            (partial / place).parent.mkdir(parents=True, exist_ok=True)
            (partial / place).write_text(diffusers.json_text(value))
        diffusers.save_tensors(tensors, partial / "unet", folder)


def is_written(
    folder: str | os.PathLike[str],
    network: dict[str, Any],
    scheduler: dict[str, Any],
    tensors: diffusers.Tensors,
) -> bool:
    """True if the folder is what `write` makes of these, and holds nothing else."""
    folder, jsons = pathlib.Path(folder), descriptions(network, scheduler)
    if not folder.is_dir():
        return False
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    if names != {*jsons, f"unet/{diffusers.WEIGHTS}"}:
        return False
    try:
        stored = diffusers.read(folder / "unet").tensors
        same = all(
            diffusers.read_json(folder / place) == json.loads(json.dumps(value))
            for place, value in jsons.items()
        )
    except ValueError:
        return False
    return (
        same
        and stored.keys() == tensors.keys()
        and all(np.array_equal(stored[name], tensors[name]) for name in tensors)
    )
