"""Fields of Burgers' equation in time and space and a U-Net, to sharpen averages."""

from ml_collections import ConfigDict

from configs.values import field


def get_config() -> ConfigDict:
    config = field("burgers", (32, 32, 1), steps=1500)
    config.control.task = "super_resolution"
    config.control.factor = 4
    config.control.num_images = config.control.num_variants = 6
    config.sampling.num_steps = 18
    return config
