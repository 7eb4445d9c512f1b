"""Pickles of EDM's networks: read without running them, and computing what EDM computes."""

from __future__ import annotations

import json
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import sde_lib
from interop import convert, edm, edm_pickle
from tests import golden_cases

PICKLES = golden_cases.files("edm", "*.pkl")
TOLERANCE = 2e-5


def numbers(path: pathlib.Path) -> Any:
    """The arrays that EDM's own code computed with the network of a file."""
    name = f"{path.stem.removesuffix('_old')}.npz"
    (found,) = [p for p in golden_cases.files("edm") if p.name == name]
    return np.load(found)


def cases(*served: str) -> list[Any]:
    """The pickles, or those of some preconditionings."""
    chosen = [p for p in PICKLES if not served or edm_pickle.read(p).preconditioning in served]
    return [pytest.param(path, id=path.stem) for path in chosen]


@pytest.mark.golden
@pytest.mark.parametrize("path", cases())
def test_all_tensors_are_read_in_their_order(path: pathlib.Path) -> None:
    expected = json.loads(str(numbers(path)["tensors_json"]))
    tensors = edm_pickle.read(path).tensors
    assert list(tensors) == [entry["name"] for entry in expected]
    for entry in expected:
        array = np.ascontiguousarray(tensors[entry["name"]], "<f4")
        assert (list(array.shape), zlib.crc32(array.tobytes())) == (entry["shape"], entry["crc32"])


def channels_last(x: Any) -> jax.Array:
    return jnp.asarray(np.moveaxis(x, 1, -1), jnp.float32)


@pytest.mark.golden
@pytest.mark.parametrize("path", cases(*edm.PRECONDITIONINGS))
def test_the_denoiser_is_that_of_edm(path: pathlib.Path) -> None:
    """D = x + sigma^2 score(x), by the config that the file describes, for each image's sigma."""
    z, opened = numbers(path), edm.EdmFile(path)
    config = convert.described_config(opened.config_values(None), {})
    module, sde = models.from_config(config), sde_lib.from_config(config)
    side = config.data.image_size
    weights = opened.weights(module, (side, side, config.data.num_channels)).params
    y = jnp.argmax(z["class_labels"], -1) if config.model.num_labels else None
    score = models.score_fn(
        sde,
        lambda x, labels: module.apply({"params": weights}, x, labels, None, y),
        continuous=True,
        prediction=config.model.prediction,
        sigma_data=config.model.sigma_data,
    )
    sigma = jnp.asarray(z["sigma"], jnp.float32)
    size = sigma[:, None, None, None]
    x = channels_last(z["x"])
    if config.training.sde == "edm":
        denoised = x + size**2 * score(x, sigma)
    elif config.training.sde == "vesde":  # images in [0, 1]
        ours, t = (x + 1) / 2, sde.time_of_log_snr(-2 * jnp.log(sigma / 2))
        denoised = 2 * (ours + (size / 2) ** 2 * score(ours, t)) - 1
    else:
        t = jnp.asarray(z["c_noise"], jnp.float32) / 999
        alpha = sde.alpha(t)[:, None, None, None]
        scaled = x * alpha
        denoised = (scaled + sde.sigma(t)[:, None, None, None] ** 2 * score(scaled, t)) / alpha
    expected = channels_last(z["D"])
    assert np.abs(denoised - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.golden
@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem) for p in golden_cases.files("edm/hostile", "*.pkl")]
)
def test_no_code_of_a_file_is_run(
    path: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "reduce" in path.stem:
        with pytest.raises(ValueError, match="asks for") as refusal:
            edm_pickle.read(path)
        assert "\n" not in str(refusal.value)
    else:  # what would be run is the text of a module, which nobody looks at
        assert edm_pickle.read(path).tensors
    assert not list(tmp_path.iterdir())
