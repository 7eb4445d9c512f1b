"""The convolution primitives against XLA's own convolution and its derivatives."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models.ops import conv as conv_module
from models.ops import native
from models.ops.conv import Conv, Geometry, conv, default_init
from models.ops.materialise import spread, sum_pixels
from tests.marks import but_slow, slow

GEOMETRIES: dict[str, Any] = {  # image, kernel, stride, padding, dilation
    "same": ((7, 6), 3, 1, "SAME", 1),
    "dilated": ((9, 8), 3, 1, "SAME", 2),
    "strided": ((8, 7), 3, 2, "SAME", 1),
    "unread border": ((8, 8), 3, 3, "VALID", 1),
    "one-sided": ((8, 6), 3, 2, ((0, 1), (1, 0)), 1),
    "cropped": ((8, 9), 3, 1, ((-1, 2), (0, -1)), 1),
    "everything": ((9, 10), 4, 3, ((2, 1), (0, 3)), 2),
    "pointwise": ((6, 5), 1, 2, "SAME", 1),
    "small": ((2, 2), 3, 1, "SAME", 1),
    "small, strided": ((3, 2), 3, 2, "SAME", 1),
    "small, everything": ((3, 5), 4, 2, ((4, 3), (2, 4)), 2),
}


def lax_conv(x, w, stride=1, padding="SAME", dilation=1, groups=1):
    return lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def normal(seed: int, *shape: int) -> Any:
    """Normal draws of NumPy, which compiles nothing, in the floats that JAX now has."""
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_close(ours, theirs, tolerance=2e-6):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        scale = np.abs(np.asarray(b, np.float64)).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", ["everything", "small", *slow("dilated", "strided", "pointwise")])
def test_derivatives_of_every_order(name: str) -> None:
    """Value, gradient, and second derivatives by every mix of forward and reverse mode."""
    with jax.enable_x64(True):
        check_derivatives(*GEOMETRIES[name])


def check_derivatives(image: tuple[int, int], size: int, *options: Any) -> None:
    x, w = normal(0, 2, *image, 3), normal(1, size, size, 3, 4)
    tangents = normal(2, *x.shape), normal(3, *w.shape)

    def derivatives(f):
        def scalar(x, w):
            return jnp.sum(jnp.sin(f(x, w, *options)))

        def forward(x, w):
            return jax.jvp(scalar, (x, w), tangents)[1]

        grad = jax.grad(scalar, (0, 1))

        def inner(x, w):
            return sum(jnp.vdot(jnp.cos(a), b) for a, b in zip(grad(x, w), tangents, strict=True))

        return jax.jit(
            lambda x, w: (
                f(x, w, *options),
                grad(x, w),
                jax.grad(inner, (0, 1))(x, w),
                jax.jvp(grad, (x, w), tangents)[1],
                jax.grad(forward, (0, 1))(x, w),
            )
        )(x, w)

    assert x.dtype == jnp.float64
    assert_close(derivatives(conv), derivatives(lax_conv), 1e-13)


@pytest.mark.parametrize("name", but_slow(GEOMETRIES, ["everything", "small, everything"]))
def test_one_trilinear_form(name: str) -> None:
    """<conv(x, w), g> = <x, conv_dx(g, w)> = <w, conv_dw(x, g)>, in both ways to write them."""
    image, size, stride, padding, dilation = GEOMETRIES[name]
    reach = [(size - 1) * dilation + 1] * 2
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image, reach, (stride, stride), padding)
    geometry = Geometry(image, (size,) * 2, (stride,) * 2, (dilation,) * 2, tuple(padding))
    x, w = normal(0, 2, *image, 3), normal(1, size, size, 3, 4)

    @jax.jit
    def forms(x, w):
        y = lax_conv(x, w, stride, padding, dilation)
        g = normal(2, *y.shape)
        return [
            jnp.vdot(y, g),
            jnp.vdot(x, conv_module._dx_transposed(g, w, geometry)),
            jnp.vdot(x, conv_module._dx_forward(g, w, geometry)),
            jnp.vdot(w, conv_module._dw_transposed(x, g, geometry)),
            jnp.vdot(w, conv_module._dw_forward(x, g, geometry)),
        ]

    values = np.array(forms(x, w))
    np.testing.assert_allclose(values, values[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "axes", [(0, None), (3, None), (None, 0), (None, 4), (0, 0), (1, 2)], ids=str
)
def test_vmap(axes: tuple[int | None, int | None]) -> None:
    """Mapped along any axis of images, kernels or both: values, and per-example derivatives."""
    x, w = normal(0, 2, 6, 5, 3), normal(1, 3, 3, 3, 4)
    if axes[0] is not None:
        x = np.stack([x, 2 * x, np.sin(x)], axes[0])
    if axes[1] is not None:
        w = np.stack([w, 3 * w, np.cos(w)], axes[1])

    def derivatives(f):
        def one(x, w):
            def scalar(x, w):
                return jnp.sum(jnp.sin(f(x, w, 2)))

            grad = jax.grad(scalar, (0, 1))
            return f(x, w, 2), grad(x, w), jax.jvp(grad, (x, w), (jnp.cos(x), w))[1]

        return jax.jit(jax.vmap(one, axes))(x, w)

    assert_close(derivatives(conv), derivatives(lax_conv))


def test_vmapped_kernels_share_one_convolution() -> None:
    """Mapping one operand alone lengthens an axis and never groups a convolution."""
    x, w = normal(0, 3, 2, 6, 5, 3), normal(1, 3, 3, 3, 4)
    grad = jax.vmap(jax.grad(lambda x, w: jnp.sum(conv(x, w) ** 2)), (0, None))
    text = jax.jit(grad).lower(x, w).as_text()
    assert text.count("feature_group_count = 1 ") == text.count("stablehlo.convolution(") == 2


def test_transformations_compose() -> None:
    """A scan of rematerialised steps over devices is the plain loop on the whole batch."""
    devices = jax.local_device_count()
    x, w = normal(0, devices * 2, 6, 6, 2), normal(1, 3, 3, 2, 2)

    def step(f, w, x, mean):
        @jax.checkpoint
        def loss(w):
            return jnp.mean(jnp.sin(f(jnp.cos(f(x, w)), w)) ** 2)

        return w - mean(jax.grad(loss)(w))

    @partial(jax.pmap, axis_name="batch", in_axes=(None, 0))
    def scanned(w, x):
        mean = partial(lax.pmean, axis_name="batch")
        return lax.scan(lambda w, _: (step(conv, w, x, mean), None), w, None, length=3)[0]

    @jax.jit
    def looped(w, x):
        for _ in range(3):
            w = step(lax_conv, w, x, lambda g: g)
        return w

    ours = scanned(w, x.reshape(devices, 2, 6, 6, 2))
    assert_close(ours, np.stack([looped(w, x)] * devices), 1e-5)


def test_lowering_per_platform() -> None:
    """On CPU every convolution of a gradient is a forward one; elsewhere XLA's own form."""
    x, w = normal(0, 2, 8, 8, 3), normal(1, 3, 3, 3, 4)
    forward = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"

    def layouts(f, platform):
        grad = jax.jit(jax.grad(lambda x, w: jnp.sum(f(x, w) ** 2), (0, 1)))
        text = grad.trace(x, w).lower(lowering_platforms=(platform,)).as_text()
        return [line.split("dim_numbers = ")[1].split(", window")[0]
                for line in text.splitlines() if "stablehlo.convolution(" in line]  # fmt: skip

    assert layouts(conv, "cpu") == [forward] * 3
    for platform in ("tpu", "cuda", "rocm"):
        assert sorted(layouts(conv, platform)) == sorted(layouts(lax_conv, platform))
        assert layouts(conv, platform) != [forward] * 3


@pytest.mark.parametrize("size", [1, 3])
def test_elsewhere_it_is_xlas_own_convolution_to_the_bit(size: int) -> None:
    """As programs are traced for accelerators, where 1x1 kernels are convolutions, too."""
    x, w = normal(0, 2, 8, 8, 3), normal(1, size, size, 3, 4)

    def derivatives(f):
        return jax.jit(jax.value_and_grad(lambda x, w: jnp.sum(f(x, w) ** 2), (0, 1)))(x, w)

    with native.elsewhere():
        ours = derivatives(conv)
        text = str(jax.make_jaxpr(conv)(x, w))
    assert "conv_general_dilated" in text
    assert "dot_general" not in text
    jax.tree.map(np.testing.assert_array_equal, ours, derivatives(lax_conv))


def test_elsewhere_sums_over_pixels_are_no_products() -> None:
    x, a = normal(0, 2, 5, 3), normal(1, 2, 3)
    with native.elsewhere():
        sums, rows = sum_pixels(x), spread(a, 5)
        text = str(jax.make_jaxpr(lambda x, a: (sum_pixels(x), spread(a, 5)))(x, a))
    assert "dot_general" not in text
    np.testing.assert_allclose(sums, sum_pixels(x), rtol=1e-6)
    np.testing.assert_array_equal(rows, spread(a, 5))


def test_bfloat16() -> None:
    """Operands are promoted to a common type, and derivatives keep it."""
    x, w = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, 4)
    low = jnp.bfloat16
    assert conv(x.astype(low), w).dtype == jnp.float32

    @jax.jit
    def run(x, w):
        y, pullback = jax.vjp(conv, x, w)
        return y, *pullback(jnp.cos(y))

    ours = run(x.astype(low), w.astype(low))
    assert {a.dtype for a in ours} == {jnp.dtype(low)}
    assert_close([np.asarray(a, np.float32) for a in ours], run(x, w), 0.03)


def test_pointwise_is_a_product() -> None:
    """A 1x1 convolution is a matrix product, unless it pads."""
    x, w = normal(0, 2, 6, 6, 3), normal(1, 1, 1, 3, 4)
    for derivative in (conv, jax.grad(lambda x, w: jnp.sum(conv(x, w) ** 2), (0, 1))):
        text = jax.jit(derivative).lower(x, w).as_text()
        assert "stablehlo.dot_general" in text
        assert "stablehlo.convolution" not in text
    edges = ((1, 0), (0, 2))
    assert_close(conv(x, w, padding=edges), lax_conv(x, w, padding=edges))


def test_groups() -> None:
    x, w = normal(0, 2, 6, 6, 4), normal(1, 3, 3, 2, 6)
    assert_close(conv(x, w, 2, groups=2), lax_conv(x, w, 2, groups=2))


def test_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"conv: images .* and kernel .* do not fit"):
        conv(normal(0, 2, 6, 6, 3), normal(1, 3, 3, 4, 4))


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0])
def test_default_init(scale: float) -> None:
    """Uniform, with variance `scale` / mean(fan-in, fan-out)."""
    kernel = np.asarray(default_init(scale)(jax.random.key(0), (3, 3, 24, 40)))
    variance = (scale or 1e-10) / (9 * (24 + 40) / 2)
    assert np.abs(kernel).max() == pytest.approx(np.sqrt(3 * variance), rel=1e-3)
    assert kernel.var() == pytest.approx(variance, rel=0.05)


def test_module() -> None:
    """Parameters are float32 `kernel` and `bias`, whatever the type of the computation."""
    x = normal(0, 2, 6, 6, 3)
    module = Conv(
        5, stride=2, dilation=2, bias_init=jax.nn.initializers.normal(), dtype=jnp.bfloat16
    )
    params = module.init(jax.random.key(1), x)["params"]
    assert {name: (p.shape, p.dtype.name) for name, p in params.items()} == {
        "kernel": ((3, 3, 3, 5), "float32"),
        "bias": ((5,), "float32"),
    }
    assert jnp.asarray(module.apply({"params": params}, x)).dtype == jnp.bfloat16
    full = Conv(5, stride=2, dilation=2).apply({"params": params}, x)
    assert_close(full, lax_conv(x, params["kernel"], 2, dilation=2) + params["bias"])
    assert set(Conv(5, use_bias=False).init(jax.random.key(1), x)["params"]) == {"kernel"}
