"""EDM's NCSN++ on AFHQv2 at 64 x 64 (edm-afhqv2-64x64-uncond-ve)."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.edm_64("folder", dropout=0.25)
    defaults.edm_ncsnpp(config)
    return config
