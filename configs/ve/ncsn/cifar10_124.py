"""NCSN on CIFAR-10 with techniques 1, 2 and 4 (noise scales) of arXiv:2006.09011.

Mended: the official file lacks `model.num_classes` (here = `model.num_scales`).
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.ncsn(config)
    defaults.noise_scales(config, sigma_max=50.0, num_scales=232, n_steps_each=5, snr=0.176)
    return config
