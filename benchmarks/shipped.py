"""The weights that are part of the project: trained, written to interop/shipped, and their hashes.

    python -m benchmarks.shipped [digits ...] [--folder=runs/shipped]

Each is the run of its card's config in interop/cards.yaml as it stands, with its seed, on whatever
device is there; the averages of its last checkpoint are kept, in float16. What is trained is not
trained again: the same command goes on after a stop. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import subprocess
import sys

import flax.traverse_util
import numpy as np
import safetensors.numpy

import configs
from configs.names import lookup
from interop import cards, hub
from runtime import experiment, files
from runtime.workdir import load_weights

ROOT = pathlib.Path(__file__).resolve().parent.parent


def shipped() -> dict[str, cards.Card]:
    """The cards whose weights are part of the project, by name."""
    return {n: c for n, c in cards.cards().items() if c.address.startswith(cards.SHIPPED)}


def train(card: cards.Card, workdir: pathlib.Path) -> None:
    """Trains by the command line, or goes on."""
    flags = [f"--config={ROOT / 'configs' / card.config}.py", f"--workdir={workdir}"]
    subprocess.run([sys.executable, str(ROOT / "main.py"), "--mode=train", *flags], check=True)


def write(card: cards.Card, workdir: pathlib.Path) -> pathlib.Path:
    """Writes the averages to interop/shipped, under our names."""
    config = configs.load(card.config)
    shape = experiment.image_shape(config)
    weights = load_weights(config, experiment.network(config), shape, workdir)
    flat = flax.traverse_util.flatten_dict(weights.params, sep="/")
    tensors = {name: np.asarray(array, np.float16) for name, array in flat.items()}
    about = {"config": card.config, "weights": f"step {weights.step}, {weights.label}"}
    target = hub.SHIPPED / card.address.removeprefix(cards.SHIPPED)
    with files.whole(target) as partial:
        safetensors.numpy.save_file(tensors, partial, metadata=about)
    return target


def with_hash(text: str, name: str, sha256: str) -> str:
    """The text of cards.yaml with the SHA-256 of a card's file.

    Raises:
      ValueError: the card has no line for it.
    """
    pattern = rf"(?m)^({re.escape(name)}:\n(?:  .*\n)*?  sha256:)[ 0-9a-f]*$"
    changed, count = re.subn(pattern, rf"\g<1> {sha256}", text)
    if count != 1:
        raise ValueError(f"the card {name} has no line `  sha256:`")
    return changed


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", default=[], help="a card; by default all of these")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/shipped"))
    options = parser.parse_args()
    known = shipped()
    for name in options.name or known:
        lookup(known, name, "weights of this project")
        card, workdir = known[name], options.folder / name
        train(card, workdir)
        path = write(card, workdir)
        text = with_hash(cards.FILE.read_text(), name, files.sha256(path))
        files.write_text(cards.FILE, text)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run()
