"""Denoising score matching on a Gaussian mixture, VE SDE."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.ve(config, continuous=True)
    config.model.embedding_type = "fourier"
    return config
