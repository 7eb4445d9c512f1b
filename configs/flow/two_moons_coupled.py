"""Rectified flow on two moons, each batch paired with its noise by optimal transport."""

from ml_collections import ConfigDict

from configs.flow import two_moons_rectified


def get_config() -> ConfigDict:
    config = two_moons_rectified.get_config()
    config.training.coupling = "minibatch_ot"
    config.training.batch_size = 128
    return config
