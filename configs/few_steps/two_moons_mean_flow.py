"""A mean flow on two moons: one step, minutes on a CPU."""

from ml_collections import ConfigDict

from configs import flows
from configs.flow import two_moons_rectified


def get_config() -> ConfigDict:
    config = two_moons_rectified.get_config()
    flows.mean_flow(config)
    config.training.mean_flow_power = 0.0  # in the plane it would bias the mean of single paths
    return config
