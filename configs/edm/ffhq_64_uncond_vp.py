"""EDM's DDPM++ on FFHQ at 64 x 64 (edm-ffhq-64x64-uncond-vp)."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.edm_64("ffhq", dropout=0.05)
    defaults.edm_ddpmpp(config)
    return config
