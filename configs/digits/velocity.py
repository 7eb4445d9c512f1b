"""Velocity prediction on digits, its error weighted as a velocity's."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.training.weighting = "velocity"
    config.model.prediction = "velocity"
    return config
