"""DINOv2 against transformers' numbers, and its folders."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from interop import formats, pth_writer, transformers_dinov2
from models.dinov2 import cubic_interpolation
from tests import golden_cases

FOLDER = golden_cases.ROOTS[0] / "dinov2"


@pytest.mark.golden
@pytest.mark.parametrize(
    "folder", golden_cases.folders("dinov2*", "outputs.npz"), ids=lambda path: path.name
)
def test_a_folder_of_weights_computes_what_transformers_does(folder: pathlib.Path) -> None:
    """Golden numbers of `Dinov2Model` in PyTorch: features of images of two sizes, of which one has
    interpolated places; those of the authors' step are `interpolate`'s with their scale."""
    stored = np.load(folder / "outputs.npz")
    module, params = transformers_dinov2.read(folder)
    for side in (20, 12):
        run = jax.jit(module.clone(offset=0.0).apply)
        found: Any = run({"params": params}, stored[f"pixels_{side}"])
        np.testing.assert_allclose(found, stored[f"features_{side}"], rtol=1e-4, atol=1e-5)
    places = module.places(params["position_embeddings"][0], 3)
    np.testing.assert_allclose(places, stored["positions_offset"], rtol=1e-5, atol=1e-6)


def test_interpolation_has_the_kernels_weights() -> None:
    """Of twice as many, a quarter of the way is w(5/4), w(1/4), w(3/4), w(7/4) of Keys' kernel."""
    weights = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]
    matrix = cubic_interpolation(6, 12, 2.0)
    np.testing.assert_allclose(matrix[5], [0, *weights, 0], atol=1e-7)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-7)
    np.testing.assert_allclose(matrix[0, 0], weights[3] + weights[2] + weights[1], atol=1e-7)
    for inputs, outputs in ((5, 3), (37, 16), (4, 9)):
        np.testing.assert_allclose(
            cubic_interpolation(inputs, outputs, outputs / inputs).sum(1), 1.0, rtol=1e-6
        )
    np.testing.assert_array_equal(cubic_interpolation(4, 4, 1.0), np.eye(4))


def test_pickled_weights_are_read_without_running_them(tmp_path: pathlib.Path) -> None:
    shutil.copy(FOLDER / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors and no pytorch_model"):
        transformers_dinov2.read(tmp_path)
    tensors = formats.read_safetensors(FOLDER / "model.safetensors")
    pth_writer.write(tmp_path / "pytorch_model.bin", tensors)
    _, params = transformers_dinov2.read(tmp_path)
    _, expected = transformers_dinov2.read(FOLDER)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "clip"}, "has no config.json of a DINOv2"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn is not read"),
        ({"hidden_act": "mish"}, "unknown hidden_act .*'mish'"),
        ({"num_hidden_layers": 3}, "lacks encoder.layer.2"),
        ({"mlp_ratio": 3}, r"mlp.fc1.bias is \(24,\), config.json says \(36,\)"),
    ],
)
def test_folders_that_cannot_be_read(
    tmp_path: pathlib.Path, changes: dict[str, Any], words: str
) -> None:
    described = json.loads((FOLDER / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(described))
    shutil.copy(FOLDER / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=words):
        transformers_dinov2.read(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        transformers_dinov2.read(tmp_path)
