"""The embedded default: scikit-learn's digits, a VP SDE and a small NCSN++, minutes on a CPU."""

from ml_collections import ConfigDict

from configs import schema


def get_config() -> ConfigDict:
    """8x8 pixels, 17 grey levels, 0.7 million parameters."""
    config = schema.base()

    config.data.dataset = "digits"
    config.data.image_size = 8
    config.data.num_channels = 1
    config.data.centered = True
    config.data.random_flip = False
    config.data.uniform_dequantization = True

    training = config.training
    training.sde = "vpsde"
    training.batch_size = 128
    training.n_iters = 1050
    training.n_jitted_steps = 20
    training.reduce_mean = True
    training.log_freq = 20
    training.eval_freq = 100
    training.snapshot_freq = 1000
    training.snapshot_freq_for_preemption = 200
    training.snapshot_sampling = False

    model = config.model
    model.nf = 24
    model.ch_mult = (1, 2, 2)
    model.num_res_blocks = 1
    model.attn_resolutions = (4,)
    model.embedding_type = "positional"
    model.fir = False
    model.dropout = 0.0
    model.ema_rate = 0.999
    model.ema_warmup = True

    config.classifier.widen_factor = 1
    config.classifier.blocks_per_group = 1

    config.optim.lr = 2e-3
    config.optim.warmup = 50

    sampling = config.sampling
    sampling.method = "dpmpp_2m_sde"
    sampling.num_steps = 30
    sampling.batch_size = 500
    sampling.num_frames = 24

    config.eval.batch_size = 297
    config.eval.num_samples = 1500
    config.eval.enable_sampling = True
    config.eval.enable_bpd = True
    config.eval.bpd_rtol = 1e-3
    config.eval.bpd_atol = 1e-3
    return config
