"""Optimiser, moving average and whole training steps against the original PyTorch code."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import losses
import models
import sde_lib
from interop import official
from runtime import ema
from tests import golden_cases
from training import optimizers
from training.state import TrainState
from training.step import apply_gradients

J_OPTIM = golden_cases.about("math", "ema_optim")
J_TRAIN = golden_cases.about("math", "train")
by_file = pytest.mark.parametrize("path", J_TRAIN, ids=lambda path: path.stem)


def tags(prefix: str) -> list[Any]:
    return [
        pytest.param(path, tag, id=f"{path.stem}-{tag}")
        for path in J_OPTIM
        for tag in sorted({key.partition("/")[0] for key in golden_cases.load(path)})
        if tag.startswith(prefix)
    ]


@pytest.mark.golden
@pytest.mark.parametrize(("path", "tag"), tags("ema_"))
def test_moving_averages_follow_the_original(path: pathlib.Path, tag: str) -> None:
    stored = golden_cases.load(path)
    facts = stored["meta_json"][tag]
    rate, warmup = facts["decay"], facts["use_num_updates"]
    names = [key.partition("/param_")[2] for key in stored if key.startswith(f"{tag}/param_")]
    assert names
    params = {name: stored[f"{tag}/param_{name}"] for name in names}
    average = {name: jnp.asarray(stored[f"{tag}/shadow_{name}"][0]) for name in names}
    rule = ema.constant(rate, warmup)
    update = jax.jit(lambda average, new, n: ema.update(average, new, rule(n)))
    for n in range(1, len(params[names[0]])):
        average = update(average, {name: rows[n] for name, rows in params.items()}, n)
        for name in names:
            golden = stored[f"{tag}/shadow_{name}"][n]
            np.testing.assert_allclose(average[name], golden, rtol=1e-5, atol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize(("path", "tag"), tags("opt_"))
def test_optimizer_steps_are_the_original_ones(path: pathlib.Path, tag: str) -> None:
    stored = golden_cases.load(path)
    facts = stored["meta_json"][tag]
    options = {k: facts[k] for k in ("lr", "beta1", "eps", "warmup", "grad_clip", "weight_decay")}
    optimizer = optimizers.make_optimizer(**options, clip_rule="add")
    A, c = jnp.asarray(stored["quad/A"]), jnp.asarray(stored["quad/c"])

    def loss(params: Any) -> jax.Array:
        away = params["w"] - c
        return 0.5 * away @ A @ away + jnp.sum(params["b"] ** 4)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return value, optax.apply_updates(params, updates), state

    params = {"w": jnp.asarray(stored["quad/w0"]), "b": jnp.asarray(stored["quad/b0"])}
    state = optimizer.init(params)
    for i, golden_value in enumerate(stored[f"{tag}/loss"]):
        for name in params:
            golden = stored[f"{tag}/{name}"]
            np.testing.assert_allclose(params[name], golden[i], rtol=1e-5, atol=1e-6)
        value, params, state = step(params, state)
        np.testing.assert_allclose(value, golden_value, rtol=1e-5)
    np.testing.assert_allclose(params["w"], stored[f"{tag}/w"][-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params["b"], stored[f"{tag}/b"][-1], rtol=1e-5, atol=1e-6)


def weights(stored: dict[str, Any], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


class Run:
    """One recorded training run: its network, objective and optimiser from the file's config."""

    def __init__(self, path: pathlib.Path) -> None:
        self.stored = golden_cases.load(path)
        config = ConfigDict(self.stored["config_json"])
        self.training = config.training
        self.averaging = ema.Averaging(ema.constant(config.model.ema_rate, warmup=True))
        self.sde = sde_lib.from_config(config)
        self.module: Any = models.from_config(config)
        self.batches = golden_cases.nhwc(self.stored["batches"])
        names = ("lr", "beta1", "eps", "warmup", "grad_clip", "weight_decay")
        options = {name: config.optim[name] for name in names}
        self.optimizer = optimizers.make_optimizer(**options, clip_rule="add")

    def params(self, *prefixes: str) -> Any:
        """Our parameters from the file's; later prefixes take precedence."""
        state_dict: dict[str, np.ndarray] = {}
        for prefix in prefixes:
            state_dict |= weights(self.stored, prefix)
        return official.params_from_torch(self.module, state_dict, self.batches.shape[2:])

    def loss(self, params: Any, x0: jax.Array, u: jax.Array, z: jax.Array) -> jax.Array:
        def network(x: jax.Array, labels: jax.Array) -> jax.Array:
            return self.module.apply({"params": params}, x, labels)

        score_fn = models.score_fn(self.sde, network, continuous=self.training.continuous)
        t = u * (self.sde.T - self.sde.training_eps) + self.sde.training_eps
        weighting = "likelihood" if self.training.likelihood_weighting else "noise"
        weight = losses.weight(self.sde, t, weighting)
        noise_mse = losses.dsm(self.sde, score_fn, x0, t, z)
        size = x0[0].size
        return jnp.mean(losses.weighted(noise_mse, size, weight, self.training.reduce_mean)[0])

    def step(self, state: TrainState, x0: jax.Array, u: jax.Array, z: jax.Array) -> Any:
        """The next state, with the loss and the gradient norm before clipping."""
        value, gradients = jax.value_and_grad(self.loss)(state.params, x0, u, z)
        norm = optax.global_norm(gradients)
        state = apply_gradients(state, gradients, self.optimizer, self.averaging)
        return state, value, norm


@pytest.mark.golden
@by_file
def test_averaged_weights_have_the_original_loss(path: pathlib.Path) -> None:
    run = Run(path)
    average = run.params("final_sd/", "ema/")  # frozen parameters are not in ema/
    x0, u = run.batches[0], run.stored["eval_u"]
    z = golden_cases.nhwc(run.stored["eval_z"])
    value = jax.jit(run.loss)(average, x0, u, z)
    np.testing.assert_allclose(value, run.stored["eval_loss_ema"], rtol=1e-5)


@pytest.mark.golden
@by_file
def test_training_steps_are_the_original_ones(path: pathlib.Path) -> None:
    run = Run(path)
    start, final = weights(run.stored, "sd/"), weights(run.stored, "final_sd/")
    if all(np.array_equal(final[name], value) for name, value in start.items()):
        pytest.skip(f"{path.name} does not hold the start: no sd/, or one that equals final_sd/")
    params = run.params("sd/")
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=run.optimizer.init(params),
        ema_params=params,
        key=jax.random.key(0),
    )
    step, noise = jax.jit(run.step), golden_cases.nhwc(run.stored["z"])
    for i, (x0, u, z) in enumerate(zip(run.batches, run.stored["u"], noise, strict=True)):
        state, value, norm = step(state, x0, u, z)
        np.testing.assert_allclose(value, run.stored["losses"][i], rtol=2e-5)
        np.testing.assert_allclose(norm, run.stored["gradnorms_before_clip"][i], rtol=1e-4)
    for ours, golden in [
        (state.params, run.params("final_sd/")),
        (state.ema_params, run.params("final_sd/", "ema/")),
    ]:
        # Adam moves a parameter by about lr whatever the size of its gradient, so where that is
        # rounding noise (a bias without effect) the two codes differ by as much.
        error = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)), ours, golden)
        errors = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(error)])
        assert np.quantile(errors, 0.98) < 1e-5
