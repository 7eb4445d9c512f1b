"""Interpolants that let the data go later, `(1 - t^2) x_0 + t z`, on a Gaussian mixture."""

from ml_collections import ConfigDict

from configs import defaults, flows


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    flows.flow(config, "interpolant")
    config.training.time = "mode"
    return config
