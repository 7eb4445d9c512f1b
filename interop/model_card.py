"""The page of a pushed pipeline: what it is, where its weights are from, and what they measured."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import ml_collections
import yaml

from interop import cards
from runtime import files

ORIGIN = "source.json"  # in the workdir: what was imported there
RESULTS = pathlib.PurePath("eval", "results.json")
NUMBERS = ("fid", "inception_score", "bits_per_dim")


def text(config: ml_collections.ConfigDict, workdir: pathlib.Path, weights: str, kind: str) -> str:
    """The README.md of a repository of Hugging Face's hub, with its header.

    Args:
      weights: which they are, "step 1050, EMA".
      kind: the pipeline's class.
    """
    origin = _stored(workdir / ORIGIN)
    card = cards.find(str(origin.get("source", "")))
    header = {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["score-based generative modelling", "diffusion", config.training.sde],
        "license": _licence(card.licence if card else ""),
    }
    lines = [
        f"A `{kind}` of the score network `{config.model.name}` for {config.data.dataset}, at "
        f"{config.data.image_size} x {config.data.image_size} pixels: the process "
        f"`{config.training.sde}`, weights of {weights}.",
        "",
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        'images = DiffusionPipeline.from_pretrained("<this repository>")().images',
        "```",
    ]
    if origin:
        lines += ["", f"Imported from `{origin['source']}`, SHA-256 `{origin['sha256']}`."]
    if card:
        lines += [f"Published at {card.address}, licence {card.licence}."]
    results = _stored(workdir / RESULTS)
    numbers = [(name, results[name]) for name in NUMBERS if name in results]
    if numbers:
        count = results.get("num_samples", 0)
        lines += ["", f"Measured here, with seed {results['seed']} and {count:,} samples:", ""]
        lines += [f"- {name}: {value:.4g}" for name, value in numbers]
    settings = json.dumps(config.to_dict(), indent=1, sort_keys=True, default=str)
    lines += ["", "All settings:", "", "```json", settings, "```"]
    front = yaml.safe_dump(header, sort_keys=False)
    return "\n".join(["---", front + "---", "", f"# {config.data.dataset}", "", *lines, ""])


def _stored(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file of the workdir; nothing where there is none."""
    return files.read_json(path, "remove it") if path.is_file() else {}


def _licence(name: str) -> str:
    """A licence as the hub spells it; "other" of one that is not known."""
    return name.lower() if name else "other"
