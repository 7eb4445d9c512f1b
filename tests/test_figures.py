"""Pictures hold the pixels that they are made of."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from runtime import figures


def images(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_grid_holds_every_image(tmp_path, channels):
    """5 images of 3x4 in 2 columns, three times as large, 2 pixels apart."""
    pictures = images(5, 3, 4, *channels)
    figures.save_grid(tmp_path / "new" / "grid.png", pictures, ncols=2, scale=3)
    page = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    depth = channels if channels == (3,) else ()
    assert page.shape == (2 + 3 * (9 + 2), 2 + 2 * (12 + 2), *depth)
    rest = page.copy()
    for i, picture in enumerate(pictures):
        top, left = 2 + i // 2 * 11, 2 + i % 2 * 14
        tile = page[top : top + 9, left : left + 12]
        np.testing.assert_array_equal(tile[1::3, 1::3], picture.reshape(3, 4, *depth))
        np.testing.assert_array_equal(tile, tile[1::3, 1::3].repeat(3, 0).repeat(3, 1))
        rest[top : top + 9, left : left + 12] = 255
    assert (rest == 255).all(), "what is no image is white"


def test_grid_fits_and_is_square_by_default():
    assert figures.grid(images(64, 8, 8)).shape == (2 + 8 * (8 * 15 + 2),) * 2
    assert figures.grid(images(4, 600, 600)).shape == (2 + 2 * 602,) * 2, "never made smaller"
    assert figures.grid(images(3, 8, 8), ncols=10, scale=1).shape == (12, 32)


def test_labels_stand_below_their_images():
    pictures = images(4, 16, 16)
    plain = figures.grid(pictures, scale=2)
    labelled = figures.grid(pictures, scale=2, labels=["cat", 7, "", "ship"])
    assert labelled.shape == (plain.shape[0] + 2 * 14, plain.shape[1])
    np.testing.assert_array_equal(labelled[:34], plain[:34])
    np.testing.assert_array_equal(labelled[48:82], plain[34:68])
    strips = [labelled[34 + y : 34 + y + 14, x : x + 32] for y in (0, 48) for x in (2, 36)]
    assert [bool((strip < 128).any()) for strip in strips] == [True, True, False, True]
    with pytest.raises(ValueError, match="3 labels for 4 images"):
        figures.grid(pictures, labels="abc")


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 8, 8)), images(2, 8), images(2, 8, 8, 4), images(0, 8, 8)]
)
def test_no_images(wrong):
    with pytest.raises(ValueError, match=r"^images: (uint8|float64)\[[\d, ]+\], expected uint8"):
        figures.grid(wrong)


@pytest.mark.parametrize("channels", [(1,), (3,)])
def test_gif_moves_then_rests(tmp_path, channels):
    colors = images(100, *channels, seed=1)
    frames = colors[np.random.default_rng(0).integers(0, 100, (6, 4, 8, 8))]
    figures.save_gif(tmp_path / "noise.gif", frames, ncols=2, scale=2, seconds=1.2, hold=1.5)
    with Image.open(tmp_path / "noise.gif") as gif:
        assert (getattr(gif, "n_frames", 1), gif.info["loop"]) == (6, 0)
        durations = []
        for i, frame in enumerate(frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
            shown = np.asarray(gif.convert("RGB" if channels == (3,) else "L"))
            error = np.abs(shown - figures.grid(frame, ncols=2, scale=2).astype(float))
            assert error.mean() <= (0 if channels == (1,) else 1), "Pillow may merge near colours"
        assert durations == [200] * 5 + [1500]


def test_gif_of_noise_stays_small(tmp_path):
    figures.save_gif(tmp_path / "large.gif", images(20 * 64, 32, 32, 3).reshape(20, 64, 32, 32, 3))
    assert (tmp_path / "large.gif").stat().st_size < 3e6
    with Image.open(tmp_path / "large.gif") as gif:
        assert gif.size == (2 + 8 * 34,) * 2


def test_curves_are_drawn_where_the_numbers_are(tmp_path):
    """Two lines: each one's colour appears, once at the left and once at the right height."""
    x = np.arange(50)
    curves = {"up": (x, x + 1.0), "down": (x, 50.0 - x)}
    figures.plot_curves(tmp_path / "p.png", curves, "step", "loss", yscale="log", title="Loss")
    page = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    assert page.shape == (600, 960, 3)
    for color, rises in [((31, 119, 180), True), ((255, 127, 14), False)]:
        rows, columns = np.nonzero(np.abs(page - color).sum(-1) < 12)
        line = columns < 700  # left of the legend's sample lines
        left, right = rows[line & (columns < 200)], rows[line & (columns > 500)]
        assert (left.mean() > right.mean()) == rises


def test_panels_stand_side_by_side(tmp_path):
    """One rises, on a logarithmic axis, the other falls through 0; both over their points."""
    x = np.arange(20.0)
    panels = [figures.Panel("x", "y", (x, y + np.cos(x) / 10), (x, y)) for y in (x + 1.0, 5.0 - x)]
    figures.plot_panels(tmp_path / "p.png", panels, "Two")
    page = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    assert page.shape == (540, 1380, 3)
    rows, columns = np.nonzero(np.abs(page - (31, 119, 180)).sum(-1) < 12)
    for start, rises in [(0, True), (690, False)]:
        inside = (columns >= start) & (columns < start + 690)
        left, right = rows[inside & (columns < start + 300)], rows[inside & (columns > start + 450)]
        assert (left.mean() > right.mean()) == rises


def test_running_mean():
    y = np.array([1.0, 2.0, 6.0, np.nan, 5.0])
    np.testing.assert_allclose(figures.running_mean(y, 3), [1.5, 3, 4, 5.5, 5])
    np.testing.assert_allclose(figures.running_mean(np.arange(9), 5)[2:-2], np.arange(2, 7))
    assert np.isnan(figures.running_mean(np.full(4, np.nan), 3)).all()


def test_table():
    rows = [("FD", np.float64(3.14159), "1500 samples"), ("NFE", 1000, "")]
    assert figures.table(rows, ["metric", "value", "note"]).split("\n") == [
        "metric  value  note",
        "------  -----  ------------",
        "FD      3.142  1500 samples",
        "NFE      1000",
    ]
    assert figures.table([("a", 1), ("bb", "x")]) == "a   1\nbb  x"
