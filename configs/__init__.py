"""Configs, and the check that every run begins with."""

import difflib
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import schema

Rule = tuple[Callable[[Any], bool], str]

ANYTHING: Rule = (lambda _: True, "")
POSITIVE: Rule = (lambda v: v > 0, "positive")
NOT_NEGATIVE: Rule = (lambda v: v >= 0, "0 or more")
FRACTION: Rule = (lambda v: 0 <= v < 1, "at least 0 and below 1")
PROBABILITY: Rule = (lambda v: 0 <= v <= 1, "between 0 and 1")
DIFFERENT_FRACTIONS: Rule = (
    lambda v: all(_number(r) and 0 <= r < 1 for r in v) and len(set(v)) == len(v),
    "a tuple of different numbers at least 0 and below 1",
)
WIDTHS: Rule = (
    lambda v: all(_number(w) and 0 < w <= 12**-0.5 for w in v) and len(set(v)) == len(v),
    "a tuple of different relative widths, positive and at most 0.288",
)
SIZES: Rule = (
    lambda v: all(isinstance(n, int) and n > 0 for n in v),
    "a tuple of positive integers",
)
NOT_EMPTY_SIZES: Rule = (lambda v: len(v) > 0 and SIZES[0](v), SIZES[1])

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        [
            "training.n_iters",
            "training.snapshot_freq",
            "training.snapshot_freq_for_preemption",
            "training.log_freq",
            "training.eval_freq",
            "training.n_jitted_steps",
            "training.accumulation",
            "training.ema_snapshot_freq",
            "training.log_sigma_std",
            "training.num_directions",
            "training.kde_bandwidth",
            "sampling.num_samples",
            "control.num_images",
            "control.num_variants",
            "control.num_examples",
            "control.batch_size",
            "control.factor",
            "control.blur_std",
            "control.jump",
            "control.repeats",
            "control.iterations",
            "eval.num_samples",
            "eval.seeds",
            "eval.bpd_num_repeats",
            "eval.bpd_bound_draws",
            "data.image_size",
            "data.num_channels",
            "model.nf",
            "model.num_res_blocks",
            "model.fourier_scale",
            "model.sigma_data",
            "classifier.widen_factor",
            "classifier.blocks_per_group",
            "classifier.fourier_scale",
            "clip.embedding_dim",
            "clip.text_width",
            "clip.text_layers",
            "clip.text_heads",
            "clip.text_length",
            "optim.lr",
            "optim.eps",
        ],
        POSITIVE,
    ),
    **dict.fromkeys(
        [
            "seed",
            "training.sigma",
            "training.kde_points",
            "sampling.seed",
            "sampling.eps",
            "sampling.num_frames",
            "control.seed",
            "control.num_measurements",
            "control.noise_std",
            "control.damping",
            "control.scale",
            "control.temperature",
            "eval.seed",
            "eval.begin_ckpt",
            "eval.bpd_num_images",
            "eval.stats_images",
            "model.num_classes",
            "model.num_labels",
            "model.attn_num_groups",
            "model.init_scale",
            "optim.weight_decay",
            "optim.warmup",
            "optim.decay_steps",
        ],
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(
        ["model.dropout", "model.ema_rate", "classifier.dropout", "optim.beta1"], FRACTION
    ),
    **dict.fromkeys(["training.label_dropout", "optim.decay_to"], PROBABILITY),
    "training.ema_rates": DIFFERENT_FRACTIONS,
    "training.ema_profiles": WIDTHS,
    "classifier.num_classes": (lambda v: v >= 2, "2 or more"),
    "model.ch_mult": NOT_EMPTY_SIZES,
    "model.attn_resolutions": SIZES,
    "eval.bpd_dataset": (lambda v: v in ("train", "test"), "one of train, test"),
    "control.split": (lambda v: v in ("train", "test"), "one of train, test"),
    "control.mask_share": (lambda v: 0 < v < 1, "between 0 and 1"),
    "control.start": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "control.interval": (
        lambda v: v == () or (len(v) == 2 and all(map(_number, v)) and 0 <= v[0] < v[1]),
        "() or two noise levels, (low, high)",
    ),
    "control.classes": (
        lambda v: all(isinstance(y, int) and y >= 0 for y in v),
        "a tuple of class numbers, counted from 0",
    ),
    "eval.bootstrap": (lambda v: v == 0 or v > 1, "0, or 2 or more"),
    **dict.fromkeys(
        ["eval.metrics", "eval.samplers"],
        (lambda v: len(set(v)) == len(v), "a tuple of different names"),
    ),
    # Fields of the official configs that have one value everywhere, there and here.
    "model.attention_type": (lambda v: v == "ddpm", "ddpm, the only one there is"),
    "model.conv_size": (lambda v: v == 3, "3, the only one there is"),
    "optim.amsgrad": (lambda v: v is False, "False, the only one there is"),
}


def check(config: ConfigDict) -> None:
    """Refuses a config that no run could use, before anything is compiled.

    Here: fields of `schema.base()` that are missing or of another type, and numbers out of range.
    Names (of SDEs, networks, data sets, ...) and their own numbers are refused where they are
    looked up. Further fields are allowed: a new SDE reads its own from `config.model`.

    Raises:
        ValueError: one line with the field, its value and what would be valid.
    """
    given = dict(_fields(config))
    for name, default in _fields(schema.base()):
        if name not in given:
            raise ValueError(f"config.{name} is missing{_instead(name, given)}")
        value, kind = given[name], type(default)
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise ValueError(f"config.{name} is {value!r}; it must be of type {kind.__name__}")
        holds, words = RULES.get(name, ANYTHING)
        if not holds(value):
            raise ValueError(f"config.{name} is {value!r}; it must be {words}")
    if config.eval.end_ckpt < config.eval.begin_ckpt:
        raise ValueError(
            f"config.eval.end_ckpt is {config.eval.end_ckpt}; "
            f"it must be eval.begin_ckpt ({config.eval.begin_ckpt}) or more"
        )


def complete(stored: dict[str, Any]) -> dict[str, Any]:
    """The config of an earlier run, nested, with the defaults of fields that are newer than it."""
    whole = schema.base().to_dict()
    for section, fields in stored.items():
        known = whole.get(section)
        whole[section] = {**known, **fields} if isinstance(known, dict) else fields
    return whole


def from_stored(stored: dict[str, Any]) -> ConfigDict:
    """The config of an earlier run, from its config.json, in which tuples are lists."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(inner) for name, inner in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return ConfigDict(tuples(complete(stored))).lock()


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _instead(name: str, given: dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, given.keys() - dict(_fields(schema.base())).keys(), n=1)
    return f"; is config.{close[0]} a misspelling of it?" if close else ""


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
