"""The posterior of SLCP (sbibm), learnt for every observation."""

from ml_collections import ConfigDict

from configs.values import inference


def get_config() -> ConfigDict:
    config = inference("slcp", (13,), 5, steps=25_000)
    config.model.nf = 128
    return config
