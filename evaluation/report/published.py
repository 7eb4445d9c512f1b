"""Published numbers, and which of the configs here a config is, or is nearest to.

A config is known by its values, not by its file's name, so that one with overrides is never taken
for the one that it began as: it is that one "with changed fields".
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

import configs

PAPER = "Song et al. 2021, Score-Based Generative Modeling through SDEs (ICLR)"

# (FID, Inception Score) of the config's own sampler at the best checkpoint: Table 3, DDPM's: 1.
SAMPLES: dict[str, tuple[float, float | None]] = {
    "ve/cifar10_ncsnpp": (2.45, 9.73),
    "ve/cifar10_ncsnpp_continuous": (2.38, 9.83),
    "ve/cifar10_ncsnpp_deep_continuous": (2.20, 9.89),
    "vp/ddpm/cifar10": (3.24, None),
    "vp/cifar10_ddpmpp": (2.78, 9.64),
    "vp/cifar10_ddpmpp_continuous": (2.55, 9.58),
    "vp/cifar10_ddpmpp_deep_continuous": (2.41, 9.68),
    "subvp/cifar10_ddpmpp_continuous": (2.61, 9.56),
    "subvp/cifar10_ddpmpp_deep_continuous": (2.41, 9.57),
}
# (FID by the probability-flow ODE, bits/dim) at the last checkpoint: Table 2.
FLOW: dict[str, tuple[float, float]] = {
    "vp/ddpm/cifar10": (3.37, 3.28),
    "vp/ddpm/cifar10_continuous": (3.69, 3.21),
    "vp/cifar10_ddpmpp_continuous": (3.93, 3.16),
    "vp/cifar10_ddpmpp_deep_continuous": (3.08, 3.13),
    "subvp/cifar10_ddpm_continuous": (3.56, 3.05),
    "subvp/cifar10_ddpmpp_continuous": (3.16, 3.02),
    "subvp/cifar10_ddpmpp_deep_continuous": (2.92, 2.99),
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
    "training.snapshot_*",
    "data.data_dir",
    "model.remat",
)


class Known(NamedTuple):
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


def identify(config: Any) -> Known | None:
    """The config of `configs/` with the fewest other values; None if none is akin."""
    given = config.to_dict()
    own = _values(given)
    found = []
    for name, stored in shipped().items():
        if _values(stored) == own:
            changed = _changed(stored, given)
            sampler = [line for line in changed if line.startswith("sampling.")]
            found.append(Known(name, [line for line in changed if line not in sampler], sampler))
    order = [(len(known.changed), len(known.sampler_changed), known.name) for known in found]
    return found[order.index(min(order))] if found else None


@functools.cache
def shipped() -> dict[str, dict[str, Any]]:
    """All configs of this program, nested, by their paths."""
    home = pathlib.Path(configs.__file__).parent
    found = {}
    for path in sorted(home.rglob("*.py")):
        parts = path.relative_to(home).with_suffix("").parts
        module = importlib.import_module(".".join(("configs", *parts)))
        if hasattr(module, "get_config"):
            found["/".join(parts)] = module.get_config().to_dict()
    return found


def compare(known: Known | None, results: Mapping[str, Any]) -> dict[str, Published]:
    """The published numbers beside those of `results`, by their names there."""
    found: dict[str, Published] = {}
    if known is None:
        return found
    made = results["made_by"]
    own, table = known.changed + known.sampler_changed, "Table 3"
    sampler = made["sampling"]
    if sampler["corrector"] == "langevin" and sampler["corrector_norm"] != "batch":
        own = [*own, "sampling.corrector_norm: image, not batch"]
    fid, score = SAMPLES.get(known.name, (None, None))
    if known.name == "vp/ddpm/cifar10":
        table = "Table 1"
    if sampler["method"] == "ode":
        own, table, score = known.changed + _loose("sampling", sampler), "Table 2", None
        fid, _ = FLOW.get(known.name, (None, None))
    if "num_samples" in results:
        own = own + _sample_conditions(results)
    for name, value in (("fid", fid), ("inception_score", score)):
        if value is not None and name in results:
            found[name] = Published(value, f"{PAPER}, {table}", own)
    if known.name in FLOW and "bits_per_dim" in results:
        differences = known.changed + _likelihood_conditions(made["eval"])
        _, bits = FLOW[known.name]
        found["bits_per_dim"] = Published(bits, f"{PAPER}, Table 2", differences)
    return found


def _sample_conditions(results: Mapping[str, Any]) -> list[str]:
    """How the judgement differs from that of the paper."""
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
    lines = []
    if options["bpd_dataset"] != "test":
        lines.append(f"eval.bpd_dataset: {options['bpd_dataset']}, not test")
    if options["bpd_num_images"]:
        lines.append(f"{options['bpd_num_images']:,} images, not all")
    if options["ema"]:
        lines.append(f"eval.ema: {options['ema']}, not the average of training")
    return lines + _loose("eval", options)


def _loose(section: str, options: Mapping[str, Any]) -> list[str]:
    """Tolerances of a solver above those of the paper."""
    names = ("rtol", "atol", "bpd_rtol", "bpd_atol")
    return [
        f"{section}.{name}: {options[name]:g}, not 1e-05"
        for name in names
        if options.get(name, 0) > 1e-5
    ]


def _values(config: Mapping[str, Any]) -> list[Any]:
    sections = (name.split(".") for name in SAME)
    return [config[section][field] for section, field in sections]


def _changed(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Lines "model.nf: 64, not 128" for the fields that differ, without those of `FREE`."""
    absent = "nothing"
    old, new = (flatten_dict(dict(config), sep=".") for config in (stored, given))
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, now = (_plain(fields.get(name, absent)) for fields in (old, new))
        if before != now and not any(fnmatch.fnmatch(name, pattern) for pattern in FREE):
            lines.append(f"{name}: {now}, not {before}")
    return lines


def _plain(value: Any) -> Any:
    """As JSON gives it back, which has no tuples; "" as one sees it."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if value != "" else "''"
