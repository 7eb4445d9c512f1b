"""All official configs, value by value and parameter by parameter; the schema and its check."""

import ast
import contextlib
import functools
import json
import math
import pathlib
import re
import sys
from typing import Any
from unittest import mock

import jax
import pytest
from absl import flags
from flax import linen as nn
from ml_collections import ConfigDict, config_flags

import configs
import losses
import models
import sde_lib
from configs import load, rules, schema, stored, table
from runtime.workdir import open_run
from tests import golden_cases, tiny
from tests.test_layers import MODULES

ROOT = pathlib.Path(__file__).parent.parent
OFFICIAL = golden_cases.table("official_configs")
COUNTS = golden_cases.table("parameter_counts")

# Official value -> ours. LSUN's category is part of the data set's name here.
RENAMES = {
    ("data.dataset", "CIFAR10"): "cifar10",
    ("data.dataset", "CELEBA"): "celeba",
    ("data.dataset", "CelebAHQ"): "celebahq",
    ("data.dataset", "FFHQ"): "ffhq",
    ("data.dataset", "LSUN/bedroom"): "lsun_bedroom",
    ("data.dataset", "LSUN/church_outdoor"): "lsun_church",
}

# Official fields that have no counterpart, and why.
DROPPED = {
    "data.category": "part of data.dataset",
    "data.tfrecords_path": "a path on the authors' machines; data.data_dir takes the user's",
    "device": "JAX chooses",
    "model.sigma_begin": "read by nothing; equal to sigma_max",
}

# Slips of the official files: what they say (None: nothing) and what they mean.
MENDED: dict[tuple[str, str], tuple[Any, Any]] = {
    ("ve/ncsnv2/bedroom", "training.continuous"): (True, False),
    ("ve/ncsnv2/bedroom", "training.continuouse"): (False, None),
    ("ve/ncsn/celeba", "training.sde"): (None, "vesde"),
    ("ve/ncsn/celeba", "training.loss"): ("vesde", None),
    **{
        (name, "model.num_classes"): (None, official["model"]["num_scales"])
        for name, official in OFFICIAL.items()
        if official["model"]["name"] == "ncsn"
    },
}

# Fields that no official config has.
ADDED = {
    "training": {
        "objective", "weighting", "time", "time_draws", "log_sigma_mean", "log_sigma_std", "sigma",
        "num_directions", "directions", "kde_bandwidth", "kde_points", "accumulation",
        "augment", "known", "coupling", "logit_mean", "logit_std", "mode_scale", "teacher",
        "teacher_steps", "tangent_warmup", "tangent_norm", "mean_flow_share",
        "mean_flow_power",
        "label_dropout", "ema_rates", "ema_profiles", "ema_snapshot_freq", "loggers", "shard_state",
    },
    "sampling": {
        "corrector_norm", "num_steps", "eps", "solver", "rtol", "atol", "num_frames", "seed",
        "num_samples", "batch_size", "time_grid", "eta", "churn", "churn_min", "churn_max",
        "variance", "clip", "churn_noise", "guide", "guide_scale", "guide_interval",
        "tau", "restart_min", "restart_max", "restart_steps", "restart_repeats",
        "step_size", "sigma_min", "sigma_max", "rho", "schedule", "scaling", "alpha",
    },
    "eval": {
        "checkpoint", "ema", "seed", "bpd_num_images", "bpd_rtol", "bpd_atol", "bpd_solver",
        "bpd_num_probes", "bpd_probe", "bpd_num_repeats", "bpd_bound", "bpd_bound_draws",
        "samplers", "features", "metrics", "bootstrap", "resize", "repeat_grey", "inception_path",
        "stats_path", "stats_images", "seeds", "keep_samples", "follow_minutes",
        "straightness_images", "memorisation_images", "bpd_bound_levels",
        "calibration_images", "features_path",
    },
    "data": {"data_dir", "cache", "crop", "resize", "shape", "mean", "std"},
    "model": {
        "num_labels", "ema_warmup", "ema_half_life", "ema_ramp_up",
        "dtype", "remat", "attn_each_up_block", "attn_num_groups",
        "pytorch", "prediction", "sigma_base", "sigma_data", "class_embedding", "augment_dim",
        "head_channels", "num_heads", "num_groups", "learned_variance", "attention_order",
        "patch_size",
        "time_power", "data_power", "noise_power",
    },
    "classifier": {
        "num_classes", "widen_factor", "blocks_per_group", "dropout", "nonlinearity",
        "embedding_type", "fourier_scale", "dtype", "name", "ch_mult", "attn_resolutions",
        "head_channels",
    },
    "clip": {"embedding_dim", "text_width", "text_layers", "text_heads", "text_length"},
    "control": {
        "task", "method", "split", "num_images", "num_variants", "seed", "batch_size", "mask",
        "mask_share", "factor", "blur_std", "num_measurements", "noise_std", "iterations",
        "damping", "scale", "interval", "classes", "official", "jump", "repeats", "start",
        "temperature", "prompt", "guide", "num_examples", "operator", "clip_limit", "jpeg_quality",
        "data_std", "eta", "ode_steps", "langevin_steps", "resample_below", "parallel", "limit",
        "particles", "reward",
    },
    "optim": {"clip_rule", "schedule", "decay_steps", "decay_to"},
}  # fmt: skip


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = list(value) if isinstance(value, tuple) else value
    return fields


def expected(name: str) -> dict[str, Any]:
    """The official values of one config under our names, renamed and mended."""
    fields = flat(OFFICIAL[name])
    if "data.category" in fields:
        fields["data.dataset"] += "/" + fields["data.category"]
    fields = {k: v for k, v in fields.items() if k not in DROPPED}
    fields["data.dataset"] = RENAMES["data.dataset", fields["data.dataset"]]
    for (config, field), (says, means) in MENDED.items():
        if config == name:
            assert fields.pop(field, None) == says, f"{field} is not mended, but changed"
            if means is not None:
                fields[field] = means
    return fields


def test_every_official_config_is_here_and_no_other() -> None:
    families = {name for name in configs.shipped() if name.startswith(("ve/", "vp/", "subvp/"))}
    assert families == set(OFFICIAL)
    assert len(families) == 39


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_values(name: str) -> None:
    config = load(name)
    ours = flat(config.to_dict())
    assert {field: ours.get(field) for field in expected(name)} == expected(name)
    configs.check(config)


def test_every_field_is_official_or_listed_as_added() -> None:
    official = {field for name in OFFICIAL for field in expected(name)}
    added = {f"{section}.{field}" for section, fields in ADDED.items() for field in fields}
    assert set(flat(schema.base().to_dict())) == official | added


def test_the_defaults_are_those_of_earlier_runs() -> None:
    """In their order and with their types. Further fields may stand anywhere between them."""
    earlier = flat(json.loads((ROOT / "tests" / "earlier_defaults.json").read_text()))
    now = flat(schema.base().to_dict())
    assert json.dumps({name: now[name] for name in now if name in earlier}) == json.dumps(earlier)


@pytest.mark.parametrize("name", schema.fields())
def test_every_field_has_words_and_a_default_that_it_allows(name: str) -> None:
    field = schema.fields()[name]
    assert field.rule.holds(field.default)
    assert len(field.words) > 5
    assert not set("\n|") & set(field.words + field.rule.words)


def test_the_documented_fields_are_those_of_the_schema() -> None:
    page = (ROOT / "docs" / "configs.md").read_text()
    assert table.updated(page) == page, "run python -m configs.table docs/configs.md"
    with pytest.raises(ValueError, match="the page lacks a line"):
        table.updated(page.replace(table.END, ""))


def test_a_field_is_one_line_of_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entered there, it is in every config, checked, completed in stored ones, and documented."""
    earlier = schema.base().to_dict()
    field = rules.Field(3, rules.POSITIVE, "spoons in a soup")
    monkeypatch.setitem(schema.SAMPLING, "num_spoons", field)
    config = overridden("ve/cifar10_ncsnpp", "--config.sampling.num_spoons=5")
    assert config.sampling.num_spoons == 5
    configs.check(config)
    config.sampling.num_spoons = 0
    with pytest.raises(ValueError, match=r"sampling\.num_spoons is 0; it must be positive"):
        configs.check(config)
    assert configs.from_stored(earlier).sampling.num_spoons == 3
    assert "| `sampling.num_spoons` | `3` | positive | spoons in a soup |" in table.table()


def test_shipped_configs_are_all_there_are_and_cannot_be_changed() -> None:
    """Every file with a `get_config`, in order; `load` makes one that can be changed."""
    files = (ROOT / "configs").rglob("*.py")
    names = [
        path.relative_to(ROOT / "configs").with_suffix("").as_posix()
        for path in files
        if "def get_config" in path.read_text()
    ]
    assert sorted(configs.shipped()) == sorted(names)
    assert configs.shipped() is configs.shipped()
    with pytest.raises(AttributeError, match="immutable"):
        configs.shipped()["quickstart"].model.nf = 3
    config = configs.load("quickstart")
    assert config.to_dict() == configs.shipped()["quickstart"].to_dict()
    assert configs.from_file(ROOT / "configs" / "quickstart.py").to_dict() == config.to_dict()
    config.model.nf = 3
    with pytest.raises(ModuleNotFoundError):
        configs.load("ve/unknown")


@pytest.mark.parametrize("name", configs.shipped())
def test_every_shipped_config_passes_the_check_and_describes_a_network_and_a_loss(
    name: str,
) -> None:
    config = configs.shipped()[name]
    configs.check(config)
    models.from_config(config)
    losses.from_config(config, sde_lib.from_config(config))


def test_cifar10_and_emoji_have_the_same_siblings() -> None:
    """The siblings that have a config already go by its name."""
    named: dict[str, set[str]] = {"cifar10": {"edm"}, "emoji": {"velocity"}}
    for name in configs.shipped():
        folder, _, sibling = name.partition("/")
        named.get(folder, set()).add(sibling)
    assert configs.load("edm/cifar10_uncond_vp").model.prediction == "edm"
    assert configs.load("emoji/vp").model.prediction == "velocity"
    assert named["emoji"] - {"vp", "ddpmpp"} == named["cifar10"] >= {"edm", "velocity", "classes"}


def test_no_default_stands_outside_of_the_schema() -> None:
    """No `config.get("field", default)` in any file, but where files of others are read."""
    names = {name.rpartition(".")[2] for name in schema.fields()}
    for module, path in MODULES.items():
        if module.partition(".")[0] in ("configs", "interop"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
                asks = node.func.attr == "get" and name in names
                owner = set(re.findall(r"\w+", ast.unparse(node.func.value)))
                of_config = owner & {"config", "options", "settings", *schema.SECTIONS}
                assert not (asks and of_config), (module, ast.unparse(node))


def test_differences_are_worded_by_who_asks() -> None:
    old = {"model": {"nf": 64, "ch_mult": (1, 2)}, "eval": {"seed": 1}}
    new = {"model.nf": 32, "model.ch_mult": [1, 2], "eval.seed": 2, "model.fir": True}
    lines = stored.config_differences(
        old, new, iter(["eval.*"]), wording=lambda name, a, b: f"{name}: {b}, not {a}"
    )
    assert lines == ["model.fir: True, not nothing", "model.nf: 32, not 64"]


def test_a_run_that_called_its_normalisation_otherwise_can_be_opened(
    tmp_path: pathlib.Path,
) -> None:
    earlier = tiny.config(model__name="ncsnv2_64", model__normalization="GroupNorm").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    config = tiny.config(model__name="ncsnv2_64", model__normalization="InstanceNorm++")
    models.from_config(config)
    open_run(config, tmp_path)


def test_attention_where_no_level_is_is_refused_with_the_levels() -> None:
    config = schema.base()
    config.data.image_size, config.model.ch_mult = 28, (1, 2, 2)
    for name in ("ncsnpp", "ddpm"):
        config.model.name = name
        with pytest.raises(
            ValueError,
            match=r"^config\.model\.attn_resolutions is \(16,\)[^\n]* height 16[^\n]* 28, 14, 7;",
        ):
            models.from_config(config)
    for attention in ((), (14,), (28, 7)):
        config.model.attn_resolutions = attention
        assert models.from_config(config).attn_resolutions == attention
    config.model.name, config.model.attn_resolutions = "ncsnv2_64", (16,)  # which has none
    config.model.normalization = "InstanceNorm++"
    models.from_config(config)


def test_a_run_whose_attention_was_where_no_level_is_can_be_opened(tmp_path: pathlib.Path) -> None:
    """By its own stored config, and by one without the heights that had no effect."""
    earlier = tiny.config(model__attn_resolutions=(16, 8)).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    own = configs.from_stored(json.loads((tmp_path / "config.json").read_text()))
    assert own.model.attn_resolutions == (8,)
    models.from_config(own)
    for config in (own, tiny.config(model__attn_resolutions=(8,))):
        open_run(config, tmp_path)
    with pytest.raises(ValueError, match="attn_resolutions"):
        open_run(tiny.config(model__attn_resolutions=()), tmp_path)


def test_every_mend_is_told_in_the_file_itself() -> None:
    for name, field in MENDED:
        source = (ROOT / "configs" / f"{name}.py").read_text()
        assert "Mended: " in source
        assert field.removeprefix("training.").removeprefix("model.") in source


def test_the_documented_table_has_every_config_and_its_size() -> None:
    rows = (ROOT / "docs" / "configs.md").read_text().splitlines()
    cells = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in rows if "| `" in row]
    cells = [row for row in cells if "/" in row[0]]
    sizes = {name: f"{count['parameters'] / 1e6:.1f}" for name, count in COUNTS.items()}
    assert {row[0]: row[4] for row in cells} == sizes


def structure(network: nn.Module) -> nn.Module:
    """The network, with all that does not change the shape of a parameter made equal."""
    same: dict[str, Any] = {
        "sigma_min": 0.01,
        "sigma_max": 50.0,
        "num_scales": 1000,
        "centered": True,
    }
    if hasattr(network, "dropout"):
        same |= {"dropout": 0.0, "scale_by_sigma": False}
    return network.clone(**same)


@functools.cache
def parameters(network: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Numbers of trained parameters, frozen Fourier frequencies and tensors, without computing."""
    init = functools.partial(models.init, network, image_shape=image_shape)
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(init, jax.random.key(0)))
    sizes = {jax.tree_util.keystr(path): math.prod(leaf.shape) for path, leaf in leaves}
    frozen = sum(size for path, size in sizes.items() if "GaussianFourierProjection" in path)
    return {
        "parameters": sum(sizes.values()) - frozen,
        "frozen_fourier": frozen,
        "tensors": len(sizes),
    }


@pytest.mark.parametrize("name", COUNTS)
def test_official_parameter_counts(name: str) -> None:
    config = load(name)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    count = parameters(structure(models.from_config(config)), shape)
    assert count == {key: COUNTS[name][key] for key in count}


# Overrides, as the command line makes them.


def overridden(name: str, *overrides: str) -> ConfigDict:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    argv = ["test", f"--config={ROOT / 'configs' / name}.py", *overrides]
    with mock.patch.object(sys, "argv", argv):  # where config_flags looks for overrides
        values(argv)
    return values.config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.sigma_max", 50.5),
        ("model.fourier_scale", 0.5),
        ("optim.weight_decay", 0.01),
        ("sampling.eps", 1e-4),
        ("model.ch_mult", (1, 2)),
        ("model.attn_resolutions", ()),
        ("model.ema_warmup", True),
        ("sampling.num_steps", 20),
        ("data.data_dir", "/data"),
        ("seed", 7),
    ],
)
def test_overrides_keep_their_type(field: str, value: Any) -> None:
    config = overridden("ve/cifar10_ncsnpp", f"--config.{field}={value}")
    configs.check(config)
    section, _, name = field.rpartition(".")
    got = config[section][name] if section else config[name]
    assert got == value
    assert type(got) is type(value)


def test_ncsn_classes_follow_an_override_of_num_scales() -> None:
    config = overridden("ve/ncsn/cifar10", "--config.model.num_scales=12")
    assert config.model.num_classes == config.model.num_scales == 12


def test_misspelt_fields_are_refused_in_files_and_on_the_command_line() -> None:
    with pytest.raises(AttributeError, match="continuouse"):
        overridden("ve/ncsnv2/bedroom", "--config.training.continuouse=False")
    with pytest.raises(AttributeError, match="continuouse"):
        schema.base().training.continuouse = False


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("training.n_jitted_steps", -1, "positive"),
        ("training.n_iters", 0, "positive"),
        ("optim.lr", float("nan"), "positive"),
        ("optim.warmup", -1, "0 or more"),
        ("model.dropout", 1.0, "below 1"),
        ("model.ema_rate", -0.1, "at least 0"),
        ("model.ch_mult", (), "positive integers"),
        ("model.ch_mult", (1, 0), "positive integers"),
        ("model.attn_resolutions", (16.5,), "positive integers"),
        ("model.attention_type", "linear", "ddpm, the only one"),
        ("model.conv_size", 5, "3, the only one"),
        ("optim.amsgrad", True, "False, the only one"),
        ("eval.end_ckpt", 3, "begin_ckpt"),
        ("eval.seeds", 0, "positive"),
        ("sampling.seed", 2**32, "0 or more and below 4294967296"),
        ("control.seed", -1, "0 or more and below 4294967296"),
        ("eval.samplers", (5,), "a tuple of different samplers"),
        ("eval.metrics", (["fid"],), "a tuple of different names"),
        ("eval.samplers", ("ddim", "ddim"), "a tuple of different samplers"),
        ("eval.samplers", ("ddim", "ddim:0"), "a tuple of different samplers"),
        ("eval.samplers", ("ddim:20", "ddim:020"), "a tuple of different samplers"),
        ("optim.grad_clip", 0.0, "positive, or negative: none"),
        ("sampling.churn_max", -1.0, "0 or more"),
        ("sampling.churn_min", 2e9, r"sampling\.churn_min \(2000000000\.0\) or more"),
        ("model.fir_kernel", (1, -1), "whose sum is not 0"),
        ("model.ch_mult", (True,), "positive integers"),
        ("control.classes", (0, 2**31), "below 2147483648 in size"),
        ("control.interval", (0.1, float("inf")), "finite"),
        ("training.ema_rates", (1e-40,), "1.2e-38 to 3.4e\\+38"),
        ("optim.lr", 1e39, "1.2e-38 to 3.4e\\+38"),
        ("sampling.num_steps", 2**24, "below 16777216 in size"),
        ("data.data_dir", "a\0b", "without null characters"),
        ("training.batch_size", 10**40, "below 2147483648 in size"),
    ],
)
def test_impossible_values_are_refused_in_one_line(field: str, value: Any, words: str) -> None:
    config = schema.base()
    section, name = field.split(".")
    config[section][name] = value
    blamed = "sampling.churn_max" if name == "churn_min" else field
    with pytest.raises(ValueError, match=rf"^config\.{blamed} is .*{words}[^\n]*$"):
        configs.check(config)


NUMBERS = [name for name, field in schema.fields().items() if type(field.default) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_infinite_or_too_large_for_what_computes_with_it(name: str) -> None:
    """Of every field that there is or will be: nobody has to think of it."""
    section, _, field = name.rpartition(".")
    whole = isinstance(schema.fields()[name].default, int)
    for value in (10**30, 10**5000) if whole else (math.nan, math.inf, -math.inf, 1e300, 1e-300):
        config = schema.base()
        (config[section] if section else config)[field] = value
        with pytest.raises(ValueError, match=rf"^config\.{name} is [^\n]*; it must be [^\n]*$"):
            configs.check(config)


def test_fields_beyond_the_schema_are_finite_too() -> None:
    config = schema.base()
    with config.unlocked():
        config.model.cosine_offset = math.nan
    with pytest.raises(
        ValueError, match=r"^config\.model\.cosine_offset is nan; it must be finite$"
    ):
        configs.check(config)


def test_the_last_seed_of_an_evaluation_is_a_seed() -> None:
    """Beyond 2^32 it would be another one's images."""
    config = schema.base()
    config.sampling.seed, config.eval.seeds = 2**32 - 3, 3
    configs.check(config)
    config.eval.seeds = 4
    with pytest.raises(ValueError, match=r"^config\.eval\.seeds is 4; .*= 4294967296, is below"):
        configs.check(config)


VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**30, 0.5, math.nan, "", "x", b"x", 1j, [], {}, object()),
    *((), (None,), ("x", 1), (1, "x"), ((1,),), ([],), (1, 1.0), (True, {}), (math.nan, math.inf)),
)


@pytest.mark.parametrize("name", schema.fields())
def test_no_value_of_any_type_makes_a_rule_fail(name: str) -> None:
    """It passes or is refused in one line."""
    section, _, field = name.rpartition(".")
    config = ConfigDict(schema.base().to_dict(), type_safe=False)
    for value in VALUES:
        (config[section] if section else config)[field] = value
        with contextlib.suppress(ValueError):
            configs.check(config)


def test_configs_not_made_from_the_schema_are_refused_in_one_line() -> None:
    as_official = schema.base().to_dict()
    as_official["training"]["continuouse"] = as_official["training"].pop("continuous")
    with pytest.raises(ValueError, match=r"training\.continuous is missing.*continuouse"):
        configs.check(ConfigDict(as_official))

    untyped = schema.base().to_dict()
    untyped["optim"]["lr"] = "2e-4"
    with pytest.raises(ValueError, match=r"optim\.lr is '2e-4'; it must be of type float"):
        configs.check(ConfigDict(untyped))

    untyped = schema.base().to_dict()
    untyped["training"]["batch_size"] = True
    with pytest.raises(ValueError, match=r"batch_size is True; it must be of type int"):
        configs.check(ConfigDict(untyped))


def test_a_new_sde_may_bring_its_own_fields() -> None:
    config = schema.base()
    with config.unlocked():
        config.model.cosine_offset = 0.008
    configs.check(config)
