"""Training: score matching steps, scanned and pmapped, that resume to the bit."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import signal
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.experimental import multihost_utils

import configs
import data
import losses
import models
import parallel
import reports
import sde_lib
from checkpoints import Checkpoints, config_differences
from data import transforms

# What may differ between a run and its resumption: how long, how often, and what comes after.
FREE_TO_CHANGE = (
    "training.n_iters",
    "training.*_freq*",
    "training.snapshot_sampling",
    "training.n_jitted_steps",
    "data.data_dir",
    "classifier.*",
    "sampling.*",
    "eval.*",
)


class TrainState(flax.struct.PyTreeNode):
    """All that training carries from step to step; `step` counts finished optimiser steps."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    ema_params: Any
    key: jax.Array


def frozen(path: tuple, leaf: Any) -> bool:
    """Whether a parameter is fixed by design: the random frequencies of the Fourier embedding."""
    del leaf
    return any("GaussianFourierProjection" in str(entry) for entry in path)


def clip_by_norm(limit: float, rule: str) -> optax.GradientTransformation:
    """Scales gradients whose global norm n exceeds `limit`.

    rule "max": by limit / max(n, limit), the official JAX code;
    rule "add": by min(1, limit / (n + 1e-6)), `torch.nn.utils.clip_grad_norm_`.
    """
    if rule == "max":
        return optax.clip_by_global_norm(limit)
    if rule != "add":
        raise ValueError(f"optim.clip_rule={rule!r} is unknown; known: 'max', 'add'")

    def scale(updates: Any) -> Any:
        factor = jnp.minimum(1.0, limit / (optax.global_norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * factor, updates)

    return optax.stateless(lambda updates, params: scale(updates))


def make_optimizer(
    lr: float,
    beta1: float = 0.9,
    eps: float = 1e-8,
    warmup: int = 0,
    grad_clip: float = -1.0,
    weight_decay: float = 0.0,
    clip_rule: str = "max",
) -> optax.GradientTransformation:
    """Adam (beta2 = 0.999) as the official code runs it.

    In this order: clip the global gradient norm to `grad_clip` (none if negative), add
    `weight_decay` x parameter, Adam, and a learning rate `lr * min(step / warmup, 1)` that
    counts from step 0, so the first step of a warm-up moves nothing.
    """

    def learning_rate(step: jax.Array) -> jax.Array:
        return lr * jnp.minimum(step / warmup, 1.0) if warmup > 0 else jnp.asarray(lr)

    def trainable(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda p, leaf: not frozen(p, leaf), params)

    return optax.chain(
        clip_by_norm(grad_clip, clip_rule) if grad_clip >= 0 else optax.identity(),
        optax.add_decayed_weights(weight_decay, mask=trainable)
        if weight_decay
        else optax.identity(),
        optax.scale_by_adam(b1=beta1, b2=0.999, eps=eps),
        optax.scale_by_learning_rate(learning_rate),
    )


def optimizer_from_config(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """The optimiser that `config.optim` describes."""
    optim = config.optim
    if optim.optimizer != "Adam":
        raise ValueError(f"optim.optimizer={optim.optimizer!r} is unknown; known: 'Adam'")
    return make_optimizer(
        lr=optim.lr,
        beta1=optim.beta1,
        eps=optim.eps,
        warmup=optim.warmup,
        grad_clip=optim.grad_clip,
        weight_decay=optim.weight_decay,
        clip_rule=optim.clip_rule,
    )


def update_ema(ema: Any, params: Any, num_updates: Any, rate: float, warmup: bool = False) -> Any:
    """Moving average `r ema + (1 - r) params` after update number `num_updates` (from 1).

    r is `rate`, or with `warmup` min(rate, (1 + n) / (10 + n)), the PyTorch code's rule.
    """
    r = jnp.minimum(rate, (1 + num_updates) / (10 + num_updates)) if warmup else rate
    return jax.tree.map(lambda old, new: old + (1 - r) * (new - old), ema, params)


def apply_gradients(
    state: TrainState,
    grads: Any,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    ema_warmup: bool,
) -> TrainState:
    """The state after one optimiser step with these (already averaged) gradients."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    return state.replace(
        step=step,
        params=params,
        opt_state=opt_state,
        ema_params=update_ema(state.ema_params, params, step, ema_rate, ema_warmup),
    )


@dataclasses.dataclass(frozen=True)
class Objective:
    """From uint8 images to a loss per image; the three draws of an image come from its key."""

    apply: Callable[..., Any]
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    levels: int
    centered: bool
    dequantize: bool

    def __call__(
        self, params: Any, images: jax.Array, keys: jax.Array, *, train: bool, flip: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Losses [B] and their parts, for images [B, H, W, C] uint8 and keys [B]."""
        split = jax.vmap(functools.partial(jax.random.split, num=4))(keys)
        loss_keys, dropout_keys, flip_keys, dequantize_keys = (split[:, i] for i in range(4))
        if flip:
            images = transforms.random_flip(images, flip_keys)
        if self.dequantize:
            x = transforms.uniform_dequantize(images, dequantize_keys, self.levels, self.centered)
        else:
            x = transforms.scale(images, self.levels, self.centered)

        def network(x: jax.Array, labels: jax.Array) -> jax.Array:
            return self.apply(
                {"params": params}, x, labels, dropout_keys=dropout_keys if train else None
            )

        return self.loss(network, x, loss_keys)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    ema_warmup: bool,
    flip: bool,
    axis_name: str | None,
) -> Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """`(state, images [n, b, H, W, C] uint8) -> (state, metrics of [n])`: n steps in one scan.

    Image j of device d draws its randomness from (state.key, step, d b + j), so the gradient of a
    global batch does not depend on how many devices share it.
    """

    def one_step(state: TrainState, images: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        count = images.shape[0]
        first = jax.lax.axis_index(axis_name) * count if axis_name else 0
        step_key = jax.random.fold_in(state.key, state.step)
        keys = parallel.image_keys(step_key, first + jnp.arange(count))

        def mean_loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            per_image, parts = objective(params, images, keys, train=True, flip=flip)
            return jnp.mean(per_image), {name: jnp.mean(part) for name, part in parts.items()}

        (loss, parts), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        metrics = {**parts, "loss": loss}
        if axis_name:
            metrics, grads = jax.lax.pmean((metrics, grads), axis_name)
        metrics["gradient_norm"] = optax.global_norm(grads)
        return apply_gradients(state, grads, optimizer, ema_rate, ema_warmup), metrics

    return lambda state, images: jax.lax.scan(one_step, state, images)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a config describes without its data set; shared by training, evaluation, sampling."""

    sde: sde_lib.SDE
    module: Any
    objective: Objective
    image_shape: tuple[int, int, int]
    levels: int


def build(config: ml_collections.ConfigDict) -> Parts:
    """Reads the config at its seams; refuses what it cannot serve before anything is compiled.

    No data set is opened: to sample, none needs to be there.
    """
    configs.check(config)
    sde = sde_lib.from_config(config)
    module = models.from_config(config)
    levels = data.grey_levels(config.data.dataset)
    objective = Objective(
        apply=module.apply,
        loss=losses.from_config(config, sde),
        levels=levels,
        centered=config.data.centered,
        dequantize=config.data.uniform_dequantization,
    )
    return Parts(sde, module, objective, image_shape(config), levels)


def image_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) by the config alone; a data set of another shape is refused when it is opened."""
    return (config.data.image_size, config.data.image_size, config.data.num_channels)


def step_from_config(
    config: ml_collections.ConfigDict, parts: Parts, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """`make_train_step` as the config describes it, for `pmap` over `parallel.AXIS`."""
    return make_train_step(
        parts.objective,
        optimizer,
        config.model.ema_rate,
        config.model.ema_warmup,
        config.data.random_flip,
        parallel.AXIS,
    )


def new_state(
    module: Any,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """The state before the first step, a function of the seed alone."""
    init_key, train_key = jax.random.split(jax.random.key(seed))
    params = models.init(module, init_key, image_shape)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
        key=train_key,
    )


def state_on_host(state: TrainState) -> dict[str, Any]:
    """The NumPy tree that a checkpoint holds, from the state that lies on every device."""
    return vars(parallel.fetch(state))


def state_from_host(host: dict[str, Any]) -> TrainState:
    """The inverse of `state_on_host`, before replication."""
    return TrainState(**{**host, "key": jax.random.wrap_key_data(host["key"])})


def open_run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Checkpoints:
    """The run's checkpoints.

    Raises:
      ValueError: the workdir holds a run whose config differs in what matters; says in what.
    """
    stored = workdir / "config.json"
    if stored.exists():
        earlier = configs.complete(json.loads(stored.read_text()))
        differences = config_differences(earlier, config.to_dict(), FREE_TO_CHANGE)
        if differences:
            raise ValueError(
                f"{stored} belongs to another run: {'; '.join(differences)}; "
                "use its config or another --workdir"
            )
    return Checkpoints(
        workdir / "checkpoints",
        keep_latest=2,
        keep_best=1,
        keep_every=config.training.snapshot_freq,
    )


class StopRequest:
    """Notes SIGTERM (or a pod's preemption notice), so that the loop can save and leave."""

    def __init__(self) -> None:
        self.received = False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, signum: int, frame: Any) -> None:
        del signum, frame
        self.received = True

    def __call__(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.received


class History:
    """Metrics of finished steps on their way to the log; fetched one call late, so that the
    devices are never kept waiting."""

    def __init__(self, log: reports.MetricLog | None) -> None:
        self.log = log
        self.in_flight: list[tuple[int, dict[str, jax.Array]]] = []
        self.unlogged: list[dict[str, np.ndarray]] = []
        self.loss: float | None = None  # the last one fetched

    def add(self, first_step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics [n] of steps first_step + 1 ... first_step + n."""
        self.in_flight.append((first_step, metrics))
        self.settle(keep=1)

    def settle(self, keep: int = 0) -> None:
        """Fetches all but the last `keep` calls.

        Raises:
          FloatingPointError: a loss is not finite; names the step.
        """
        while len(self.in_flight) > keep:
            first_step, metrics = self.in_flight.pop(0)
            host = parallel.fetch(metrics)
            bad = np.flatnonzero(~np.isfinite(host["loss"]))
            if bad.size:
                raise FloatingPointError(
                    f"the loss at step {first_step + bad[0] + 1} is {host['loss'][bad[0]]}; "
                    "the checkpoints from before it are kept; try a smaller optim.lr"
                )
            self.unlogged.append(host)
            self.loss = float(host["loss"].mean())

    def write(self, step: int, **more: float) -> None:
        """Logs the mean of everything since the last time under `step`."""
        self.settle()
        if self.unlogged:
            means = {
                name: float(np.mean(np.concatenate([host[name] for host in self.unlogged])))
                for name in self.unlogged[0]
            }
            self.unlogged = []
            if self.log:
                self.log.write(step, {**means, **more})


def crossed(freq: int, before: int, after: int) -> bool:
    """Whether a multiple of `freq` lies in (before, after]."""
    return freq > 0 and after // freq > before // freq


class HeldOutLoss:
    """The loss of the EMA weights on fixed test images with fixed noise, for the curve and for
    choosing the best checkpoint."""

    def __init__(self, config: ml_collections.ConfigDict, parts: Parts) -> None:
        dataset = data.from_config(config, "test")
        count = min(len(dataset), config.eval.batch_size)
        self.images, _ = dataset.take(np.arange(count))
        key = jax.random.key(config.seed)

        def losses_of(params: Any, indices: jax.Array, images: jax.Array) -> jax.Array:
            keys = parallel.image_keys(key, indices)
            return parts.objective(params, images, keys, train=False, flip=False)[0]

        batch = parallel.fitting_batch(count)
        self.map = parallel.ImageMap(losses_of, batch, "eval.batch_size")

    def __call__(self, ema_params: Any) -> float:
        indices = np.arange(len(self.images))
        return float(
            np.mean(
                np.concatenate([loss for _, loss in self.map(ema_params, indices, self.images)])
            )
        )


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Trains to `training.n_iters` steps, from the newest checkpoint in `workdir` if there is one.

    Writes checkpoints/, config.json, metrics.jsonl, TensorBoard events and loss.png there.

    Raises:
      ValueError: a config that cannot be served, or another than the workdir's.
      FloatingPointError: the loss stopped being finite.
      OSError: a checkpoint could not be written.
    """
    options = config.training
    parts, dataset = build(config), data.from_config(config, "train")
    share = parallel.per_device(options.batch_size, "training.batch_size")
    optimizer = optimizer_from_config(config)
    checkpoints = open_run(config, workdir)
    local = jax.local_device_count()

    fresh = functools.partial(new_state, parts.module, optimizer, config.seed, parts.image_shape)
    if checkpoints.steps():
        template = jax.eval_shape(fresh)
        key_data = jax.eval_shape(jax.random.key_data, template.key)
        restored = checkpoints.restore(vars(template.replace(key=key_data)))
        state, data_state = state_from_host(restored.state), restored.data_state
        if parallel.is_primary():
            print(f"resuming at step {restored.step}")
    else:
        state, data_state = jax.jit(fresh)(), None
    start = int(state.step)
    config_json = json.dumps(config.to_dict())
    if parallel.is_primary():
        workdir.mkdir(parents=True, exist_ok=True)
        reports.write_json(workdir / "config.json", config.to_dict())

    batches = data.Batches(
        dataset,
        options.batch_size,
        config.seed,
        num_steps=options.n_jitted_steps,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
    )
    if data_state is not None:
        batches.set_state(data_state)
    step_fn = jax.pmap(
        step_from_config(config, parts, optimizer),
        axis_name=parallel.AXIS,
        donate_argnums=0,
    )
    held_out = HeldOutLoss(config, parts)
    state = parallel.replicate(state)
    history = History(reports.MetricLog(workdir, start) if parallel.is_primary() else None)
    stop = StopRequest()
    eval_loss = float("nan")
    step = start
    with parallel.progress(options.n_iters, "training", "step", initial=start) as bar:
        while step < options.n_iters:
            images = next(batches)["image"][: options.n_iters - step]
            count = len(images)
            images = images.reshape(count, local, share, *parts.image_shape).swapaxes(0, 1)
            state, metrics = step_fn(state, images)
            history.add(step, metrics)
            before, step = step, step + count
            bar.update(count)
            if history.loss is not None:
                bar.set_postfix(loss=f"{history.loss:.4g}", refresh=False)
            last = step >= options.n_iters or stop(step)
            if last or crossed(options.eval_freq, before, step):
                history.settle()
                eval_loss = held_out(state.ema_params)
                history.write(step, eval_loss=eval_loss)
            elif crossed(options.log_freq, before, step):
                history.write(step)
            if (
                last
                or crossed(options.snapshot_freq, before, step)
                or crossed(options.snapshot_freq_for_preemption, before, step)
            ):
                history.settle()
                data_state = {**batches.get_state(), "step": step}
                checkpoints.save(
                    step, state_on_host(state), data_state, config_json, metric=eval_loss
                )
            if last:
                break
    batches.close()
    checkpoints.wait()
    if history.log:
        history.log.close()
        save_curves(workdir)


def save_curves(workdir: pathlib.Path) -> None:
    """Draws the losses of `metrics.jsonl` as loss.png."""
    found = reports.read_metrics(workdir / "metrics.jsonl")
    names = {"loss": "training loss", "eval_loss": "test loss, EMA weights"}
    curves = {label: found[name] for name, label in names.items() if name in found}
    if curves:
        reports.plot_curves(workdir / "loss.png", curves, ylabel="loss", yscale="log")
