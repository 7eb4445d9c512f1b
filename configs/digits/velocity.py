"""Velocity prediction on digits, its error weighted as a velocity's."""

from ml_collections import ConfigDict

from configs import quickstart, siblings


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    siblings.velocity(config)
    return config
