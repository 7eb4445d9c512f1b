"""EDM's networks (NVlabs/edm) as our configs and weights.

The preconditioning of a file says which SDE and prediction it is: EDM's own; VP and VE, which are
those of score_sde, with images in [-1, 1] and, for VE, in [0, 1]; and iDDPM's chain, the cosine
schedule at discrete noise levels.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from diffusion import grids
from interop import adm, edm_pickle, official, song_unet
from interop.edm_pickle import Network
from interop.weights import Weights
from models import ADM, NCSNpp
from sde_lib import CosineVPSDE

Values = dict[str, Any]  # fields of a config by dotted name


class Preconditioning(NamedTuple):
    """What a class of preconditioning is among ours.

    Attributes:
      values: fields of the config, from the attributes of the object.
      attributes: those that `values` reads, and those of which one value is served.
      missing: their values where a file does not have them, those of EDM's constructor.
      embedding: `model.embedding_type` of positional embeddings.
      log_scale: the network is told this times the logarithm of our label.
    """

    values: Callable[[Mapping[str, Any]], Values]
    attributes: Mapping[str, Any]
    missing: Mapping[str, Any]
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


def _iddpm(outer: Mapping[str, Any]) -> Values:
    """Nichol and Dhariwal's chain: EDM's `C_1` and `C_2` are the constants of the schedule."""
    return {
        "training.sde": "cosine_vpsde",
        "training.continuous": False,
        "data.centered": True,
        "model.prediction": "",
        "model.scale_by_sigma": False,
        "model.num_scales": int(outer["M"]),
    }


NUMBER = object()  # any number
PRECONDITIONINGS = {
    "EDMPrecond": Preconditioning(
        _edm, {"sigma_data": NUMBER}, {"sigma_data": 0.5}, "log_positional", 0.25
    ),
    "VPPrecond": Preconditioning(
        _vp,
        {"beta_d": NUMBER, "beta_min": NUMBER, "M": 1000},
        {"beta_d": 19.9, "beta_min": 0.1, "M": 1000},
        "positional",
    ),
    "VEPrecond": Preconditioning(
        _ve,
        {"sigma_min": NUMBER, "sigma_max": NUMBER},
        {"sigma_min": 0.02, "sigma_max": 100},
        "positional",
    ),
    "iDDPMPrecond": Preconditioning(
        _iddpm,
        {"M": NUMBER, "C_1": 0.001, "C_2": CosineVPSDE.OFFSET},
        {"M": 1000, "C_1": 0.001, "C_2": CosineVPSDE.OFFSET},
        "positional",
    ),
}
# What the constructors of the networks take for what they are not given.
MISSING: dict[str, Values] = {
    "SongUNet": {
        "label_dim": 0,
        "augment_dim": 0,
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "channel_mult_emb": 4,
        "num_blocks": 4,
        "attn_resolutions": [16],
        "dropout": 0.1,
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": {
        "label_dim": 0,
        "augment_dim": 0,
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "channel_mult_emb": 4,
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
        "dropout": 0.1,
    },
}
TABLE = "u"  # of iDDPM's noise levels, from the largest to 0


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
        self.unused = [*self.network.unused, *unused_outputs(self.network)]

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
        weights = params(self.network, module, image_shape, str(self.path))
        return Weights(weights, only_averages=True)


def params(
    network: Network, module: nn.Module, image_shape: official.Shape, what: str
) -> official.Params:
    """Our parameters from the tensors of a network of EDM.

    Raises:
      ValueError: tensors that are not the network's, or a table of noise levels that is not
        iDDPM's. Errors say `what` it is.
    """
    _check_table(network, what)
    tensors = {
        name.removeprefix("model."): array
        for name, array in network.tensors.items()
        if not (network.preconditioning == "iDDPMPrecond" and name == TABLE)
    }
    if isinstance(module, ADM) and network.architecture == "DhariwalUNet":
        return adm.params(tensors, module, image_shape)
    if not isinstance(module, NCSNpp) or network.architecture != "SongUNet":
        raise ValueError(f"{what} is of no {type(module).__name__}")
    scale = PRECONDITIONINGS[network.preconditioning].log_scale
    return song_unet.params(tensors, module, image_shape, scale)


def unused_outputs(network: Network) -> list[str]:
    """The tensors of which a part is not used: outputs that predict the variance of a chain."""
    inner = network.inner
    if inner.get("out_channels") == inner.get("in_channels"):
        return []
    return ["the outputs of model.out_conv that predict a variance"]


def _check_table(network: Network, what: str) -> None:
    """Refuses noise levels that are not those of iDDPM's schedule."""
    if network.preconditioning != "iDDPMPrecond":
        return
    stored = np.asarray(network.tensors.get(TABLE, ()))
    steps = stored.size - 1
    # Theirs is computed in float32, where the smallest levels are off by 5e-4.
    if steps < 1 or not np.allclose(
        stored[-2::-1], grids.discrete_noise(CosineVPSDE(steps)), rtol=2e-3
    ):
        raise ValueError(f"{what}: its table {TABLE} is not that of iDDPM's noise levels")


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
    outer = {**kind.missing, **network.outer}
    for name, wanted in kind.attributes.items():
        value = outer.get(name)
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
    inner = {**MISSING[network.architecture], **network.inner}
    try:
        return kind.values(outer) | architecture(inner, kind)
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
        "model.augment_dim": int(inner["augment_dim"]),
        "model.conditional": True,
    }


def _song_unet(inner: Mapping[str, Any], kind: Preconditioning) -> Values:
    fourier = _one_of(inner, "embedding_type", {"fourier": True, "positional": False})
    taps = tuple(inner["resample_filter"])
    fir = _filter(taps)
    residual = _one_of(inner, "encoder_type", {"standard": "none", "residual": "residual"})
    _one_of(inner, "decoder_type", {"standard": None})
    _one_of(inner, "channel_mult_noise", {2: None} if fourier else {1: None})
    _one_of(inner, "channel_mult_emb", {4: None})
    if inner["out_channels"] != inner["in_channels"]:
        raise ValueError("a SongUNet that predicts its variance, too, is not served")
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
        **({"model.fourier_scale": 16.0 * kind.log_scale} if fourier else {}),
        **({"model.class_embedding": "input"} if inner["label_dim"] else {}),
    }


def _dhariwal_unet(inner: Mapping[str, Any], kind: Preconditioning) -> Values:
    _one_of(inner, "channel_mult_emb", {4: None})
    if inner["out_channels"] not in (inner["in_channels"], 2 * inner["in_channels"]):
        raise ValueError(
            f"its out_channels is {inner['out_channels']}; served: {inner['in_channels']}, or "
            "twice as many, of which half predict a variance"
        )
    return {
        **_sizes(inner),
        "model.name": "adm",
        "model.learned_variance": False,
        "model.embedding_type": kind.embedding,
        "model.head_channels": 64,
    }


def _filter(taps: tuple[Any, ...]) -> bool:
    """True if the resolution is changed with a filter, False if by nearest and average."""
    return taps != (1, 1)


def _one_of(inner: Mapping[str, Any], name: str, values: Mapping[Any, Any]) -> Any:
    value = inner[name]
    if value not in values:
        served = ", ".join(str(known) for known in values)
        raise ValueError(f"its {name} is {str(value)[:40]}; served: {served}")
    return values[value]


ARCHITECTURES: dict[str, Callable[[Mapping[str, Any], Preconditioning], Values]] = {
    "SongUNet": _song_unet,
    "DhariwalUNet": _dhariwal_unet,
}
