"""The one schema of all configs: every field once, with its default, its rule and its words.

A field's type is that of its default: `config_flags` gives it to an override
`--config.section.field=value`, so whatever may be fractional is a float (50.0, not 50) and every
list is a tuple. Names are the official configs'; some fields are new. A new field is one line here:
configs, `configs.check`, stored configs and the table in docs/configs.md take it from there.

Choices that a network, a sampler or a data set has by name are refused where they are looked up.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.control import CONTROL
from configs.rules import (
    ANY,
    FILTER,
    FRACTION,
    INTERVAL,
    LEVELS,
    NAMES,
    NOT_EMPTY_SIZES,
    NOT_NEGATIVE,
    NOT_ZERO,
    NUMBERS,
    POSITIVE,
    POSITIVE_NUMBERS,
    POSITIVE_SHARE,
    PROBABILITY,
    RATES,
    SAMPLERS,
    SEED,
    SIZES,
    SPLIT,
    STEPS,
    TWO_OR_MORE,
    WIDTHS,
    ZERO_OR_SEVERAL,
    Field,
    Section,
    only,
)

RUN = {
    "seed": Field(42, SEED, "seed of training: initial weights, order of the data, noise"),
}

TRAINING = {
    "sde": Field("vpsde", ANY, "vpsde, vesde, edm, rectified, ...: docs/configs.md has all"),
    "continuous": Field(True, ANY, "times in all of [0, T]; False: model.num_scales levels"),
    "batch_size": Field(128, POSITIVE, "images in a step, over all hosts and devices"),
    "n_iters": Field(1300001, POSITIVE, "steps of the whole training"),
    "snapshot_freq": Field(50000, POSITIVE, "steps between checkpoints that are all kept"),
    "snapshot_freq_for_preemption": Field(10000, POSITIVE, "steps between checkpoints to resume"),
    "log_freq": Field(50, POSITIVE, "steps between lines of the log"),
    "eval_freq": Field(100, POSITIVE, "steps between losses of the test images"),
    "loggers": Field(("tensorboard",), NAMES, "of metrics and grids: tensorboard, wandb, mlflow"),
    "n_jitted_steps": Field(5, POSITIVE, "steps in one compiled call"),
    "snapshot_sampling": Field(True, ANY, "draw a grid of samples at every snapshot"),
    "reduce_mean": Field(False, ANY, "loss: mean over pixels and channels; False: half the sum"),
    "likelihood_weighting": Field(False, ANY, "weight by g(t)^2, as weighting likelihood does"),
    "accumulation": Field(1, POSITIVE, "parts of a device's share of a batch, to save memory"),
    "shard_state": Field(False, ANY, "a device has its slice of moments and averages alone"),
    "augment": Field(0.0, PROBABILITY, "probability of each augmentation, told to the network"),
    "known": Field("", ANY, "slices of entries that are given, not noised: 2:, 0:32,96:"),
    "label_dropout": Field(0.0, PROBABILITY, "probability that an image's class is withheld"),
    "ema_rates": Field((), RATES, "rates of further averages, beside model.ema_rate"),
    "ema_profiles": Field((), WIDTHS, "relative widths of power-function averages: (0.05, 0.1)"),
    "ema_snapshot_freq": Field(20000, POSITIVE, "steps between stored averages of ema_profiles"),
    "objective": Field(
        "dsm", ANY, "dsm, esm, ism, ssm, ssm_vr; consistency, mean_flow; classifier, clip"
    ),
    "weighting": Field("", ANY, "noise, score, x0, velocity, edm, flow, likelihood; empty: noise"),
    "time": Field(
        "uniform", ANY, "of t: uniform, likelihood, log_normal, logit_normal, mode or fixed"
    ),
    "time_draws": Field("independent", ANY, "in a batch: independent, antithetic or stratified"),
    "coupling": Field("independent", ANY, "of images and noise: independent, minibatch_ot, reflow"),
    "teacher": Field("", ANY, "reflow, flow maps: folder of the run whose flow is learned"),
    "teacher_steps": Field(10, POSITIVE, "reflow: Heun steps of the teacher for a pair"),
    "tangent_warmup": Field(0, NOT_NEGATIVE, "consistency: steps in which the tangent grows"),
    "tangent_norm": Field(
        0.1, NOT_NEGATIVE, "consistency: c that softens the tangent's normalisation; 0: none"
    ),
    "mean_flow_share": Field(0.25, PROBABILITY, "mean_flow: share of images with two times"),
    "mean_flow_power": Field(1.0, NOT_NEGATIVE, "mean_flow: p of errors' weight; 0: as they are"),
    "log_sigma_mean": Field(-1.2, ANY, "log_normal: mean of log(sigma / alpha)"),
    "log_sigma_std": Field(1.2, POSITIVE, "log_normal: standard deviation of log(sigma / alpha)"),
    "logit_mean": Field(0.0, ANY, "logit_normal: mean of the logit of t / T"),
    "logit_std": Field(1.0, POSITIVE, "logit_normal: standard deviation of the logit of t / T"),
    "mode_scale": Field(1.29, ANY, "mode: from -1, most at the ends, to 1.75, most in the middle"),
    "sigma": Field(0.0, NOT_NEGATIVE, "fixed: the one noise level, sigma / alpha"),
    "num_directions": Field(1, POSITIVE, "ssm, ssm_vr: random directions for each image"),
    "directions": Field("rademacher", ANY, "ssm, ssm_vr: rademacher or gaussian"),
    "kde_bandwidth": Field(0.1, POSITIVE, "esm: standard deviation of the estimate's kernels"),
    "kde_points": Field(0, NOT_NEGATIVE, "esm: training images in the density estimate; 0: all"),
}

SAMPLING = {
    "method": Field("pc", ANY, "a name in sampling.SAMPLERS: pc, ode, sde, ddim, dpmpp_2m, ..."),
    "predictor": Field("none", ANY, "euler_maruyama, reverse_diffusion, ancestral_sampling, none"),
    "corrector": Field("none", ANY, "langevin, ald or none"),
    "n_steps_each": Field(1, POSITIVE, "Langevin steps at each noise level"),
    "noise_removal": Field(True, ANY, "remove the noise that is left at the last time"),
    "probability_flow": Field(False, ANY, "predictors follow the probability flow, without noise"),
    "snr": Field(0.16, POSITIVE, "signal-to-noise ratio of the corrector's steps"),
    "corrector_norm": Field("image", ANY, "langevin: norms of an image, or mean norms of a batch"),
    "num_steps": Field(0, STEPS, "steps from T to the last time; 0: model.num_scales"),
    "eps": Field(0.0, NOT_NEGATIVE, "last time; 0: the SDE's own"),
    "time_grid": Field(
        "", ANY, "uniform, quadratic, log_snr, karras, vp or iddpm; empty: the method's own"
    ),
    "sigma_min": Field(0.0, NOT_NEGATIVE, "euler, heun: last noise level; 0: the SDE's own"),
    "sigma_max": Field(0.0, NOT_NEGATIVE, "euler, heun: first noise level; 0: the SDE's own"),
    "rho": Field(7.0, POSITIVE, "euler, heun, karras grid: levels are even in level^(1 / rho)"),
    "schedule": Field("linear", ANY, "euler, heun: sigma(t) of their steps: linear, ve or vp"),
    "scaling": Field("none", ANY, "euler, heun: s(t) of their steps: none or vp"),
    "alpha": Field(1.0, POSITIVE_SHARE, "heun: second evaluation's place in a step; 0.5: midpoint"),
    "solver": Field("Dopri5", ANY, "ode: Dopri5, Tsit5, Heun, ...; sde: ShARK, SRA1, SEA, ..."),
    "rtol": Field(1e-5, POSITIVE, "ode, sde: relative tolerance of a step"),
    "atol": Field(1e-5, POSITIVE, "ode, sde: absolute tolerance of a step"),
    "eta": Field(0.0, PROBABILITY, "ddim: share of the noise; 0: deterministic, 1: ancestral"),
    "variance": Field("small", ANY, "ancestral: small (of the posterior), large, learned or none"),
    "clip": Field(False, ANY, "ancestral: clip the estimate of x_0 to [-1, 1]"),
    "churn": Field(0.0, NOT_NEGATIVE, "edm, euler, heun: noise that is put back, over all steps"),
    "churn_min": Field(0.0, NOT_NEGATIVE, "edm, euler, heun: smallest noise level of churn"),
    "churn_max": Field(1e9, NOT_NEGATIVE, "edm, euler, heun: largest noise level of churn"),
    "tau": Field(
        1.0, NOT_NEGATIVE, "sa_solver_*: noise, from the flow's 0 to the SDE's 1 and more"
    ),
    "restart_min": Field(0.06, POSITIVE, "restart: noise level sigma / alpha that it starts from"),
    "restart_max": Field(0.3, POSITIVE, "restart: noise level that it goes back to"),
    "restart_steps": Field(6, POSITIVE, "restart: steps down again"),
    "restart_repeats": Field(10, NOT_NEGATIVE, "restart: times that it goes back"),
    "churn_noise": Field(1.0, NOT_NEGATIVE, "edm, euler, heun: deviation of churn's noise"),
    "step_size": Field(2e-5, POSITIVE, "annealed_langevin: step at the last noise level"),
    "guide": Field(
        "", ANY, "run that guides: a classifier, to classes; a weaker net, away from it"
    ),
    "guide_scale": Field(
        1.0, NOT_NEGATIVE, "strength of that guidance; of a weaker net: 1 is none"
    ),
    "guide_interval": Field((), INTERVAL, "sigma / alpha where guide acts; (): everywhere"),
    "num_frames": Field(0, NOT_NEGATIVE, "frames of the trajectory, for pictures; 0: none"),
    "seed": Field(0, SEED, "seed of the samples; that of training is config.seed"),
    "num_samples": Field(64, POSITIVE, "images that --mode=sample draws"),
    "batch_size": Field(64, POSITIVE, "images drawn at a time, over all devices"),
}

EVAL = {
    "batch_size": Field(1024, POSITIVE, "images at a time, over all devices"),
    "num_samples": Field(50000, POSITIVE, "images that are drawn and compared with the data"),
    "seeds": Field(1, POSITIVE, "seeds of sampling, from sampling.seed on; several give a spread"),
    "keep_samples": Field(False, ANY, "keep the drawn images, for later evaluations too"),
    "begin_ckpt": Field(9, NOT_NEGATIVE, "range, follow: first step / training.snapshot_freq"),
    "end_ckpt": Field(26, NOT_NEGATIVE, "range, follow: last step / training.snapshot_freq"),
    "enable_loss": Field(True, ANY, "measure the loss of the test images"),
    "enable_sampling": Field(False, ANY, "draw images and compare them with the data"),
    "enable_bpd": Field(False, ANY, "measure likelihoods, in bits/dim"),
    "checkpoint": Field("latest", ANY, "latest, best, a step's number; of eval: range, follow"),
    "follow_minutes": Field(120.0, POSITIVE, "follow: minutes without news after which it ends"),
    "samplers": Field(
        (), SAMPLERS, "several in place of sampling.method: ddim, or with its steps ddim:20"
    ),
    "ema": Field("", ANY, "weights: raw, a rate, posthoc:width[@step]; empty: by model.ema_rate"),
    "seed": Field(0, SEED, "seed of dequantisation, probes, bounds, subsets of features"),
    "features": Field(
        "auto", ANY, "inception, dinov2, clip, classifier; auto: inception for colour images"
    ),
    "features_path": Field("", ANY, "dinov2, clip: folder or hf:owner/name; empty: the published"),
    "metrics": Field(("fid",), NAMES, "numbers of samples: fid, inception_score, kid, ..."),
    "memorisation_images": Field(
        0, NOT_NEGATIVE, "first samples whose nearest training images are sought; 0: none"
    ),
    "bootstrap": Field(0, ZERO_OR_SEVERAL, "draws for the error bar of the FID; 0: none"),
    "resize": Field("tensorflow", ANY, "how Inception's images are resized: tensorflow or pytorch"),
    "repeat_grey": Field(False, ANY, "let a network see grey images, their channel three times"),
    "inception_path": Field("", ANY, "file of pytorch-fid's weights; empty: cached or downloaded"),
    "stats_path": Field("", ANY, "file of the data set's statistics; empty: made once, cached"),
    "stats_images": Field(0, NOT_NEGATIVE, "training images in the statistics; 0: all"),
    "straightness_images": Field(0, NOT_NEGATIVE, "paths in the flow's straightness; 0: none"),
    "calibration_images": Field(
        0, NOT_NEGATIVE, "first images whose likelihoods have the exact trace, too; 0: none"
    ),
    "bpd_dataset": Field("test", SPLIT, "split whose likelihoods are measured"),
    "bpd_num_images": Field(0, NOT_NEGATIVE, "first images of the split; 0: the whole split"),
    "bpd_rtol": Field(1e-5, POSITIVE, "relative tolerance of a step of the probability flow"),
    "bpd_atol": Field(1e-5, POSITIVE, "absolute tolerance of a step of the probability flow"),
    "bpd_solver": Field("Dopri5", ANY, "of the probability flow: Dopri5, Tsit5, Heun, ..."),
    "bpd_num_probes": Field(1, POSITIVE, "probes of the divergence, for each image"),
    "bpd_probe": Field("rademacher", ANY, "rademacher or gaussian; exact: the whole divergence"),
    "bpd_num_repeats": Field(1, POSITIVE, "draws of dequantisation and probes; published: 5"),
    "bpd_bound": Field(False, ANY, "measure the variational bound of score flow too"),
    "bpd_bound_draws": Field(64, POSITIVE, "draws of time and noise for each image's bound"),
    "bpd_bound_levels": Field(
        0, NOT_NEGATIVE, "intervals of log-SNR that the bound is taken apart by; 0: none"
    ),
}

DATA = {
    "dataset": Field("cifar10", ANY, "a name in data.DATASETS: cifar10, digits, folder, ..."),
    "data_dir": Field("", ANY, "folder of the data set; empty: its usual place"),
    "cache": Field(True, ANY, "keep large sets of compressed images decoded on disk"),
    "crop": Field(0, NOT_NEGATIVE, "pixels of the middle square that is kept; 0: the largest"),
    "resize": Field(
        "lanczos", ANY, "resampling: lanczos, bicubic, bilinear; none: sizes are right"
    ),
    "image_size": Field(32, POSITIVE, "height and width in pixels; points: 1"),
    "num_channels": Field(3, POSITIVE, "channels of an image; coordinates of a point"),
    "shape": Field((), SIZES, "of real-valued examples: (5,), (128, 1), (32, 32, 2); (): images"),
    "mean": Field((), NUMBERS, "subtracted from real values, by channel; (): the training mean"),
    "std": Field((), POSITIVE_NUMBERS, "real values are divided by it; (): that of training"),
    "random_flip": Field(True, ANY, "mirror half of the training images, by chance"),
    "centered": Field(False, ANY, "pixels in [-1, 1]; False: in [0, 1]"),
    "uniform_dequantization": Field(False, ANY, "add uniform noise of one grey level to images"),
}

MODEL = {
    "name": Field(
        "ncsnpp", ANY, "ncsnpp, ddpm, adm, edm2, ncsn, ncsnv2_*, mlp, unet1d, transformer"
    ),
    "sigma_min": Field(0.01, POSITIVE, "vesde, edm, flow_ot: smallest noise level"),
    "sigma_max": Field(50.0, POSITIVE, "vesde, edm: largest noise level"),
    "sigma_base": Field(25.0, POSITIVE, "sigma_power: sigma of dx = sigma^t dw, above 1"),
    "beta_min": Field(0.1, NOT_NEGATIVE, "vpsde, subvpsde: beta at t = 0"),
    "beta_max": Field(20.0, POSITIVE, "vpsde, subvpsde: beta at t = T"),
    "time_power": Field(2.0, POSITIVE, "interpolant: a in alpha = (1 - t^a)^b"),
    "data_power": Field(1.0, POSITIVE, "interpolant: b in alpha = (1 - t^a)^b"),
    "noise_power": Field(1.0, POSITIVE, "interpolant: c in sigma = t^c"),
    "num_scales": Field(1000, LEVELS, "N: noise levels, and steps of samplers by default"),
    "num_classes": Field(0, NOT_NEGATIVE, "ncsn: rows of its conditional norms; 0: num_scales"),
    "num_labels": Field(0, NOT_NEGATIVE, "classes that the network is told; 0: none"),
    "dropout": Field(0.1, FRACTION, "share of the features that training drops"),
    "prediction": Field(
        "", ANY, "score, noise, x0, velocity, edm, flow; empty: score (VE) or noise"
    ),
    "sigma_data": Field(0.5, POSITIVE, "edm (prediction, weighting): standard deviation of data"),
    "ema_rate": Field(0.9999, FRACTION, "rate of the average that sampling and evaluation use"),
    "ema_warmup": Field(False, ANY, "let ema_rate be at most (1 + n) / (10 + n) at update n"),
    "ema_half_life": Field(
        0.0, NOT_NEGATIVE, "images that halve an old weight's share; 0: ema_rate"
    ),
    "ema_ramp_up": Field(0.0, NOT_NEGATIVE, "ema_half_life is at most this times the images seen"),
    "scale_by_sigma": Field(False, ANY, "divide the network's output by the noise level"),
    "conditional": Field(True, ANY, "tell the network the time or noise level"),
    "normalization": Field("GroupNorm", ANY, "norms: GroupNorm; ncsn*: InstanceNorm++; mlp: none"),
    "nonlinearity": Field("swish", ANY, "swish, elu, relu or lrelu"),
    "nf": Field(128, POSITIVE, "width: channels at full resolution; mlp: units; of tokens"),
    "ch_mult": Field((1, 2, 2, 2), NOT_EMPTY_SIZES, "factors on nf, at full, half, ... resolution"),
    "num_res_blocks": Field(
        4,
        NOT_NEGATIVE,
        "residual blocks at each resolution, adm: 0 or more; mlp, tokens: in all",
    ),
    "attn_resolutions": Field(
        (16,), SIZES, "heights, unet1d: lengths, at which there is attention"
    ),
    "attention_type": Field("ddpm", only("ddpm"), "kind of attention"),
    "attn_each_up_block": Field(False, ANY, "ddpm: on the way up, attention after every block"),
    "attn_num_groups": Field(0, NOT_NEGATIVE, "ncsnpp: groups of attention's norms; 0: as others"),
    "resamp_with_conv": Field(True, ANY, "a convolution where the resolution changes"),
    "fir": Field(True, ANY, "ncsnpp: change the resolution with an anti-aliasing filter"),
    "fir_kernel": Field((1, 3, 3, 1), FILTER, "ncsnpp: weights of fir's filter along an axis"),
    "skip_rescale": Field(True, ANY, "ncsnpp: divide sums of two branches by sqrt(2)"),
    "resblock_type": Field("biggan", ANY, "ncsnpp: residual blocks, biggan or ddpm"),
    "progressive": Field("none", ANY, "ncsnpp: output pyramid: none, output_skip or residual"),
    "progressive_input": Field("none", ANY, "ncsnpp: input pyramid: none, input_skip or residual"),
    "progressive_combine": Field("sum", ANY, "ncsnpp: how input_skip joins features: sum, cat"),
    "embedding_type": Field(
        "fourier", ANY, "fourier or log_positional of noise levels, or positional of times"
    ),
    "fourier_scale": Field(16.0, POSITIVE, "standard deviation of fourier's random frequencies"),
    "class_embedding": Field("output", ANY, "ncsnpp: where classes are added, output or input"),
    "augment_dim": Field(0, NOT_NEGATIVE, "ncsnpp, adm: numbers that tell of augmentation"),
    "head_channels": Field(64, POSITIVE, "adm, edm2, transformer: channels of a head"),
    "num_heads": Field(0, NOT_NEGATIVE, "adm, transformer: heads; 0: by head_channels"),
    "patch_size": Field(1, POSITIVE, "transformer: places along each axis of a patch"),
    "num_groups": Field(0, NOT_NEGATIVE, "adm: groups of norms; 0: of 4 channels, 32 at most"),
    "learned_variance": Field(False, ANY, "adm: the last layer predicts a step's variance, too"),
    "attention_order": Field("legacy", ANY, "adm: q, k, v in files to import: legacy or new"),
    "init_scale": Field(0.0, NOT_NEGATIVE, "ncsnpp: scale of last layers' initial weights"),
    "conv_size": Field(3, only(3), "height and width of convolutions, in pixels"),
    "interpolation": Field("bilinear", ANY, "ncsn*: bilinear or nearest_neighbor"),
    "pytorch": Field(False, ANY, "ncsn*: as the authors' PyTorch version computes"),
    "dtype": Field("float32", ANY, "type of arithmetic, float32 or bfloat16; parameters: float32"),
    "remat": Field(False, ANY, "compute blocks again in the backward pass, to save memory"),
}

CLASSIFIER = {
    "name": Field("wrn", ANY, "wrn, wrn_score_sde (the official one) or adm"),
    "num_classes": Field(10, TWO_OR_MORE, "classes that are told apart"),
    "widen_factor": Field(10, POSITIVE, "width, in units of 16 channels; 10 in WRN-28-10"),
    "blocks_per_group": Field(4, POSITIVE, "residual blocks at each resolution; 4 in WRN-28-10"),
    "ch_mult": Field((1, 2, 3, 4), NOT_EMPTY_SIZES, "adm: factors on the width, by resolution"),
    "attn_resolutions": Field((32, 16, 8), SIZES, "adm: heights in pixels that have attention"),
    "head_channels": Field(64, POSITIVE, "adm: channels of a head of attention"),
    "dropout": Field(0.0, FRACTION, "share of the features that training drops"),
    "nonlinearity": Field("swish", ANY, "swish, elu, relu or lrelu"),
    "embedding_type": Field("positional", ANY, "positional of times; VE: fourier of noise levels"),
    "fourier_scale": Field(16.0, POSITIVE, "standard deviation of fourier's random frequencies"),
    "dtype": Field("float32", ANY, "type of arithmetic, float32 or bfloat16; parameters: float32"),
}

CLIP = {
    "embedding_dim": Field(64, POSITIVE, "dimensions of the space that both towers map to"),
    "text_width": Field(64, POSITIVE, "width of the text tower"),
    "text_layers": Field(2, POSITIVE, "transformer blocks of the text tower"),
    "text_heads": Field(4, POSITIVE, "heads of attention, a divisor of text_width"),
    "text_length": Field(48, POSITIVE, "bytes of a text, its end included"),
}

OPTIM = {
    "optimizer": Field("Adam", ANY, "Adam, AdamW, NAdam, RAdam, Lion or SGD"),
    "lr": Field(2e-4, POSITIVE, "learning rate"),
    "beta1": Field(0.9, FRACTION, "decay of the gradient's moving average"),
    "eps": Field(1e-8, POSITIVE, "added to the root of the squared gradient's average"),
    "amsgrad": Field(False, only(False), "AMSGrad's form of Adam"),
    "weight_decay": Field(0.0, NOT_NEGATIVE, "share of a parameter that is added to its gradient"),
    "warmup": Field(5000, NOT_NEGATIVE, "steps of linear growth of lr"),
    "schedule": Field("constant", ANY, "after warmup: constant, cosine, linear or inverse_sqrt"),
    "decay_steps": Field(0, NOT_NEGATIVE, "step where cosine and linear end, inverse_sqrt begins"),
    "decay_to": Field(0.0, PROBABILITY, "fraction of lr that cosine and linear end at"),
    "grad_clip": Field(1.0, NOT_ZERO, "largest global norm of a gradient; negative: no limit"),
    "clip_rule": Field("max", ANY, "max: as the official JAX code; add: as PyTorch"),
}

SECTIONS = {
    "training": Section("Training: the SDE, the objective, and how long and how often.", TRAINING),
    "sampling": Section("Samplers, in all modes that draw images.", SAMPLING),
    "eval": Section("`--mode=eval`, `reproduce` and `stats`; which weights all modes load.", EVAL),
    "data": Section("The data set, and the range of values that the network sees.", DATA),
    "model": Section("The network, and the numbers of the SDE.", MODEL),
    "classifier": Section("The classifier of noisy images; the image tower of a CLIP.", CLASSIFIER),
    "clip": Section("The CLIP of noisy images and texts.", CLIP),
    "control": Section("`--mode=control`: see [controllable.md](controllable.md).", CONTROL),
    "optim": Section("The optimiser and its learning rate.", OPTIM),
}


def fields() -> dict[str, Field]:
    """Every field by its dotted name, "model.nf", in the order of this file."""
    sections = {
        f"{section}.{name}": field
        for section, (_, members) in SECTIONS.items()
        for name, field in members.items()
    }
    return RUN | sections


def base() -> ConfigDict:
    """Every field with its default: the CIFAR-10 settings that most official configs share.

    The config is locked: assigning to a field that does not exist raises (`training.continuouse` of
    the original went unnoticed).
    """
    defaults: dict[str, Any] = {name: field.default for name, field in RUN.items()}
    for section, (_, members) in SECTIONS.items():
        defaults[section] = {name: field.default for name, field in members.items()}
    return ConfigDict(defaults).lock()
