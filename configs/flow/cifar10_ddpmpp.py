"""Rectified flow on CIFAR-10 with DDPM++."""

from ml_collections import ConfigDict

from configs import defaults, flows


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    flows.flow(config)
    defaults.ddpmpp(config)
    config.model.ema_rate = 0.999999
    config.model.ema_warmup = True
    config.model.dropout = 0.15
    config.eval.enable_sampling = True
    return config
