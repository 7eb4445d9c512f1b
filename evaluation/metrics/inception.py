r"""The Inception network of 2015, whose features FID, Inception Score, KID and the others compare.

It is the network of the TensorFlow graph `inception-2015-12-05` (Szegedy et al., arXiv:1512.00567),
not that of later Inception v3 releases: 1008 classes, average pooling that does not count the
padding, and maximum pooling in the last block. Weights are read from its conversion for
pytorch-fid, whose names the layers have here; each batch normalisation (epsilon 1e-3) is folded
into its convolution:

    kernel = w gamma / sqrt(var + eps)        bias = beta - mean gamma / sqrt(var + eps).

Three outputs are in use:

* `pool`, 2048 features after the last average pooling: FID, KID, precision, recall and the like;
* `logits`, 1008 class logits without their bias, as the Inception Score has always been computed
  (Salimans et al., arXiv:1606.03498, whose code multiplies by the weights alone);
* `spatial`, 17 x 17 x 7 features: the first 7 channels of `mixed_6/conv` of the TensorFlow graph
  (`Mixed_6d.branch1x1` here), with which guided-diffusion computes sFID (Dhariwal and Nichol,
  arXiv:2105.05233, after Nash et al., arXiv:2103.03841).

Images are resized to 299 x 299 first, and the two ways in use give other numbers (`RESIZES`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import tempfile
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from data import default_folder
from data.builder import reach
from interop import pth

NAME = "inception-2015-12-05"
FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SIZE = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7
EPSILON = 1e-3
COUNTER = "num_batches_tracked"

Params = Mapping[str, Any]


class Outputs(NamedTuple):
    """Of B images: `pool [B, 2048]`, `logits [B, 1008]` without bias, `spatial [B, 2023]`."""

    pool: jax.Array
    logits: jax.Array
    spatial: jax.Array


class Conv(nn.Module):
    """relu(conv(x) + bias), normalisation included."""

    features: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        strides = (self.stride, self.stride)
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=layout)
        return nn.relu(y + bias)


def average_pool(x: jax.Array) -> jax.Array:
    """Means over 3 x 3 pixels, of those that exist: at the edges, of fewer."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def max_pool(x: jax.Array, stride: int = 2) -> jax.Array:
    """Maxima over 3 x 3 pixels: every second one without padding, or every one with it."""
    return nn.max_pool(x, (3, 3), (stride, stride), "VALID" if stride == 2 else "SAME")


def chain(x: jax.Array, name: str, *layers: tuple[Any, ...]) -> jax.Array:
    """Convolutions `name`_1, `name`_2, ... (or just `name`) with these arguments of `Conv`."""
    for i, layer in enumerate(layers, start=1):
        x = Conv(*layer, name=f"{name}_{i}" if len(layers) > 1 else name)(x)
    return x


def join(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
    """35 x 35 pixels: 1x1, 5x5, two 3x3, and pooling."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return join(
            chain(x, "branch1x1", (64,)),
            chain(x, "branch5x5", (48,), (64, (5, 5))),
            chain(x, "branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
            chain(average_pool(x), "branch_pool", (self.pooled,)),
        )


class BlockB(nn.Module):
    """35 x 35 pixels to 17 x 17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return join(
            chain(x, "branch3x3", (384, (3, 3), 2, "VALID")),
            chain(x, "branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3), 2, "VALID")),
            max_pool(x),
        )


class BlockC(nn.Module):
    """17 x 17 pixels: 1x1, 7x7 and twice 7x7 as rows and columns, and pooling.

    Returns the block's output and that of its first branch.
    """

    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        c, row, column = self.inner, (1, 7), (7, 1)
        first = chain(x, "branch1x1", (192,))
        y = join(
            first,
            chain(x, "branch7x7", (c,), (c, row), (192, column)),
            chain(x, "branch7x7dbl", (c,), (c, column), (c, row), (c, column), (192, row)),
            chain(average_pool(x), "branch_pool", (192,)),
        )
        return y, first


class BlockD(nn.Module):
    """17 x 17 pixels to 8 x 8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        last = (192, (3, 3), 2, "VALID")
        return join(
            chain(x, "branch3x3", (192,), (320, (3, 3), 2, "VALID")),
            chain(x, "branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), last),
            max_pool(x),
        )


class BlockE(nn.Module):
    """8 x 8 pixels: 1x1, 3x3 and twice 3x3, each ending in a row beside a column, and pooling."""

    maximum: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def split(x: jax.Array, name: str) -> jax.Array:
            row, column = (384, (1, 3)), (384, (3, 1))
            return join(chain(x, f"{name}a", row), chain(x, f"{name}b", column))

        single = Conv(384, name="branch3x3_1")(x)
        double = Conv(384, (3, 3), name="branch3x3dbl_2")(Conv(448, name="branch3x3dbl_1")(x))
        pooled = max_pool(x, 1) if self.maximum else average_pool(x)
        return join(
            chain(x, "branch1x1", (320,)),
            split(single, "branch3x3_2"),
            split(double, "branch3x3dbl_3"),
            chain(pooled, "branch_pool", (192,)),
        )


class Network(nn.Module):
    """Images [B, 299, 299, 3] in [-1, 1] to `Outputs`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Outputs:
        x = Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = max_pool(Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = Conv(80, name="Conv2d_3b_1x1")(x)
        x = max_pool(Conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
        for letter, pooled in (("b", 32), ("c", 64), ("d", 64)):
            x = BlockA(pooled, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)
        firsts = {}
        for letter, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x, firsts[letter] = BlockC(inner, name=f"Mixed_6{letter}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(maximum=False, name="Mixed_7b")(x)
        x = BlockE(maximum=True, name="Mixed_7c")(x)
        pool = x.mean(axis=(1, 2))
        logits = nn.Dense(NUM_CLASSES, use_bias=False, name="fc")(pool)
        spatial = firsts["d"][..., :SPATIAL_CHANNELS]
        return Outputs(pool, logits, spatial.reshape(len(spatial), -1))


def tensorflow_positions(size: int) -> np.ndarray:
    """Of the 299 pixels in an image of `size`: i size / 299, in float32 as TensorFlow 1 has it.

    (`tf.image.resize_bilinear` with align_corners=False; its pixels have no half-pixel centres.)
    """
    return np.arange(SIZE, dtype=np.float32) * np.float32(size / SIZE)


def pytorch_positions(size: int) -> np.ndarray:
    """Of the 299 pixels in an image of `size`: (i + 1/2) size / 299 - 1/2, but not below 0.

    (`F.interpolate` with align_corners=False, as in pytorch-fid.)
    """
    positions = (np.arange(SIZE) + 0.5) * (size / SIZE) - 0.5
    return np.maximum(positions, 0.0).astype(np.float32)


def _tensorflow_range(x: jax.Array) -> jax.Array:
    return (x - 128.0) / 128.0


def _pytorch_range(x: jax.Array) -> jax.Array:
    return x / 127.5 - 1.0


# Where pixels are taken from, and how 0..255 become what the network sees.
RESIZES = {
    "tensorflow": (tensorflow_positions, _tensorflow_range),
    "pytorch": (pytorch_positions, _pytorch_range),
}


def check_resize(resize: str) -> None:
    """Raises ValueError unless there is such a resize."""
    if resize not in RESIZES:
        raise ValueError(f"unknown eval.resize {resize!r}: it is one of {', '.join(RESIZES)}")


def resized(images: jax.Array, resize: str) -> jax.Array:
    """Pixels 0..255, [B, H, W, 3], to float32 [B, 299, 299, 3] as the network sees them."""
    positions, to_range = RESIZES[resize]
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        places = positions(x.shape[axis])
        low = places.astype(np.int32)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        weight = (places - low).reshape([-1 if i == axis else 1 for i in range(4)])
        below, above = jnp.take(x, low, axis), jnp.take(x, high, axis)
        x = below + (above - below) * weight
    return to_range(x)


def apply(params: Params, images: jax.Array, resize: str) -> Outputs:
    """Colour images uint8 [B, H, W, 3] of any size to features, in full float32 everywhere.

    Raises:
      ValueError: images that have no three channels.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"Inception sees colour images [B, H, W, 3], not {images.shape}")
    with jax.default_matmul_precision("highest"):  # accelerators would round the factors
        return Network().apply({"params": params}, resized(images, resize))  # type: ignore


# --- weights ---


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Parameters of `Network` in NumPy, and the SHA-256 of the file that they are from."""

    params: Params
    sha256: str


def load_weights(path: str | os.PathLike[str] = "") -> Weights:
    """The weights in a file, by default that of pytorch-fid, which is downloaded if it must be.

    Raises:
      FileNotFoundError: no such file, or it cannot be downloaded; says what to fetch and whereto.
      ValueError: a damaged file, or tensors that are not the network's.
    """
    file = pathlib.Path(path).expanduser() if path else _cached()
    if not file.is_file():
        raise FileNotFoundError(f"config.eval.inception_path is {file}, where there is no file")
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    promised = re.search(r"-([0-9a-f]{8,64})\.pth$", file.name)
    if promised and not sha256.startswith(promised[1]):
        raise ValueError(
            f"{file} is damaged: its SHA-256 begins with {sha256[:8]}, not {promised[1]} as its "
            "name says; remove it and fetch it again"
        )
    return Weights(params_from_torch(pth.read_pth(file)), sha256)


def places() -> list[pathlib.Path]:
    """Where the weights are looked for: our cache, and that of pytorch-fid."""
    hub = os.environ.get("TORCH_HOME", "~/.cache/torch")
    return [
        default_folder() / "inception" / FILE,
        pathlib.Path(hub).expanduser() / "hub" / "checkpoints" / FILE,
    ]


def _cached() -> pathlib.Path:
    """The file of pytorch-fid's weights, downloaded on first use."""
    found = [place for place in places() if place.is_file()]
    if not found:
        _download(places()[0])
    return found[0] if found else places()[0]


def _download(target: pathlib.Path) -> None:
    try:
        reach(URL)
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(URL, timeout=60) as answer,
            tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as part,
        ):
            try:
                size = int(answer.headers.get("Content-Length") or 0)
                with tqdm(total=size or None, desc=FILE, unit="B", unit_scale=True) as bar:
                    while chunk := answer.read(1 << 20):
                        part.write(chunk)
                        bar.update(len(chunk))
                part.close()
                os.replace(part.name, target)
            except BaseException:
                pathlib.Path(part.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise FileNotFoundError(
            f"the Inception network is not on this machine and could not be downloaded "
            f"({type(error).__name__}): fetch {URL} into {target.parent}, or name the file with "
            "--config.eval.inception_path"
        ) from error


def params_from_torch(tensors: Mapping[str, Any]) -> Params:
    """Parameters of `Network` from a state dictionary of pytorch-fid's, normalisation folded in.

    Raises:
      ValueError: tensors that are missing, of another shape or not finite, or that nothing here
        knows; the first ones are named.
    """
    wrong = [f"{name} is unknown" for name in tensors if name not in torch_shapes()]
    for name, shape in torch_shapes().items():
        found = tensors.get(name)
        if found is None and not name.endswith(COUNTER):
            wrong.append(f"{name} is missing")
        elif found is not None and np.shape(found) != shape:
            wrong.append(f"{name} is {np.shape(found)}, not {shape}")
        elif found is not None and not np.isfinite(found).all():
            wrong.append(f"{name} is not finite")
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(f"these are no weights of {NAME}: {', '.join(wrong[:4])}{more}")
    made: dict[tuple[str, ...], Any] = {("fc", "kernel"): np.asarray(tensors["fc.weight"]).T}
    for name in torch_shapes():
        if name.endswith(".conv.weight"):
            layer = name.removesuffix(".conv.weight")
            for kind, array in folded(tensors, layer).items():
                made[*layer.split("."), kind] = array
    return flax.traverse_util.unflatten_dict(made)


def folded(tensors: Mapping[str, Any], layer: str) -> dict[str, np.ndarray]:
    """`kernel [h, w, C, O]` and `bias [O]` of a convolution with its normalisation, in float32."""
    kinds = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (
        np.asarray(tensors[f"{layer}.bn.{kind}"], np.float64) for kind in kinds
    )
    gain = gamma / np.sqrt(variance + EPSILON)
    weight = np.asarray(tensors[f"{layer}.conv.weight"]).transpose(2, 3, 1, 0)
    arrays = {"kernel": weight * gain, "bias": beta - mean * gain}
    return {kind: array.astype(np.float32) for kind, array in arrays.items()}


@functools.cache
def torch_shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in pytorch-fid's file, from the network here.

    `COUNTER`s of training and the logits' bias are among them and in no use; the former may lack.
    """
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    tree = jax.eval_shape(Network().init, jax.random.key(0), images)["params"]
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in flax.traverse_util.flatten_dict(tree).items():
        name = ".".join(path[:-1])
        if name == "fc":
            shapes |= {"fc.weight": leaf.shape[::-1], "fc.bias": leaf.shape[1:]}
        elif path[-1] == "kernel":
            height, width, inputs, features = leaf.shape
            shapes[f"{name}.conv.weight"] = (features, inputs, height, width)
            for kind in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.bn.{kind}"] = (features,)
            shapes[f"{name}.bn.{COUNTER}"] = ()
    return shapes
