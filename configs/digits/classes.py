"""Digits told apart: the network is told the class, and in one draw of ten is not."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.training.label_dropout = 0.1
    config.model.num_labels = 10
    return config
