"""EDM's configs: their networks' sizes, their average of the weights, and a step of training."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import configs
from generation.generator import random_classes
from runtime import devices, ema, experiment
from tests import tiny
from tests.test_configs import parameters
from training import optimizers
from training.objective import objective_from_config
from training.state import state_from_config
from training.step import make_train_step

PUBLISHED = {
    "cifar10_cond_vp": 55_735_299,
    "cifar10_uncond_vp": 55_733_891,
    "cifar10_cond_ve": 56_400_643,
    "cifar10_uncond_ve": 56_397_827,
    "ffhq_64_uncond_vp": 61_805_571,
    "afhqv2_64_uncond_vp": 61_805_571,
    "ffhq_64_uncond_ve": 62_761_091,
    "afhqv2_64_uncond_ve": 62_761_091,
    "imagenet_64_cond_adm": 295_899_267,
}
QUICK = "cifar10_cond_vp"


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n != QUICK else []) for n in PUBLISHED],
)
def test_networks_have_the_published_size(name: str) -> None:
    """But for the vector that ADM adds for an image of no class, which is zero there."""
    config = configs.load(f"edm/{name}")
    parts = experiment.build(config)
    null = 4 * config.model.nf if config.model.name == "adm" else 0
    count = parameters(parts.module, parts.image_shape)["parameters"]
    assert count - null == PUBLISHED[name]


def test_every_config_of_edm_is_one_of_the_published_networks() -> None:
    names = {name.removeprefix("edm/") for name in configs.shipped() if name.startswith("edm/")}
    assert names == set(PUBLISHED)


def test_an_average_forgets_half_within_its_half_life() -> None:
    """EDM's rate 2^(-batch / h), where h grows with the images seen up to the half-life."""
    rule = ema.half_life(500_000.0, 512, ramp_up=0.05)
    steps = np.array([1, 2, 100, 10_000, 20_000, 390_625])
    seen = 512.0 * (steps - 1)
    with np.errstate(divide="ignore"):
        rate = 0.5 ** (512 / np.minimum(500_000, 0.05 * seen))
    np.testing.assert_allclose(rule(jnp.asarray(steps)), 1 - rate, rtol=1e-5)
    weight = np.asarray(ema.half_life(512e3, 512)(1), np.float64)  # of 1000 updates of 512 images
    assert (1 - weight) ** 1000 == pytest.approx(0.5, rel=1e-3)


def shrunken(name: str) -> ConfigDict:
    """A published config, its network and its images small."""
    config = configs.load(f"edm/{name}")
    config.data.dataset, config.data.image_size = "digits", 8
    config.data.num_channels = 1
    config.model.nf, config.model.ch_mult, config.model.num_res_blocks = 8, (1,), 1
    config.model.attn_resolutions = ()
    config.training.batch_size = 4
    config.sampling.num_steps = 3
    configs.check(config)
    return config


def training(config: ConfigDict) -> tuple[Any, Any, dict[str, jax.Array]]:
    """The training step of a config, what makes its first state, and batches of two steps."""
    parts, optimizer = experiment.build(config), optimizers.from_config(config)
    objective = objective_from_config(config, parts)
    step = make_train_step(
        objective, optimizer, ema.from_config(config), flip=False, axis_name=None
    )
    images = np.random.default_rng(0).integers(0, 17, (2, 4, 8, 8, 1)).astype(np.uint8)
    batches = {"image": jnp.asarray(images), "label": jnp.arange(8, dtype=jnp.int32).reshape(2, 4)}
    return step, functools.partial(state_from_config, config, parts, optimizer), batches


@pytest.mark.parametrize("name", [QUICK])
def test_a_step_of_training_can_be_traced(name: str) -> None:
    step, new_state, batches = training(shrunken(name))
    state = jax.eval_shape(new_state)
    after, metrics = jax.eval_shape(step, state, batches)
    assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, state.params)
    assert metrics["loss"].shape == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_cond_ve", "imagenet_64_cond_adm"])
def test_a_step_of_training_moves_the_weights_and_their_average(name: str) -> None:
    config = shrunken(name)
    config.optim.warmup = 1
    step, new_state, batches = training(config)
    state = new_state()
    after, metrics = jax.jit(step)(state, batches)
    assert np.isfinite(metrics["loss"]).all()
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, state.params)
    # The first step's learning rate is 0; the second moves weights by about its whole one.
    assert 0.5 * config.optim.lr < moved["Conv_0"]["kernel"] < 1.1 * config.optim.lr
    # The first update is the average itself; the half-life of the second is 0.05 x 4 images.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params,
                 after.ema_params)  # fmt: skip


def test_images_of_a_conditional_network_have_classes_from_their_own_keys() -> None:
    """All are as likely, and an image has the same one in any batch."""
    keys = devices.image_keys(jax.random.key(0), jnp.arange(2000))
    draw = jax.jit(random_classes, static_argnums=1)
    classes = np.asarray(draw(keys, 10))
    np.testing.assert_allclose(np.bincount(classes, minlength=10), 200, atol=60)
    np.testing.assert_array_equal(draw(keys[3:8:4], 10), classes[3:8:4])


def test_the_generator_tells_the_network_the_class_that_it_returns() -> None:
    class Stub:
        """A network that says its images' classes: as the image x_0."""

        def apply(self, variables: Any, x: jax.Array, labels: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.broadcast_to(y[:, None, None, None] / 16.0 * 2.0 - 1.0, x.shape)

    config = tiny.config(
        model__num_labels=10, model__prediction="x0", data__uniform_dequantization=False,
        sampling__method="heun", sampling__num_steps=2, sampling__num_frames=0,
    )  # fmt: skip
    parts = dataclasses.replace(experiment.build(config), module=Stub())
    (_, batch), *_ = tiny.generator(config, parts)({}, np.arange(4))
    assert len(set(batch["label"].tolist())) > 1
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
