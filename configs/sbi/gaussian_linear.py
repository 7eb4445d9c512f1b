"""The posterior of the Gaussian linear task (sbibm), learnt for every observation."""

from ml_collections import ConfigDict

from configs.values import inference


def get_config() -> ConfigDict:
    return inference("gaussian_linear", (20,), 10, steps=3000)
