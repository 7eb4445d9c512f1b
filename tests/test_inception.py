"""The Inception network computes what other copies of it do, and its weights are checked."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interop
from data import builder
from evaluation.metrics import inception, inception_weights
from tests import golden_cases
from tests.test_interop_files import Tensor, write_legacy_pth

GOLDEN = golden_cases.about("metrics", "inception_features")


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden file's rule for a tensor, from its name and shape alone."""
    if name.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    z = rng.standard_normal(shape).astype(np.float32)
    if len(shape) == 4:
        return z * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if len(shape) == 2:
        return z / np.float32(np.sqrt(shape[1]))
    if name.endswith("running_var"):
        return np.exp(np.float32(0.2) * z)
    return np.float32(0.1) * z + np.float32(name.endswith("weight"))


@functools.cache
def drawn_params() -> inception.Params:
    tensors = {name: drawn(name, shape) for name, shape in inception_weights.torch_shapes().items()}
    return inception_weights.params_from_torch(tensors)


# --- the network ---


@pytest.mark.golden
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_tensors_are_those_of_pytorch_fid(path):
    stored = golden_cases.load(path)["meta_json"]["names_shapes"]
    assert inception_weights.torch_shapes() == {
        name: tuple(shape) for name, shape in stored.items()
    }


@pytest.mark.golden
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_first_layers_are_those_of_pytorch_fid(path):
    """Resize, strides, paddings, folded normalisation: up to the first pooling."""
    stored = golden_cases.load(path)
    layers = {
        "Conv2d_1a_3x3": inception.Conv(32, (3, 3), 2, "VALID"),
        "Conv2d_2a_3x3": inception.Conv(32, (3, 3), 1, "VALID"),
        "Conv2d_2b_3x3": inception.Conv(64, (3, 3)),
    }
    shapes = inception_weights.torch_shapes().items()
    tensors = {n: drawn(n, shape) for n, shape in shapes if n.split(".")[0] in layers}

    @jax.jit
    def first(images):
        x = inception.resized(images, "pytorch")
        for name, layer in layers.items():
            params: Any = {"params": inception_weights.folded(tensors, name)}
            x = jnp.asarray(layer.apply(params, x))
        return inception.max_pool(x).mean((1, 2))

    found, expected = first(stored["x75_nhwc_uint8"][:1]), stored["pf_block1_mean_x75"][:1]
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("size", [32, 75, 299])
@pytest.mark.parametrize(("resize", "prefix"), [("tensorflow", "tf"), ("pytorch", "pf")])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_features_and_logits_are_those_of_other_packages(path, resize, prefix, size):
    stored = golden_cases.load(path)
    if f"x{size}_nhwc_uint8" not in stored:
        pytest.skip(f"{path} has no images of {size} pixels; the file in $GOLDEN_DIR may")
    found = jitted(drawn_params(), stored[f"x{size}_nhwc_uint8"], resize)
    pool = stored[f"{prefix}_pool3_x{size}"]
    assert np.abs(found.pool - pool).max() < 1e-5 * np.abs(pool).max()
    if prefix == "tf":
        logits = stored[f"tf_logits_unbiased_x{size}"]
    else:
        logits = stored[f"pf_logits_x{size}"].T - drawn("fc.bias", (inception.NUM_CLASSES,))
    assert np.abs(found.logits - logits).max() < 1e-5 * np.abs(logits).max()


jitted = jax.jit(inception.apply, static_argnums=2)


@pytest.mark.slow
def test_spatial_features_are_the_first_seven_channels_of_mixed_6():
    """17 x 17 x 7, row by row: `mixed_6/conv` is the first branch of the third 17 x 17 block."""
    params = drawn_params()
    images = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 3), np.uint8)

    def capture(params, images):
        x = inception.resized(images, "tensorflow")
        _, state = inception.Network().apply(
            {"params": params}, x, capture_intermediates=True, mutable=["intermediates"]
        )
        return state["intermediates"]["Mixed_6d"]["branch1x1"]["__call__"][0]

    block = jax.jit(capture)(params, images)
    assert block.shape == (1, 17, 17, 192)
    found = jitted(params, images, "tensorflow").spatial
    expected = np.asarray(block[..., :7]).reshape(1, -1)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_shapes_of_all_outputs():
    start = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    params = jax.eval_shape(inception.Network().init, jax.random.key(0), start)["params"]
    images = jax.ShapeDtypeStruct((5, 32, 40, 3), jnp.uint8)
    found: Any = jax.eval_shape(lambda p, x: inception.apply(p, x, "tensorflow"), params, images)
    assert [x.shape for x in found] == [(5, 2048), (5, 1008), (5, 17 * 17 * 7)]
    grey = jax.ShapeDtypeStruct((5, 32, 32, 1), jnp.uint8)
    with pytest.raises(ValueError, match=r"colour images \[B, H, W, 3\], not \(5, 32, 32, 1\)"):
        jax.eval_shape(lambda p, x: inception.apply(p, x, "tensorflow"), params, grey)


def test_pooling_as_tensorflow_has_it():
    """Averages count the pixels that exist, and maxima do not see the padding."""
    ones = jnp.ones((1, 4, 5, 2))
    np.testing.assert_allclose(inception.average_pool(ones), ones, rtol=1e-6)
    corner = inception.average_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))
    np.testing.assert_allclose(corner, np.full((1, 2, 2, 1), 1.5), rtol=1e-6)
    np.testing.assert_array_equal(inception.max_pool(-ones, stride=1), -ones)
    assert inception.max_pool(jnp.zeros((1, 7, 8, 1))).shape == (1, 3, 3, 1)


@pytest.mark.parametrize("size", [(8, 12), (299, 299), (640, 300)])
def test_resizes_of_a_ramp_are_ramps(size):
    """Bilinear interpolation is exact on x and y, so that the pixels tell where they are from."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.full_like(x, 7)], axis=-1)[None].astype(np.float32)
    i = np.arange(299)
    for resize, start, scale, shift in (
        ("tensorflow", 0.0, 128.0, 128.0),
        ("pytorch", 0.5, 127.5, 127.5),
    ):
        found = np.asarray(inception.resized(jnp.asarray(image), resize))[0] * scale + shift
        for axis, channel, extent in ((1, 0, width), (0, 1, height)):
            expected = np.clip((i + start) * extent / 299 - start, 0, extent - 1)
            row = np.moveaxis(found[..., channel], axis, 0)
            np.testing.assert_allclose(row, np.tile(expected[:, None], 299), atol=2e-3)
        np.testing.assert_allclose(found[..., 2], 7.0, atol=1e-4)


def test_black_and_white_as_the_network_sees_them():
    for resize, ends in (("tensorflow", (-1.0, 127 / 128)), ("pytorch", (-1.0, 1.0))):
        for level, expected in zip((0, 255), ends, strict=True):
            image = jnp.full((1, 4, 4, 3), level, jnp.uint8)
            np.testing.assert_allclose(inception.resized(image, resize), expected, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"unknown eval\.resize 'lanczos'; known: pytorch, tensorflow"
    ):
        inception.check_resize("lanczos")


# --- weights ---


def test_normalisation_is_folded_into_the_convolution():
    """One layer with its normalisation written out."""
    name = "Mixed_7b.branch1x1"
    shapes = inception_weights.torch_shapes().items()
    layer = {n: drawn(n, shape) for n, shape in shapes if n.startswith(f"{name}.")}
    params = inception_weights.folded(layer, name)
    x = np.random.default_rng(0).standard_normal((1, 1, 1, 1280)).astype(np.float32)
    found = np.ravel(inception.Conv(320).apply({"params": params}, x))  # type: ignore
    norm = {kind: layer[f"{name}.bn.{kind}"] for kind in ("weight", "bias")}
    mean, variance = layer[f"{name}.bn.running_mean"], layer[f"{name}.bn.running_var"]
    y = layer[f"{name}.conv.weight"][:, :, 0, 0] @ x[0, 0, 0]
    y = (y - mean) / np.sqrt(variance + 1e-3) * norm["weight"] + norm["bias"]
    np.testing.assert_allclose(found, np.maximum(y, 0), atol=2e-5)


def test_every_tensor_is_accounted_for():
    zeros = {
        n: np.broadcast_to(np.float32(0), s) for n, s in inception_weights.torch_shapes().items()
    }
    tracked = {n: x for n, x in zeros.items() if not n.endswith("num_batches_tracked")}
    wide = np.zeros((32, 3, 5, 5), np.float32)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"fc.bias": None}, "fc.bias is missing"),
        ({"Conv2d_1a_3x3.conv.weight": wide}, r"\(32, 3, 5, 5\), not \(32, 3, 3, 3\)"),
        ({"fc.weight": np.full((1008, 2048), np.nan)}, "fc.weight is not finite"),
        (
            {"AuxLogits.fc.bias": wide, "more": wide},
            "AuxLogits.fc.bias is unknown, more is unknown",
        ),
    ]
    for change, message in cases:
        tensors = {n: x for n, x in (tracked | change).items() if x is not None}
        with pytest.raises(ValueError, match=f"no weights of inception-2015-12-05.*{message}"):
            inception_weights.params_from_torch(tensors)
    with pytest.raises(
        ValueError, match=r"a is unknown, Conv2d_1a_3x3\.conv\.weight is missing.* and 469 more"
    ):
        inception_weights.params_from_torch({"a": wide})


def named_by_hash(folder: pathlib.Path, content: bytes) -> pathlib.Path:
    path = folder / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "ours"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_a_file_of_weights_is_what_its_name_says(tmp_path):
    good = write_legacy_pth(
        tmp_path / "w.pth", {"a": Tensor(np.ones(2, np.float32), 0, (2,), (1,))}
    )
    path = named_by_hash(tmp_path, good.read_bytes())
    with pytest.raises(ValueError, match="no weights of"):  # the hash is right, the tensors are not
        inception_weights.load_weights(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is damaged: its SHA-256 begins with [0-9a-f]{8}, not "):
        inception_weights.load_weights(path)
    with pytest.raises(FileNotFoundError, match=r"inception_path is .*gone\.pth"):
        inception_weights.load_weights(tmp_path / "gone.pth")


def test_weights_are_downloaded_once_and_looked_for_where_pytorch_fid_keeps_them(
    caches, monkeypatch
):
    source = named_by_hash(caches, b"weights")
    monkeypatch.setattr(inception_weights, "FILE", source.name)
    monkeypatch.setattr(inception_weights, "URL", source.as_uri())
    monkeypatch.setattr(interop.pth, "read_pth", lambda path: {"from": path})
    monkeypatch.setattr(inception_weights, "params_from_torch", lambda tensors: tensors)
    ours, theirs = inception_weights.places()
    assert inception_weights.load_weights().params == {"from": ours}
    source.unlink()
    assert inception_weights.load_weights().sha256 == hashlib.sha256(b"weights").hexdigest()
    assert list(ours.parent.iterdir()) == [ours]
    theirs.parent.mkdir(parents=True)
    ours.rename(theirs)
    assert inception_weights.load_weights().params == {"from": theirs}


def test_offline_one_line_says_what_to_fetch_and_whereto(caches, monkeypatch):
    def unreachable(url):
        raise OSError("no route")

    monkeypatch.setattr(builder, "reach", unreachable)
    with pytest.raises(FileNotFoundError) as raised:
        inception_weights.load_weights()
    line = str(raised.value)
    assert "\n" not in line
    assert inception_weights.URL in line
    assert str(caches / "ours" / "inception") in line
    assert "--config.eval.inception_path" in line
    assert not (caches / "ours").exists()


@pytest.mark.slow
def test_weights_are_read_from_a_file_of_pytorch(tmp_path):
    tensors = {}
    for name, shape in inception_weights.torch_shapes().items():
        array = drawn(name, shape)
        kind = "LongStorage" if array.dtype == np.int64 else "FloatStorage"
        strides = np.array(array.strides) // array.itemsize
        tensors[name] = Tensor(array.ravel(), 0, shape, tuple(map(int, strides)), kind)
    path = write_legacy_pth(tmp_path / "weights.pth", tensors)
    jax.tree.map(
        np.testing.assert_array_equal, inception_weights.load_weights(path).params, drawn_params()
    )
