"""The siblings of `configs/emoji`, trained for a few hundred steps each, and one picture of them.

    python -m benchmarks.siblings [x0 ...] [--workdir=runs/siblings] [--steps=600]
        [--page=docs/configs.md] [--picture=docs/pictures/emoji_siblings.png]

A row of the picture is a sibling: samples of one seed, so that a column is the same noise wherever
two siblings have the same SDE; a guided one draws the nine groups, or the prompts. The score that
the classifier and the CLIP guide is that of the shipped weights `emoji`. What is trained and drawn
is not made again: the same command goes on after a stop. About five minutes a sibling on two cores.

Prints a Markdown table of the test losses, and writes it into a page where that has the two
comments which mark its place.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks import pages
from configs.names import lookup
from runtime import figures, files

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLUMNS = 9
PROMPTS = ("red heart", "green apple", "blue book")


class Sibling(NamedTuple):
    """How a sibling is drawn.

    Attributes:
      title: of its row.
      task: of `--mode=control`; empty: its samples.
      options: of the task.
      of_emoji: it guides the shipped weights.
    """

    title: str
    task: str = ""
    options: Mapping[str, Any] = {}
    of_emoji: bool = False


SIBLINGS = {
    "x0": Sibling("x0"),
    "edm": Sibling("EDM"),
    "likelihood": Sibling("likelihood weighting"),
    "cosine_vp": Sibling("cosine VP"),
    "sigma_power": Sibling("sigma^t"),
    "classes": Sibling("classes", "class", {"method": "conditional", "num_variants": 1}),
    "classifier_free": Sibling(
        "classifier-free, scale 2", "class", {"scale": 2, "num_variants": 1}
    ),
    "classifier": Sibling(
        "classifier, scale 5",
        "class",
        {"method": "classifier", "scale": 5, "num_variants": 1},
        of_emoji=True,
    ),
    "clip": Sibling(
        "CLIP: " + ", ".join(PROMPTS),
        "prompt",
        {"scale": 10, "num_variants": 3, "prompt": ";".join(PROMPTS)},
        of_emoji=True,
    ),
}


def command(*flags: str) -> None:
    subprocess.run([sys.executable, str(ROOT / "main.py"), *flags], check=True)


def run_of(name: str, steps: int) -> list[str]:
    """Flags of a sibling's config with fewer steps, the learning rate's end among them."""
    changed = {
        "training.n_iters": steps,
        "training.snapshot_freq": steps,
        "training.eval_freq": 100,
        "optim.decay_steps": steps,
        "optim.warmup": 50,
    }
    config = f"--config={ROOT / 'configs' / 'emoji' / name}.py"
    return [config, *(f"--config.{field}={value}" for field, value in changed.items())]


def draw(name: str, sibling: Sibling, workdir: pathlib.Path, steps: int) -> np.ndarray:
    """The row [32, 9 * 32, 3] of a sibling that is trained, uint8."""
    of_sibling = run_of(name, steps)
    if not sibling.task:
        command("--mode=sample", *of_sibling, f"--workdir={workdir}",
                f"--config.sampling.num_samples={COLUMNS}")  # fmt: skip
        with np.load(workdir / "samples" / "shard_000000.npz") as shard:
            return np.concatenate(shard["image"][:COLUMNS], axis=1)
    folder = workdir
    if sibling.of_emoji:
        folder = workdir.parent / f"guided_by_{name}"
        of_sibling = ["--source=emoji", f"--config.control.guide={workdir}"]
    options = {"task": sibling.task, **sibling.options}
    asked = [f"--config.control.{field}={value}" for field, value in options.items()]
    command("--mode=control", *of_sibling, f"--workdir={folder}", *asked)
    with np.load(folder / "control" / sibling.task / "results.npz") as results:
        return np.concatenate(results["image"][:COLUMNS], axis=1)


def losses_of(workdir: pathlib.Path) -> dict[str, float]:
    """The last step, its test loss, and the accuracy over all times where there is one."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    tested = [line for line in lines if "eval_loss" in line][-1]
    numbers = {"step": tested["step"], "loss": tested["eval_loss"]}
    if "eval_accuracy_by_time" in tested:
        numbers["accuracy"] = float(np.mean(tested["eval_accuracy_by_time"]))
    return numbers


def table(losses: dict[str, dict[str, float]]) -> str:
    """Markdown: steps, test loss and accuracy of each sibling."""
    lines = ["| sibling | steps | test loss | accuracy |", "| --- | --- | --- | --- |"]
    for name, numbers in losses.items():
        accuracy = f"{numbers['accuracy']:.0%}" if "accuracy" in numbers else ""
        lines.append(f"| `{name}` | {numbers['step']:.0f} | {numbers['loss']:.3f} | {accuracy} |")
    return "\n".join(lines)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", help="a sibling; by default all of these")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/siblings"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--page", type=pathlib.Path)
    parser.add_argument("--picture", type=pathlib.Path)
    options = parser.parse_args()
    rows, losses = {}, {}
    for name in options.name or SIBLINGS:
        sibling = lookup(SIBLINGS, name, "sibling of configs/emoji")
        workdir = options.workdir / name
        command("--mode=train", *run_of(name, options.steps), f"--workdir={workdir}")
        rows[name] = draw(name, sibling, workdir, options.steps)
        losses[name] = losses_of(workdir)
    text = table(losses)
    print(text)
    if options.page:
        pages.write(options.page, "benchmarks/siblings.py", text)
    if options.picture:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        titles = [SIBLINGS[name].title for name in rows]
        picture = figures.grid(np.stack(list(rows.values())), 1, scale=2, labels=titles)
        with files.whole(options.picture) as path:
            Image.fromarray(picture).quantize(128).save(path, "png", optimize=True)


if __name__ == "__main__":
    run()
