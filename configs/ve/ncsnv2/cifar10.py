"""NCSNv2 (arXiv:2006.09011) on CIFAR-10."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.ncsnv2(config, name="ncsnv2_64")
    defaults.noise_scales(config, sigma_max=50.0, num_scales=232, n_steps_each=5, snr=0.176)
    return config
