"""The small reproduction on digits: VP."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """The quickstart's network, trained twice as long on a falling learning rate."""
    config = quickstart.get_config()
    config.training.n_iters = 2000
    config.training.snapshot_freq = 2000
    config.training.eval_freq = 500
    config.optim.schedule = "cosine"
    config.optim.decay_steps = 2000
    config.sampling.num_frames = 0
    config.sampling.batch_size = 250
    config.eval.num_samples = 500
    config.eval.seeds = 3
    config.eval.bpd_num_repeats = 5
    return config
