"""Resampling against the definition: insert zeros, pad, correlate, throw away."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models import resample
from models.resample import (
    Conv2d,
    conv_downsample_2d,
    downsample_2d,
    naive_downsample_2d,
    naive_upsample_2d,
    upfirdn_1d,
    upsample_2d,
    upsample_conv_2d,
)

KERNELS = [(1, 3, 3, 1), (1, 2, 1), (1, 1, 1, 1, 1), (1, -2, 5, 0, 3, 1)]


def images(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def compiled(function: Any, *arguments: Any) -> Any:
    """A function of images, weights and hashable settings by one program, not one an operation."""
    settings = [i for i, value in enumerate(arguments) if not isinstance(value, np.ndarray)]
    return jax.jit(function, static_argnums=settings)(*arguments)


def insert_zeros(x: np.ndarray, factor: int) -> np.ndarray:
    """[B, H, W, C] to [B, factor H, factor W, C]."""
    b, h, w, c = x.shape
    z = np.zeros((b, h * factor, w * factor, c))
    z[:, ::factor, ::factor] = x
    return z


def fir(x: np.ndarray, kernel: tuple, before: int, after: int) -> np.ndarray:
    """Convolution with the normalised outer product of `kernel`; a negative padding crops."""
    taps = np.outer(kernel, kernel)[::-1, ::-1] / np.sum(kernel) ** 2
    size = len(kernel)
    x = np.pad(x, [(0, 0), *[(max(before, 0), max(after, 0))] * 2, (0, 0)])
    low, high = max(-before, 0), max(-after, 0)
    x = x[:, low : x.shape[1] - high, low : x.shape[2] - high]
    rows, columns = x.shape[1] - size + 1, x.shape[2] - size + 1
    return sum(
        taps[i, j] * x[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)
    )


def convolve(x: np.ndarray, w: Any, stride: int, edge: int) -> np.ndarray:
    return np.asarray(
        lax.conv_general_dilated(
            jnp.asarray(x, jnp.float32),
            w,
            (stride, stride),
            [(edge, edge)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    )


def assert_close(ours: Any, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("factor", [2, 3])
def test_upsample(kernel: tuple, factor: int) -> None:
    """StyleGAN2's padding: K - factor zeros more than the inserted ones, the larger half first."""
    x = images(2, 5, 6, 3)
    extra = len(kernel) - factor
    expected = fir(insert_zeros(x, factor), kernel, (extra + 1) // 2 + factor - 1, extra // 2)
    assert expected.shape == (2, 5 * factor, 6 * factor, 3)
    assert_close(compiled(upsample_2d, x, kernel, factor), expected * factor**2)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("sides", [(6, 12), (7, 8)], ids=str)
def test_downsample(kernel: tuple, factor: int, sides: tuple[int, int]) -> None:
    """Filter at full resolution, then every `factor`-th pixel; odd sides too."""
    x = images(2, *sides, 3)
    extra = len(kernel) - factor
    expected = fir(x, kernel, (extra + 1) // 2, extra // 2)[:, ::factor, ::factor]
    assert_close(compiled(downsample_2d, x, kernel, factor), expected)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("size", [1, 3])
def test_upsample_conv(kernel: tuple, size: int) -> None:
    """Transposed convolution, then the filter: both reach as far as the zeros go."""
    x, w = images(2, 5, 4, 3), images(size, size, 3, 2)
    extra = len(kernel) - 2 - (size - 1)
    spread = convolve(insert_zeros(x, 2), w, 1, size - 1)
    expected = fir(spread, kernel, (extra + 1) // 2 + 1, extra // 2)
    assert expected.shape == (2, 10, 8, 2)
    assert_close(compiled(upsample_conv_2d, x, w, kernel), expected * 4)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("size", [1, 3])
def test_conv_downsample(kernel: tuple, size: int) -> None:
    x, w = images(2, 8, 6, 3), images(size, size, 3, 2)
    extra = len(kernel) - 2 + size - 1
    expected = convolve(fir(x, kernel, (extra + 1) // 2, extra // 2), w, 2, 0)
    assert expected.shape == (2, 4, 3, 2)
    assert_close(compiled(conv_downsample_2d, x, w, kernel), expected)


def test_rational_factor() -> None:
    """Growing and shrinking at once, 3 : 2, is doing one after the other."""
    x, taps = images(2, 8, 5, 3), [1.0, 2.0, 3.0, 4.0]
    both = upfirdn_1d(x, 1, taps, 3, 2, before=1, after=4)
    assert_close(both, np.asarray(upfirdn_1d(x, 1, taps, 3, 1, before=1, after=4))[:, ::2])


def test_box_filter_is_nearest_and_mean() -> None:
    x = images(2, 6, 8, 3)
    assert_close(naive_upsample_2d(x), x.repeat(2, 1).repeat(2, 2))
    assert_close(upsample_2d(x, (1, 1)), x.repeat(2, 1).repeat(2, 2))
    mean = sum(x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    assert_close(naive_downsample_2d(x), mean)
    assert_close(downsample_2d(x, (1, 1)), mean)
    assert naive_downsample_2d(images(2, 7, 9, 3)).shape == (2, 3, 4, 3)


def test_constants_and_adjoint() -> None:
    """Inside the border a constant stays; the transpose of shrinking is growing, divided by 4."""
    ones, kernel = jnp.ones((1, 8, 8, 2)), (1, 3, 3, 1)
    np.testing.assert_allclose(upsample_2d(ones, kernel)[:, 2:-2, 2:-2], 1, rtol=1e-6)
    np.testing.assert_allclose(downsample_2d(ones, kernel)[:, 1:-1, 1:-1], 1, rtol=1e-6)
    y = images(1, 4, 4, 2)
    transposed = jax.jit(jax.linear_transpose(lambda x: downsample_2d(x, kernel), ones))(y)[0]
    assert_close(transposed, np.asarray(upsample_2d(y, kernel)) / 4)


@pytest.mark.parametrize(
    ("kernel", "factor"), [((1,), 2), ((1, 1), 3), ((1, -1), 2)], ids=["hole", "holes", "no sum"]
)
def test_refuses_useless_kernels(kernel: tuple, factor: int) -> None:
    x = images(1, 6, 6, 1)
    for function in (upsample_2d, downsample_2d):
        with pytest.raises(ValueError, match=rf"FIR kernel .* at least {factor} taps"):
            function(x, kernel, factor)


@pytest.mark.parametrize("how", ["up", "down", ""])
def test_conv2d_module(how: str) -> None:
    """Parameters are `weight` (HWIO) and `bias`; the weight is used by the function asked for."""
    x = images(2, 6, 6, 3)
    options: dict[str, Any] = {how: True} if how else {}
    module = Conv2d(4, resample_kernel=(1, 2, 1), **options)
    shapes = jax.eval_shape(module.init, jax.random.key(1), x)["params"]
    assert {name: p.shape for name, p in shapes.items()} == {"weight": (3, 3, 3, 4), "bias": (4,)}
    params = {"weight": images(3, 3, 3, 4), "bias": np.arange(4, dtype=np.float32)}
    functions = {"up": upsample_conv_2d, "down": conv_downsample_2d}
    if how:
        plain = compiled(functions[how], x, params["weight"], (1, 2, 1))
    else:
        plain = resample.conv(x, params["weight"])
    assert_close(jax.jit(module.apply)({"params": params}, x), plain + params["bias"])
