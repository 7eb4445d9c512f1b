"""The small reproduction on emoji: VE."""

from ml_collections import ConfigDict

from configs.small import emoji_vp
from configs.small.digits_ve import ve


def get_config() -> ConfigDict:
    return ve(emoji_vp.get_config(), sigma_max=36.0)
