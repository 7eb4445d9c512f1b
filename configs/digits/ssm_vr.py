"""Sliced score matching on digits, with reduced variance and Rademacher directions."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.training.objective = "ssm_vr"
    return config
