"""Denoising score matching on a Gaussian mixture at one noise level, sampled by Langevin steps."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.ve(config, continuous=True)
    config.training.time = "fixed"
    config.training.sigma = 0.2
    config.model.conditional = False
    config.model.scale_by_sigma = False
    config.model.sigma_min = 0.2
    config.model.sigma_max = 2.0
    config.model.num_scales = 200
    config.sampling.method = "pc"
    config.sampling.num_steps = 0
    config.sampling.predictor = "none"
    config.sampling.corrector = "ald"
    config.eval.enable_bpd = False
    return config
