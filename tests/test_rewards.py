"""Images by a reward from the command line: their law, where it is known, and the refusals."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from control import rewards, run
from runtime import experiment
from sde_lib import ScoreFn
from tests import gaussians
from tests.test_control import run as control
from tests.test_control import settings

STD = 0.1


def exact(parts: experiment.Parts, params: Any, *told: Any) -> ScoreFn:
    """The score of N(0, STD^2) in every pixel."""
    return gaussians.linear_score(parts.sde, 0.0, STD)


@pytest.mark.parametrize("method", ["steering", pytest.param("gradient", marks=pytest.mark.slow)])
def test_a_reward_moves_the_mean_of_images_as_far_as_it_should(
    method: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward that is linear tilts Gaussian images to Gaussian images, whose pixels are moved by
    their variance times its gradient, here one deviation of the image's mean. (Of a linear reward
    the gradient of the estimate is exact, too.) The function is the user's own."""
    monkeypatch.setattr(experiment.Parts, "score", exact)
    path = tmp_path / "mine.py"
    path.write_text("def reward(images):\n    return 2.0 * images.mean((1, 2, 3))\n")
    count, scale = 32, 8.0 / STD
    results, arrays = control(
        tmp_path,
        monkeypatch,
        task="reward",
        method=method,
        reward=f"{path}:reward",
        scale=scale,
        particles=16,
        num_variants=count,
        batch_size=32,
        sampling__num_steps=20,
    )
    means = arrays["x"].reshape(count, -1).mean(1)
    moved = STD**2 * scale / 64
    assert moved == pytest.approx(STD / 8)
    assert means.mean() == pytest.approx(moved, abs=5 * STD / 8 / math.sqrt(count))
    assert means.mean() > 3 * STD / 8 / math.sqrt(count)
    np.testing.assert_allclose(arrays["reward"], means + 1.0, atol=1e-5)
    assert results["reward"] == pytest.approx(means.mean() + 1.0, abs=1e-5)
    assert results["nfe"] == (21 * 16 if method == "steering" else results["nfe"])
    assert (tmp_path / "control" / "reward" / "grid.png").exists()


def test_built_in_rewards_are_what_they_say() -> None:
    images = jax.random.uniform(jax.random.key(0), (3, 4, 4, 3))
    array = np.asarray(images)
    np.testing.assert_allclose(rewards.brightness(images), array.mean((1, 2, 3)), rtol=1e-5)
    colours = array.mean((1, 2))
    expected = colours[:, 0] - 0.5 * (colours[:, 1] + colours[:, 2])
    np.testing.assert_allclose(rewards.redness(images), expected, atol=1e-6)
    mirrored = np.concatenate([array, array[:, :, ::-1]], 2)
    np.testing.assert_allclose(rewards.symmetry(jnp.asarray(mirrored)), 0.0, atol=1e-7)
    assert np.all(rewards.symmetry(images) < -0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reward": "beauty"},
            r"unknown control.reward \(or file.py:function\) 'beauty'; known: br",
        ),
        ({"reward": "redness"}, "is of colours, and these images are grey"),
        ({"reward": "absent.py:reward"}, "there is no file absent.py"),
        ({"reward": "mine.py:pixels"}, r"makes float32\[2, 8, 8, 1\] of images \[2, 8, 8, 1\]; it"),
        ({"reward": "mine.py:counts"}, r"makes int32\[2\] of images"),
        (
            {"reward": "mine.py:by_numpy"},
            "is no function of JAX arrays .*TracerArrayConversionError",
        ),
        ({"method": "dps"}, "unknown control.method 'dps'; known: gradient, steering"),
        ({"model__num_labels": 10}, "draws images of a class only"),
    ],
)
def test_what_is_no_reward_is_refused(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def pixels(images):\n    return images\n"
        "def counts(images):\n    return (images > 0).sum((1, 2, 3))\n"
        "def by_numpy(images):\n    return np.asarray(images).mean((1, 2, 3))\n"
    )
    config = settings(**{"task": "reward", **changes})
    with pytest.raises(ValueError, match=message) as refusal:
        run.pose(config, experiment.build(config))
    assert "\n" not in str(refusal.value)


def test_images_of_another_file_are_other_images(tmp_path: pathlib.Path) -> None:
    """The hash of the user's file is one of what finished batches are kept by."""
    path = tmp_path / "mine.py"
    sources = []
    for factor in (1.0, 2.0):
        path.write_text(f"def reward(images):\n    return {factor} * images.mean((1, 2, 3))\n")
        config = settings(task="reward", reward=f"{path}:reward")
        problem, _, _ = run.pose(config, experiment.build(config))
        sources.append(problem.sources["reward_sha256"])
    assert sources[0] != sources[1]
    config = settings(task="reward", reward="brightness")
    assert not run.pose(config, experiment.build(config))[0].sources
