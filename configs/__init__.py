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
            "sampling.num_samples",
            "eval.num_samples",
            "eval.bpd_num_repeats",
            "eval.bpd_bound_draws",
            "data.image_size",
            "data.num_channels",
            "model.nf",
            "model.num_res_blocks",
            "model.fourier_scale",
            "classifier.widen_factor",
            "classifier.blocks_per_group",
            "classifier.fourier_scale",
            "optim.lr",
            "optim.eps",
        ],
        POSITIVE,
    ),
    **dict.fromkeys(
        [
            "seed",
            "sampling.seed",
            "sampling.eps",
            "sampling.num_frames",
            "eval.seed",
            "eval.begin_ckpt",
            "eval.bpd_num_images",
            "model.num_classes",
            "model.num_labels",
            "model.attn_num_groups",
            "model.init_scale",
            "optim.weight_decay",
            "optim.warmup",
        ],
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(
        ["model.dropout", "model.ema_rate", "classifier.dropout", "optim.beta1"], FRACTION
    ),
    "classifier.num_classes": (lambda v: v >= 2, "2 or more"),
    "model.ch_mult": NOT_EMPTY_SIZES,
    "model.attn_resolutions": SIZES,
    "eval.bpd_dataset": (lambda v: v in ("train", "test"), "one of train, test"),
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


def _instead(name: str, given: dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, given.keys() - dict(_fields(schema.base())).keys(), n=1)
    return f"; is config.{close[0]} a misspelling of it?" if close else ""


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
