"""Schedules of the learning rate, directions, weight decay, clipping and its order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import configs
from configs import schema
from tests import tiny
from training import optimizers


def rates(steps: list[int], **options: Any) -> list[float]:
    rate = jax.jit(optimizers.learning_rate(0.1, warmup=10, **options))
    return [float(rate(jnp.int32(step))) for step in steps]


def test_schedules_have_their_closed_forms() -> None:
    steps = [0, 5, 10, 60, 110, 1000]
    assert rates(steps) == pytest.approx([0, 0.05, 0.1, 0.1, 0.1, 0.1])
    cosine = [0, 0.05, 0.1, 0.06, 0.02, 0.02]  # half-way between 0.1 and 0.02, then there
    assert rates(steps, schedule="cosine", length=110, end=0.2) == pytest.approx(cosine)
    quarter = rates([35], schedule="cosine", length=110)[0]
    assert quarter == pytest.approx(0.1 * (1 + np.cos(np.pi / 4)) / 2)
    linear = [0, 0.05, 0.1, 0.06, 0.02, 0.02]
    assert rates(steps, schedule="linear", length=110, end=0.2) == pytest.approx(linear)
    assert rates([35], schedule="linear", length=110)[0] == pytest.approx(0.075)
    root = [0, 0.05, 0.1, 0.1, 0.1 / np.sqrt(1.1), 0.1 / np.sqrt(10)]
    assert rates(steps, schedule="inverse_sqrt", length=100) == pytest.approx(root)


def test_a_schedule_does_not_depend_on_how_long_the_run_is() -> None:
    """So a finished run may be prolonged, which `training.n_iters` is free for."""
    changes = {"optim__schedule": "cosine", "optim__decay_steps": 8}
    params = {"w": jnp.ones(2)}
    updates_then = []
    for n_iters in (6, 100):
        optimizer = optimizers.from_config(tiny.config(training__n_iters=n_iters, **changes))
        state = optimizer.init(params)
        for _ in range(4):
            updates, state = optimizer.update(params, state, params)
        updates_then.append(updates["w"])
    np.testing.assert_array_equal(*updates_then)


def test_the_first_update_of_each_direction() -> None:
    """The update for a gradient g at lr 0.1 is -0.1 g / (|g| + eps) by Adam, and so on."""
    g = {"w": jnp.array([0.5, -2.0, 0.0])}
    sign = np.array([1.0, -1.0, 0.0])
    expected = {
        "Adam": sign,
        "AdamW": sign,
        # The momentum (0.9 m / (1 - 0.9^2) + 0.1 g / (1 - 0.9)) of m = 0.1 g.
        "NAdam": (0.09 / 0.19 + 1.0) * sign,
        "RAdam": np.asarray(g["w"]),  # below 5 steps in memory it does not divide
        "Lion": sign,
        "SGD": np.asarray(g["w"]),
    }
    assert expected.keys() == optimizers.OPTIMIZERS.keys()
    for name, direction in expected.items():
        optimizer = optimizers.make_optimizer(0.1, name=name)
        updates, _ = optimizer.update(g, optimizer.init(g), g)
        np.testing.assert_allclose(updates["w"], -0.1 * direction, rtol=2e-5, err_msg=name)


def test_weight_decay_is_in_the_gradient_or_decoupled() -> None:
    """With a gradient of 0 Adam follows the decay's sign; AdamW subtracts lr x decay x parameter.

    Neither touches the random frequencies of the Fourier embedding.
    """
    leaf = jnp.array([2.0, -4.0])
    params = {"w": leaf, "GaussianFourierProjection_0": {"W": leaf}}
    zero = jax.tree.map(jnp.zeros_like, params)
    for name, expected in [("Adam", [-0.1, 0.1]), ("AdamW", [-0.002, 0.004])]:
        optimizer = optimizers.make_optimizer(0.1, weight_decay=0.01, name=name)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5, err_msg=name)
        assert not updates["GaussianFourierProjection_0"]["W"].any()


@pytest.mark.parametrize("rule", ["max", "add"])
def test_clipping_comes_first(rule: str) -> None:
    optimizer = optimizers.make_optimizer(1.0, grad_clip=0.5, clip_rule=rule, name="SGD")
    for scale, norm in [(10.0, 0.5), (0.01, 0.01)]:
        g = {"a": scale * jnp.array([0.6]), "b": scale * jnp.array([0.8])}
        updates, _ = optimizer.update(g, optimizer.init(g), g)
        assert float(optax.tree.norm(updates)) == pytest.approx(norm, rel=1e-5)
    g = {"a": jnp.array([0.5])}
    updates, _ = optimizer.update(g, optimizer.init(g), g)
    factor = {"max": 1.0, "add": 0.5 / (0.5 + 1e-6)}[rule]
    np.testing.assert_allclose(updates["a"], -0.5 * factor, rtol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "Adagrad"}, "unknown optim.optimizer 'Adagrad'; known: Adam, AdamW, Lion"),
        ({"schedule": "step"}, "unknown optim.schedule 'step'; known: constant, cosine, inverse"),
        ({"schedule": "cosine"}, "optim.schedule is 'cosine', but optim.decay_steps is 0; give"),
        ({"schedule": "linear", "decay_steps": 40}, "decay_steps is 40; it must be larger than op"),
        ({"clip_rule": "min"}, "unknown optim.clip_rule 'min'; known: add, max"),
        ({"amsgrad": True}, "config.optim.amsgrad is True; it must be False, the only one there"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    def read() -> None:
        config = schema.base()
        config.optim.update(changes)
        configs.check(config)
        optimizers.from_config(config)

    with pytest.raises(ValueError, match=message):
        read()
