"""Rectified flow on two moons, with logit-normal times."""

from ml_collections import ConfigDict

from configs import defaults, flows


def get_config() -> ConfigDict:
    config = defaults.points("two_moons")
    flows.flow(config)
    config.training.time = "logit_normal"
    config.training.logit_std = 1.5
    return config
