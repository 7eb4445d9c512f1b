"""Contenders of the row "sampler": whole samplers, and one evaluation of their networks.

"heun" is EDM's, 18 steps or 35 evaluations, beside EDM's own `edm_sampler`; "pc" is the published
predictor-corrector sampler of VE, 50 steps or 100 evaluations, beside diffusers'
`ScoreSdeVePipeline`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import network
from benchmarks.network import Calls
from benchmarks.today.worker import Job, Loaded

BATCH = 16
CASES = {"heun": ("vp_32", 18), "pc": ("ve_fir_32", 50)}  # the network, and the steps
NETWORK_CALLS = 20  # evaluations of the network in a turn


def load(job: Job) -> Loaded:
    """The calls "sampler" and "network"; the fact "nfe" is the sampler's number of evaluations."""
    name, steps = CASES[job.case]
    steps = 3 if job.quick else steps
    if job.contender in ("ours", "ours_xla"):
        return ours(name, job.case, steps)
    return edm(job, name, steps) if job.contender.startswith("edm") else diffusers(job, name, steps)


def ours(name: str, case: str, steps: int) -> Loaded:
    """Our sampler as one program, to levels of pixels."""
    from runtime import backend  # isort: skip

    backend.prepare()  # before JAX is imported
    import jax
    import jax.numpy as jnp

    import models
    import sampling
    from configs import defaults
    from diffusion.noise import image_noise
    from runtime import devices, experiment

    config = network.read_config(network.CASES[name])
    if case == "heun":
        defaults.edm_training(config, sigma_data=0.5)
        config.model.embedding_type, config.sampling.method = "log_positional", "heun"
    else:
        config.sampling.method, config.sampling.noise_removal = "pc", True
    config.sampling.num_steps, config.sampling.num_frames = steps, 0
    parts = experiment.build(config)
    params = models.init(parts.module, jax.random.key(0), parts.image_shape)
    sample = sampling.from_config(config)

    @jax.jit
    def draw(params: Any) -> Any:
        keys = devices.image_keys(jax.random.key(1), jnp.arange(BATCH))
        noise = image_noise(keys, parts.image_shape)
        samples = sample(parts.sde, parts.for_samplers(params), noise)
        return parts.pixels.to_levels(samples.x), samples.nfe

    x, labels = jnp.zeros((BATCH, *parts.image_shape)), jnp.full(BATCH, 0.5)
    evaluate = jax.jit(lambda params, x: parts.module.apply({"params": params}, x, labels))
    nfe = int(np.max(draw(params)[1]))

    def evaluations() -> None:
        for _ in range(NETWORK_CALLS):
            jax.block_until_ready(evaluate(params, x))

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    calls: Calls = {
        "sampler": (lambda: jax.block_until_ready(draw(params)), 1),
        "network": (evaluations, NETWORK_CALLS),
    }
    return Loaded(calls, {"parameters": count, "nfe": nfe})


def edm(job: Job, name: str, steps: int) -> Loaded:
    """`edm_sampler` of EDM's generate.py, and SongUNet."""
    from benchmarks import torch_peers

    sampler = torch_peers.edm_module(job.checkout, "generate").edm_sampler
    import torch

    net = torch_peers.edm(job.checkout, network.read_config(network.CASES[name])).eval()
    net.requires_grad_(False)
    if job.contender == "edm_compiled":
        net.model = torch_peers.compiled(net.model)
    shape = (BATCH, 3, net.img_resolution, net.img_resolution)
    x, labels = torch.zeros(shape), torch.full((1,), 0.5)  # one for all, as `edm_sampler` has it

    def draw() -> Any:
        latents = torch.randn(shape)
        images = sampler(net, latents, num_steps=steps)
        return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)

    calls: Calls = {
        "sampler": (draw, 1),
        "network": (lambda: evaluations(lambda: net.model(x, labels, None)), NETWORK_CALLS),
    }
    return Loaded(calls, {"parameters": torch_peers.parameters(net), "nfe": 2 * steps - 1})


def evaluations(evaluate: Any) -> None:
    """Several evaluations of a PyTorch network."""
    for _ in range(NETWORK_CALLS):
        evaluate()


def diffusers(job: Job, name: str, steps: int) -> Loaded:
    """`ScoreSdeVePipeline` of diffusers with `UNet2DModel`."""
    from benchmarks import torch_peers

    unet = torch_peers.diffusers(network.read_config(network.CASES[name])).eval()
    import torch
    from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler

    unet.requires_grad_(False)
    count = torch_peers.parameters(unet)
    if job.contender == "diffusers_compiled":
        unet.compile()
    pipeline = ScoreSdeVePipeline(unet=unet, scheduler=ScoreSdeVeScheduler(snr=0.16))
    pipeline.set_progress_bar_config(disable=True)
    size = unet.config.sample_size
    x, sigma = torch.zeros(BATCH, 3, size, size), torch.full((BATCH,), 0.5)
    options = {"batch_size": BATCH, "num_inference_steps": steps, "output_type": "np"}
    calls: Calls = {
        "sampler": (lambda: pipeline(**options), 1),
        "network": (lambda: evaluations(lambda: unet(x, sigma)), NETWORK_CALLS),
    }
    return Loaded(calls, {"parameters": count, "nfe": 2 * steps})
