"""Denoising score matching on a Gaussian mixture, VP SDE."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.vp(config, continuous=True)
    return config
