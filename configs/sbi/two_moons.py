"""The posterior of two moons (sbibm), learnt for every observation."""

from ml_collections import ConfigDict

from configs.values import inference


def get_config() -> ConfigDict:
    config = inference("two_moons_sbi", (4,), 2, steps=5000)
    config.training.log_sigma_mean, config.training.log_sigma_std = -2.5, 2.0
    return config
