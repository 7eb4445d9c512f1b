"""Networks from configs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from configs.attention import check_attention
from configs.names import documented_by, lookup
from configs.shapes import example_shape
from models.adm import ADM
from models.ddpm import DDPM
from models.edm2 import EDM2, unit_weights
from models.mlp import MLP
from models.ncsn import NCSN, NCSNv2
from models.ncsnpp import NCSNpp
from models.objectives import has_samples
from models.transformer import Transformer
from models.unet1d import UNet1D

# Types of the arithmetic; None is float32, which needs no casts.
DTYPES: Mapping[str, Any] = {"float32": None, "bfloat16": jnp.bfloat16}


def _unet(config: Any) -> dict[str, Any]:
    """Arguments that all U-Nets share."""
    model = config.model
    return {
        "nf": model.nf,
        "ch_mult": tuple(model.ch_mult),
        "num_res_blocks": model.num_res_blocks,
        "attn_resolutions": tuple(model.attn_resolutions),
        "dropout": model.dropout,
        "centered": config.data.centered,
        "num_labels": model.num_labels,
        "dtype": lookup(DTYPES, model.dtype, "model.dtype"),
        "remat": model.remat,
    }


def _of_the_paper(config: Any) -> dict[str, Any]:
    """Arguments that NCSN++ and DDPM share."""
    model = config.model
    _check_normalization(model, "GroupNorm")
    check_attention(config)
    _check_blocks(model)
    return {
        **_unet(config),
        "nonlinearity": model.nonlinearity.lower(),
        "resamp_with_conv": model.resamp_with_conv,
        "conditional": model.conditional,
        "scale_by_sigma": model.scale_by_sigma,
        "sigma_min": model.sigma_min,
        "sigma_max": model.sigma_max,
        "num_scales": model.num_scales,
    }


@documented_by(DDPM)
def _ddpm(config: Any) -> DDPM:
    return DDPM(**_of_the_paper(config), attn_each_up_block=config.model.attn_each_up_block)


@documented_by(NCSNpp)
def _ncsnpp(config: Any) -> NCSNpp:
    model = config.model
    return NCSNpp(
        **_of_the_paper(config),
        fir_kernel=tuple(model.fir_kernel) if model.fir else None,
        skip_rescale=model.skip_rescale,
        resblock_type=model.resblock_type.lower(),
        progressive=model.progressive.lower(),
        progressive_input=model.progressive_input.lower(),
        progressive_combine=model.progressive_combine.lower(),
        embedding_type=model.embedding_type.lower(),
        fourier_scale=model.fourier_scale,
        init_scale=model.init_scale,
        attn_num_groups=model.attn_num_groups,
        class_embedding=model.class_embedding.lower(),
        augment_dim=model.augment_dim,
    )


def _with_heads(config: Any) -> dict[str, Any]:
    """Arguments that ADM and EDM2 share."""
    model = config.model
    return {
        **_unet(config),
        "head_channels": model.head_channels,
        "embedding_type": model.embedding_type.lower(),
    }


@documented_by(ADM)
def _adm(config: Any) -> ADM:
    model = config.model
    _check_normalization(model, "GroupNorm")
    return ADM(
        **_with_heads(config),
        num_heads=model.num_heads,
        num_groups=model.num_groups,
        learned_variance=model.learned_variance,
        attention_order=model.attention_order,
        augment_dim=model.augment_dim,
    )


@documented_by(EDM2)
def _edm2(config: Any) -> EDM2:
    _check_normalization(config.model, "none", "GroupNorm")
    check_attention(config)
    return EDM2(**_with_heads(config))


@documented_by(NCSNv2)
def _ncsn(config: Any, architecture: str, conditional: bool) -> NCSNv2:
    model = config.model
    if model.num_labels:
        raise ValueError(
            f"model.num_labels is {model.num_labels}; {model.name} cannot be told classes"
        )
    _check_normalization(model, "InstanceNorm++")
    fields = {
        "nf": model.nf,
        "architecture": architecture,
        "nonlinearity": model.nonlinearity.lower(),
        "interpolation": model.interpolation,
        "scale_by_sigma": model.scale_by_sigma,
        "sigma_min": model.sigma_min,
        "sigma_max": model.sigma_max,
        "num_scales": model.num_scales,
        "centered": config.data.centered,
        "dtype": lookup(DTYPES, model.dtype, "model.dtype"),
        "remat": model.remat,
        "pytorch": model.pytorch,
    }
    if conditional:
        return NCSN(**fields, num_classes=model.num_classes or model.num_scales)
    return NCSNv2(**fields)


def _of_any_shape(config: Any) -> dict[str, Any]:
    """Arguments that the networks of real-valued examples share."""
    model = config.model
    _check_blocks(model)
    return {
        "nf": model.nf,
        "num_res_blocks": model.num_res_blocks,
        "dropout": model.dropout,
        "nonlinearity": model.nonlinearity.lower(),
        "conditional": model.conditional,
        "embedding_type": model.embedding_type.lower(),
        "fourier_scale": model.fourier_scale,
        "scale_by_sigma": model.scale_by_sigma,
        "sigma_min": model.sigma_min,
        "sigma_max": model.sigma_max,
        "num_scales": model.num_scales,
        "num_labels": model.num_labels,
        "dtype": lookup(DTYPES, model.dtype, "model.dtype"),
    }


@documented_by(MLP)
def _mlp(config: Any) -> MLP:
    _check_normalization(config.model, "none", "GroupNorm")
    return MLP(**_of_any_shape(config))


@documented_by(Transformer)
def _transformer(config: Any) -> Transformer:
    model = config.model
    _check_normalization(model, "none", "GroupNorm")
    return Transformer(
        **_of_any_shape(config),
        num_heads=model.num_heads,
        head_channels=model.head_channels,
        patch_size=model.patch_size,
    )


@documented_by(UNet1D)
def _unet1d(config: Any) -> UNet1D:
    model = config.model
    _check_normalization(model, "GroupNorm")
    check_attention(config)
    return UNet1D(
        **_of_any_shape(config),
        ch_mult=tuple(model.ch_mult),
        attn_resolutions=tuple(model.attn_resolutions),
    )


def _check_normalization(model: Any, *valid: str) -> None:
    """Refuses to name a normalisation that the network does not have.

    Every network has one and no choice of it; the field is the official configs'. An MLP has none,
    and its earlier configs have the default.
    """
    if model.normalization not in valid:
        raise ValueError(
            f"model.normalization is {model.normalization!r}, which model.name={model.name!r} does "
            f"not have; valid values: {', '.join(valid)}"
        )


def _check_blocks(model: Any) -> None:
    """Refuses a network without residual blocks, of which ADM's has more by itself."""
    if model.num_res_blocks < 1:
        raise ValueError(
            f"model.num_res_blocks is {model.num_res_blocks}; model.name={model.name!r} needs 1 or "
            "more"
        )


MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "adm": _adm,
    "ddpm": _ddpm,
    "edm2": _edm2,
    "mlp": _mlp,
    "ncsn": documented_by(NCSN)(functools.partial(_ncsn, architecture="64", conditional=True)),
    "ncsnpp": _ncsnpp,
    "ncsnv2_64": functools.partial(_ncsn, architecture="64", conditional=False),
    "ncsnv2_128": functools.partial(_ncsn, architecture="128", conditional=False),
    "ncsnv2_256": functools.partial(_ncsn, architecture="256", conditional=False),
    "transformer": _transformer,
    "unet1d": _unet1d,
}
# What training does to the parameters before each step, where it does anything.
CONSTRAINTS: dict[str, Callable[[Any], Any]] = {"edm2": unit_weights}
# The numbers of axes that an example may have, 4 standing for more; (3,) where it does not say so.
AXES = {"unet1d": (2,), "mlp": (1, 2, 3, 4), "transformer": (1, 2, 3, 4)}


def from_config(config: Any) -> nn.Module:
    """The network that `config.model` and `config.data.centered` describe.

    Raises:
      ValueError: an unknown name, nonlinearity, block or other choice; says which are known.
    """
    network = lookup(MODELS, config.model.name, "model.name")
    shape, valid = example_shape(config.data), AXES.get(config.model.name, (3,))
    axes = min(len(shape), 4)
    if axes not in valid:
        raise ValueError(
            f"model.name is {config.model.name!r}, which takes examples of "
            f"{' or '.join(map(str, valid))} axes, and they are {shape}; valid values of "
            f"model.name: {', '.join(name for name in MODELS if axes in AXES.get(name, (3,)))}"
        )
    return network(config)


def constraint(config: Any) -> Callable[[Any], Any] | None:
    """What a step of training first does to the network's parameters; None: nothing."""
    return CONSTRAINTS.get(config.model.name) if has_samples(config) else None


def init(module: nn.Module, key: jax.Array, image_shape: tuple[int, ...]) -> Any:
    """Initial parameters, a nested dict, for examples of `image_shape`, (H, W, C) of images."""
    x = jnp.zeros((1, *image_shape))
    return jax.jit(module.init)(key, x, jnp.zeros((1,), jnp.int32))["params"]
