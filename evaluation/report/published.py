"""Published numbers, and the config of this program that a config is, or is nearest to.

A config is recognised by its values, not by its file's name, so that one with overrides is never
taken for the one that it began as: it is that one "with changed fields".
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from configs.stored import config_differences, shipped
from evaluation.report.quantities import QUANTITIES, SAMPLED
from interop import cards

# By their names in the cards: "samples", "flow", "guided" and "likelihood".
Evaluations = Mapping[str, cards.Evaluation]

SAME = (  # without these in common, two configs are not variants of one another
    "data.dataset",
    "data.image_size",
    "training.sde",
    "training.objective",
    "training.continuous",
    "model.name",
)
FREE = (  # what no number depends on, or what stands beside the number anyway
    "seed",
    "eval.*",
    "control.*",
    "classifier.*",
    "clip.*",
    "sampling.seed",
    "sampling.num_samples",
    "sampling.batch_size",
    "sampling.num_frames",
    "sampling.corrector_norm",  # the published numbers had "batch": see `compare`
    "training.accumulation",
    "training.ema_*",
    "training.eval_freq",
    "training.log_freq",
    "training.n_jitted_steps",
    "training.shard_state",
    "training.snapshot_*",
    "data.data_dir",
    "data.cache",
    "model.remat",
)


class NearestConfig(NamedTuple):
    """The config of this program that a config is, up to the changed fields.

    Attributes:
      name: its path in `configs/`, "ve/cifar10_ncsnpp".
      changed: lines "model.nf: 64, not 128", the sampler's aside.
      sampler_changed: such lines of the section `sampling`.
    """

    name: str
    changed: list[str]
    sampler_changed: list[str]

    @property
    def label(self) -> str:
        if not self.changed:
            return self.name
        return f"{self.name} with changed fields: {'; '.join(self.changed)}"


class Published(NamedTuple):
    """A published number; it compares with a new one only where `differences` is empty."""

    value: float
    source: str
    differences: list[str]


def identify(config: Any) -> NearestConfig | None:
    """The config of `configs/` with the fewest other values; None if none is akin.

    Of several that differ in the sampler alone it is one with published numbers.
    """
    fields = config.to_dict()
    akin = []
    for name, stored in _shipped_fields().items():
        if _values(stored) == _values(fields):
            changed = _changed(stored, fields)
            sampler = [line for line in changed if line.startswith("sampling.")]
            akin.append(
                NearestConfig(name, [line for line in changed if line not in sampler], sampler)
            )
    if not akin:
        return None

    def distance(near: NearestConfig) -> tuple[Any, ...]:
        numberless = not of_config(near.name)
        return len(near.changed), numberless, len(near.sampler_changed), near.name

    return min(akin, key=distance)


@functools.cache
def _shipped_fields() -> dict[str, dict[str, Any]]:
    """The values of every config of `configs/`, by its name; they are only read."""
    return {name: config.to_dict() for name, config in shipped().items()}


def of_config(name: str) -> Evaluations:
    """What the cards of a config have of published numbers, the first of each kind."""
    merged: dict[str, cards.Evaluation] = {}
    for card in cards.cards().values():
        if card.config == name:
            merged = {**card.evaluations, **merged}
    return merged


def compare(
    nearest: NearestConfig | None,
    results: Mapping[str, Any],
    evaluations: Evaluations | None = None,
) -> dict[str, Published]:
    """The published numbers beside those of `results`, by their names there.

    Args:
      evaluations: a card's; by default those of the nearest config.
    """
    if nearest is None:
        return {}
    if evaluations is None:
        evaluations = of_config(nearest.name)
    title, differences = _of_sampler(nearest, results)
    if "num_samples" in results:
        differences += _sample_conditions(results)
    published = {}
    if title in evaluations:
        differences += _guidance(evaluations[title], results)
        published = _numbers(evaluations[title], SAMPLED, differences)
    if "likelihood" in evaluations:
        conditions = nearest.changed + _likelihood_conditions(results["made_by"]["eval"])
        published |= _numbers(evaluations["likelihood"], ("likelihood",), conditions)
    return {name: number for name, number in published.items() if name in results}


def _numbers(
    evaluation: cards.Evaluation, sources: Sequence[str], differences: list[str]
) -> dict[str, Published]:
    """The numbers of an evaluation that are made from these sources."""
    return {
        name: Published(value, evaluation.source, differences)
        for name, value in evaluation.numbers.items()
        if QUANTITIES[name].source in sources
    }


def _of_sampler(nearest: NearestConfig, results: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The evaluation by the results' sampler, and other values in the config than that had."""
    sampler = results["made_by"]["sampling"]
    if sampler["method"] == "ode":
        return "flow", nearest.changed + _loose("sampling", sampler)
    changed = [line for line in nearest.sampler_changed if not line.startswith("sampling.guide")]
    differences = nearest.changed + changed
    if sampler["guide"]:
        return "guided", differences
    if sampler["corrector"] == "langevin" and sampler["corrector_norm"] != "batch":
        differences.append("sampling.corrector_norm: image, not batch")
    return "samples", differences


def _guidance(evaluation: cards.Evaluation, results: Mapping[str, Any]) -> list[str]:
    """A line on guidance of another strength than the evaluation's."""
    name = "guide_scale"
    published = evaluation.settings.get(f"sampling.{name}")
    ours = results["made_by"]["sampling"].get(name)
    if published in (None, ours):
        return []
    return [f"sampling.{name}: {ours:g}, not {published:g}"]


def _sample_conditions(results: Mapping[str, Any]) -> list[str]:
    """Lines on conditions of the samples' numbers that are not the paper's."""
    options = results["made_by"]["eval"]
    lines = []
    if results["num_samples"] != 50000:
        lines.append(f"{results['num_samples']:,} samples, not 50,000")
    if options["resize"] != "tensorflow":
        lines.append(f"eval.resize: {options['resize']}, not tensorflow")
    if options["ema"]:
        lines.append(f"eval.ema: {options['ema']}, not the average of training")
    if options["stats_images"]:
        lines.append(f"statistics of {options['stats_images']:,} training images, not of all")
    return lines


def _likelihood_conditions(options: Mapping[str, Any]) -> list[str]:
    """Lines on conditions of a likelihood that are not the paper's."""
    lines = []
    if options["bpd_dataset"] != "test":
        lines.append(f"eval.bpd_dataset: {options['bpd_dataset']}, not test")
    if options["bpd_num_images"]:
        lines.append(f"{options['bpd_num_images']:,} images, not all")
    if options["ema"]:
        lines.append(f"eval.ema: {options['ema']}, not the average of training")
    return lines + _loose("eval", options)


def _loose(section: str, options: Mapping[str, Any]) -> list[str]:
    """Lines on tolerances of a solver above those of the paper."""
    names = ("rtol", "atol", "bpd_rtol", "bpd_atol")
    return [
        f"{section}.{name}: {options[name]:g}, not 1e-05"
        for name in names
        if name in options and options[name] > 1e-5
    ]


def _values(config: Mapping[str, Any]) -> list[Any]:
    sections = (name.split(".") for name in SAME)
    return [config[section][field] for section, field in sections]


def _changed(stored: Mapping[str, Any], fields: Mapping[str, Any]) -> list[str]:
    """Lines "model.nf: 64, not 128" for the fields that differ, without those of `FREE`."""

    def shown(value: Any) -> Any:
        return "''" if value == "" else value

    return config_differences(
        stored, fields, FREE, lambda name, old, new: f"{name}: {shown(new)}, not {shown(old)}"
    )
