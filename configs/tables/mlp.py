"""Your own vectors, or rows of a table, in data.data_dir, and an MLP."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("arrays")
    defaults.vp(config, continuous=True)
    config.data.shape = (5,)
    return config
