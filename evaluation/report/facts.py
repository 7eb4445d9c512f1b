"""The facts of a report: what each number was made from, its samples, seeds, hashes, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from evaluation.report import quantities

Results = Mapping[str, Any]
Facts = dict[str, str]


class Settings(NamedTuple):
    """Settings of a run that its results do not hold.

    Attributes:
      num_scales: steps of a sampler that has no number of its own.
      dequantised: how images are dequantised in training: "uniform" or "none".
      sde, objective, seed: of the training.
    """

    num_scales: int
    dequantised: str
    sde: str
    objective: str
    seed: int


def of(number: quantities.Number, settings: Settings) -> Facts:
    """The facts on a number: those of its source, and those that all numbers share."""
    source, results = number.quantity.source, number.results
    shared = shared_facts(results, of_network=source not in quantities.OF_DATA)
    return FACTS[source](results, settings) | shared


def shared_facts(results: Results, of_network: bool) -> Facts:
    """Facts that all numbers of an evaluation share: those of the network have weights too."""
    weights = results["weights"]
    if "weights_sha256" in results:
        weights += f" (SHA-256 {results['weights_sha256'][:12]})"
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    facts = {"versions": versions}
    if not of_network:
        return facts
    if quantities.other_training_data(results):
        facts = {"trained on": quantities.training_data(results)[1], **facts}
    return {"step": f"{results['step']:,}", "weights": weights, **facts}


def data_facts(results: Results, name: str) -> Facts:
    """The fact of which data set a number is, if the results say so."""
    if name not in results:
        return {}
    checksum = results[name]["fingerprint"].rpartition("/")[2]
    return {"data": f"{quantities.data_words(results[name])}, CRC-32 {checksum}"}


def sample_facts(results: Results, settings: Settings) -> Facts:
    """Facts on a number that compares samples with training images."""
    return {
        "samples": f"{results['num_samples']:,}",
        "NFE": f"{results['nfe']:,.0f} per sample",
        "sampler": sampler(results["made_by"]["sampling"], settings.num_scales),
        "seed": str(results["seed"]),
        "dequantisation": f"{settings.dequantised} in training",
        "features": results["features"].removeprefix("features: "),
        "statistics": statistics(results),
    }


def matched_facts(results: Results, settings: Settings) -> Facts:
    """Facts on a number that compares samples with as many training images."""
    count = f"{results['frechet_samples_real']:,}, and as many training"
    return sample_facts(results, settings) | {"samples": count}


def real_facts(results: Results, settings: Settings) -> Facts:
    """Facts on a number that compares real examples with one another."""
    del settings
    halves = f"{results['frechet_samples_real']:,} and as many others, all training"
    return {
        "samples": f"{halves}: what a perfect generator would get",
        "features": results["features"].removeprefix("features: "),
        "statistics": statistics(results),
    }


def pixel_facts(results: Results, settings: Settings) -> Facts:
    """Facts on a number that compares samples with the training images nearest to them."""
    return {
        "samples": f"{results['memorisation_images']:,}, the first of this seed",
        "NFE": f"{results['nfe']:,.0f} per sample",
        "sampler": sampler(results["made_by"]["sampling"], settings.num_scales),
        "seed": str(results["seed"]),
        "distance": "root mean square of the difference of pixels, 1 from black to white",
        **data_facts(results, "memorisation_train_data"),
    }


def held_out_pixel_facts(results: Results, settings: Settings) -> Facts:
    """Facts on a number that compares test images with the training images nearest to them."""
    del settings
    return {
        "samples": f"{results['memorisation_real_images']:,} test images",
        **data_facts(results, "memorisation_test_data"),
    }


def likelihood_facts(results: Results, settings: Settings) -> Facts:
    """Facts on a likelihood."""
    del settings
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
        **data_facts(results, f"{name}_data"),
    }


def path_facts(results: Results, settings: Settings) -> Facts:
    """Facts on the paths of the probability flow."""
    options = results["made_by"]["eval"]
    return {
        "samples": f"{results['straightness_images']:,} paths from prior to data",
        "NFE": f"{results['straightness_nfe']:,.0f} per path",
        "solver": f"{options['bpd_solver']}, rtol {options['bpd_rtol']:g}, "
        f"atol {options['bpd_atol']:g}",
        "clock": f"that of training.sde={settings.sde}",
        "seed": str(results["seed"]),
    }


def loss_facts(results: Results, settings: Settings) -> Facts:
    """Facts on the loss of test images."""
    return {
        "samples": f"{results['loss_images']:,} test {results['examples']}",
        "objective": settings.objective,
        "NFE": "1 per image",
        "seed": str(settings.seed),
        "dequantisation": settings.dequantised,
        **data_facts(results, "loss_data"),
    }


def calibration_facts(results: Results, settings: Settings) -> Facts:
    """Facts on estimated likelihoods against exact ones."""
    name = f"{results['likelihood_unit']}_per_dim"
    exact = f"{results[f'{name}_calibration_exact']:.4f} by the exact trace"
    count = results[f"{name}_calibration_images"]
    first = f"the first {count:,} {results[f'{name}_split']} {results['examples']}, {exact}"
    return likelihood_facts(results, settings) | {"samples": first}


FACTS: dict[str, Callable[[Results, Settings], Facts]] = {
    "samples": sample_facts,
    "matched samples": matched_facts,
    "real": real_facts,
    "pixels": pixel_facts,
    "real pixels": held_out_pixel_facts,
    "likelihood": likelihood_facts,
    "calibration": calibration_facts,
    "paths": path_facts,
    "loss": loss_facts,
}


def statistics(results: Results) -> str:
    """The real examples that samples were compared with: a file's hash, or the training set's."""
    if "statistics" in results:
        stored = results["statistics"]
        images = f", {stored['images']:,} images" if stored["images"] else ""
        of = f" of {quantities.data_words(stored)}" if stored["dataset"] else ""
        other = f"; single images: {stored['features_of']}" if "features_of" in stored else ""
        return f"SHA-256 {stored['sha256'][:16]} ({stored['form']}{images}{of}){other}"
    images = f"all {results['num_train']:,} training {results['examples']}"
    if "train_data" in results:
        images += f" of {quantities.data_words(results['train_data'])}"
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
