"""DDPM on a Gaussian mixture: noise prediction at 100 steps, ancestral sampling."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.vp(config, continuous=False)
    config.model.prediction = "noise"
    config.model.num_scales = 100
    config.sampling.method = "pc"
    config.sampling.num_steps = 0
    config.eval.enable_bpd = False
    return config
