"""The report of an evaluation: every number with how it was made, beside the published one.

`report.json` is the content, `report.html` the same as one page that needs no other file.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from PIL import Image

from evaluation.report import facts, page, published, quantities
from runtime import figures, files

Results = Mapping[str, Any]


def content(configs: Mapping[str, ml_collections.ConfigDict], runs: Mapping[str, Results]) -> dict:
    """All of the report but its pictures: `runs` by name, each with the config it was made by."""
    report: dict[str, Any] = {"dataset": "", "config": None, "evaluations": {}}
    for name, results in runs.items():
        config = configs[name]
        nearest = published.identify(config)
        references = published.compare(nearest, results)
        report["dataset"] = config.data.dataset
        report["config"] = nearest and {"name": nearest.name, "changed": nearest.changed}
        report["evaluations"][name] = {
            "step": results["step"],
            "weights": results["weights"],
            "sampler": facts.sampler(results["made_by"]["sampling"], config.model.num_scales),
            "sampler_changed": nearest.sampler_changed if nearest else [],
            "nfe": results.get("nfe"),
            "numbers": [
                number_content(number, config, references.get(number.name))
                for number in quantities.numbers(results).values()
            ],
            "settings": json.loads(json.dumps(config.to_dict())),
        }
    return report


def number_content(
    number: quantities.Number,
    config: ml_collections.ConfigDict,
    reference: published.Published | None,
) -> dict[str, Any]:
    """One number of the report: value, error bar, the published one and how it was made."""
    quantity, results = number.quantity, number.results
    entry: dict[str, Any] = {
        "name": number.name,
        "title": number.title,
        "value": number.value,
        "digits": quantity.digits,
        "better": quantity.better,
    }
    if number.error is not None:
        entry |= {"error": number.error, "error_of": quantity.error[1]}
    spread = results.get("over_seeds", {})
    if number.name in spread:
        entry["over_seeds"] = {"seeds": spread["seeds"], **spread[number.name]}
    if reference is not None:
        entry["published"] = reference._asdict()
    return entry | {"made_from": facts.of(number, settings_of(config))}


def settings_of(config: ml_collections.ConfigDict) -> facts.Settings:
    """What the facts of a report need of the config."""
    dequantised = "uniform" if config.data.uniform_dequantization else "none"
    training = config.training
    return facts.Settings(
        config.model.num_scales, dequantised, training.sde, training.objective, config.seed
    )


def write(
    folder: pathlib.Path,
    workdir: pathlib.Path,
    configs: Mapping[str, ml_collections.ConfigDict],
    runs: Mapping[str, Results],
) -> None:
    """Writes `report.json` and `report.html` into `folder`.

    Pictures of an evaluation are in the folder of its name, "" for the only one, and those of the
    training in `workdir`; a picture that is not there is left out.
    """
    report = content(configs, runs)
    files.write_json(folder / "report.json", report)
    if len(runs) == 1:
        ((name, results),) = runs.items()
        samples = pictures_of(results, folder / name, SAMPLES)
        curves = [picture(workdir / "loss.png", "Loss in training", plot=True)]
        curves += pictures_of(results, folder / name, CURVES)
    else:
        samples = [
            picture(folder / name / "samples.png", page.name_of(run), side=480)
            for name, run in report["evaluations"].items()
        ]
        plots = plot_distances(folder, report) + plot_others(folder, report)
        curves = [picture(*curve, plot=True) for curve in plots]
        write_table(folder / "all.csv", report)
    curves.append(picture(workdir / "training_samples.png", "Samples in the course of training"))
    existing = [[one for one in pictures if one is not None] for pictures in (samples, curves)]
    page.write(folder / "report.html", report, *existing)


# Pictures of an evaluation: the result that each belongs to, its file and its title.
SAMPLES = (
    ("num_samples", "samples.png", "Samples, not selected: the first of this seed"),
    ("num_samples", "reverse_process.gif", "How they came about, from noise"),
    (
        "memorised_pixels",
        "nearest.png",
        "The samples nearest to training images, each beside that image: ratio of the two nearest "
        "distances, number of the image",
    ),
)
BOUND = "bound_by_noise.png", "The variational bound by noise level"
CURVES = (
    ("loss", "loss_by_time.png", "Loss by noise level"),
    *((f"{unit}_per_dim_bound_by_noise", *BOUND) for unit in ("bits", "nats")),
)


def pictures_of(
    results: Results, folder: pathlib.Path, entries: tuple[tuple[str, str, str], ...]
) -> list[page.Picture | None]:
    """Those of the `entries` whose results are there; other files are of earlier evaluations."""
    plot = entries is CURVES
    return [picture(folder / f, title, plot=plot) for name, f, title in entries if name in results]


def picture(
    path: pathlib.Path, title: str, side: int = 0, plot: bool = False
) -> page.Picture | None:
    """A file as it is, or no larger than `side` pixels if that is given; None if there is none."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    if side:
        small = io.BytesIO()
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((side, side))
            image.save(small, "PNG", optimize=True)
        data = small.getvalue()
    return page.Picture(title, f"image/{path.suffix.removeprefix('.')}", data, plot)


def write_table(path: pathlib.Path, report: Mapping[str, Any]) -> None:
    """Writes all numbers of several evaluations as comma-separated values, a row for each."""
    runs = report["evaluations"]
    names = list(dict.fromkeys(number["name"] for r in runs.values() for number in r["numbers"]))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["evaluation", "step", "sampler", "nfe", *names])
    for name, run in runs.items():
        values = {number["name"]: number["value"] for number in run["numbers"]}
        nfe = "" if run["nfe"] is None else run["nfe"]
        table.writerow(
            [name, run["step"], run["sampler"], nfe, *(values.get(each, "") for each in names)]
        )
    files.write_text(path, text.getvalue())


def plot_others(folder: pathlib.Path, report: Mapping[str, Any]) -> list[tuple[pathlib.Path, str]]:
    """Draws every other number than the distance over the steps, where there are several of them.

    Returns the paths of the plots with their titles.
    """
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    titles, distances = {}, {number["name"] for _, number in distances_of(report)}
    for run in sorted(report["evaluations"].values(), key=lambda run: run["step"]):
        for number in run["numbers"]:
            name = number["name"]
            sampled = "sampler" in number["made_from"]
            if name in distances or not number["better"]:  # of the data alone
                continue
            titles[name] = number["title"]
            label = run["sampler"] if sampled else ""
            xs, ys = curves.setdefault(name, {}).setdefault(label, ([], []))
            xs.append(run["step"])
            ys.append(number["value"])
    plots = []
    for name, by_label in curves.items():
        if any(len(set(xs)) > 1 for xs, _ in by_label.values()):
            path = folder / f"by_step_{name}.png"
            with files.whole(path) as temporary:
                figures.plot_curves(temporary, by_label, "step", titles[name])
            plots.append((path, f"{titles[name]} over step"))
    return plots


def distances_of(report: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Each evaluation with its first distance of samples, where it has one."""
    points = []
    for run in report["evaluations"].values():
        numbers = {number["name"]: number for number in run["numbers"]}
        distances = [
            numbers[name]
            for name in quantities.leading()
            if name in numbers and "sampler" in numbers[name]["made_from"]
        ]
        points += [(run, number) for number in distances if number["better"] == "lower"][:1]
    return points


def plot_distances(
    folder: pathlib.Path, report: Mapping[str, Any]
) -> list[tuple[pathlib.Path, str]]:
    """Draws the distance of the samples over steps and over NFE, where there are several of them.

    Returns the paths of the plots with their titles.
    """
    points, plots = distances_of(report), []
    for axis, along, label in (
        ("step", "step", lambda run: run["sampler"]),
        ("NFE per sample", "nfe", lambda run: f"step {run['step']:,}"),
    ):
        curves: dict[str, tuple[list[float], list[float]]] = {}
        for run, number in sorted(points, key=lambda point: point[0][along]):
            xs, ys = curves.setdefault(label(run), ([], []))
            xs.append(run[along])
            ys.append(number["value"])
        if any(len(set(xs)) > 1 for xs, _ in curves.values()):
            every = [x for xs, _ in curves.values() for x in xs]
            scale = "log" if along == "nfe" and max(every) > 10 * min(every) else "linear"
            path, title = folder / f"by_{along}.png", points[0][1]["title"]
            with files.whole(path) as temporary:
                figures.plot_curves(temporary, curves, axis, title, xscale=scale)
            plots.append((path, f"{title} over {axis}"))
    return plots
