"""Operators that are not linear: what they keep, and JPEG against another library's."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion import nonlinear_operators


def pictures(height: int, width: int, channels: int) -> np.ndarray:
    """Two smooth pictures with an edge, uint8."""
    y, x = np.mgrid[:height, :width] / 8.0
    waves = [np.sin(x + k) * np.cos(1.7 * y - k) + (x > y) for k in range(2 * channels)]
    values = np.stack(waves, -1).reshape(height, width, 2, channels).transpose(2, 0, 1, 3)
    return np.asarray(np.clip(96 + 64 * values, 0, 255), np.uint8)


@pytest.mark.parametrize(("channels", "quality"), [(1, 20), (3, 30)])
def test_jpeg_is_that_of_pillow_but_for_its_roundings(channels: int, quality: int) -> None:
    """On sides that are no multiples of 8. Pillow rounds levels in the end. It is given colours,
    and these are compared, as light and two differences in whole levels, as it would make them."""
    levels = pictures(20, 28, channels).astype(np.float64)
    offset = np.array([0.0, 128.0, 128.0])[:channels]
    turn = nonlinear_operators.YCC if channels == 3 else np.eye(1)
    images = jnp.asarray((levels - offset) @ np.linalg.inv(turn).T, jnp.float32)
    mine = np.asarray(jax.jit(nonlinear_operators.jpeg(quality, 0.0, 255.0))(images), np.float64)
    for image, found in zip(levels.astype(np.uint8), mine @ turn.T + offset, strict=True):
        buffer, mode = io.BytesIO(), {1: "L", 3: "YCbCr"}[channels]
        bands = [Image.fromarray(band) for band in image.transpose(2, 0, 1)]
        Image.merge(mode, bands).save(buffer, "JPEG", quality=quality, subsampling=0)
        with Image.open(buffer) as stored:
            stored.draft(mode, stored.size)
            theirs = np.asarray(stored, np.float64).reshape(image.shape)
        difference = np.abs(np.clip(found, 0, 255) - theirs)
        assert np.quantile(difference, 0.9) < 0.6, "all but blocks with a coefficient at a tie"
        assert difference.mean() < 0.5
        assert np.abs(found - image).mean() > 2.0, "something is lost"


def test_jpeg_of_its_own_result_is_that_and_its_derivative_is_that_of_the_identity() -> None:
    jpeg = nonlinear_operators.jpeg(30)
    x = jnp.asarray(pictures(16, 16, 1) / 127.5 - 1.0, jnp.float32)
    direction = jax.random.normal(jax.random.key(0), x.shape)

    @jax.jit
    def again() -> tuple[jax.Array, ...]:
        once = jpeg(x)
        return once, jpeg(once), jax.jvp(jpeg, (x,), (direction,))[1]

    once, twice, pushed = again()
    np.testing.assert_allclose(twice, once, atol=1e-4)
    np.testing.assert_allclose(pushed, direction, atol=1e-4)
    assert float(jnp.abs(once - x).max()) > 0.02


def test_light_and_differences_of_colour_are_those_of_jfif() -> None:
    """Y of white is 1; Cb = (B - Y) / 1.772 and Cr = (R - Y) / 1.402, of which grey has none."""
    light, blue, red = nonlinear_operators.YCC
    np.testing.assert_allclose(light.sum(), 1.0)
    np.testing.assert_allclose(blue, (np.eye(3)[2] - light) / 1.772, atol=1e-12)
    np.testing.assert_allclose(red, (np.eye(3)[0] - light) / 1.402, atol=1e-12)


def test_jpeg_continues_sides_by_their_last_pixels() -> None:
    jpeg = nonlinear_operators.jpeg(40)
    x = jnp.asarray(pictures(17, 24, 1) / 127.5 - 1.0, jnp.float32)
    longer = jnp.pad(x, ((0, 0), (0, 7), (0, 0), (0, 0)), mode="edge")
    np.testing.assert_allclose(jpeg(x), jpeg(longer)[:, :17], atol=1e-5)
    x, longer = (images.transpose(0, 2, 1, 3) for images in (x, longer))
    np.testing.assert_allclose(jpeg(x), jpeg(longer)[:, :, :17], atol=1e-5)


def test_jpeg_of_full_quality_rounds_coefficients_to_whole_levels() -> None:
    """And loses less than a level in the mean; of half quality, the tables are those of ITU-T."""
    x = jnp.asarray(pictures(16, 16, 1), jnp.float32)
    full, half = (nonlinear_operators.jpeg(q, 0.0, 255.0)(x) - x for q in (100, 50))
    assert 0.0 < float(jnp.abs(full).mean()) < 0.5
    assert float(jnp.abs(half).mean()) > 2.0


def test_clipping_cuts_at_its_share_of_the_range() -> None:
    x = jnp.array([[-1.0, -0.2, 0.3, 0.9]])
    cut = nonlinear_operators.clipping(0.25)(x)
    np.testing.assert_allclose(cut, [[-0.25, -0.2, 0.25, 0.25]])
    cut = nonlinear_operators.clipping(0.5, 0.0, 1.0)(jnp.array([[0.1, 0.5, 0.9]]))
    np.testing.assert_allclose(cut, [[0.25, 0.5, 0.75]])


def test_magnitudes_do_not_know_a_shift_or_half_a_turn_and_keep_the_energy() -> None:
    """Of an image with a black border, black being -1; derivatives are finite at black, too."""
    magnitudes = nonlinear_operators.phase_retrieval()
    x = -jnp.ones((1, 8, 8, 1)).at[:, 2:5, 1:5].set(pictures(3, 4, 1)[:1] / 255.0)

    @jax.jit
    def all_of_them() -> tuple[jax.Array, ...]:
        others = [jnp.roll(x, (2, 3), (1, 2)), x[:, ::-1, ::-1], x[:, ::-1]]
        slope = jax.grad(lambda x: jnp.sum(magnitudes(x)))(-jnp.ones_like(x))
        return magnitudes(x), *(magnitudes(other) for other in others), slope

    mine, shifted, turned, mirrored, slope = all_of_them()
    assert mine.shape == (1, 16, 16, 1)
    np.testing.assert_allclose(shifted, mine, atol=1e-4)
    np.testing.assert_allclose(turned, mine, atol=1e-4)
    assert float(jnp.abs(mirrored - mine).max()) > 0.01
    np.testing.assert_allclose(jnp.sum(mine**2), jnp.sum((x + 1.0) ** 2), rtol=1e-4)
    assert jnp.isfinite(slope).all()


def test_what_they_do_not_take_is_refused() -> None:
    for limit in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"clipping must be between 0 and 1, not {limit:g}"):
            nonlinear_operators.clipping(limit)
    for quality in (0, 101):
        with pytest.raises(ValueError, match=f"quality of JPEG must be 1 to 100, not {quality}"):
            nonlinear_operators.jpeg(quality)
    with pytest.raises(ValueError, match="JPEG is of 1 or 3 channels, not 2"):
        nonlinear_operators.jpeg(50)(jnp.zeros((1, 8, 8, 2)))
