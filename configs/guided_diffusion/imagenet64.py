"""ADM on ImageNet 64 x 64, told the class: `64x64_diffusion.pt`."""

from ml_collections import ConfigDict

from configs import defaults, schema


def get_config() -> ConfigDict:
    config = schema.base()
    config.data.dataset = "imagenet64"
    defaults.adm(config, 64)
    config.model.num_labels = 1000
    config.training.n_iters = 540000
    return config
