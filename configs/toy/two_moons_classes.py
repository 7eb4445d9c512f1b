"""Two moons told apart: the network is told the class, and in one draw of ten is not."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("two_moons")
    defaults.vp(config, continuous=True)
    config.training.label_dropout = 0.1
    config.model.num_labels = 2
    return config
