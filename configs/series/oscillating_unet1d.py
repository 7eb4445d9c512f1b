"""A Gaussian process of 128 times and a 1-D U-Net, to fill gaps in."""

from ml_collections import ConfigDict

from configs.values import series


def get_config() -> ConfigDict:
    config = series("oscillating_series", (128, 1), steps=1000)
    config.control.mask = "0:32,64:96"
    return config
