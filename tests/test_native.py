"""The CPU's native functions: they are there, agree with XLA, and their absence is explained."""

import concurrent.futures
import os
import pathlib
import platform
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.ops import conv as conv_module
from models.ops import native
from models.ops.conv import conv
from tests.test_conv import GEOMETRIES, assert_close, lax_conv, normal

SUPPORTED = (sys.platform, platform.machine()) == ("linux", "x86_64")
EXPECTED = SUPPORTED and shutil.which("g++") and os.environ.get("SCORE_SDE_NATIVE") != "0"
needs_native = pytest.mark.skipif(not EXPECTED, reason="needs Linux on x86-64 and g++")


@needs_native
def test_the_functions_are_available_where_they_can_be_built() -> None:
    assert native.available()


def lowered(function, *operands) -> str:
    return jax.jit(function).lower(*operands).as_text()


@needs_native
@pytest.mark.parametrize("batch", [1, 5])  # fewer images than threads; parts of unequal size
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions_are_xlas(name: str, batch: int) -> None:
    image, size, *options = GEOMETRIES[name]
    x, w = normal(0, batch, *image, 20), normal(1, size, size, 20, 24)

    def of(form):
        y, pullback = jax.vjp(lambda x, w: form(x, w, *options), x, w)
        return y, pullback(y)

    ours = jax.jit(lambda: of(conv))
    text = ours.lower().as_text()
    called = [kind for kind in ("conv", "conv_dx", "conv_dw") if f"@score_sde_{kind}(" in text]
    expected = [] if name == "cropped" else ["conv", "conv_dx", "conv_dw"]  # no negative padding
    assert called == expected
    assert_close(ours(), of(lax_conv), 4e-6)


@needs_native
@pytest.mark.parametrize("channels", [(3, 32), (32, 3), (130, 17)])
def test_any_number_of_channels(channels: tuple[int, int]) -> None:
    x, w = normal(0, 2, 8, 8, channels[0]), normal(1, 3, 3, *channels)
    assert "@score_sde_conv(" in lowered(conv, x, w)
    assert_close(jax.jit(conv)(x, w), lax_conv(x, w))


@pytest.mark.parametrize(
    ("channels", "dtype"), [(8, jnp.float32), (32, jnp.bfloat16), (32, jnp.float16)]
)
def test_narrow_convolutions_and_other_types_are_left_to_xla(channels: int, dtype) -> None:
    x, w = jnp.ones((2, 8, 8, channels), dtype), jnp.ones((3, 3, channels, channels), dtype)
    assert "score_sde" not in lowered(conv, x, w)


def test_other_platforms_get_no_native_function() -> None:
    x, w = normal(0, 2, 8, 8, 32), normal(1, 3, 3, 32, 32)
    gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(conv(x, w) ** 2), argnums=(0, 1)))
    for target in ("tpu", "cuda"):
        text = gradient.trace(x, w).lower(lowering_platforms=(target,)).as_text()
        assert "score_sde" not in text
        assert "stablehlo.convolution" in text


@needs_native
def test_equal_calls_give_equal_bits() -> None:
    """Also where the parts of a sum over images are ready in another order."""
    x, w = normal(0, 7, 16, 16, 32), normal(1, 3, 3, 32, 32)
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(conv(x, w) ** 2)))
    first = np.asarray(gradient(w))
    for _ in range(20):
        np.testing.assert_array_equal(gradient(w), first)


@needs_native
def test_an_image_does_not_depend_on_its_batch() -> None:
    x, w = normal(0, 6, 9, 7, 32), normal(1, 3, 3, 32, 16)
    together = jax.jit(conv)(x, w)
    apart = jnp.concatenate([jax.jit(conv)(x[i : i + 1], w) for i in range(6)])
    np.testing.assert_array_equal(together, apart)


@needs_native
def test_many_calls_at_once_do_not_wait_for_each_other_forever() -> None:
    """More callers than threads in XLA's pool, each of which shares its work with that pool."""
    devices = jax.devices()
    x, w = normal(0, 16, 8, 8, 32), normal(1, 3, 3, 32, 32)

    @jax.jit
    def chain(x, w):
        return jax.lax.fori_loop(0, 30, lambda _, x: jnp.tanh(conv(x, w)), x)

    expected = chain(x, w)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        places = [jax.device_put((x, w), devices[i % len(devices)]) for i in range(16)]
        for out in threads.map(lambda operands: chain(*operands), places):
            np.testing.assert_array_equal(out, expected)


@pytest.mark.slow
@needs_native
def test_in_a_scan_under_pmap_and_vmap() -> None:
    devices = jax.local_device_count()
    x, w = normal(0, devices, 2, 8, 8, 16), normal(1, 3, 3, 16, 16)

    def loss(convolution, w, x):
        def body(x, _):
            return jnp.tanh(convolution(x, w)), None

        return jnp.sum(jax.lax.scan(body, x, None, 3)[0] ** 2)

    ours = jax.grad(lambda w, x: loss(conv, w, x))
    theirs = jax.vmap(jax.grad(lambda w, x: loss(lax_conv, w, x)), (None, 0))(w, x)
    assert_close(jax.pmap(ours, in_axes=(None, 0))(w, x), theirs, 1e-5)
    assert_close(jax.jit(jax.vmap(ours, (None, 0)))(w, x), theirs, 1e-5)


@pytest.mark.slow
@needs_native
def test_the_library_is_compiled_once(tmp_path: pathlib.Path) -> None:
    prefix = pathlib.Path(sys.prefix)
    library = native.build(prefix, tmp_path / "cache")
    made = library.stat().st_mtime_ns
    assert native.build(prefix, tmp_path / "cache") == library
    assert library.stat().st_mtime_ns == made
    assert list((tmp_path / "cache").iterdir()) == [library]


@needs_native
@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("CXX", "no-such-compiler", "no C\\+\\+ compiler 'no-such-compiler'"),
        ("CXX", "false", "false failed: "),
    ],
)
def test_why_it_cannot_be_built(variable, value, reason, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(native.Unavailable, match=reason):
        native.build(pathlib.Path(sys.prefix), tmp_path / "cache")
    assert not list((tmp_path).rglob("*.so"))


def test_without_onednn_or_on_another_system(tmp_path, monkeypatch) -> None:
    if SUPPORTED:
        with pytest.raises(native.Unavailable, match=r"oneDNN is not installed .*\[native\]"):
            native.build(tmp_path, tmp_path / "cache")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    with pytest.raises(native.Unavailable, match=r"Linux on x86-64, not \w+ on arm64"):
        native.build(tmp_path, tmp_path / "cache")


def test_an_unwritable_cache_is_a_reason_too(tmp_path, monkeypatch) -> None:
    if not EXPECTED:
        pytest.skip("nothing is built here")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(native.Unavailable, match="cannot be written"):
        native.build(pathlib.Path(sys.prefix), tmp_path / "file" / "cache")


def test_it_can_be_switched_off(monkeypatch) -> None:
    monkeypatch.setenv("SCORE_SDE_NATIVE", "0")
    assert not native.available.__wrapped__()
    monkeypatch.setattr(conv_module.native, "available", lambda: False)
    x, w = normal(0, 3, 8, 8, 32), normal(1, 3, 3, 32, 32)
    assert "score_sde" not in lowered(lambda x, w: conv(x, w), x, w)
