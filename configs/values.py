"""Families of configs whose examples are real numbers of any shape, standardised."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import defaults


def values(dataset: str, shape: tuple[int, ...], steps: int) -> ConfigDict:
    """Real-valued examples, EDM's training and sampler, for minutes on a CPU."""
    config = defaults.points(dataset)
    defaults.edm(config)
    defaults.edm_training(config, sigma_data=1.0)
    config.data.shape = shape
    config.training.batch_size = 256
    config.training.n_iters = config.optim.decay_steps = steps
    config.training.snapshot_freq = config.training.snapshot_freq_for_preemption = steps
    config.training.log_sigma_mean, config.training.log_sigma_std = -1.5, 1.6
    config.model.sigma_min, config.model.sigma_max = 0.002, 80.0
    config.model.dropout = 0.0
    config.model.ema_half_life = 0.0
    config.optim.lr = 2e-3
    config.sampling.num_steps = 32
    config.sampling.num_samples = 1000
    config.sampling.batch_size = 5000
    return config


def series(dataset: str, shape: tuple[int, ...], steps: int) -> ConfigDict:
    """A series, and a 1-D U-Net for it."""
    config = values(dataset, shape, steps)
    config.training.batch_size = 32
    config.model.name = "unet1d"
    config.model.attn_resolutions = ()
    return _small(config)


def field(dataset: str, shape: tuple[int, ...], steps: int) -> ConfigDict:
    """A field, and a small U-Net for it."""
    config = values(dataset, shape, steps)
    config.training.batch_size = 16
    config.model.name = "ncsnpp"
    config.model.attn_resolutions = (8,)
    config.model.fir = False
    config.optim.lr = 1e-3
    return _small(config)


def _small(config: ConfigDict) -> ConfigDict:
    """The config with a narrow U-Net and small evaluations, as examples are larger than vectors."""
    config.training.n_jitted_steps = 10
    config.model.nf = 16
    config.model.ch_mult = (1, 2, 2)
    config.model.num_res_blocks = 1
    config.sampling.num_samples = config.sampling.batch_size = 64
    config.eval.num_samples, config.eval.batch_size = 500, 250
    config.eval.enable_bpd = False
    config.eval.bpd_probe = "rademacher"
    config.control.method = "posterior"
    config.control.num_images, config.control.num_variants = 8, 16
    return config


def inference(task: str, shape: tuple[int, ...], dim_theta: int, steps: int) -> ConfigDict:
    """Simulation-based inference: p(theta | x) of a task of `data/simulators.py`, learnt for all x.

    The network is told x, without noise, and learns the score of theta.
    """
    config = values(task, shape, steps)
    config.training.known = config.control.mask = f"{dim_theta}:"
    config.eval.enable_sampling = config.eval.enable_bpd = False
    config.control.method = "conditional"
    config.control.num_images, config.control.num_variants = 10, 1000
    config.control.batch_size = 2000
    return config
