"""The report of an evaluation: every number with how it was made, beside the published one.

`report.json` is the content, `report.html` the same as one page that needs no other file.
"""

from __future__ import annotations

import io
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from PIL import Image

from evaluation.report import page, published, quantities
from runtime import figures, files

Results = Mapping[str, Any]


def number(
    name: str,
    quantity: quantities.Quantity,
    results: Results,
    config: ml_collections.ConfigDict,
    beside: Mapping[str, published.Published],
) -> dict[str, Any]:
    """One number of the report: value, error bar, the published one and how it was made."""
    error = results.get(f"{name}{quantity.error}") if quantity.error else None
    made: dict[str, Any] = {
        "name": name,
        "title": quantity.title,
        "value": results[name],
        "digits": quantity.digits,
        "better": "higher" if quantity.higher else "lower",
    }
    if error is not None and math.isfinite(error):
        made |= {"error": error, "error_of": quantity.error_of}
    spread = results.get("over_seeds", {})
    if name in spread:
        made["over_seeds"] = {"seeds": spread["seeds"], **spread[name]}
    if name in beside:
        made["published"] = beside[name]._asdict()
    makers = {"samples": sample_facts, "likelihood": likelihood_facts, "loss": loss_facts}
    makers["real"] = real_facts
    facts = makers[quantity.of](results, config)
    if quantity.of == "real":
        made["better"] = ""
    if name == "frechet_distance_matched":
        facts["samples"] = f"{results['frechet_samples_real']:,}, and as many training"
    return made | {"made_from": facts | shared_facts(results, quantity.of != "real")}


def shared_facts(results: Results, of_network: bool) -> dict[str, str]:
    """What all numbers of an evaluation have in common, those of the network the weights too."""
    weights = results["weights"]
    if "weights_sha256" in results:
        weights += f" (SHA-256 {results['weights_sha256'][:12]})"
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    facts = {"versions": versions}
    return {"step": f"{results['step']:,}", "weights": weights, **facts} if of_network else facts


def sample_facts(results: Results, config: ml_collections.ConfigDict) -> dict[str, str]:
    """Of a number that compares samples with training images."""
    dequantised = "uniform" if config.data.uniform_dequantization else "none"
    return {
        "samples": f"{results['num_samples']:,}",
        "NFE": f"{results['nfe']:,.0f} per sample",
        "sampler": sampler(results["made_by"]["sampling"], config.model.num_scales),
        "seed": str(results["seed"]),
        "dequantisation": f"{dequantised} in training",
        "features": results["features"].removeprefix("features: "),
        "statistics": statistics(results),
    }


def real_facts(results: Results, config: ml_collections.ConfigDict) -> dict[str, str]:
    """Of a number that compares real examples with one another."""
    del config
    halves = f"{results['frechet_samples_real']:,} and as many others, all training"
    return {
        "samples": f"{halves}: what a perfect generator would get",
        "features": results["features"].removeprefix("features: "),
        "statistics": statistics(results),
    }


def likelihood_facts(results: Results, config: ml_collections.ConfigDict) -> dict[str, str]:
    """Of a likelihood."""
    del config
    options = results["made_by"]["eval"]
    name = f"{results['likelihood_unit']}_per_dim"
    repeats = results[f"{name}_repeats"]
    return {
        "samples": f"{results[f'{name}_images']:,} {results[f'{name}_split']} "
        f"{results['examples']}",
        "NFE": f"{results[f'{name}_nfe']:,.0f} per image",
        "solver": f"{options['bpd_solver']}, rtol {options['bpd_rtol']:g}, "
        f"atol {options['bpd_atol']:g}, {options['bpd_num_probes']} {options['bpd_probe']} "
        "probe(s)",
        "seed": str(options["seed"]),
        "dequantisation": f"{results['likelihood_of']}, {repeats} draw(s) per image",
    }


def loss_facts(results: Results, config: ml_collections.ConfigDict) -> dict[str, str]:
    """Of the loss of test images."""
    dequantised = "uniform" if config.data.uniform_dequantization else "none"
    return {
        "samples": f"{results['loss_images']:,} test {results['examples']}",
        "objective": config.training.objective,
        "NFE": "1 per image",
        "seed": str(config.seed),
        "dequantisation": dequantised,
    }


def statistics(results: Results) -> str:
    """With what samples were compared: a file's hash, or the training images'."""
    if "statistics" in results:
        stored = results["statistics"]
        images = f", {stored['images']:,} images" if stored["images"] else ""
        of = f" of {stored['dataset']}" if stored["dataset"] else ""
        return f"SHA-256 {stored['sha256'][:16]} ({stored['form']}{images}{of})"
    images = f"all {results['num_train']:,} training {results['examples']}"
    hashed = results.get("train_fingerprint", "").rpartition("/")[2]
    return f"{images}, CRC-32 {hashed}" if hashed else images


def sampler(options: Mapping[str, Any], num_scales: int) -> str:
    """A section `sampling` in words."""
    method = options["method"]
    steps = f"{options['num_steps'] or num_scales} steps"
    adaptive = f"{options['solver']}, rtol {options['rtol']:g}, atol {options['atol']:g}"
    if method == "pc":
        parts = [options[name] for name in ("predictor", "corrector") if options[name] != "none"]
        words = [f"{' + '.join(parts) or 'pc'}", steps]
        if options["probability_flow"]:
            words.append("probability flow")
        return ", ".join(words)
    if method == "ode" or (method == "sde" and not options["num_steps"]):
        return f"{method}, {adaptive}"
    if method == "sde":
        return f"sde, {options['solver']}, {steps}"
    return f"{method}, {steps}"


def content(configs: Mapping[str, ml_collections.ConfigDict], runs: Mapping[str, Results]) -> dict:
    """All of the report but its pictures: `runs` by name, each with the config it was made by."""
    made: dict[str, Any] = {"dataset": "", "config": None, "evaluations": {}}
    for name, results in runs.items():
        config = configs[name]
        known = published.identify(config)
        beside = published.compare(known, results)
        made["dataset"] = config.data.dataset
        made["config"] = known and {"name": known.name, "changed": known.changed}
        made["evaluations"][name] = {
            "step": results["step"],
            "weights": results["weights"],
            "sampler": sampler(results["made_by"]["sampling"], config.model.num_scales),
            "sampler_changed": known.sampler_changed if known else [],
            "nfe": results.get("nfe"),
            "numbers": [
                number(key, quantity, results, config, beside)
                for key, quantity in quantities.found(results).items()
            ],
            "settings": _plain(config.to_dict()),
        }
    return made


SAMPLES = "Samples, not selected: the first of this seed"


def write(
    folder: pathlib.Path,
    workdir: pathlib.Path,
    configs: Mapping[str, ml_collections.ConfigDict],
    runs: Mapping[str, Results],
) -> None:
    """Writes `report.json` and `report.html` into `folder`.

    Pictures of an evaluation are in the folder of its name, "" for the only one; what of them is
    not there is left out.
    """
    made = content(configs, runs)
    files.write_json(folder / "report.json", made)
    pictures, curves = [], []
    if len(runs) == 1:
        ((name, results),) = runs.items()
        if "num_samples" in results:
            pictures = [
                _picture(folder / name / "samples.png", SAMPLES),
                _picture(folder / name / "reverse_process.gif", "How they came about, from noise"),
            ]
        curves = [_picture(workdir / "loss.png", "Loss in training")]
        if "loss" in results:
            curves.append(_picture(folder / name / "loss_by_time.png", "Loss by noise level"))
    else:
        for name, evaluation in made["evaluations"].items():
            pictures.append(_picture(folder / name / "samples.png", page.name_of(evaluation), 480))
        curves = [_picture(path, title) for path, title in plot(folder, made)]
    shown, drawn = ([one for one in found if one] for found in (pictures, curves))
    page.write(folder / "report.html", made, shown, drawn, quantities.LEADING)


def plot(folder: pathlib.Path, made: Mapping[str, Any]) -> list[tuple[pathlib.Path, str]]:
    """Draws the distance of the samples over steps and over NFE, where there are several of them.

    Returns the paths of the plots with their titles.
    """
    names = ("fid", "frechet_distance", "sliced_wasserstein")
    points = []
    for run in made["evaluations"].values():
        numbers = {one["name"]: one for one in run["numbers"]}
        points += [(run, numbers[name]) for name in names if name in numbers][:1]
    plots = []
    for axis, along, label in (
        ("step", "step", lambda run: run["sampler"]),
        ("NFE per sample", "nfe", lambda run: f"step {run['step']:,}"),
    ):
        curves: dict[str, tuple[list[float], list[float]]] = {}
        for run, one in sorted(points, key=lambda point: point[0][along]):
            xs, ys = curves.setdefault(label(run), ([], []))
            xs.append(run[along])
            ys.append(one["value"])
        if any(len(set(xs)) > 1 for xs, _ in curves.values()):
            every = [x for xs, _ in curves.values() for x in xs]
            scale = "log" if along == "nfe" and max(every) > 10 * min(every) else "linear"
            path, title = folder / f"by_{along}.png", points[0][1]["title"]
            figures.plot_curves(path, curves, axis, title, xscale=scale)
            plots.append((path, f"{title} over {axis}"))
    return plots


def _picture(path: pathlib.Path, title: str, side: int = 0) -> page.Picture | None:
    """A file as it is, or no larger than `side` pixels if that is given; None if there is none."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    if side:
        small = io.BytesIO()
        with Image.open(path) as picture:
            picture.thumbnail((side, side))
            picture.save(small, "PNG", optimize=True)
        content = small.getvalue()
    return page.Picture(title, f"image/{path.suffix.removeprefix('.')}", content)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
