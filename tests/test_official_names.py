"""Names and shapes of the official checkpoints follow from how our networks call their layers."""

import functools
import pathlib
import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import models
from interop import flax_msgpack, official, pth
from tests import golden_cases
from tests.test_configs import structure
from tests.test_models import quick_jit, relative_error

CONFIGS = golden_cases.table("official_configs")
COUNTS = golden_cases.table("parameter_counts")
NAMES = golden_cases.table("names_official")


def network(name: str) -> tuple[Any, tuple[int, ...]]:
    config = golden_cases.config(CONFIGS[name])
    data = config.data
    return models.from_config(config), (data.image_size, data.image_size, data.num_channels)


@functools.lru_cache
def entries_of(module: Any, image_shape: tuple[int, ...]) -> list[official.Entry]:
    return official.correspondence(module, image_shape)


def named_network(name: str) -> tuple[Any, tuple[int, ...]]:
    """`network`, by its structure alone, for the cache."""
    module, image_shape = network(name)
    return structure(module), image_shape


@pytest.mark.golden
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if "_deep" in name or "ffhq" in name else ())
        for name in NAMES
    ],
)
def test_every_tensor_of_both_formats(name: str) -> None:
    ours = [
        [e.torch_name, list(e.torch_shape), "/".join(e.path or ()), list(e.shape), e.trainable]
        for e in entries_of(*named_network(name))
    ]
    assert ours == NAMES[name]["params"]


@pytest.mark.golden
@pytest.mark.slow  # by default: every tensor, above; and the counts, in test_configs.py
@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_of_every_official_config(name: str) -> None:
    module, image_shape = named_network(name)
    if isinstance(module, models.NCSNv2):
        shapes = official.parameter_shapes(module, image_shape)
    else:
        shapes = {e.path: e.shape for e in entries_of(module, image_shape) if e.path}
    frozen = [path for path in shapes if path[0].startswith("GaussianFourierProjection")]
    sizes = {path: int(np.prod(shape)) for path, shape in shapes.items()}
    assert sum(sizes[path] for path in frozen) == COUNTS[name]["frozen_fourier"]
    trainable = sum(size for path, size in sizes.items() if path not in frozen)
    assert trainable == COUNTS[name]["parameters"]
    assert len(shapes) == COUNTS[name]["tensors"]


@pytest.mark.golden
@pytest.mark.parametrize("case", golden_cases.checkpoints(), ids=lambda case: case.stem)
def test_official_checkpoints_give_the_official_outputs(case: golden_cases.Checkpoint) -> None:
    """Raw and averaged weights, from whichever of the two formats is there."""
    stored = golden_cases.load(case.expected)
    module = models.from_config(golden_cases.config(stored["config_json"]))
    x = golden_cases.nhwc(stored["x"])
    labels, shape = jnp.asarray(stored["labels"]), x.shape[1:]
    run = quick_jit(lambda params: module.apply({"params": params}, x, labels))
    weights = []
    for file in case.files:
        if file == case.pth:
            state = pth.read_pth(file)
            raw, averaged = state["model"], state["ema"]["shadow_params"]
            weights.append(("out_raw", official.params_from_torch(module, raw, shape)))
            average = official.params_from_torch_average(module, averaged, raw, shape)
            weights.append(("out_ema", average))
        else:
            state = flax_msgpack.read_flax_checkpoint(file)
            for key, name in (("out_raw", "params"), ("out_ema", "params_ema")):
                weights.append((key, official.params_from_jax(module, state[name], shape)))
    assert weights
    fourier = stored["config_json"]["model"]["embedding_type"] == "fourier"
    for key, params in weights:
        error = relative_error(run(params), golden_cases.nhwc(stored[key]))
        assert error < (1e-3 if fourier else 2e-5), key


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
            leaf: Any = from_average
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


def refinenet(name: str) -> tuple[models.NCSNv2, tuple[int, ...]]:
    fields: dict[str, Any] = {"nf": 4, "num_scales": 10, "sigma_max": 5.0, "sigma_min": 0.1}
    side = 16 if name.endswith("256") else 8
    if name == "ncsn":
        return models.NCSN(**fields, num_classes=10, pytorch=True), (side, side, 3)
    architecture = name.removeprefix("ncsnv2_")
    return models.NCSNv2(**fields, architecture=architecture, pytorch=True), (side, side, 3)


def refinenets(*names: str) -> list[Any]:
    """Every RefineNet of every file of pytorch/, or those of `names`."""
    return [
        pytest.param(path, name, id=f"{path.stem}-{name}")
        for path in golden_cases.files("pytorch")
        for name in golden_cases.load(path)["names_json"]
        if name in names or not names
    ]


@pytest.mark.golden
@pytest.mark.parametrize(("path", "name"), refinenets())
def test_every_pytorch_tensor_of_ncsn(path: pathlib.Path, name: str) -> None:
    """In PyTorch's order, and each of ours once."""
    entries = official.correspondence(*refinenet(name))
    expected = golden_cases.load(path)["names_json"][name]
    assert [(e.torch_name, list(e.torch_shape)) for e in entries] == list(expected.items())
    paths = [entry.path for entry in entries]
    assert sorted(map(str, paths)) == sorted(map(str, official.parameter_shapes(*refinenet(name))))


@pytest.mark.golden
@pytest.mark.parametrize(("path", "name"), refinenets("ncsn", "ncsnv2_64"))
def test_pytorch_weights_of_ncsn_give_the_pytorch_outputs(path: pathlib.Path, name: str) -> None:
    """Weights by a rule of their names; the PyTorch network with its constructors repaired."""
    stored, state_dict = golden_cases.load(path), {}
    for torch_name, shape in stored["names_json"][name].items():
        random = np.random.RandomState(zlib.crc32(torch_name.encode()))
        gain = np.float32(0.3 if len(shape) < 4 else np.prod(shape[1:]) ** -0.5)
        mean = torch_name.endswith(("alpha", "gamma"))
        state_dict[torch_name] = mean + gain * random.standard_normal(shape).astype(np.float32)
    module, shape = refinenet(name)
    params = official.params_from_torch(module, state_dict, shape)
    x, labels = (stored[f"{name}/{key}"] for key in ("x", "y"))
    run = quick_jit(lambda x: module.apply({"params": params}, x, labels))
    out = run(golden_cases.nhwc(x))
    assert relative_error(out, golden_cases.nhwc(stored[f"{name}/out"])) < 2e-5
    back = official.params_to_torch(module, params, shape)
    assert list(back) == list(state_dict)
    for torch_name, array in state_dict.items():
        np.testing.assert_array_equal(back[torch_name], array)
    with pytest.raises(ValueError, match=r"set model\.pytorch=True"):
        official.params_from_torch(module.clone(pytorch=False), state_dict, shape)


def test_networks_without_counterpart_are_refused() -> None:
    with pytest.raises(ValueError, match="class-conditional networks do not exist"):
        official.correspondence(SMALL.clone(num_labels=10), SHAPE)


@pytest.mark.parametrize(
    "tensor",
    [
        np.array([1.0, np.nan], np.float32),
        np.array([np.inf], np.float16),
        np.array([1e300]),  # beyond float32
        np.array([1, 2]),
        np.array([True]),
        np.array([1j]),
        np.array(["text"]),
    ],
    ids=str,
)
def test_tensors_that_are_no_finite_floats_are_named(tensor: np.ndarray) -> None:
    fine = {"half": np.ones(2, np.float16), "bf16": np.ones(2, jnp.bfloat16)}
    assert {x.dtype for x in official.float32("the file", fine).values()} == {np.dtype("float32")}
    with pytest.raises(ValueError, match=r"^the file has .*: w( \S+)?$"):
        official.float32("the file", {**fine, "w": tensor})
