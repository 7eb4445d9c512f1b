"""NCSNv2 (arXiv:2006.09011) on CelebA at 64 x 64."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.celeba()
    defaults.ncsnv2(config, name="ncsnv2_64")
    defaults.noise_scales(config, sigma_max=90.0, num_scales=500, n_steps_each=5, snr=0.128)
    return config
