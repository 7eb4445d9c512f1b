"""The results that an evaluation has written into its folder, and what becomes of earlier ones."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

from absl import logging

from configs.stored import config_differences, short
from runtime import errors, files

Results = dict[str, Any]

GUIDE = "guide_sha256"  # in results: the hash of the weights of a classifier that guided
# What an evaluation writes for reading, in the order in which it is moved; the last finishes it.
RESULTS = ("report.html", "report.json", "results.json")


def keep_earlier(folder: pathlib.Path, results: Results) -> None:
    """Moves report and results of other settings or weights into a folder of their own in `folder`,
    where `results` are to be written; of the same ones, or of some of these, they are replaced."""
    earlier = results_in(folder / RESULTS[-1])
    of_earlier, of_now = identity(earlier), identity(results)
    if not earlier or of_earlier == of_now or _is_part(of_earlier, of_now):
        return
    of_earlier = json.dumps(of_earlier, sort_keys=True)
    kept = folder / f"earlier_{hashlib.sha256(of_earlier.encode()).hexdigest()[:8]}"
    kept.mkdir(exist_ok=True)
    for name in RESULTS:
        if (folder / name).is_file():
            (folder / name).replace(kept / name)
    then, now = earlier.get("made_by"), results.get("made_by")
    differences = (
        config_differences(then, now, wording=then_and_now)
        if isinstance(then, dict) and isinstance(now, dict)
        else []
    )
    what = errors.abridged(differences, "; ", 3) or "other weights or evaluations"
    print(f"{folder} had results of {what}; they are kept in {kept}")


def identity(results: Results) -> Any:
    """The settings and weights that results are of; of several evaluations, those of each."""
    if isinstance(results.get("runs"), dict):
        return {name: identity(each) for name, each in results["runs"].items()}
    return [results.get(name) for name in ("made_by", "weights_sha256", GUIDE)]


def _is_part(earlier: Any, now: Any) -> bool:
    """True of several evaluations all of which are among those of now, as of a run that trains."""
    several = isinstance(earlier, dict) and isinstance(now, dict)
    return several and earlier.items() <= now.items()


def then_and_now(name: str, old: Any, new: Any) -> str:
    """`eval.ema='raw' (now '')`."""
    return f"{name}={short(old)} (now {short(new)})"


def results_in(path: pathlib.Path) -> Results:
    """The results of a file, empty where there is none that can be read: they are made again."""
    if not path.exists():
        return {}
    try:
        return files.read_json(path, "the evaluation is made again")
    except (OSError, ValueError) as error:
        logging.warning("%s", errors.one_line(error, 300))
        return {}


def other_folders(now: str, then: str) -> Results:
    """The entries on folders of a user's own images, where those of training were in another."""
    paths = {pathlib.Path(os.path.expanduser(folder)).resolve() for folder in (now, then)}
    if not (now and then) or len(paths) == 1:
        return {}
    return {"dataset_folder": now, "trained_on_folder": then}
