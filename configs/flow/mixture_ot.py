"""Flow matching's paths of optimal transport on a Gaussian mixture."""

from ml_collections import ConfigDict

from configs import defaults, flows


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    flows.flow(config, "flow_ot")
    return config
