"""Antialiased resampling: closed forms, another library, and the official input pipelines."""

import jax
import numpy as np
import pytest

from data import resize
from tests import golden_cases

LEVEL = np.float32(1 / 255)  # the official code multiplies by it


def of_pictures(pattern):
    return pytest.mark.parametrize(
        "path", golden_cases.files("data", pattern), ids=lambda path: path.stem
    )


@of_pictures("celeba*.npz")
def test_celeba_is_the_official_one_to_the_last_bit(path):
    golden = golden_cases.load(path)
    crops = [resize.centre_crop(x * LEVEL, 140, 140) for x in golden["input"]]
    for name, expected in golden.items():
        if name.startswith("output"):
            size = expected.shape[1]
            ours = [resize.shorter_side(crop, size, "bilinear") for crop in crops[: len(expected)]]
            np.testing.assert_array_equal(ours, expected)


@of_pictures("lsun*.npz")
def test_lsun_of_128_pixels_is_the_official_one_to_the_last_bit(path):
    golden = golden_cases.load(path)
    for name, expected in golden.items():
        number, _, kind = name.partition("/")
        if kind == "lsun128":
            side = resize.shorter_side(golden[f"{number}/input"] * LEVEL, 128, "bilinear")
            np.testing.assert_array_equal(resize.centre_crop(side, 128, 128), expected)


@of_pictures("small32*.npz")
def test_other_sizes_of_small_pictures_are_the_official_ones_to_the_last_bit(path):
    golden = golden_cases.load(path)
    for name, expected in golden.items():
        if name.startswith(("cifar10_", "svhn_")) and not name.endswith("centered"):
            size = expected.shape[1]
            pictures = golden["input"][: len(expected)] * LEVEL
            ours = [resize.resize(x, size, size, "bilinear") for x in pictures]
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(("method", "jax_method"), [("bilinear", "bilinear"), ("bicubic", "cubic"),
                                                    ("lanczos", "lanczos3")])  # fmt: skip
@pytest.mark.parametrize("shape", [(13, 9), (40, 64), (24, 31)])
def test_methods_are_those_of_jax(method, jax_method, shape):
    picture = np.random.default_rng(0).random((24, 31, 3), np.float32)
    expected = jax.image.resize(picture, (*shape, 3), jax_method, antialias=True)
    np.testing.assert_allclose(
        resize.resize(picture, shape[0], shape[1], method), expected, atol=2e-6
    )


@pytest.mark.parametrize("method", resize.KERNELS)
@pytest.mark.parametrize(("before", "after"), [(7, 3), (64, 64), (5, 17), (1000, 31), (3, 1)])
def test_weights_of_a_pixel_sum_to_one(method, before, after):
    filters = resize.taps(before, after, method)
    np.testing.assert_allclose(filters.weights.sum(1), 1.0, atol=1e-6)
    assert np.all(filters.start >= 0)
    used = filters.start[:, None] + np.arange(filters.weights.shape[1])
    assert np.all(filters.weights[used >= before] == 0.0)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_a_ramp_stays_a_ramp(method):
    ramp = np.arange(60, dtype=np.float32)[:, None, None]
    small = resize.resize(ramp, 20, 1, method)[:, 0, 0]
    np.testing.assert_allclose(small[3:-3], 3 * np.arange(20)[3:-3] + 1.0, atol=1e-4)


def test_the_longer_side_is_rounded_half_to_even():
    assert resize.shorter_side(np.zeros((256, 341, 1)), 128, "bilinear").shape[:2] == (128, 170)
    assert resize.shorter_side(np.zeros((343, 256, 1)), 128, "bilinear").shape[:2] == (172, 128)


def test_the_pixel_left_over_by_a_centre_crop_is_at_the_end():
    rows = np.arange(5)[:, None, None]
    assert resize.centre_crop(rows, 2, 1).ravel().tolist() == [1, 2]


def test_levels_are_truncated_and_saturate():
    floats = np.array([-3.0, 0.9, 254.99, 255.0, 300.0], np.float32)
    assert resize.truncated(floats).tolist() == [0, 0, 254, 255, 255]


def test_an_unknown_method_is_refused():
    with pytest.raises(
        ValueError, match=r"unknown data.resize 'nearest'; known: bicubic, bilinear"
    ):
        resize.resize(np.zeros((4, 4, 1)), 2, 2, "nearest")
