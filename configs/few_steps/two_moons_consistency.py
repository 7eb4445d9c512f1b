"""Consistency training on two moons: one step, minutes on a CPU."""

from ml_collections import ConfigDict

from configs import flows
from configs.toy import two_moons_edm


def get_config() -> ConfigDict:
    config = two_moons_edm.get_config()
    flows.consistency_of_points(config)
    return config
