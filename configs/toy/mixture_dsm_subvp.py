"""Denoising score matching on a Gaussian mixture, sub-VP SDE."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.subvp(config)
    return config
