"""EDM's SongUNet and diffusers' UNet2DModel of the size that one of our configs has, and the
training steps that their projects take. Nothing here imports JAX.

    net = torch_peers.edm("path/to/edm", config)  # EDMPrecond around SongUNet
    unet = torch_peers.diffusers(config)
    step = torch_peers.edm_step("path/to/edm", net, net, images)

A checkout of EDM has a package `training`, as we do, and keeps its place on Python's path: it is
for a process that does not import ours.
"""

from __future__ import annotations

import copy
import importlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import ml_collections
import numpy as np

from benchmarks import checkouts

SIGMA_DATA = 0.5
CHANNELS_PER_GROUP, GROUPS = 4, 32  # of group normalisation, as in score_sde


def edm_module(path: str | pathlib.Path, name: str) -> Any:
    """A module of EDM's checkout.

    Raises:
      ValueError: no checkout of EDM, or a package is missing that it needs.
    """
    if checkouts.kind(path) != "edm":
        raise ValueError(f"--peer={path} is no checkout of EDM")
    for package in ("torch", "click", "requests"):
        checkouts.require(package)
    folder = str(pathlib.Path(path).resolve())
    if folder not in sys.path:
        if "training" in sys.modules:
            raise ValueError("EDM cannot be loaded where this project's training is")
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
    return importlib.import_module(name)


def edm(path: str | pathlib.Path, config: ml_collections.ConfigDict) -> Any:
    """EDM's SongUNet as `config.model` describes it, DDPM++ or NCSN++, in EDM's preconditioning.

    Raises:
      ValueError: as `edm_module`; a network that SongUNet is not.
    """
    model, size = config.model, config.data.image_size
    if model.name != "ncsnpp" or model.progressive != "none":
        raise ValueError("SongUNet is DDPM++ or NCSN++ without progressive output")
    ncsnpp = model.progressive_input == "residual"
    return edm_module(path, "training.networks").EDMPrecond(
        img_resolution=size,
        img_channels=config.data.num_channels,
        sigma_data=SIGMA_DATA,
        model_type="SongUNet",
        model_channels=model.nf,
        channel_mult=list(model.ch_mult),
        num_blocks=model.num_res_blocks,
        attn_resolutions=list(model.attn_resolutions),
        dropout=model.dropout,
        embedding_type="fourier" if model.embedding_type == "fourier" else "positional",
        encoder_type="residual" if ncsnpp else "standard",
        channel_mult_noise=2 if ncsnpp else 1,
        resample_filter=list(model.fir_kernel) if model.fir else [1, 1],
    )


def edm_step(
    path: str | pathlib.Path, net: Any, called: Any, images: np.ndarray
) -> Callable[[], None]:
    """A training step as EDM's training loop takes it: loss, Adam, finite gradients, average.

    Args:
      net: of `edm`.
      called: the same, or compiled.
      images: uint8 [B, H, W, C].
    """
    import torch

    loss_fn = edm_module(path, "training.loss").EDMLoss()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    average = copy.deepcopy(net).eval().requires_grad_(False)
    net.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        x = pixels.to(torch.float32) / 127.5 - 1
        loss_fn(net=called, images=x).sum().mul(1.0 / len(x)).backward()
        for parameter in net.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, 0.0, 1e5, -1e5, out=parameter.grad)
        optimizer.step()
        for mean, parameter in zip(average.parameters(), net.parameters(), strict=True):
            mean.copy_(parameter.detach().lerp(mean, 0.999))

    return step


def diffusers(config: ml_collections.ConfigDict) -> Any:
    """A UNet2DModel with the widths, depth and attention of `config.model`; with FIR filters of
    diffusers' blocks for NCSN++, whose image has a way of its own up as well as down.

    Raises:
      ValueError: PyTorch or diffusers is missing.
    """
    for package in ("torch", "diffusers"):
        checkouts.require(package)
    from diffusers import UNet2DModel

    model, size = config.model, config.data.image_size
    skip = "Skip" if model.fir else ""
    down: list[str] = []
    up: list[str] = []
    for level in range(len(model.ch_mult)):
        attention = "Attn" if size // 2**level in model.attn_resolutions else ""
        down.append(f"{attention}{skip}DownBlock2D")
        up.insert(0, f"{attention}{skip}UpBlock2D")
    return UNet2DModel(
        sample_size=size,
        in_channels=config.data.num_channels,
        out_channels=config.data.num_channels,
        time_embedding_type="fourier" if model.embedding_type == "fourier" else "positional",
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=tuple(model.nf * width for width in model.ch_mult),
        layers_per_block=model.num_res_blocks,
        downsample_type="resnet",
        upsample_type="resnet",
        dropout=model.dropout,
        attention_head_dim=None,
        norm_num_groups=min(model.nf // CHANNELS_PER_GROUP, GROUPS),
        norm_eps=1e-6,
    )


def diffusers_step(unet: Any, called: Any, images: np.ndarray) -> Callable[[], None]:
    """A training step as diffusers' examples take it: noise, its error, AdamW, EMAModel.

    Args:
      unet: of `diffusers`.
      called: the same, or compiled.
      images: uint8 [B, H, W, C].
    """
    import torch
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=1e-6)
    average = EMAModel(unet.parameters(), decay=0.9999)
    unet.train()

    def step() -> None:
        x = pixels.to(torch.float32) / 127.5 - 1
        noise = torch.randn_like(x)
        times = torch.randint(1, 1000, (len(x),))
        noisy = scheduler.add_noise(x, noise, times)
        predicted = called(noisy, times, return_dict=False)[0]
        torch.nn.functional.mse_loss(predicted, noise).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())

    return step


def parameters(module: Any) -> int:
    """The number of a PyTorch module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def compiled(module: Any) -> Any:
    """The module, compiled by torch.compile when it is first called."""
    import torch

    return torch.compile(module)
