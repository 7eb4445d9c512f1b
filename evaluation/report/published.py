"""Published numbers, and the config of this program that a config is, or is nearest to.

A config is recognised by its values, not by its file's name, so that one with overrides is never
taken for the one that it began as: it is that one "with changed fields".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from configs.stored import config_differences, shipped
from evaluation.report.quantities import QUANTITIES, SAMPLED

PAPER = "Song et al. 2021, Score-Based Generative Modeling through SDEs (ICLR)"

# Numbers by their names in results.json, of the config's own sampler at the best checkpoint:
# Table 3, DDPM's: 1.
SAMPLES: dict[str, dict[str, float]] = {
    "ve/cifar10_ncsnpp": {"fid": 2.45, "inception_score": 9.73},
    "ve/cifar10_ncsnpp_continuous": {"fid": 2.38, "inception_score": 9.83},
    "ve/cifar10_ncsnpp_deep_continuous": {"fid": 2.20, "inception_score": 9.89},
    "vp/ddpm/cifar10": {"fid": 3.24},
    "vp/cifar10_ddpmpp": {"fid": 2.78, "inception_score": 9.64},
    "vp/cifar10_ddpmpp_continuous": {"fid": 2.55, "inception_score": 9.58},
    "vp/cifar10_ddpmpp_deep_continuous": {"fid": 2.41, "inception_score": 9.68},
    "subvp/cifar10_ddpmpp_continuous": {"fid": 2.61, "inception_score": 9.56},
    "subvp/cifar10_ddpmpp_deep_continuous": {"fid": 2.41, "inception_score": 9.57},
}
# Numbers by the probability-flow ODE at the last checkpoint: Table 2.
FLOW: dict[str, dict[str, float]] = {
    "vp/ddpm/cifar10": {"fid": 3.37, "bits_per_dim": 3.28},
    "vp/ddpm/cifar10_continuous": {"fid": 3.69, "bits_per_dim": 3.21},
    "vp/cifar10_ddpmpp_continuous": {"fid": 3.93, "bits_per_dim": 3.16},
    "vp/cifar10_ddpmpp_deep_continuous": {"fid": 3.08, "bits_per_dim": 3.13},
    "subvp/cifar10_ddpm_continuous": {"fid": 3.56, "bits_per_dim": 3.05},
    "subvp/cifar10_ddpmpp_continuous": {"fid": 3.16, "bits_per_dim": 3.02},
    "subvp/cifar10_ddpmpp_deep_continuous": {"fid": 2.92, "bits_per_dim": 2.99},
}

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
    """The config of `configs/` with the fewest other values; None if none is akin."""
    fields = config.to_dict()
    akin = []
    for name, shipped_config in shipped().items():
        stored = shipped_config.to_dict()
        if _values(stored) == _values(fields):
            changed = _changed(stored, fields)
            sampler = [line for line in changed if line.startswith("sampling.")]
            akin.append(
                NearestConfig(name, [line for line in changed if line not in sampler], sampler)
            )
    if not akin:
        return None
    return min(akin, key=lambda near: (len(near.changed), len(near.sampler_changed), near.name))


def compare(nearest: NearestConfig | None, results: Mapping[str, Any]) -> dict[str, Published]:
    """The published numbers beside those of `results`, by their names there."""
    if nearest is None:
        return {}
    of_samples, table, differences = _of_sampler(nearest, results)
    if "num_samples" in results:
        differences += _sample_conditions(results)
    numbers = {
        name: Published(value, f"{PAPER}, {table}", differences)
        for name, value in of_samples.items()
        if QUANTITIES[name].source in SAMPLED
    }
    for name, value in FLOW.get(nearest.name, {}).items():
        if QUANTITIES[name].source == "likelihood":
            conditions = nearest.changed + _likelihood_conditions(results["made_by"]["eval"])
            numbers[name] = Published(value, f"{PAPER}, Table 2", conditions)
    return {name: number for name, number in numbers.items() if name in results}


def _of_sampler(
    nearest: NearestConfig, results: Mapping[str, Any]
) -> tuple[Mapping[str, float], str, list[str]]:
    """Published numbers by the results' sampler, their table, and other values in the config."""
    sampler = results["made_by"]["sampling"]
    if sampler["method"] == "ode":
        differences = nearest.changed + _loose("sampling", sampler)
        return FLOW.get(nearest.name, {}), "Table 2", differences
    differences = nearest.changed + nearest.sampler_changed
    if sampler["corrector"] == "langevin" and sampler["corrector_norm"] != "batch":
        differences.append("sampling.corrector_norm: image, not batch")
    table = "Table 1" if nearest.name == "vp/ddpm/cifar10" else "Table 3"
    return SAMPLES.get(nearest.name, {}), table, differences


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
