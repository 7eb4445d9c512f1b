"""NCSNv2 (arXiv:2006.09011) on LSUN bedrooms at 128 x 128.

Mended: the official file says `training.continuouse = False`, so its `continuous` stays True;
here it is False, as the network takes a noise level's index.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.px256("lsun_bedroom")
    defaults.ncsnv2(config, name="ncsnv2_128")
    defaults.noise_scales(config, sigma_max=190.0, num_scales=1086, n_steps_each=3, snr=0.095)
    config.training.batch_size = 128
    config.data.image_size = 128
    config.model.ema_rate = 0.9999
    return config
