"""Rectified flow on digits."""

from ml_collections import ConfigDict

from configs import flows, quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    flows.flow(config)
    config.training.time = "logit_normal"
    return config
