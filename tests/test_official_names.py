"""Names and shapes of the official checkpoints follow from how our networks call their layers."""

import functools
import gzip
import json
from typing import Any

import ml_collections
import numpy as np
import pytest

import models
from interop import official
from tests import golden_cases


def stored_json(name: str) -> Any:
    (path,) = golden_cases.files(".", name)
    return json.loads(
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_text()
    )


CONFIGS = stored_json("official_configs.json")
COUNTS = stored_json("parameter_counts.json")
NAMES = stored_json("names_official.json.gz")


def network(name: str) -> tuple[Any, tuple[int, ...]]:
    config = ml_collections.ConfigDict(CONFIGS[name])
    data = config.data
    return models.from_config(config), (data.image_size, data.image_size, data.num_channels)


parameter_shapes = functools.lru_cache(official.parameter_shapes)


@pytest.mark.golden
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_both_formats(name: str) -> None:
    entries = official.correspondence(*network(name))
    ours = [
        [e.torch_name, list(e.torch_shape), "/".join(e.path or ()), list(e.shape), e.trainable]
        for e in entries
    ]
    assert ours == NAMES[name]["params"]


@pytest.mark.golden
@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_of_every_official_config(name: str) -> None:
    module, image_shape = network(name)
    levels = {"sigma_min": 0.01, "sigma_max": 50.0, "num_scales": 1000, "centered": True}
    shapes = parameter_shapes(module.clone(**levels), image_shape)
    frozen = [path for path in shapes if path[0].startswith("GaussianFourierProjection")]
    sizes = {path: int(np.prod(shape)) for path, shape in shapes.items()}
    assert sum(sizes[path] for path in frozen) == COUNTS[name]["frozen_fourier"]
    trainable = sum(size for path, size in sizes.items() if path not in frozen)
    assert trainable == COUNTS[name]["parameters"]
    assert len(shapes) == COUNTS[name]["tensors"]


SMALL = models.NCSNpp(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,))
SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def state_dict() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    entries = official.correspondence(SMALL, SHAPE)
    return {e.torch_name: rng.standard_normal(e.torch_shape).astype(np.float32) for e in entries}


def test_there_and_back(state_dict: dict[str, np.ndarray]) -> None:
    wrapped = {f"module.{name}": array for name, array in state_dict.items()}
    wrapped["module.sigmas"] = np.ones(1000)
    params = official.params_from_torch(SMALL, wrapped, SHAPE)
    back = official.params_to_torch(SMALL, params, SHAPE)
    assert list(back) == list(state_dict)
    for name, array in state_dict.items():
        np.testing.assert_array_equal(back[name], array)
    kernel = params["ResnetBlockBigGANpp_0"]["Conv_0"]["kernel"]
    np.testing.assert_array_equal(
        kernel[1, 2, 3, 4], state_dict["all_modules.4.Conv_0.weight"][4, 3, 1, 2]
    )


def test_every_difference_is_named_at_once(state_dict: dict[str, np.ndarray]) -> None:
    broken = dict(state_dict)
    del broken["all_modules.1.bias"], broken["all_modules.0.W"]
    broken["all_modules.99.weight"] = np.ones(3)
    broken["all_modules.1.weight"] = broken["all_modules.1.weight"].T
    with pytest.raises(ValueError, match="PyTorch state_dict does not fit") as error:
        official.params_from_torch(SMALL, broken, SHAPE)
    text = str(error.value)
    assert "\n" not in text
    assert "missing: all_modules.0.W, all_modules.1.bias;" in text
    assert "unexpected: all_modules.99.weight;" in text
    assert "wrong shape: all_modules.1.weight (16, 32), expected (32, 16)" in text


def test_unused_dense_layers_of_unconditional_networks(state_dict: dict[str, np.ndarray]) -> None:
    """PyTorch keeps them, in the middle of its list of averaged weights; we have none."""
    module = SMALL.clone(conditional=False)
    entries = official.correspondence(module, SHAPE)
    unused = [entry for entry in entries if entry.path is None]
    assert unused
    assert all(".Dense_0." in entry.torch_name for entry in unused)
    arrays = {e.torch_name: np.full(e.torch_shape, i, np.float32) for i, e in enumerate(entries)}
    params = official.params_from_torch(module, arrays, SHAPE)
    assert "Dense_0" not in params["ResnetBlockBigGANpp_0"]
    without = {k: v for k, v in arrays.items() if k not in {e.torch_name for e in unused}}
    again = official.params_from_torch(module, without, SHAPE)
    exported = official.params_to_torch(module, again, SHAPE)
    assert list(exported) == list(arrays)
    assert all(not exported[e.torch_name].any() for e in unused)
    averaged = [arrays[e.torch_name] + 1 for e in entries if e.trainable]
    from_average = official.params_from_torch_average(module, averaged, arrays, SHAPE)
    for entry in entries:
        if entry.path is not None:
            leaf = from_average
            for part in entry.path:
                leaf = leaf[part]
            assert leaf.flat[0] == arrays[entry.torch_name].flat[0] + entry.trainable
    with pytest.raises(
        ValueError, match=f"has {len(averaged) - 1} tensors; expected {len(averaged)}"
    ):
        official.params_from_torch_average(module, averaged[1:], arrays, SHAPE)


def test_jax_trees_are_checked_and_old_norms_accepted(state_dict: dict[str, np.ndarray]) -> None:
    params = official.params_from_torch(SMALL, state_dict, SHAPE)
    old = {
        **params,
        "GroupNorm_0": {k: v.reshape(1, 1, 1, -1) for k, v in params["GroupNorm_0"].items()},
    }
    read = official.params_from_jax(SMALL, old, SHAPE)
    np.testing.assert_array_equal(read["GroupNorm_0"]["scale"], params["GroupNorm_0"]["scale"])
    broken = {**params, "Conv_9": {"bias": np.ones(2)}}
    broken["Conv_0"] = {"kernel": params["Conv_0"]["kernel"][..., :1]}
    with pytest.raises(ValueError, match="parameter tree does not fit") as error:
        official.params_from_jax(SMALL, broken, SHAPE)
    assert "missing: Conv_0/bias; unexpected: Conv_9/bias; wrong shape: Conv_0/kernel" in str(
        error.value
    )


def test_networks_without_counterpart_are_refused() -> None:
    with pytest.raises(ValueError, match="class-conditional networks do not exist"):
        official.correspondence(SMALL.clone(num_labels=10), SHAPE)
