"""Training: score matching steps, scanned and pmapped, that resume to the bit."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import signal
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.experimental import multihost_utils

import captions
import configs
import data
import ema
import losses
import models
import optimizers
import parallel
import reports
import sde_lib
from checkpoints import Checkpoints, config_differences
from data import transforms
from snapshots import Snapshots

# What may differ between a run and its resumption: how long, how often, and what comes after.
FREE_TO_CHANGE = (
    "training.n_iters",
    "training.*_freq*",
    "training.snapshot_sampling",
    "training.n_jitted_steps",
    "data.data_dir",
    "classifier.*",
    "clip.*",
    "control.*",
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
    averages: dict[str, Any] = flax.struct.field(default_factory=dict)  # those beside ema_params


Step = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def apply_gradients(
    state: TrainState,
    grads: Any,
    optimizer: optax.GradientTransformation,
    averaging: ema.Averaging,
) -> TrainState:
    """The state after one optimiser step with these (already averaged) gradients."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    return state.replace(
        step=step,
        params=params,
        opt_state=opt_state,
        ema_params=ema.update(state.ema_params, params, averaging.primary(step)),
        averages={
            name: ema.update(state.averages[name], params, rule(step))
            for name, rule in averaging.further.items()
        },
    )


@dataclasses.dataclass(frozen=True)
class Objective:
    """From uint8 images and their classes to a loss per image; an image draws from its own key."""

    apply: Callable[..., Any]
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    levels: int
    centered: bool
    dequantize: bool
    time_draws: str = "independent"
    num_labels: int = 0  # classes that the network is told
    label_dropout: float = 0.0  # probability of the null class in training
    across_images: bool = False  # the loss of an image compares it with the others

    def __call__(
        self,
        params: Any,
        images: jax.Array,
        classes: jax.Array,
        step_key: jax.Array,
        numbers: jax.Array,
        total: int,
        *,
        train: bool,
        flip: bool,
        axis_name: str | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Losses [B] and their parts, for images [B, H, W, C] uint8 and their classes [B].

        They are the images `numbers` [B] of a global batch of `total`; the key of each is that of
        the step with its number folded in. Where the loss is `across_images`, those of all
        devices of `axis_name` are compared.
        """
        keys = parallel.image_keys(step_key, numbers)
        split = jax.vmap(functools.partial(jax.random.split, num=5))(keys)
        loss_keys, dropout_keys, flip_keys, dequantize_keys, class_keys = split.T
        if flip:
            images = transforms.random_flip(images, flip_keys)
        if self.dequantize:
            x = transforms.uniform_dequantize(images, dequantize_keys, self.levels, self.centered)
        else:
            x = transforms.scale(images, self.levels, self.centered)

        told: dict[str, Any] = {"dropout_keys": dropout_keys} if train else {}
        if self.num_labels:
            told["y"] = self._withheld(classes, class_keys) if train else classes

        def network(x: jax.Array, labels: jax.Array, *more: jax.Array) -> Any:
            return self.apply({"params": params}, x, labels, *more, **told)

        u = losses.time_draws(self.time_draws, step_key, numbers, total)
        shared: dict[str, Any] = {}
        if self.across_images and axis_name:
            gather = functools.partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
            shared["gather"] = gather
        return self.loss(network, x, loss_keys, u, classes, **shared)

    def _withheld(self, classes: jax.Array, keys: jax.Array) -> jax.Array:
        """The classes, some of them replaced by the null class, whose number is `num_labels`
        (classifier-free guidance, Ho and Salimans 2022, arXiv:2207.12598, algorithm 1)."""
        if not self.label_dropout:
            return classes
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, self.label_dropout))(keys)
        return jnp.where(drop, self.num_labels, classes)


def mean_over_parts(function: Callable[[Any], Any], arrays: Any, parts: int) -> Any:
    """The mean of `function` over equal consecutive parts of the rows of `arrays`, one at a time.

    Where `function` is itself a mean over rows, it is that over all of them, in less memory.
    """
    if parts == 1:
        return function(arrays)
    split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), arrays)
    shapes = jax.eval_shape(function, jax.tree.map(lambda a: a[0], split))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    total, _ = jax.lax.scan(add, zeros, split)
    return jax.tree.map(lambda leaf: leaf / parts, total)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    averaging: ema.Averaging,
    flip: bool,
    axis_name: str | None,
    accumulation: int = 1,
) -> Step:
    """`(state, batches) -> (state, metrics of [n])`: n steps in one scan.

    `batches` are {"image": uint8 [n, b, H, W, C], "label": int32 [n, b]}. Image j of device d draws
    its randomness from (state.key, step, d b + j), so the gradient of a global batch depends
    neither on how many devices share it nor on the number of parts, `accumulation`, in which a
    device computes its share.
    """

    def one_step(
        state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        count = len(batch["label"])
        first = jax.lax.axis_index(axis_name) * count if axis_name else 0
        total = count * (jax.lax.axis_size(axis_name) if axis_name else 1)
        step_key = jax.random.fold_in(state.key, state.step)

        def mean_loss(params: Any, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            drawn, numbers = part
            per_image, parts = objective(
                params, drawn["image"], drawn["label"], step_key, numbers, total,
                train=True, flip=flip, axis_name=axis_name,
            )  # fmt: skip
            named = {"loss": per_image, **parts}
            means = {name: jnp.mean(values) for name, values in named.items() if name != "t"}
            return means["loss"], means

        grads, metrics = mean_over_parts(
            functools.partial(jax.grad(mean_loss, has_aux=True), state.params),
            (batch, first + jnp.arange(count)),
            accumulation,
        )
        if axis_name:
            metrics, grads = jax.lax.pmean((metrics, grads), axis_name)
        metrics["gradient_norm"] = optax.global_norm(grads)
        return apply_gradients(state, grads, optimizer, averaging), metrics

    return lambda state, batches: jax.lax.scan(one_step, state, batches)


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

    No data set is opened: to sample, none needs to be there. For losses, see `with_data`.
    """
    configs.check(config)
    data.check_points(config)
    if config.training.label_dropout and not config.model.num_labels:
        raise ValueError(
            f"training.label_dropout is {config.training.label_dropout:g}, but model.num_labels is "
            "0: there is no class to withhold"
        )
    sde = sde_lib.from_config(config)
    module, captioned = _network(config)
    levels = data.grey_levels(config.data.dataset)
    objective = Objective(
        apply=module.apply,
        loss=losses.from_config(config, sde, captions=captioned),
        levels=levels,
        centered=config.data.centered,
        dequantize=config.data.uniform_dequantization,
        time_draws=config.training.time_draws,
        num_labels=config.model.num_labels if has_score(config) else 0,
        label_dropout=config.training.label_dropout,
        across_images=config.training.objective == losses.CLIP,
    )
    return Parts(sde, module, objective, image_shape(config), levels)


def _network(config: ml_collections.ConfigDict) -> tuple[Any, jax.Array | None]:
    """The network that the objective trains, and the captions that it is told of, if any."""
    if classifies(config):
        return models.classifier_from_config(config), None
    if config.training.objective == losses.CLIP:
        clip = models.clip_from_config(config, captions.VOCABULARY, captions.END)
        names = data.class_names(config.data.dataset)
        return clip, jnp.asarray(captions.table(names, config.clip.text_length))
    return models.from_config(config), None


def has_score(config: ml_collections.ConfigDict) -> bool:
    """Whether the run trains a score; else it trains a network that is to guide one."""
    return config.training.objective not in losses.GUIDES


def classifies(config: ml_collections.ConfigDict) -> bool:
    """Whether the run trains the noisy classifier of `config.classifier`."""
    return config.training.objective == losses.CLASSIFIER


def with_data(config: ml_collections.ConfigDict, parts: Parts, dataset: data.Dataset) -> Parts:
    """`parts` for losses of training on `dataset`, from which an objective may take its points:
    the first `training.kde_points` images (0: all).

    Raises:
      ValueError: classes that the network cannot be told.
    """
    found, known = dataset.num_classes, config.model.num_labels
    if classifies(config):
        if found > config.classifier.num_classes:
            raise ValueError(
                f"classifier.num_classes is {config.classifier.num_classes}, but {dataset.name} "
                f"has {found} classes; valid values: {found} or more"
            )
    elif has_score(config) and known and found > known:
        raise ValueError(
            f"model.num_labels is {known}, but {dataset.name} has {found} classes; "
            f"valid values: 0, {found} or more"
        )
    if not losses.wants_points(config):
        return parts
    count = min(config.training.kde_points or len(dataset), len(dataset))
    images, _ = dataset.take(np.arange(count))
    points = transforms.scale(images, dataset.levels, config.data.centered)
    loss = losses.from_config(config, parts.sde, points)
    objective = dataclasses.replace(parts.objective, loss=loss)
    return dataclasses.replace(parts, objective=objective)


def image_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) by the config alone; a data set of another shape is refused when it is opened."""
    return (config.data.image_size, config.data.image_size, config.data.num_channels)


def step_from_config(
    config: ml_collections.ConfigDict, parts: Parts, optimizer: optax.GradientTransformation
) -> Step:
    """`make_train_step` as the config describes it, for `pmap` over `parallel.AXIS`."""
    return make_train_step(
        parts.objective,
        optimizer,
        ema.from_config(config),
        config.data.random_flip,
        parallel.AXIS,
        config.training.accumulation,
    )


def new_state(
    module: Any,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
    averages: Iterable[str] = (),
) -> TrainState:
    """The state before the first step, a function of the seed alone; with `averages` by name."""
    init_key, train_key = jax.random.split(jax.random.key(seed))
    params = models.init(module, init_key, image_shape)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
        key=train_key,
        averages={name: jax.tree.map(jnp.copy, params) for name in averages},
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
        own = () if has_score(config) else ("classifier.*", "clip.*")
        free = [name for name in FREE_TO_CHANGE if name not in own]
        differences = config_differences(earlier, config.to_dict(), free)
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
    """Notes SIGTERM (or a pod's preemption notice), so that the loop can save and leave.

    A context: at its end the signal goes back to whoever had it.
    """

    def __enter__(self) -> StopRequest:
        self.received = False
        self.before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

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

    def write(self, step: int, **more: float | list[float]) -> None:
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


class HeldOut(NamedTuple):
    """What `HeldOutLoss` finds: the mean loss and, per image [n], what it is made of."""

    loss: float
    per_image: dict[str, np.ndarray]  # "t", "log_snr", "loss" and the other parts of the loss

    def by_time(self, groups: int = 10) -> dict[str, list[float]]:
        """Means over groups of equally many images that have neighbouring times, in their order."""
        t = self.per_image["t"]
        order = np.array_split(np.argsort(t, stable=True), min(groups, len(t)))
        return {
            name: [float(f"{values[rows].mean():.5g}") for rows in order]
            for name, values in self.per_image.items()
        }


class HeldOutLoss:
    """The loss of the EMA weights on fixed test images at fixed times with fixed noise, for the
    curves and for choosing the best checkpoint."""

    def __init__(self, config: ml_collections.ConfigDict, parts: Parts) -> None:
        dataset = data.from_config(config, "test")
        count = min(len(dataset), config.eval.batch_size)
        self.images, self.classes = dataset.take(np.arange(count))
        key = jax.random.key(config.seed)

        def losses_of(params: Any, indices: jax.Array, drawn: Any) -> dict[str, jax.Array]:
            images, classes = drawn
            per_image, named = parts.objective(
                params, images, classes, key, indices, count,
                train=False, flip=False, axis_name=parallel.AXIS,
            )  # fmt: skip
            t = jnp.maximum(named["t"], parts.sde.training_eps)  # at 0 there is no noise
            return {**named, "loss": per_image, "log_snr": parts.sde.log_snr(t)}

        batch = parallel.fitting_batch(count)
        self.map = parallel.ImageMap(losses_of, batch, "eval.batch_size")

    def __call__(self, ema_params: Any) -> HeldOut:
        indices = np.arange(len(self.images))
        drawn = (self.images, self.classes)
        found = [result for _, result in self.map(ema_params, indices, drawn)]
        per_image = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
        return HeldOut(float(np.mean(per_image["loss"])), per_image)


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Trains to `training.n_iters` steps, from the newest checkpoint in `workdir` if there is one.

    Writes checkpoints/, config.json, metrics.jsonl, TensorBoard events, loss.png and
    loss_by_time.png there, and with `training.ema_profiles` ema/, snapshots of those averages.

    Raises:
      ValueError: a config that cannot be served, or another than the workdir's.
      FloatingPointError: the loss stopped being finite.
      OSError: a checkpoint could not be written.
    """
    options = config.training
    parts, dataset = build(config), data.from_config(config, "train")
    parts = with_data(config, parts, dataset)
    share = parallel.per_device(options.batch_size, "training.batch_size")
    if share % options.accumulation:
        raise ValueError(
            f"training.accumulation={options.accumulation} does not divide the {share} images of a "
            f"device (training.batch_size={options.batch_size} on {jax.device_count()} devices)"
        )
    optimizer, averaging = optimizers.from_config(config), ema.from_config(config)
    checkpoints = open_run(config, workdir)

    fresh = functools.partial(
        new_state, parts.module, optimizer, config.seed, parts.image_shape, averaging.further
    )
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
    held_out, held = HeldOutLoss(config, parts), None
    snapshots = Snapshots(workdir / "ema")
    state = parallel.replicate(state)
    history = History(reports.MetricLog(workdir, start) if parallel.is_primary() else None)
    step = start
    with (
        StopRequest() as stop,
        parallel.progress(options.n_iters, "training", "step", initial=start) as bar,
    ):
        while step < options.n_iters:
            drawn = {name: a[: options.n_iters - step] for name, a in next(batches).items()}
            count = len(drawn["label"])
            state, metrics = step_fn(state, parallel.lay_out(drawn))
            history.add(step, metrics)
            before, step = step, step + count
            bar.update(count)
            if history.loss is not None:
                bar.set_postfix(loss=f"{history.loss:.4g}", refresh=False)
            last = step >= options.n_iters or stop(step)
            if last or crossed(options.eval_freq, before, step):
                history.settle()
                held = held_out(state.ema_params)
                by_time = {f"eval_{name}_by_time": v for name, v in held.by_time().items()}
                history.write(step, eval_loss=held.loss, **by_time)
            elif crossed(options.log_freq, before, step):
                history.write(step)
            if options.ema_profiles and crossed(options.ema_snapshot_freq, before, step):
                history.settle()
                if parallel.is_primary():
                    snapshots.save(step, parallel.fetch(state.averages))
            if (
                last
                or crossed(options.snapshot_freq, before, step)
                or crossed(options.snapshot_freq_for_preemption, before, step)
            ):
                history.settle()
                data_state = {**batches.get_state(), "step": step}
                metric = held.loss if held else None
                checkpoints.save(step, state_on_host(state), data_state, config_json, metric)
            if last:
                break
    batches.close()
    checkpoints.wait()
    if history.log:
        history.log.close()
        save_curves(workdir)
        if held:
            save_loss_by_time(workdir, held, "EMA weights")


def save_curves(workdir: pathlib.Path) -> None:
    """Draws the losses of `metrics.jsonl` as loss.png."""
    found = reports.read_metrics(workdir / "metrics.jsonl")
    names = {"loss": "training loss", "eval_loss": "test loss, EMA weights"}
    curves = {label: found[name] for name, label in names.items() if name in found}
    if curves:
        reports.plot_curves(workdir / "loss.png", curves, ylabel="loss", yscale="log")


def save_loss_by_time(folder: pathlib.Path, held: HeldOut, weights: str) -> None:
    """Draws loss_by_time.png: losses of test images against t, and against the SNR the errors of
    the noise, or of a classifier the share of images that it knows."""
    values, means = held.per_image, held.by_time()

    def panel(x: str, xlabel: str, y: str, ylabel: str) -> reports.Panel:
        return reports.Panel(xlabel, ylabel, (values[x], values[y]), (means[x], means[y]))

    labels = {"noise_mse": "squared error of the noise", "accuracy": "accuracy"}
    name, label = next((name, label) for name, label in labels.items() if name in values)
    panels = [
        panel("t", "time t", "loss", "loss"),
        panel("log_snr", "log-SNR, 2 log(alpha / sigma)", name, label),
    ]
    count = len(values["t"])
    title = f"{count} test images, {weights}: each, and means of groups with neighbouring times"
    reports.plot_panels(folder / "loss_by_time.png", panels, title)
