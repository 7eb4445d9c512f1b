"""Networks by whose features images are compared: Inception, DINOv2, CLIP.

An entry of `NETWORKS` says what a network gives out, and how it is loaded; `eval.features` names
it. Every metric that needs no more than "pool" serves all of them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from evaluation.metrics import inception, inception_weights
from evaluation.metrics.pillow_resize import pillow_resized
from evaluation.metrics.statistics import Origin
from interop import hub, transformers_clip, transformers_dinov2, transformers_files
from runtime import files

Outputs = dict[str, jax.Array]
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
DINOV2_SIZE = 224  # pixels, of FD-DINOv2
PILLOW = "pillow bicubic"


class Loaded(NamedTuple):
    """A network with its weights.

    Attributes:
      params: what `apply` takes.
      apply: (params, pixels 0..255 [B, H, W, 3]) -> outputs [B, ...] by name.
      origin: the network, its weights, and how images are resized for it.
      num_features: of the output "pool".
    """

    params: Any
    apply: Callable[[Any, jax.Array], Outputs]
    origin: Origin
    num_features: int


class Network(NamedTuple):
    """A kind of network.

    Attributes:
      title: in the titles of its numbers.
      outputs: the names of what it gives out, "pool" among them.
      load: from `config.eval`.
    """

    title: str
    outputs: tuple[str, ...]
    load: Callable[[ml_collections.ConfigDict], Loaded]


def _inception(options: ml_collections.ConfigDict) -> Loaded:
    """The Inception of 2015, from `eval.inception_path`, with the resize `eval.resize`.

    Raises:
      FileNotFoundError: the weights are not here and cannot be downloaded.
      ValueError: they are damaged; an unknown resize.
    """
    resize = options.resize
    inception.check_resize(resize)
    weights = inception_weights.load_weights(options.inception_path)

    def apply(params: Any, pixels: jax.Array) -> Outputs:
        return inception.apply(params, pixels, resize)._asdict()

    origin = Origin(inception.NAME, weights.sha256, resize)
    return Loaded(weights.params, apply, origin, inception.NUM_FEATURES)


def _dinov2(options: ml_collections.ConfigDict) -> Loaded:
    """DINOv2 at 224 pixels, as Stein et al. 2023 (arXiv:2306.04675) compare images by it: the class
    token behind the last norm. ViT-L/14 is published.

    Raises:
      FileNotFoundError: the weights are not here and cannot be fetched.
      ValueError: they are no DINOv2's.
    """
    folder = _folder(options, "hf:facebook/dinov2-large")
    module, params = transformers_dinov2.read(folder)

    def apply(params: Any, pixels: jax.Array) -> Outputs:
        size = DINOV2_SIZE // module.patch * module.patch
        x = normalised(pillow_resized(pixels, size), IMAGENET_MEAN, IMAGENET_STD)
        with jax.default_matmul_precision("highest"):
            return {"pool": module.apply({"params": params}, x)}  # type: ignore[dict-item]

    return Loaded(params, apply, _origin("dinov2", module, folder), module.width)


def _clip(options: ml_collections.ConfigDict) -> Loaded:
    """CLIP's image tower, as Jayasumana et al. 2024 (arXiv:2401.09603) compare images by it: unit
    vectors on the sphere that it shares with texts. ViT-L/14 at 336 pixels is published.

    Raises:
      FileNotFoundError: the weights are not here and cannot be fetched.
      ValueError: they are no CLIP's.
    """
    folder = _folder(options, "hf:openai/clip-vit-large-patch14-336")
    if not transformers_clip.is_folder(folder):
        raise ValueError(f"{folder} has no config.json of a CLIP (model_type)")
    module, params, mean, std = transformers_clip.read(folder)

    def apply(params: Any, pixels: jax.Array) -> Outputs:
        x = normalised(pillow_resized(pixels, module.image_size), mean, std)
        with jax.default_matmul_precision("highest"):
            pool: Any = module.apply({"params": params}, x, method="image")
        return {"pool": pool}

    return Loaded(params, apply, _origin("clip", module, folder), module.dim)


NETWORKS = {
    "inception": Network("", ("pool", "logits", "spatial"), _inception),
    "dinov2": Network("DINOv2", ("pool",), _dinov2),
    "clip": Network("CLIP", ("pool",), _clip),
}


def normalised(pixels: jax.Array, mean: Any, std: Any) -> jax.Array:
    """Pixels 0..255 as a network wants them: in [0, 1], less the mean [3], over the deviation."""
    return (pixels / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def _folder(options: ml_collections.ConfigDict, published: str) -> pathlib.Path:
    """The folder of a network's files, fetched if it must be."""
    source = options.features_path or published
    folder = hub.local(source, "--config.eval.features_path")
    if not folder.is_dir():
        raise ValueError(f"config.eval.features_path={source} is a file, not a folder of a network")
    return folder


def _origin(name: str, module: Any, folder: pathlib.Path) -> Origin:
    """The origin of features: the network's size is told by its weights' hash, and in words."""
    encoder = getattr(module, "vision", None)
    layers = encoder.args[0] if encoder else module.layers
    weights = files.sha256(transformers_files.weights_file(folder))
    return Origin(f"{name}, {layers} layers, patches of {module.patch}", weights, PILLOW)
