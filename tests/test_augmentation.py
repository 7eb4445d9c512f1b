"""Augmentations of images, of which the network is told."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import augmentation
from runtime import experiment
from tests import tiny
from training.objective import objective_from_config

SIDE = 16


def image(side: int = SIDE) -> np.ndarray:
    """A smooth picture of two channels, without symmetry."""
    y, x = np.mgrid[:side, :side] / side
    channels = [np.sin(3 * x + y) + x**2, np.cos(2 * x - 5 * y) * np.exp(-y)]
    return np.stack(channels, -1).astype(np.float32)


def moved(matrix: list[list[float]], shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    transformed = jax.jit(augmentation.transformed)
    return np.asarray(transformed(image(), jnp.array(matrix), jnp.array(shift)))


def test_the_filter_makes_and_unmakes_the_finer_grid() -> None:
    """Its even translates are orthonormal, so pixels come back, borders included."""
    for side in (1, 5, 16):
        product = augmentation.coarser(side) @ augmentation.finer(side)
        np.testing.assert_allclose(product, np.eye(side), atol=1e-10)


def test_whole_pixels_and_quarter_turns_are_exact_but_for_the_filter() -> None:
    """A shift shows the reflected image where none was; turns and mirrors move pixels about."""
    shifted = moved([[1.0, 0.0], [0.0, 1.0]], (3.0, -2.0))
    padded = np.pad(image(), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    expected = padded[4 + 2 : 4 + 2 + SIDE, 4 - 3 : 4 - 3 + SIDE]
    inner = slice(6, -6), slice(6, -6)
    np.testing.assert_allclose(shifted[inner], expected[inner], atol=1e-5)
    np.testing.assert_allclose(shifted, expected, atol=0.05)  # the filter is not quite symmetric
    turned = moved([[0.0, -1.0], [1.0, 0.0]])  # shows at (x, y) what was at (-y, x)
    np.testing.assert_allclose(turned[inner], np.rot90(image())[inner], atol=0.03)
    np.testing.assert_allclose(
        moved([[-1.0, 0.0], [0.0, 1.0]])[inner], image()[:, ::-1][inner], atol=0.03
    )


def test_parts_of_pixels_are_interpolated_in_both_directions() -> None:
    """Away from the borders a ramp stays one, moved by parts of a pixel."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    ramp = jnp.asarray((2.0 * x + 3.0 * y)[..., None])
    transformed = jax.jit(augmentation.transformed)
    found = transformed(ramp, jnp.eye(2), jnp.array([0.3, 0.2]))[5:-5, 5:-5, 0]
    expected = 2.0 * (x - 0.3) + 3.0 * (y - 0.2)
    np.testing.assert_allclose(found, expected[5:-5, 5:-5], atol=0.02)


def test_a_smaller_scale_shows_what_is_farther_out() -> None:
    """Half of a smooth function's argument, about the middle."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    made = moved([[0.5, 0.0], [0.0, 0.5]])[..., 0]
    x, y = (0.5 * v + (SIDE - 1) / 2 for v in (x, y))
    expected = np.sin(3 * x / SIDE + y / SIDE) + (x / SIDE) ** 2
    np.testing.assert_allclose(made, expected, atol=0.02)


def test_labels_tell_the_transform() -> None:
    """The matrix from places in the result to places in the image follows from the labels, but for
    whether an axis, which its opposite is as well, was stretched or shrunk."""
    random = np.random.default_rng(0)
    draws = random.uniform(size=(6, 7)), random.normal(size=(6, 4))
    made = jax.jit(jax.vmap(lambda u, z: augmentation.random_transform(u, z, 1.0)))(*draws)
    for matrix, shift, labels in zip(*map(np.asarray, made), strict=True):
        scale, cos, sin, along, across = labels[:5]
        turn = np.array([[cos + 1, -sin], [sin, cos + 1]])
        size = math.hypot(along, across)
        axis = np.outer(*[np.array([along, -across]) / size] * 2)
        factor = 2 ** (0.2 * size)
        stretches = [f * axis + (np.eye(2) - axis) / f for f in (factor, 1 / factor)]
        ways = [2 ** (-0.2 * scale) * turn @ stretch for stretch in stretches]
        assert min(np.abs(matrix - way).max() for way in ways) < 1e-5
        np.testing.assert_array_equal(shift, labels[5:])


@pytest.mark.parametrize("axis_draw", [0.2, 0.8])
def test_each_transform_acts_by_its_own_draws(axis_draw: float) -> None:
    """Scale, turn, stretch along an axis, which is a random one for half of them, and shift: each
    alone and all together."""
    z = np.array([0.7, -1.1, 0.4, -0.6])

    def turn_by(angle: float) -> np.ndarray:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    transform = jax.jit(augmentation.random_transform)
    for acts in itertools.product((0, 1), repeat=4):
        chance = [0.1 if act else 0.9 for act in acts]
        u = jnp.array([*chance, axis_draw, 0.3, 0.85])
        matrix, shift, labels = transform(u, jnp.asarray(z, jnp.float32), 0.5)
        scale, turn, stretch = acts[0] * z[0], acts[1] * np.pi * (0.6 - 1), acts[2] * z[1]
        axis = np.pi * (1.7 - 1) if axis_draw < 0.5 else 0.0
        squeezed = np.diag(2.0 ** (augmentation.STD_OF_SCALE * stretch * np.array([-1, 1])))
        expected = 2.0 ** (-augmentation.STD_OF_SCALE * scale) * turn_by(turn)
        expected = expected @ turn_by(-axis) @ squeezed @ turn_by(axis)
        np.testing.assert_allclose(matrix, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(shift, acts[3] * z[2:], rtol=1e-6)
        told = [scale, np.cos(turn) - 1, np.sin(turn)]
        told += [stretch * np.cos(axis), stretch * np.sin(axis), *(acts[3] * z[2:])]
        np.testing.assert_allclose(labels, told, rtol=1e-4, atol=1e-5)


def test_a_shift_is_a_share_of_the_width_and_of_the_height(monkeypatch: pytest.MonkeyPatch) -> None:
    shifts = []

    def seen(image: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
        shifts.append(shift)
        return image

    monkeypatch.setattr(augmentation, "transformed", seen)
    _, labels = augmentation._augment(jnp.zeros((4, 6, 1)), jax.random.key(0), 1.0)
    share = augmentation.STD_OF_SHIFT * np.asarray(labels[-2:])
    np.testing.assert_allclose(shifts[0], share * [6, 4], rtol=1e-5)


def test_an_image_is_augmented_by_its_own_key_and_by_chance() -> None:
    """Without augmentation images are as they were, and labels zeros; flips alone are always on."""
    count = 600
    keys = jax.random.split(jax.random.key(1), count)
    x = jnp.broadcast_to(image(8), (count, 8, 8, 2))
    augment = jax.jit(augmentation.augment, static_argnums=2)
    out, labels = map(np.asarray, augment(x, keys, 0.25))
    swapped, _ = augment(x, keys[::-1], 0.25)
    np.testing.assert_allclose(out[::-1], swapped, atol=1e-6)
    assert labels.shape == (count, augmentation.NUM_LABELS)
    assert np.isfinite(out).all()
    for column, share in enumerate([0.5, 0.125, *[0.25] * 7]):
        if column != 6:  # across the axis, where the axis is tilted
            assert abs((labels[:, column] != 0).mean() - share) < 0.09, column
    still = (labels[:, 2:] == 0).all(1)
    for flags, expected in [
        ((0, 0), image(8)),
        ((1, 0), image(8)[:, ::-1]),
        ((0, 1), image(8)[::-1]),
    ]:
        rows = still & (labels[:, :2] == flags).all(1)
        assert rows.any()
        np.testing.assert_array_equal(out[rows], np.broadcast_to(expected, out[rows].shape))


def test_the_network_is_told_in_training_alone() -> None:
    config = tiny.config(model__name="ncsnpp", model__augment_dim=9, training__augment=0.5)
    objective = dataclasses.replace(
        objective_from_config(config, experiment.build(config)),
        apply=lambda variables, x, labels, **more: more.get("augment"),
        loss=lambda network, x0, keys, u, y: (network(x0, u), {}),
    )
    images, numbers = jnp.zeros((32, 8, 8, 1), jnp.uint8), jnp.arange(32)

    def told(train: bool) -> jax.Array | None:
        call = functools.partial(objective, total=32, train=train, flip=False)
        return jax.jit(call)({}, images, numbers, jax.random.key(0), numbers)[0]

    assert told(False) is None
    labels = told(True)
    assert labels is not None
    assert labels.shape == (32, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__augment_dim": 0}, "training.augment is 0.5, but the network is not told of aug"),
        ({"model__name": "ddpm"}, "it takes model.name=ncsnpp or adm with model.augment_dim=9"),
    ],
)
def test_augmentation_of_which_no_network_is_told_is_refused(
    changes: dict[str, object], message: str
) -> None:
    fields = {"model__name": "ncsnpp", "model__augment_dim": 9, "training__augment": 0.5}
    config = tiny.config(**{**fields, **changes})
    with pytest.raises(ValueError, match=message):
        objective_from_config(config, experiment.build(config))
