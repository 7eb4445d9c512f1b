"""Prediction of x0 on a Gaussian mixture, with noise of 0.1 at least: see docs/objectives.md."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.ve(config, continuous=True)
    config.training.weighting = "x0"
    config.model.prediction = "x0"
    config.model.scale_by_sigma = False
    config.model.sigma_min = 0.1
    config.model.embedding_type = "fourier"
    return config
