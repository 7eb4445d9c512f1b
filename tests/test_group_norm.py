"""Group normalisation with swish: the equation, and derivatives of every order."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.ops import group_norm as module
from models.ops import native
from models.ops.group_norm import group_norm
from tests.marks import slow
from tests.test_conv import assert_close, normal

CASES = {  # images, pixels, channels, groups
    "four channels a group": (3, 12, 32, 8),
    "odd": (2, 7, 18, 3),
    "one group": (1, 5, 20, 1),
    "a group for each channel": (2, 9, 16, 16),
    "few channels": (2, 6, 8, 2),  # XLA's on the CPU too
}


def operands(name: str) -> tuple[Any, ...]:
    images, pixels, channels, _ = CASES[name]
    x = 2 * normal(0, images, pixels, channels) + normal(1, images, 1, channels) + 1
    return x, normal(2, channels), normal(3, channels)


def equation(x: Any, scale: Any, bias: Any, groups: int, epsilon: float, swish: bool) -> Any:
    """In float64, image by image and group by group, without any of our functions."""
    x, scale, bias = (np.asarray(a, np.float64) for a in (x, scale, bias))
    y = np.empty_like(x)
    width = x.shape[2] // groups
    for image in range(len(x)):
        for start in range(0, x.shape[2], width):
            part = x[image, :, start : start + width]
            normed = (part - part.mean()) / np.sqrt(part.var() + epsilon)
            y[image, :, start : start + width] = normed
    y = y * scale + bias
    return y / (1 + np.exp(-y)) if swish else y


def elsewhere(*operands: Any, **options: Any) -> Any:
    """`group_norm` as it is traced for accelerators."""
    with native.elsewhere():
        return group_norm(*operands, **options)


@pytest.mark.parametrize("norm", [group_norm, elsewhere])
@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_equation(name: str, swish: bool, norm: Any) -> None:
    x, scale, bias = operands(name)
    groups = CASES[name][3]
    ours = jax.jit(functools.partial(norm, groups=groups, epsilon=1e-2, swish=swish))
    assert_close(ours(x, scale, bias), equation(x, scale, bias, groups, 1e-2, swish), 1e-6)


def test_images_may_have_any_axes() -> None:
    """The norm of [B, H, W, C] is that of its pixels one after the other, on every platform."""
    x, scale, bias = operands("four channels a group")
    image = x.reshape(3, 4, 3, 32)
    for norm in (group_norm, elsewhere):
        ours = norm(image, scale, bias, groups=8)
        assert ours.shape == image.shape
        assert_close(ours.reshape(x.shape), norm(x, scale, bias, groups=8), 1e-6)


def test_elsewhere_a_large_mean_costs_as_many_digits_as_it_has() -> None:
    """E d^2 - (E d)^2 of d = x - c, with c near the mean: what is lost is x's own last digit, of
    3000 / 2^24. Of x itself the difference would be lost, and the result be off by 0.5."""
    x = normal(0, 2, 64, 32) + 3000.0
    y = jax.jit(lambda x: elsewhere(x, jnp.ones(32), jnp.zeros(32), groups=8))(x)
    assert_close(y, equation(x, np.ones(32), np.zeros(32), 8, 1e-6, False), 1e-3)


def test_a_large_mean_costs_no_digits() -> None:
    """The variance is taken about the mean; E x^2 - (E x)^2 would be lost in rounding."""
    x = normal(0, 2, 64, 32) + 3000.0
    y = jax.jit(lambda x: group_norm(x, jnp.ones(32), jnp.zeros(32), 8))(x)
    assert_close(y, equation(x, np.ones(32), np.zeros(32), 8, 1e-6, False), 2e-4)


def test_large_and_infinite_values_stay_what_they_are() -> None:
    x = normal(0, 1, 6, 16)
    ours = jax.jit(lambda b: group_norm(x, jnp.ones(16), b, 4, swish=True))
    y = np.asarray(ours(np.where(np.arange(16) < 8, 1e4, -1e4).astype(np.float32)))
    assert_close(y[..., :8], np.full((1, 6, 8), 1e4), 1e-3)
    np.testing.assert_array_equal(y[..., 8:], 0)
    assert not np.isfinite(ours(np.full(16, np.nan, np.float32))).any()


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("name", ["four channels a group", *slow("odd", "few channels")])
def test_derivatives_of_first_and_second_order(name: str, swish: bool) -> None:
    """Tangent, cotangent, the tangent of a gradient and the gradient of a tangent."""
    primals = operands(name)
    tangents = tuple(normal(4 + i, *a.shape) for i, a in enumerate(primals))
    options = {"groups": CASES[name][3], "epsilon": 1e-3, "swish": swish}
    weights = normal(9, *primals[0].shape)

    def all_of(norm: Any) -> Any:
        def loss(*a: jax.Array) -> jax.Array:
            return jnp.sum(weights * norm(*a, **options) ** 2)

        def slope(*a: jax.Array) -> jax.Array:
            return jax.jvp(loss, a, tangents)[1] ** 2

        gradient = jax.grad(loss, (0, 1, 2))
        return (
            jax.jvp(functools.partial(norm, **options), primals, tangents),
            gradient(*primals),
            jax.jvp(gradient, primals, tangents),
            jax.grad(slope, (0, 1, 2))(*primals),
        )

    expected = jax.jit(lambda: all_of(module._norm))()
    assert_close(jax.jit(lambda: all_of(group_norm))(), expected, 2e-5)
    assert_close(jax.jit(lambda: all_of(elsewhere))(), expected, 2e-5)


def test_the_cpu_calls_native_functions_and_others_do_not() -> None:
    if not native.available():
        pytest.skip("no native functions on this machine")
    x, scale, bias = operands("four channels a group")

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(group_norm(x, scale, bias, 8, swish=True) ** 2)

    both = jax.jit(lambda x: (jax.grad(loss)(x), jax.jvp(loss, (x,), (x,))))
    text = both.lower(x).as_text()
    for name in ("norm_swish", "norm_swish_jvp", "norm_swish_vjp"):
        assert f"@score_sde_{name}(" in text
    for target in ("tpu", "cuda"):
        text = both.trace(x).lower(lowering_platforms=(target,)).as_text()
        assert "score_sde" not in text


@pytest.mark.parametrize("axes", [(0, None, None), (2, None, None), (0, 0, None), (None, 0, 1)])
def test_vmap(axes: tuple[int | None, ...]) -> None:
    """A batch of x alone is a longer batch; with one scale for each it is the equation's."""
    stacked = [
        a if axis is None else np.stack([a, 2 * a + 1, a - 3], axis)
        for a, axis in zip(operands("odd"), axes, strict=True)
    ]

    def gradient(norm: Any, *a: jax.Array) -> Any:
        return jax.value_and_grad(lambda *a: jnp.sum(norm(*a) ** 3), (0, 1, 2))(*a)

    def tangent(norm: Any, *a: jax.Array) -> Any:
        return jax.jvp(norm, a, a)

    for derivative in (gradient, tangent):
        ours = functools.partial(derivative, lambda x, s, b: group_norm(x, s, b, 3, 1e-3, True))
        theirs = functools.partial(
            derivative, lambda *a: module._norm(*a, groups=3, epsilon=1e-3, swish=True)
        )
        mapped = jax.jit(jax.vmap(ours, axes))(*stacked)
        assert_close(mapped, jax.jit(jax.vmap(theirs, axes))(*stacked), 2e-5)


def test_channels_must_divide_into_groups() -> None:
    x, scale, bias = operands("odd")
    with pytest.raises(ValueError, match="18 channels do not divide into 4 groups"):
        group_norm(x, scale, bias, 4)
