"""Pixels survive the way to the model and back; dequantisation noise is what it claims to be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import likelihood
from data import transforms

LEVELS = [2, 17, 256]


def keys_of(n: int, seed: int = 0) -> jax.Array:
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(n))


def all_levels(levels: int, n: int = 4) -> np.ndarray:
    """[n, levels, 32, 1] images in which row k is level k."""
    rows = np.arange(levels, dtype=np.uint8)[None, :, None, None]
    return np.broadcast_to(rows, (n, levels, 32, 1))


@pytest.fixture(scope="module")
def dequantized() -> dict:
    """x [16, L, 32, 1] = row number, dequantised to [0, 1] and to [-1, 1], per number of levels."""
    dequantize = jax.jit(transforms.uniform_dequantize, static_argnums=(2, 3))
    return {
        (levels, centered): np.asarray(
            dequantize(all_levels(levels, 16), keys_of(16), levels, centered)
        )
        for levels in LEVELS
        for centered in (False, True)
    }


def test_scale_of_the_original():
    x = np.array([0, 51, 255], np.uint8)
    plain, centered = (np.asarray(transforms.scale(x, 256, flag)) for flag in (False, True))
    np.testing.assert_allclose(plain, [0, 0.2, 1], rtol=1e-7)
    np.testing.assert_allclose(centered, [-1, -0.6, 1], rtol=1e-6)
    digits = np.asarray(transforms.scale(np.array([0, 4, 16], np.uint8), 17, True))
    np.testing.assert_allclose(digits, [-1, -0.5, 1])


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("centered", [False, True])
def test_scaling_round_trip(levels, centered):
    x = all_levels(levels)
    y = transforms.scale(x, levels, centered)
    assert y.dtype == jnp.float32
    assert float(y.min()) == (-1.0 if centered else 0.0)
    assert float(y.max()) == 1.0
    back = transforms.inverse_scale(y, levels, centered)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, x)
    # The nearest level is found from anywhere less than half a level away, and nothing wraps.
    step = (2.0 if centered else 1.0) / (levels - 1)
    for shift in (-0.49 * step, 0.49 * step):
        np.testing.assert_array_equal(transforms.inverse_scale(y + shift, levels, centered), x)
    assert int(transforms.inverse_scale(jnp.float32(7.0), levels, centered)) == levels - 1
    assert int(transforms.inverse_scale(jnp.float32(-7.0), levels, centered)) == 0


@pytest.mark.parametrize(
    ("levels", "centered", "dequantized"),
    [(256, True, False), (17, False, False), (17, True, True)],
)
def test_rounding_of_colours_keeps_the_sum_of_their_levels(levels, centered, dequantized):
    rounded = jax.jit(
        lambda x: transforms.inverse_scale_of_grey(x, levels, centered, dequantized).astype(int)
    )

    def seen(k):
        y = (k + 0.5) / levels if dequantized else k / (levels - 1)
        return (2.0 * y - 1.0 if centered else y).astype(np.float32)

    rng = np.random.default_rng(0)
    image = np.concatenate([rng.integers(0, levels, (300, 3)), np.eye(3, dtype=int) * (levels - 1)])
    np.testing.assert_array_equal(rounded(seen(image)), image)  # levels are levels
    colour = rng.standard_normal(image.shape) * levels
    wild = image.mean(-1, keepdims=True) + colour - colour.mean(-1, keepdims=True)
    np.testing.assert_array_equal(rounded(seen(wild)).sum(-1), image.sum(-1))
    inside = (levels - 1) * rng.uniform(size=image.shape)
    found = rounded(seen(inside))
    assert np.abs(found - inside).max() < 1.001
    assert np.abs(found.sum(-1) - inside.sum(-1)).max() < 0.501
    if levels == 256:  # grey 0.5 and 2.5 times (1, 0, -1), of which there is room for 0.5
        bright = rounded(np.broadcast_to(np.array([3.0, 0.5, -2.0], np.float32), image.shape))
        np.testing.assert_array_equal(bright[0], [255, 191, 128])  # of 255, 191.25, 127.5


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("centered", [False, True])
def test_dequantisation_round_trip_is_exact(dequantized, levels, centered):
    y = dequantized[levels, centered]
    assert y.min() > (-1.0 if centered else 0.0)
    assert y.max() < 1.0
    back = transforms.inverse_scale(jnp.asarray(y), levels, centered, dequantized=True)
    np.testing.assert_array_equal(back, all_levels(levels, 16))


@pytest.mark.parametrize("levels", LEVELS)
def test_dequantisation_noise_is_uniform_in_its_bin(dequantized, levels):
    y = dequantized[levels, False].astype(np.float64)
    u = (y * levels - all_levels(levels, 16)).ravel()
    n = u.size
    assert abs(u.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / n)
    counts = np.bincount((u * 8).astype(int), minlength=8)
    assert ((counts - n / 8) ** 2 / (n / 8)).sum() < 30  # chi^2 of 7 degrees: p = 1e-4
    np.testing.assert_allclose(
        dequantized[levels, True], 2 * dequantized[levels, False] - 1, atol=2e-7
    )


def test_top_of_the_range_never_rounds_up():
    """float32 U[0, 1) added to 255 gives 256 once in 2^17 draws; here it cannot."""
    x = np.full((64, 64, 64, 1), 255, np.uint8)
    y = jax.jit(transforms.uniform_dequantize, static_argnums=(2, 3))(x, keys_of(64), 256, False)
    assert float(y.min()) > 255 / 256
    assert float(y.max()) < 1.0


def test_dequantisation_of_an_image_does_not_depend_on_its_batch(dequantized):
    alone = transforms.uniform_dequantize(all_levels(17, 1), keys_of(16)[3:4], 17)
    np.testing.assert_array_equal(alone[0], dequantized[17, False][3])
    assert not np.array_equal(dequantized[17, False][2], dequantized[17, False][3])


@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("centered", [False, True])
def test_bits_per_dim_of_uniform_levels_is_log2_of_their_number(levels, centered):
    """Equally likely levels have a uniform density on the model's range: 1, or 2^-D if centred."""
    shape = (3, 8, 8, 1)
    logp = jnp.full(3, -64 * np.log(2.0) if centered else 0.0)
    bits = likelihood.bits_per_dim(logp, shape[1:], levels, 2.0 if centered else 1.0)
    np.testing.assert_allclose(bits, np.log2(levels), rtol=1e-6)


def test_display_spans_the_byte_range():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(transforms.to_display(every, 256), every)
    digits = np.array([0, 1, 8, 16], np.uint8)
    np.testing.assert_array_equal(transforms.to_display(digits, 17), [0, 16, 128, 255])


def test_fractions_of_levels_are_cut_off_to_be_shown_or_compared():
    fractions = np.array([-0.5, 0.99, 1.0, 254.99, 255.0, 255.1], np.float32)
    for x in (fractions, jnp.asarray(fractions)):
        np.testing.assert_array_equal(transforms.whole_levels(x, 256), [0, 0, 1, 254, 255, 255])
        np.testing.assert_array_equal(transforms.to_display(x, 256), [0, 0, 1, 254, 255, 255])
    whole = np.arange(256, dtype=np.uint8)
    assert transforms.whole_levels(whole, 256) is whole


def test_flips_mirror_the_width_of_half_of_the_images_by_key():
    n = 400
    x = np.random.default_rng(0).integers(0, 256, (n, 2, 3, 2), dtype=np.uint8)
    flipped = np.asarray(jax.jit(transforms.random_flip)(x, keys_of(n)))
    assert flipped.dtype == np.uint8
    mirrored = (flipped == x[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (flipped == x).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert abs(mirrored.mean() - 0.5) < 4 * np.sqrt(0.25 / n)
    part = transforms.random_flip(x[100:107], keys_of(n)[100:107])
    np.testing.assert_array_equal(part, flipped[100:107])
