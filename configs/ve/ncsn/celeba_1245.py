"""NCSN on CelebA at 64 x 64 with techniques 1, 2, 4 and 5 of arXiv:2006.09011.

Mended: the official file lacks `model.num_classes` (here = `model.num_scales`).
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.celeba()
    defaults.ncsn(config)
    defaults.noise_scales(config, sigma_max=90.0, num_scales=500, n_steps_each=5, snr=0.128)
    config.model.ema_rate = 0.999
    return config
