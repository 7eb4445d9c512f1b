"""EDM's networks (NVlabs/edm) as our configs and weights.

The preconditioning of a file says which SDE and prediction it is: EDM's own; VP and VE, which are
those of score_sde, with images in [-1, 1] and, for VE, in [0, 1].
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from interop import adm, edm_pickle, official, song_unet
from interop.edm_pickle import Network
from interop.weights import Weights
from models import ADM, NCSNpp

Values = dict[str, Any]  # fields of a config by dotted name


class Preconditioning(NamedTuple):
    """What a class of preconditioning is among ours.

    Attributes:
      values: fields of the config, from the attributes of the object.
      attributes: those that `values` reads, and those of which one value is served.
      embedding: `model.embedding_type` of positional embeddings.
      log_scale: the network is told this times the logarithm of our label.
    """

    values: Callable[[Mapping[str, Any]], Values]
    attributes: Mapping[str, Any]
    embedding: str
    log_scale: float = 1.0


def _edm(outer: Mapping[str, Any]) -> Values:
    return {
        "training.sde": "edm",
        "training.continuous": True,
        "data.centered": True,
        "model.prediction": "edm",
        "model.scale_by_sigma": False,
        "model.sigma_data": float(outer["sigma_data"]),
    }


def _vp(outer: Mapping[str, Any]) -> Values:
    beta_min = float(outer["beta_min"])
    return {
        "training.sde": "vpsde",
        "training.continuous": True,
        "data.centered": True,
        "model.prediction": "",
        "model.scale_by_sigma": False,
        "model.beta_min": beta_min,
        "model.beta_max": beta_min + float(outer["beta_d"]),
    }


def _ve(outer: Mapping[str, Any]) -> Values:
    return {
        "training.sde": "vesde",
        "training.continuous": True,
        "data.centered": False,
        "model.prediction": "",
        "model.scale_by_sigma": True,
        "model.sigma_min": float(outer["sigma_min"]) / 2,
        "model.sigma_max": float(outer["sigma_max"]) / 2,
    }


NUMBER = object()  # any number
PRECONDITIONINGS = {
    "EDMPrecond": Preconditioning(_edm, {"sigma_data": NUMBER}, "log_positional", 0.25),
    "VPPrecond": Preconditioning(
        _vp, {"beta_d": NUMBER, "beta_min": NUMBER, "M": 1000}, "positional"
    ),
    "VEPrecond": Preconditioning(_ve, {"sigma_min": NUMBER, "sigma_max": NUMBER}, "positional"),
}


class EdmFile:
    """A pickle of EDM.

    Raises:
      ValueError: it cannot be read, or has something in it that is not allowed.
    """

    format = "pickle of EDM"
    scheduler = None

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.network = edm_pickle.read(path)
        arrays = list(self.network.tensors.values())
        self.num_tensors = len(arrays)
        self.types = {str(array.dtype) for array in arrays if array.dtype != np.float32}
        self.unused = self.network.unused

    @property
    def described_in(self) -> str:
        """What says which network, SDE and prediction it is."""
        return str(self.path)

    @property
    def description(self) -> Values:
        """The arguments of its network's constructor."""
        return self.network.inner

    def config_values(self, image_size: int | None) -> Values:
        """The fields of network, SDE and prediction; `image_size` is in the file.

        Raises:
          ValueError: a preconditioning or a network that is none of ours.
        """
        del image_size
        return config_values(self.network, str(self.path))

    def weights(self, module: nn.Module, image_shape: official.Shape) -> Weights:
        """Raises ValueError for anything that is not the network's; names all of it."""
        return Weights(self._params(module, image_shape), only_averages=True)

    def _params(self, module: nn.Module, image_shape: official.Shape) -> official.Params:
        tensors = {
            name.removeprefix("model."): array
            for name, array in self.network.tensors.items()
            if name.startswith("model.")
        }
        if isinstance(module, ADM):
            return adm.params(tensors, module, image_shape)
        if not isinstance(module, NCSNpp):
            raise ValueError(f"{self.path} is of no {type(module).__name__}")
        scale = PRECONDITIONINGS[self.network.preconditioning].log_scale
        return song_unet.params(tensors, module, image_shape, scale)


def config_values(network: Network, what: str) -> Values:
    """The fields of a config that describe a network of EDM.

    Raises:
      ValueError: it is none of ours; says by which attribute. Errors say `what` it is.
    """
    kind = PRECONDITIONINGS.get(network.preconditioning)
    if kind is None:
        raise ValueError(
            f"{what}: the preconditioning {network.preconditioning} is not served; known are "
            f"{', '.join(PRECONDITIONINGS)}"
        )
    for name, wanted in kind.attributes.items():
        value = network.outer.get(name)
        if (wanted is NUMBER and not _is_number(value)) or (
            wanted is not NUMBER and value != wanted
        ):
            served = "a number" if wanted is NUMBER else wanted
            raise ValueError(f"{what}: its {name} is {str(value)[:40]}; {served} is served")
    architecture = ARCHITECTURES.get(network.architecture)
    if architecture is None:
        raise ValueError(
            f"{what}: the network {network.architecture[:60]} is not served; known are "
            f"{', '.join(ARCHITECTURES)}"
        )
    try:
        return kind.values(network.outer) | architecture(network.inner, kind)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{what}: its network lacks, or has no number for, {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sizes(inner: Mapping[str, Any]) -> Values:
    """The fields that both networks have."""
    return {
        "data.image_size": int(inner["img_resolution"]),
        "data.num_channels": int(inner["in_channels"]),
        "model.nf": int(inner["model_channels"]),
        "model.ch_mult": tuple(int(width) for width in inner["channel_mult"]),
        "model.num_res_blocks": int(inner["num_blocks"]),
        "model.attn_resolutions": tuple(int(size) for size in inner["attn_resolutions"]),
        "model.dropout": float(inner["dropout"]),
        "model.num_labels": int(inner["label_dim"]),
        "model.augment_dim": int(inner.get("augment_dim", 0)),
        "model.conditional": True,
    }


def _song_unet(inner: Mapping[str, Any], kind: Preconditioning) -> Values:
    fourier = _one_of(inner, "embedding_type", {"fourier": True, "positional": False})
    taps = tuple(inner.get("resample_filter", (1, 1)))
    fir = _filter(taps)
    residual = _one_of(inner, "encoder_type", {"standard": "none", "residual": "residual"})
    _one_of(inner, "decoder_type", {"standard": None})
    _one_of(inner, "channel_mult_noise", {2: None} if fourier else {1: None}, missing=1)
    _one_of(inner, "channel_mult_emb", {4: None}, missing=4)
    return {
        **_sizes(inner),
        "model.name": "ncsnpp",
        "model.resblock_type": "biggan",
        "model.progressive": "none",
        "model.progressive_input": residual,
        "model.skip_rescale": True,
        "model.fir": fir,
        **({"model.fir_kernel": taps} if fir else {}),
        "model.embedding_type": "fourier" if fourier else kind.embedding,
        "model.fourier_scale": 16.0 * kind.log_scale,
        "model.class_embedding": "input",
    }


def _dhariwal_unet(inner: Mapping[str, Any], kind: Preconditioning) -> Values:
    _one_of(inner, "channel_mult_emb", {4: None}, missing=4)
    if inner["out_channels"] != inner["in_channels"]:
        raise ValueError("a network that predicts its variance, too, is not served")
    return {
        **_sizes(inner),
        "model.name": "adm",
        "model.embedding_type": kind.embedding,
        "model.head_channels": 64,
    }


def _filter(taps: tuple[Any, ...]) -> bool:
    """True if the resolution is changed with a filter, False if by nearest and average."""
    return taps != (1, 1)


def _one_of(
    inner: Mapping[str, Any], name: str, values: Mapping[Any, Any], missing: Any = None
) -> Any:
    value = inner.get(name, missing)
    if value not in values:
        served = ", ".join(str(known) for known in values)
        raise ValueError(f"its {name} is {str(value)[:40]}; served: {served}")
    return values[value]


ARCHITECTURES: dict[str, Callable[[Mapping[str, Any], Preconditioning], Values]] = {
    "SongUNet": _song_unet,
    "DhariwalUNet": _dhariwal_unet,
}
