"""Imported files become runs: they give their authors' numbers and train on, or are refused."""

from __future__ import annotations

import functools
import json
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import flax.serialization
import jax
import numpy as np
import optax
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

import configs
import models
from interop import convert, diffusers, diffusers_config, exports, official, sources, traits
from runtime import ema, experiment, files
from runtime.arrays import unflatten
from runtime.checkpoints import Checkpoints
from runtime.workdir import open_run
from tests import golden_cases, tiny
from tests.test_diffusers import DDPM, GOLDEN, NCSNPP, SHAPE, folder_of, random_params
from tests.test_interop_files import Reduced, Tensor, write_pth
from tests.test_official_names import NAMES, network
from tests.test_training import use_devices
from training import optimizers
from training.state import new_state, state_from_host

LIMIT = 2e-5  # of the largest output


OFFICIAL = {path.name: (path, case) for case in golden_cases.checkpoints() for path in case.files}


def restored(config: ConfigDict, workdir: pathlib.Path, which: str) -> Any:
    """The weights of the only checkpoint, by the way that sampling and evaluation read them."""
    stored = open_run(config, workdir).restore()
    shape = experiment.image_shape(config)
    init = functools.partial(models.init, models.from_config(config), image_shape=shape)
    return unflatten(jax.eval_shape(init, jax.random.key(0)), stored.state, prefix=which)


@functools.lru_cache(maxsize=1)
def compiled(module: Any) -> Any:
    return jax.jit(module.apply)


def outputs(config: ConfigDict, params: Any, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    network = compiled(models.from_config(config))
    return golden_cases.nchw(np.asarray(network({"params": params}, golden_cases.nhwc(x), labels)))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= LIMIT * np.abs(expected).max()


@pytest.mark.golden
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_checkpoints_give_their_outputs(name: str, tmp_path: pathlib.Path) -> None:
    path, case = OFFICIAL[name]
    expected = golden_cases.load(case.expected)
    config = golden_cases.config(expected["config_json"])
    state = convert.import_weights(config, path, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["nf"] == config.model.nf
    for which, out in (("params", "out_raw"), ("ema_params", "out_ema")):
        params = restored(config, tmp_path, which)
        found = outputs(config, params, expected["x"], expected["labels"])
        assert_close(found, expected[out])
    assert int(state.step) == open_run(config, tmp_path).steps()[0]


@pytest.mark.golden
@pytest.mark.parametrize("name", [name for name in OFFICIAL if not name.endswith(".pth")])
def test_both_formats_make_the_same_run(name: str, tmp_path: pathlib.Path) -> None:
    """Raw and averaged weights, the step and the key are those of the other file, to the bit."""
    path, case = OFFICIAL[name]
    if case.pth is None:
        pytest.skip(f"no .pth beside {name}")
    config = golden_cases.config(golden_cases.load(case.expected)["config_json"])
    states = [
        vars(convert.import_weights(config, source, tmp_path / source.name))
        for source in (path, case.pth)
    ]
    for part in ("params", "ema_params", "step", "key"):
        jax.tree.map(np.testing.assert_array_equal, *(state[part] for state in states))


@pytest.mark.golden
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda path: path.name)
def test_diffusers_folders_give_their_outputs(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    expected = golden_cases.load(folder / "expected.npz")
    convert.import_weights(None, folder, tmp_path)
    config = configs.from_file(tmp_path / "config.py")
    for which in ("params", "ema_params"):
        params = restored(config, tmp_path, which)
        found = outputs(config, params, expected["x"], expected["labels"])
        assert_close(found, expected["out"])
    exports.export_weights(config, tmp_path, tmp_path / "out")
    again, stored = diffusers.read(tmp_path / "out").tensors, diffusers.read(folder).tensors
    assert again.keys() == stored.keys()
    for name, tensor in stored.items():
        np.testing.assert_array_equal(again[name], tensor)


# --- Files of a network so small that it can be trained here ---


def tiny_checkpoint(config: ConfigDict, seed: int = 0) -> dict[str, Any]:
    """An official PyTorch state of the config's network, with random numbers everywhere."""
    module, shape = models.from_config(config), experiment.image_shape(config)
    rng = np.random.default_rng(seed)
    entries = official.correspondence(module, shape)
    sigmas = np.geomspace(config.model.sigma_max, config.model.sigma_min, config.model.num_scales)

    def draw() -> dict[str, np.ndarray]:
        return {
            e.torch_name: 0.1 * rng.standard_normal(e.torch_shape, dtype=np.float32)
            for e in entries
        }

    raw, average, first, second = draw(), draw(), draw(), draw()
    names = [e.torch_name for e in entries if e.trainable]
    moments = {
        i: {"step": 7, "exp_avg": first[name], "exp_avg_sq": second[name] ** 2}
        for i, name in enumerate(names)
    }
    return {
        "optimizer": {"state": moments, "param_groups": [{"lr": 2e-4}]},
        "model": {"module.sigmas": sigmas, **{f"module.{n}": a for n, a in raw.items()}},
        "ema": {
            "decay": 0.999,
            "num_updates": 7,
            "shadow_params": [average[name] for name in names],
        },
        "step": 7,
    }


def as_tensors(value: Any) -> Any:
    """Every array as PyTorch would pickle it."""
    if isinstance(value, dict):
        return {key: as_tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_tensors(item) for item in value]
    if isinstance(value, np.ndarray):
        kind = "DoubleStorage" if value.dtype == np.float64 else "FloatStorage"
        value = np.ascontiguousarray(value)
        strides = tuple(stride // value.itemsize for stride in value.strides)
        return Tensor(value.ravel(), 0, value.shape, strides, kind)
    return value


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return tiny_checkpoint(tiny.config())


def save(path: pathlib.Path, content: Any) -> pathlib.Path:
    return write_pth(path, as_tensors(content))


@pytest.mark.slow
def test_training_goes_on_where_the_file_stopped(
    content: dict[str, Any],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two more steps by the command line equal two steps from the state put together here."""
    use_devices(monkeypatch, 1)
    source = save(tmp_path / "official.pth", content)
    workdir = tmp_path / "run"
    argv = tiny.arguments(workdir, "import", f"--source={source}", "--config.training.n_iters=9")
    assert tiny.run(capsys, *argv) == (0, [])

    (workdir / "config.json").unlink()  # killed before it was written: the import goes on
    save(source, tiny_checkpoint(tiny.config(), seed=1))
    _, (line,) = tiny.run(capsys, *argv)
    assert line.endswith("checkpoints holds other checkpoints; use another --workdir")
    save(source, content)
    assert tiny.run(capsys, *argv) == (0, [])
    assert (workdir / "config.json").exists()

    config = tiny.config(training__n_iters=9)
    module, shape = models.from_config(config), experiment.image_shape(config)
    state = state_from_host(open_run(config, workdir).restore(template_of(config)).state)
    fresh = new_state(module, optimizers.from_config(config), config.seed, shape)
    assert jax.random.key_data(state.key).tolist() == jax.random.key_data(fresh.key).tolist()
    adam, schedule = state.opt_state[2], state.opt_state[3]
    assert (int(state.step), int(adam.count), int(schedule.count)) == (7, 7, 7)
    named = official.params_to_torch(module, adam.mu, shape)
    second = official.params_to_torch(module, adam.nu, shape)
    averaged = official.params_to_torch(module, state.ema_params, shape)
    for average in state.averages.values():  # the file has none of them: they begin there
        jax.tree.map(np.testing.assert_array_equal, average, state.ema_params)
    for i, name in enumerate(named):
        stored = content["optimizer"]["state"][i]
        np.testing.assert_array_equal(named[name], stored["exp_avg"])
        np.testing.assert_array_equal(second[name], stored["exp_avg_sq"])
        np.testing.assert_array_equal(averaged[name], content["ema"]["shadow_params"][i])

    assert tiny.run(capsys, *argv[:3], "--mode=train", *argv[4:-2], argv[-1]) == (0, [])
    checkpoints = Checkpoints(workdir / "checkpoints")
    assert checkpoints.steps()[-1] == 9
    after = checkpoints.restore(template_of(config)).state["opt_state"][2]
    assert int(after.count) == 9
    # m'' = b^2 m + (1 - b) (b g' + g''), and the gradients' norms are clipped to grad_clip.
    beta, clip = config.optim.beta1, config.optim.grad_clip
    moved = jax.tree.map(lambda now, before: now - beta**2 * before, after.mu, adam.mu)
    assert 0 < optax.tree.norm(moved) <= (1 - beta**2) * clip * (1 + 1e-4)
    assert optax.tree.norm(adam.mu) > 2 * clip
    moved = jax.tree.map(lambda now, before: now - 0.999**2 * before, after.nu, adam.nu)
    assert optax.tree.norm(moved) <= 0.002 * clip**2 + 1e-6 * optax.tree.norm(adam.nu)

    sample = tiny.arguments(workdir, "sample", "--config.training.n_iters=9")
    assert tiny.run(capsys, *sample, "--config.sampling.num_frames=0") == (0, [])
    assert len(list((workdir / "samples" / "images").glob("*.png"))) == 6


def template_of(config: ConfigDict) -> dict[str, Any]:
    fresh = functools.partial(
        new_state,
        models.from_config(config),
        optimizers.from_config(config),
        config.seed,
        experiment.image_shape(config),
        ema.from_config(config).further,
    )
    template = jax.eval_shape(fresh)
    return vars(template.replace(key=jax.eval_shape(jax.random.key_data, template.key)))


def test_a_bare_state_dict_begins_anew(content: dict[str, Any], tmp_path: pathlib.Path) -> None:
    source = save(tmp_path / "net.pth", content["model"])
    state = convert.import_weights(tiny.config(), source, tmp_path / "run")
    assert (int(state.step), int(state.opt_state[2].count)) == (0, 0)
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.opt_state[2].mu))
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, state.params)


def test_the_table_says_what_was_read(
    content: dict[str, Any], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "official.pth", content)
    state = convert.import_weights(tiny.config(), source, tmp_path / "run")
    text = capsys.readouterr().out
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    tensors = 1 + 4 * len(jax.tree.leaves(state.params))  # the sigmas, and each tensor four times
    for row in (
        r"source .*official\.pth \(official PyTorch checkpoint\)",
        rf"SHA-256 +{files.sha256(source)}",
        rf"tensors read +{tensors}",
        rf"parameters +{count:,}",
        r"weights +EMA, rate 0\.999",
        r"optimiser +moments of 7 updates",
        r"step +7",
        r"SDE +\w+, all times \(from --config\)",
        r"prediction +\w+ \(from --config\)",
        r"not used +ema\.num_updates, optimizer\.param_groups",
    ):
        assert re.search(row, text), row


Change = Callable[[dict[str, Any]], Any]
NAME = "module.all_modules.3.Conv_0.weight"


def edited(content: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {**content, **parts}


def renamed(content: dict[str, Any]) -> dict[str, Any]:
    names = {NAME: "module.all_modules.77.weight"}
    return edited(content, model={names.get(n, n): a for n, a in content["model"].items()})


def reshaped(content: dict[str, Any]) -> dict[str, Any]:
    return edited(content, model={**content["model"], NAME: content["model"][NAME][..., :2]})


def short_average(content: dict[str, Any]) -> dict[str, Any]:
    shadow = content["ema"]["shadow_params"][:-1]
    return edited(content, ema={**content["ema"], "shadow_params": shadow})


def optimizer(change: Callable[[dict[int, Any]], dict[int, Any]]) -> Change:
    return lambda c: edited(c, optimizer={"state": change(c["optimizer"]["state"])})


def other_sigmas(content: dict[str, Any]) -> dict[str, Any]:
    model = {**content["model"], "module.sigmas": np.geomspace(348.0, 0.01, 1000)}
    return edited(content, model=model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"missing: all_modules\.3\.Conv_0\.weight; unexpected: all_modules\.77\.weight"),
        (reshaped, r"wrong shape: all_modules\.3\.Conv_0\.weight \(8, 8, 3, 2\), expected"),
        (short_average, r"ema\.shadow_params has \d+ tensors; expected \d+"),
        (other_sigmas, "sigmas are 1000 from 348 to 0.01; .* would be 1000 from 50 to 0.01"),
        (optimizer(lambda s: {i: v for i, v in s.items() if i}), r"none of all_modules\.0\.weight"),
        (optimizer(lambda s: s | {999: s[0]}), "of parameters number 999"),
        (optimizer(lambda s: s | {0: s[0] | {"step": 6}}), r"disagree in step: \[6, 7\]"),
        (optimizer(lambda s: s | {0: s[1]}), r"wrong shape: all_modules\.0\.weight"),
        (lambda c: edited(c, step=-1), "step is -1, expected a count"),
        (lambda c: edited(c, ema=[1]), "ema is no list of tensors"),
        (lambda c: edited(c, ema="x"), "ema is a str, expected averaged weights"),
        (lambda c: edited(c, ema={"decay": "x", "shadow_params": []}), "decay is x, expected a"),
        (lambda c: edited(c, ema={"decay": 0.9, "shadow_params": [3]}), "no list of tensors"),
        (lambda c: edited(c, optimizer={"state": 3}), "optimizer state is a int, expected"),
        (lambda c: {"weights": c["model"]}, "no state_dict 'model'"),
    ],
)
def test_a_file_that_is_not_the_networks_is_refused(
    change: Change, message: str, content: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    source = save(tmp_path / "official.pth", change(content))
    with pytest.raises(ValueError, match=message) as error:
        convert.import_weights(tiny.config(), source, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["truncated", "empty", "malicious", "absent", "another config"])
def test_a_refusal_writes_nothing(
    kind: str,
    content: dict[str, Any],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command line: one line, exit code 1, no workdir, and nothing in the file executed."""
    source, victim = tmp_path / "official.pth", tmp_path / "executed"
    more: tuple[str, ...] = ()
    save(source, content)
    if kind == "truncated":
        source.write_bytes(source.read_bytes()[:-2000])
    elif kind == "empty":
        source.write_bytes(b"")
    elif kind == "malicious":
        save(source, {**content, "step": Reduced("os", "mkdir", str(victim))})
    elif kind == "absent":
        source.unlink()
    else:
        more = ("--config.model.ch_mult=(1,2)",)
    argv = tiny.arguments(tmp_path / "run", "import", f"--source={source}", *more)
    code, lines = tiny.run(capsys, *argv)
    assert code == 1
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert not victim.exists()
    assert not (tmp_path / "run").exists()


def test_official_jax_files_are_refused_too(
    content: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """A tree in which one parameter was renamed, everywhere alike; and a truncated file."""
    config = tiny.config()
    module, shape = models.from_config(config), experiment.image_shape(config)
    params = official.params_from_torch(module, content["model"], shape)

    def state(tree: dict[str, Any]) -> bytes:
        moments = jax.tree.map(lambda leaf: {"grad_ema": leaf, "grad_sq_ema": leaf}, tree)
        return flax.serialization.msgpack_serialize(
            {
                "step": 7,
                "optimizer": {"target": tree, "state": {"step": 7, "param_states": moments}},
                "lr": 2e-4,
                "model_state": {},
                "ema_rate": 0.999,
                "params_ema": tree,
                "rng": np.zeros(2, np.uint32),
            }
        )

    source = tmp_path / "checkpoint_1"
    source.write_bytes(state(params))
    kept = convert.import_weights(config, source, tmp_path / "kept")
    jax.tree.map(np.testing.assert_array_equal, kept.opt_state[2].nu, params)
    wrong = {name.replace("Conv_1", "Conv_9"): branch for name, branch in params.items()}
    source.write_bytes(state(wrong))
    with pytest.raises(ValueError, match=r"missing: Conv_1/bias, .*unexpected: Conv_9/bias"):
        convert.import_weights(config, source, tmp_path / "run")
    source.write_bytes(state(params)[:-50])
    with pytest.raises(ValueError, match="cannot be read as a Flax file"):
        convert.import_weights(config, source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_with_checkpoints_is_left_alone(
    content: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """The same import finds all there, whichever path leads to the file; another one is refused."""
    source = save(tmp_path / "official.pth", content)
    convert.import_run(tiny.config(), str(source), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    shutil.copy(source, tmp_path / "copy.pth")
    for config, path in ((tiny.config(), source), (None, tmp_path / "copy.pth")):
        convert.import_run(config, str(path), tmp_path / "run")
    convert.import_weights(tiny.config(), source, tmp_path / "run")
    other = save(tmp_path / "other.pth", tiny_checkpoint(tiny.config(), seed=1))
    with pytest.raises(ValueError, match=r"has the weights of .*official.pth; use another --work"):
        convert.import_run(tiny.config(), str(other), tmp_path / "run")
    with pytest.raises(ValueError, match="holds other checkpoints; use another --workdir"):
        convert.import_weights(tiny.config(), other, tmp_path / "run")
    with pytest.raises(ValueError, match="belongs to another run: seed"):
        convert.import_run(tiny.config(seed=1), str(source), tmp_path / "run")
    with pytest.raises(ValueError, match="belongs to another run: seed"):
        convert.import_weights(tiny.config(seed=1), source, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


# --- Averages, under all the names that they have ---


def test_averages_of_other_projects_are_used(
    content: dict[str, Any], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """{"model", "ema_model"} is not one set of weights; what is not read is named."""
    averaged = {name: 2 * tensor for name, tensor in content["model"].items()}
    averaged["module.sigmas"] = content["model"]["module.sigmas"]
    source = save(
        tmp_path / "a.pth", {"model": content["model"], "model_ema": averaged, "scaler": {"a": 1}}
    )
    state = convert.import_weights(tiny.config(), source, tmp_path / "run")
    kept = official.params_to_torch(
        models.from_config(tiny.config()), state.ema_params, experiment.image_shape(tiny.config())
    )
    trained = [name for name in kept if not name.endswith(".W")]
    for name in trained:
        np.testing.assert_array_equal(kept[name], averaged[f"module.{name}"])
    text = capsys.readouterr().out
    assert re.search(r"weights +EMA, of an unknown rate, and raw", text)
    assert re.search(r"not used +scaler", text)


def test_the_ncsn_authors_list(content: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """[model, optimiser, epoch, step, averages by name] is what the dictionary is, also where
    the optimiser knows parameters by their addresses, as PyTorch before 1.5 did."""
    config = tiny.config()
    module, shape = models.from_config(config), experiment.image_shape(config)
    entries = official.correspondence(module, shape)
    trained = [entry.torch_name for entry in entries if entry.trainable]
    averages = dict(zip(trained, content["ema"]["shadow_params"], strict=True))
    states = content["optimizer"]["state"]
    addresses = [140_000_000_000_000 - 64 * number for number in range(len(entries))]
    optimizer = {
        "state": {addresses[number]: state for number, state in states.items()},
        "param_groups": [{"lr": 2e-4, "params": addresses}],
    }
    listed = save(tmp_path / "a.pth", [content["model"], optimizer, 3, 7, averages])
    opened = sources.open_source(listed)
    assert opened.unused == ["optimizer.param_groups", "epoch"]
    weights = opened.weights(module, shape)
    expected = sources.open_source(save(tmp_path / "b.pth", content)).weights(module, shape)
    jax.tree.map(np.testing.assert_array_equal, weights._replace(ema_rate=0.999), expected)


def test_averages_must_be_all_there(content: dict[str, Any], tmp_path: pathlib.Path) -> None:
    averaged = dict(list(content["model"].items())[1:5])
    source = save(tmp_path / "a.pth", {"model": content["model"], "ema_model": averaged})
    with pytest.raises(ValueError, match=r"PyTorch ema does not fit the network: missing: .*more"):
        convert.import_weights(tiny.config(), source, tmp_path / "run")


def test_weights_that_are_not_finite(content: dict[str, Any], tmp_path: pathlib.Path) -> None:
    broken = {**content["model"], NAME: np.full_like(content["model"][NAME], np.nan)}
    source = save(tmp_path / "a.pth", {"model": broken})
    name = re.escape(NAME.removeprefix("module."))
    with pytest.raises(ValueError, match=rf"NaN or infinite values in 1 tensors: {name}$"):
        convert.import_weights(tiny.config(), source, tmp_path / "run")
    averaged = [np.full_like(x, np.inf) for x in content["ema"]["shadow_params"]]
    shadow = edited(content, ema={"decay": 0.9, "shadow_params": averaged})
    with pytest.raises(ValueError, match=r"PyTorch ema has NaN .* and \d+ more$"):
        convert.import_weights(tiny.config(), save(source, shadow), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Without --config ---


def test_the_config_is_found_by_names_and_shapes(
    content: dict[str, Any],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that fits is taken, several are listed, and only the others are passed over."""
    source = save(tmp_path / "official.pth", content)
    shipped = {
        "wide": tiny.config(model__nf=16),
        "deep": tiny.config(model__num_res_blocks=2),
        "attending": tiny.config(model__attn_resolutions=(8,)),
        "louder": tiny.config(model__sigma_max=348.0),
    }
    monkeypatch.setattr(configs.stored, "shipped", lambda: shipped)
    monkeypatch.setattr(configs.stored, "load", shipped.__getitem__)
    found = r"a network of 0\.\d+ M parameters, width 8, 1 channels of images, \d residual blocks"
    with pytest.raises(ValueError, match=rf"fits no config .* \(it is {found}\); name one with"):
        convert.import_weights(None, source, tmp_path / "run")
    shipped["right"] = tiny.config()
    argv = ("main.py", "--mode=import", f"--source={source}", f"--workdir={tmp_path / 'run'}")
    assert tiny.run(capsys, *argv) == (0, [])
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored == json.loads(json.dumps(tiny.config().to_dict()))
    assert configs.from_file(tmp_path / "run" / "config.py").to_dict() == tiny.config().to_dict()
    network, shape = models.from_config(tiny.config()), experiment.image_shape(tiny.config())
    params = models.init(network, jax.random.key(0), shape)
    tensors = official.params_to_torch(network, jax.device_get(params), shape)
    sorted_by_name = tmp_path / "official.safetensors"  # the tenth module before the third
    safetensors.numpy.save_file(tensors, sorted_by_name)
    opened = sources.open_source(sorted_by_name)
    assert isinstance(opened, sources.PytorchFile)
    assert convert.fitting_configs(opened) == ["louder", "right"]  # it has no noise levels
    shipped["twin"] = tiny.config(training__sde="subvpsde")
    code, lines = tiny.run(capsys, *argv[:3], f"--workdir={tmp_path / 'other'}")
    assert code == 1
    assert "choose one with --config: configs/right.py, configs/twin.py" in lines[0]
    assert not (tmp_path / "other").exists()


@pytest.mark.golden
@pytest.mark.parametrize("name", NAMES)
def test_traits_of_the_official_networks(name: str) -> None:
    """The features seen at a glance never rule out the right one, in either format."""
    entries = NAMES[name]["params"]
    by_torch = {torch: tuple(shape) for torch, shape, *_ in entries}
    by_jax = {tuple(place.split("/")): tuple(shape) for *_, place, shape, _ in entries if place}
    expected = traits.of_network(*network(name))
    assert traits.of_torch(by_torch) == expected
    assert traits.of_torch(dict(sorted(by_torch.items()))) == expected  # as safetensors has them
    assert traits.of_jax(by_jax) == expected
    assert expected.nf
    assert expected.residual_blocks


def test_a_diffusers_folder_describes_its_network(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, as the unet of a pipeline, or by its file of weights; then config.py leads back."""
    folder = folder_of(NCSNPP, tmp_path / "pipeline" / "unet")
    for number, path in enumerate((folder, folder.parent, folder / diffusers.WEIGHTS)):
        workdir = tmp_path / f"run{number}"
        state = convert.import_weights(None, path, workdir)
        config = configs.from_file(workdir / "config.py")
        module = models.from_config(config)
        assert (module.nf, module.ch_mult, module.progressive) == (32, (1, 4), "output_skip")
        jax.tree.map(np.testing.assert_array_equal, state.params, random_params(NCSNPP))
        open_run(config, workdir)  # is the run's own config
        text = " ".join(capsys.readouterr().out.split())
        for row in ("SDE vesde, all times", "prediction score"):
            assert f"{row} (from the default of such networks, as there is no scheduler" in text


@pytest.mark.parametrize("name", ["church", "bedroom", "ffhq_256", "celebahq_256", "ffhq"])
def test_the_format_holds_the_large_official_networks(name: str) -> None:
    """The description of an export leads back to their own configs and to their own networks."""
    config = configs.load(f"ve/{name}_ncsnpp_continuous")
    description = diffusers_config.description(
        models.from_config(config), experiment.image_shape(config)
    )
    values = diffusers_config.architecture(description)
    assert convert.differences(config, values) == []
    config.model.num_res_blocks += 1
    fewer = f"--config.model.num_res_blocks={values['model.num_res_blocks']}"
    assert convert.differences(config, values) == [fewer]


def test_a_config_must_agree_with_the_folder(tmp_path: pathlib.Path) -> None:
    folder = folder_of(NCSNPP, tmp_path / "unet")
    convert.import_weights(None, folder, tmp_path / "run")
    config = configs.from_file(tmp_path / "run" / "config.py")
    config.model.sigma_max = 348.0
    convert.import_weights(config, folder, tmp_path / "again")
    config.model.nf, config.data.centered = 64, True
    with pytest.raises(
        ValueError, match=r"need --config\.data\.centered=False --config\.model\.nf=32$"
    ):
        convert.import_weights(config, folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "num_train_timesteps": 1000,
}


def pipeline(folder: pathlib.Path, module: Any, scheduler: dict[str, Any]) -> pathlib.Path:
    """A pipeline's folder with a random network and this scheduler."""
    folder_of(module, folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def test_a_pipeline_brings_its_scheduler(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cosine betas and v-prediction are not imported as linear ones and noise; averages beside."""
    folder = pipeline(tmp_path / "pipeline", DDPM, SCHEDULER)
    (folder / "vae").mkdir()
    shutil.copytree(folder / "unet", folder / "unet_ema")
    described = json.loads((folder / "unet_ema" / "config.json").read_text())
    described |= {"decay": 0.999, "optimization_step": 3}
    (folder / "unet_ema" / "config.json").write_text(json.dumps(described))
    weights = folder / "unet_ema" / diffusers.WEIGHTS
    tensors = {name: x / 2 for name, x in safetensors.numpy.load_file(weights).items()}
    safetensors.numpy.save_file(tensors, weights)

    state = convert.import_weights(None, folder, tmp_path / "run")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a / 2, b), state.params, state.ema_params
    )
    config = configs.from_file(tmp_path / "run" / "config.py")
    assert (config.training.sde, config.training.continuous) == ("cosine_vpsde", True)
    assert (config.model.prediction, config.model.num_scales) == ("velocity", 1000)
    text = " ".join(capsys.readouterr().out.split())
    place = re.escape(str(folder / "scheduler" / "scheduler_config.json"))
    assert re.search(rf"SDE cosine_vpsde, all times \(from {place}\)", text)
    assert re.search(rf"prediction velocity \(from {place}\)", text)
    assert "weights EMA, rate 0.999, and raw" in text
    assert "not used vae" in text

    config.training.sde, config.model.prediction = "vpsde", ""
    overrides = r"--config\.model\.prediction=velocity --config\.training\.sde=cosine_vpsde$"
    with pytest.raises(ValueError, match=f"it would need {overrides}"):
        convert.import_weights(config, folder, tmp_path / "other")


def test_export_takes_the_average(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, from a run whose raw and averaged weights differ."""
    convert.import_weights(None, folder_of(NCSNPP, tmp_path / "unet"), tmp_path / "run")
    config = configs.from_file(tmp_path / "run" / "config.py")
    checkpoints = open_run(config, tmp_path / "run")
    state = checkpoints.restore(template_of(config)).state
    state["ema_params"] = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, state["params"])
    assert checkpoints.save(1, {**state, "step": np.int32(1)}, None, "{}")
    checkpoints.wait()
    target = tmp_path / "out"
    argv = (
        "main.py",
        "--mode=export",
        f"--config={tmp_path / 'run' / 'config.py'}",
        f"--workdir={tmp_path / 'run'}",
        f"--target={target}",
    )
    assert tiny.run(capsys, *argv) == (0, [])
    found = diffusers.params_from_diffusers(NCSNPP, diffusers.read(target).tensors, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, found, state["ema_params"])
    written = (target / "unet" / diffusers.WEIGHTS).stat().st_mtime_ns
    assert tiny.run(capsys, *argv) == (0, []), "an export that was killed at its end"
    assert (target / "unet" / diffusers.WEIGHTS).stat().st_mtime_ns == written
    (target / "notes.txt").write_text("")
    code, lines = tiny.run(capsys, *argv)
    assert (code, len(lines)) == (1, 1)
    assert "exists and is not empty" in lines[0]


@pytest.mark.parametrize(
    ("mode", "missing"), [("import", "source"), ("export", "target"), ("export", "config")]
)
def test_flags_of_both_modes(
    mode: str, missing: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "config": "configs/quickstart.py",
        "source": str(tmp_path / "x.pth"),
        "target": str(tmp_path / "out"),
    }
    (tmp_path / "x.pth").touch()
    argv = [f"--{name}={value}" for name, value in given.items() if name != missing]
    run = tiny.run(capsys, "main.py", f"--mode={mode}", f"--workdir={tmp_path / 'run'}", *argv)
    code, [line] = run
    assert code == 2
    assert line.startswith(f"error: --{missing} is required: ")


def test_export_refuses_what_the_format_cannot_hold(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = tiny.arguments(tmp_path / "run", "export", f"--target={tmp_path / 'out'}")
    code, lines = tiny.run(capsys, *argv)
    assert (code, len(lines)) == (1, 1)
    assert "a diffusers UNet2DModel cannot hold it: " in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_usual_prediction_is_named_whatever_the_case_of_the_sde() -> None:
    for sde, usual in (("VPSDE", "noise"), ("vesde", "score")):
        config = tiny.config(training__sde=sde)
        assert exports.prediction(config) == usual
        assert f"({sde}, model.* of it), the prediction ({usual})" in exports.left_out(config)
        values = {"training.sde": sde.lower(), "data.image_size": 8, "model.ch_mult": (1,)}
        assert not convert.differences(config, {**values, "model.attn_resolutions": ()})
