"""Couplings of images and noise: the assignment, its laws, devices, and what cannot have one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from ml_collections import ConfigDict

from configs.toy import mixture_velocity
from diffusion import coupling
from runtime import experiment
from tests.test_models import quick_jit
from training.objective import objective_from_config


def draws(seed: int, count: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images far from a normal law, and noise."""
    signs, around, z = np.random.default_rng(seed).standard_normal((3, count, *shape))
    x0 = 2.0 * np.sign(signs) + 0.3 + 0.1 * around
    return x0.astype(np.float32), z.astype(np.float32)


def whole(count: int) -> coupling.Batch:
    return coupling.Batch(lambda rows: rows, jnp.arange(count))


coupled = quick_jit(lambda x0, z: coupling.minibatch_ot(x0, z, whole(len(x0))))


def cost(x0: Any, z: Any) -> float:
    return float(np.square(np.asarray(x0, np.float64) - z).sum())


def test_no_permutation_of_a_batch_costs_less() -> None:
    for seed in range(5):
        x0, noise = draws(seed, 5, (2, 1, 2))
        same, paired = coupled(x0, noise)
        np.testing.assert_array_equal(same, x0)
        z = np.asarray(noise)
        least = min(cost(x0, z[list(order)]) for order in itertools.permutations(range(5)))
        assert cost(x0, paired) == pytest.approx(least, rel=1e-6)
        assert least < cost(x0, z), "the batch is one where pairing matters"


def test_a_large_batch_is_paired_as_scipy_pairs_it() -> None:
    x0, z = draws(7, 96, (4,))
    squares = np.square(np.asarray(x0)[:, None] - np.asarray(z)[None]).sum(-1)
    rows, columns = scipy.optimize.linear_sum_assignment(squares)
    _, paired = coupled(x0, z)
    assert cost(x0, paired) == pytest.approx(squares[rows, columns].sum(), rel=1e-5)
    np.testing.assert_array_equal(np.sort(paired, 0), np.sort(z, 0))  # each draw once


def test_on_the_line_the_order_is_kept() -> None:
    x0, z = draws(3, 40, (1,))
    _, paired = coupled(x0, z)
    np.testing.assert_array_equal(np.argsort(x0[:, 0]), np.argsort(paired[:, 0]))


def test_an_image_alone_and_its_draw_keep_their_laws() -> None:
    """Over many batches of a fixed order, image 0's noise is normal; with the image it is not."""
    random = np.random.default_rng(0)
    x0 = random.gamma(2.0, size=(1500, 8, 1)).astype(np.float32)
    z = random.standard_normal((1500, 8, 1)).astype(np.float32)
    _, paired = quick_jit(jax.vmap(lambda x0, z: coupling.minibatch_ot(x0, z, whole(8))))(x0, z)
    assert scipy.stats.kstest(np.asarray(paired[:, 0, 0]), "norm").pvalue > 0.01
    assert np.corrcoef(x0[:, 0, 0], paired[:, 0, 0])[0, 1] > 0.6


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_pair_the_whole_batch(devices: int) -> None:
    x0, z = draws(1, 16, (3,))

    def on_device(x0: jax.Array, z: jax.Array) -> Any:
        gather = functools.partial(jax.lax.all_gather, axis_name="d", tiled=True)
        first = jax.lax.axis_index("d") * len(x0)
        return coupling.minibatch_ot(x0, z, coupling.Batch(gather, first + jnp.arange(len(x0))))

    shares = [rows.reshape(devices, -1, 3) for rows in (x0, z)]
    found = quick_jit(jax.vmap(on_device, axis_name="d"))(*shares)
    for part, expected in zip(found, coupled(x0, z), strict=True):
        np.testing.assert_array_equal(part.reshape(16, 3), expected)


def settings(**training: Any) -> ConfigDict:
    config = mixture_velocity.get_config()
    config.model.nf, config.model.num_res_blocks = 8, 1
    config.training.coupling = "minibatch_ot"
    with config.training.unlocked():
        config.training.update(training)
    return config


def test_a_training_loss_is_that_of_the_pairs_and_a_held_out_one_is_not() -> None:
    """By the loss's own draws: `x_t` is made of the image and its partner, where it trains."""
    config = settings()
    parts = experiment.build(config)
    objective = objective_from_config(config, parts)
    images = jnp.asarray(draws(0, 12, (1, 1, 2))[0])
    key, numbers = jax.random.key(5), jnp.arange(12)

    def seen(train: bool) -> Any:
        inputs = []

        def spy(variables: Any, x: jax.Array, labels: jax.Array, **rest: Any) -> jax.Array:
            inputs.append((x, labels / 999 * parts.sde.T))
            return jnp.zeros_like(x)

        watched = dataclasses.replace(objective, apply=spy)
        classes = jnp.zeros(12, jnp.int32)
        watched({}, images, classes, key, numbers, 12, train=train, flip=False)
        return inputs[0]

    (paired, t), (alone, same_t) = jax.tree.map(
        np.asarray, quick_jit(lambda: (seen(True), seen(False)))()
    )
    np.testing.assert_array_equal(t, same_t)
    alpha, sigma = (
        np.asarray(v)[:, None, None, None] for v in (parts.sde.alpha(t), parts.sde.sigma(t))
    )
    z = (alone - alpha * images) / sigma
    partners = coupled(images, z)[1]
    np.testing.assert_allclose(paired, alpha * images + sigma * partners, rtol=1e-4, atol=1e-5)
    assert np.abs(paired - alone).max() > 0.1


def built(config: ConfigDict) -> None:
    coupling.from_config(config)
    objective_from_config(config, experiment.build(config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"coupling": "sinkhorn"},
            "training.coupling 'sinkhorn'; known: independent, mini",
        ),
        ({"coupling": "reflow"}, "is 'reflow', which needs config.training.teacher, the folder"),
        ({"coupling": "reflow", "teacher": "/nowhere"}, "teacher='/nowhere' holds no run"),
        ({"objective": "ssm"}, "'minibatch_ot', which needs training.objective 'dsm', not 'ssm'"),
        ({"accumulation": 2}, "training.accumulation must be 1"),
        ({"augment": 0.1}, r"training.augment is 0.1\) needs 'independent'"),
        ({"continuous": False, "weighting": ""}, "coupling is 'minibatch_ot', which needs .*True"),
        ({"objective": "dsm", "coupling": "reflow", "augment": 0.1}, "needs 'independent'"),
    ],
)
def test_what_does_not_suit_a_coupling_is_refused(changes: dict[str, Any], words: str) -> None:
    config = settings(**changes)
    if not config.training.continuous:
        config.model.prediction = ""
    with pytest.raises(ValueError, match=words) as caught:
        built(config)
    assert "\n" not in str(caught.value)


def test_a_network_that_is_told_the_class_is_refused() -> None:
    config = settings()
    config.model.num_labels = 3
    with pytest.raises(ValueError, match=r"model.num_labels is 3\) needs 'independent'"):
        built(config)
