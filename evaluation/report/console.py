"""The report as rows of text, for the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.report import quantities

Results = Mapping[str, Any]
Rows = list[tuple[str, str]]


def table(results: Results) -> Rows:
    """The rows that are printed: every number with what it was made from."""
    seed = f"step {results['step']}, {results['weights']}, seed {results['seed']}"
    rows = [("checkpoint", seed)]
    if quantities.other_training_data(results):
        now, then = quantities.training_data(results)
        rows.append(("trained on", f"{then}; compared with {now}"))
    if "num_samples" in results:
        rows += sample_rows(results) + seed_rows(results)
        seconds = f"{results['sampling_seconds']:.0f} s"
        rows.append(("evaluations", f"{results['nfe']:.0f} NFE per sample, {seconds}"))
    return rows + number_rows(results, "likelihood", "calibration", "paths", "loss")


def number_rows(results: Results, *sources: str) -> Rows:
    """The numbers that are made from these sources, each with its error bar and its making."""
    return [
        (
            number.label,
            f"{quantities.text(number.value, number.quantity.digits, number.error)}"
            f"  ({number.note})",
        )
        for number in quantities.numbers(results).values()
        if number.quantity.source in sources
    ]


def sample_rows(results: Results) -> Rows:
    """The numbers of generated samples, and what they were compared by and with."""
    rows = number_rows(results, *quantities.SAMPLED, *quantities.OF_DATA)
    if "features" in results:
        rows.append(("  measured on", results["features"]))
    if "statistics" in results:
        rows += statistics_rows(results["statistics"])
    if "class_shares" in results:
        rows.append(("rarest class", f"{100 * min(results['class_shares']):.1f} % of samples"))
    return rows


def seed_rows(results: Results) -> Rows:
    """The spread of each number over sampling seeds, where there are several."""
    spreads = dict(results.get("over_seeds", {"seeds": []}))
    seeds, numbers = spreads.pop("seeds"), quantities.numbers(results)
    rows = []
    for name, spread in spreads.items():
        number = numbers[name]
        value = quantities.text(spread["mean"], number.quantity.digits, spread["std"])
        title = f"{number.label}, {len(seeds)} seeds"
        rows.append((title, f"{value}  (seeds {seeds[0]} to {seeds[-1]})"))
    return rows


def comparison(runs: Mapping[str, Results]) -> tuple[list[list[Any]], list[str]]:
    """Rows and header of the table of several runs: the leading numbers that any of them has."""
    titles = {"step": "step", "nfe": "NFE"}
    every = {name: n.label for run in runs.values() for name, n in quantities.numbers(run).items()}
    titles |= {name: every[name] for name in quantities.leading() if name in every}
    names = [name for name in titles if any(name in run for run in runs.values())]
    rows = [[key, *(run.get(name, "") for name in names)] for key, run in runs.items()]
    return rows, ["evaluation", *(titles[name] for name in names)]


def statistics_rows(facts: Mapping[str, Any]) -> Rows:
    """The rows on statistics of a data set, from `Statistics.facts`."""
    images = f"{facts['images']} images" if facts["images"] else "of an unknown number of images"
    rows = [
        ("statistics", f"{facts['path']} ({facts['form']}), SHA-256 {facts['sha256'][:16]}"),
        ("  made from", f"{images} of {quantities.data_words(facts)}"),
    ]
    if facts.get("features_of"):
        rows.append(("  single images", facts["features_of"]))
    if facts["network"]:
        weights = f"weights {facts['weights_sha256'][:8]}"
        rows.append(("  made by", f"{facts['network']}, {weights}, {facts['resize']} resize"))
    return rows
