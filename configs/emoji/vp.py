"""Emoji: a VP SDE and a small DDPM++ that predicts the velocity, a quarter of an hour on a CPU."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    """32x32 pixels, colour, 1.0 million parameters."""
    config = defaults.cifar10()
    defaults.vp(config, continuous=True)
    defaults.ddpmpp(config)

    config.data.dataset = "emoji"
    config.data.random_flip = False  # letters, flags and clocks have a left and a right

    training = config.training
    training.batch_size = 32
    training.n_iters = 2000
    training.n_jitted_steps = 10
    training.weighting = "velocity"
    training.log_freq = 20
    training.eval_freq = 1000
    training.snapshot_freq = 2000
    training.snapshot_freq_for_preemption = 250
    training.snapshot_sampling = False

    model = config.model
    model.prediction = "velocity"
    model.nf = 24
    model.ch_mult = (1, 2, 2, 2)
    model.num_res_blocks = 1
    model.attn_resolutions = (8,)
    model.dropout = 0.0
    model.ema_rate = 0.999
    model.ema_warmup = True

    config.classifier.num_classes = 9
    config.classifier.widen_factor = 1
    config.classifier.blocks_per_group = 1

    config.optim.lr = 1e-3
    config.optim.warmup = 100
    config.optim.schedule = "cosine"
    config.optim.decay_steps = 2000

    sampling = config.sampling
    sampling.method = "dpmpp_2m_sde"
    sampling.num_steps = 40
    sampling.num_frames = 24

    config.eval.batch_size = 128
    config.eval.num_samples = 640
    config.eval.enable_sampling = True
    config.eval.features = "classifier"
    return config
