"""`--mode=export`: the weights of a run in other projects' files.

| `--target` | what is written |
|---|---|
| a folder | a diffusers pipeline: network, scheduler, model_index.json |
| `<name>.safetensors` | the network alone, under the official names, or ours where it has none |
| `<name>.pth`, `.pt` | the official checkpoint: raw weights, average, Adam's moments, step |
| `hf:owner/name` | a pipeline with a page of its own, in a repository of Hugging Face's hub |
"""

from __future__ import annotations

import collections
import filecmp
import functools
import importlib.util
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import ml_collections
import numpy as np
import optax
import safetensors.numpy

import configs
import models
import sde_lib
from interop import (
    diffusers,
    diffusers_config,
    hub,
    model_card,
    official,
    pipelines,
    pth_writer,
    schedulers,
)
from runtime import experiment, figures, files
from runtime.arrays import unflatten
from runtime.workdir import Trained, load_weights, open_run, weights_choice
from training import optimizers

Rows = list[tuple[str, str]]


class Export(NamedTuple):
    """What an export has written: its file of weights, tensors, and further rows of its table."""

    what: str
    weights: pathlib.Path
    tensors: dict[str, np.ndarray]
    rows: Rows


def export_weights(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, target: str | pathlib.Path
) -> None:
    """Writes the weights `eval.ema` of checkpoint `eval.checkpoint`; `target` says in which form.

    Raises:
      FileNotFoundError: no checkpoint.
      ImportError: a repository of the hub without huggingface-hub.
      ValueError: a network or process that the form cannot hold; a target that exists, or with an
        ending that no form has; a damaged checkpoint; weights that the run did not keep.
    """
    configs.check(config)
    if str(target).startswith(hub.HUB):
        push_weights(config, workdir, str(target))
        return
    files.refuse_url(target, "--target", "the folder can be copied")
    refuse_ending(str(target))
    _, what = export_files(config, workdir, pathlib.Path(target))
    print(f"{what} is in {target}")


def refuse_ending(target: str) -> None:
    """Raises ValueError for the name of a file of no form, such as "net.onnx".

    An ending is letters and digits behind the last dot, a letter first; a version ("run.v2",
    "v1.2") is none, nor is anything before a "/" at the end, which says that it is a folder.
    """
    ending = pathlib.PurePath(target).suffix
    if target.endswith("/") or ending in FORMS or re.fullmatch(r"\.v\d+", ending):
        return
    if re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{0,11}", ending):
        raise ValueError(
            f"--target={target}: no file that ends in {ending} is written; valid are "
            f"{', '.join(FORMS)}, a folder without an ending (or with / behind its name), and "
            f"{hub.HUB}owner/name"
        )


def push_weights(config: ml_collections.ConfigDict, workdir: pathlib.Path, target: str) -> None:
    """Writes a pipeline and its page, and uploads them to "hf:owner/name".

    What would stop the upload in any case is refused before there is anything to upload.
    """
    if not re.fullmatch(rf"{hub.HUB}[\w.-]+/[\w.-]+", target):
        raise ValueError(f"--target={target}: a repository is {hub.HUB}owner/name")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ImportError(
            f"--target={target}: huggingface-hub is not installed; pip install -e '.[hub]'; "
            "nothing was exported"
        )
    with tempfile.TemporaryDirectory(prefix="score-sde-") as above:
        folder = pathlib.Path(above, "pipeline")
        label, what = export_files(config, workdir, folder)
        kind = what.rpartition(" ")[2]
        files.write_text(folder / "README.md", model_card.text(config, workdir, label, kind))
        print(f"pushed to {hub.push(folder, target)}")


def export_files(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, target: pathlib.Path
) -> tuple[str, str]:
    """Writes the files of an export; which weights these are, and what was written."""
    form = FORMS.get(target.suffix, _pipeline)
    module, shape = models.from_config(config), experiment.image_shape(config)
    write = form(config, module, shape, workdir)
    weights = load_weights(config, module, shape, workdir)
    written = write(weights, target)
    count = sum(tensor.size for tensor in written.tensors.values())
    rows = [
        ("checkpoint", f"step {weights.step}, {weights.label}"),
        ("tensors written", str(len(written.tensors))),
        *written.rows,
        ("parameters", f"{count:,}"),
        ("SHA-256", files.sha256(written.weights)),
    ]
    print(figures.table(rows))
    return f"step {weights.step}, {weights.label}", written.what


# A form looks at the config first, and says what it cannot hold before any weights are read.
Shape = tuple[int, ...]
Writer = Callable[[Trained, pathlib.Path], Export]


def _pipeline(
    config: ml_collections.ConfigDict, module: Any, shape: Shape, workdir: pathlib.Path
) -> Writer:
    """A folder that `diffusers.DiffusionPipeline.from_pretrained` opens."""
    del workdir
    try:
        network = diffusers_config.description(module, shape)
        scheduler = schedulers.description(config)
    except ValueError as error:
        raise ValueError(f"{error}; {_alone(module, shape)}") from error

    def write(weights: Trained, target: pathlib.Path) -> Export:
        tensors = diffusers.params_to_diffusers(module, weights.params, shape)
        if not pipelines.is_written(target, network, scheduler, tensors):  # by one that was killed
            pipelines.write(target, network, scheduler, tensors)
        kind = scheduler["_class_name"]
        what = f"a diffusers {pipelines.CLASSES[kind]}"
        return Export(what, target / "unet" / diffusers.WEIGHTS, tensors, [("scheduler", kind)])

    return write


def _safetensors(
    config: ml_collections.ConfigDict, module: Any, shape: Shape, workdir: pathlib.Path
) -> Writer:
    """The network alone, as PyTorch's `state_dict` of the official code has it, or our tree."""
    del workdir
    names = "official" if _is_official(module, shape) else "our own"

    def write(weights: Trained, target: pathlib.Path) -> Export:
        if names == "official":
            tensors = official.params_to_torch(module, weights.params, shape)
        else:
            tensors = flax.traverse_util.flatten_dict(weights.params, sep="/")
        save = functools.partial(safetensors.numpy.save_file, metadata={"format": "pt"})
        try:
            _write_file(target, lambda path: save(tensors, path))
        except safetensors.SafetensorError as error:  # a full disk, for instance
            raise OSError(f"{target} could not be written: {error}") from error
        rows = [("names", names), ("not in the file", left_out(config))]
        return Export("the network", target, tensors, rows)

    return write


def _checkpoint(
    config: ml_collections.ConfigDict, module: Any, shape: Shape, workdir: pathlib.Path
) -> Writer:
    """The state that the official code's `restore_checkpoint` goes on from."""
    try:
        entries = official_entries(module, shape)
    except ValueError as error:
        raise ValueError(f"{error}; {_alone(module, shape)}") from error
    choice = weights_choice(config.eval.ema)
    rate = choice if isinstance(choice, float) else config.model.ema_rate

    def write(weights: Trained, target: pathlib.Path) -> Export:
        restored = open_run(config, workdir, training=False).restore(step=config.eval.checkpoint)
        template = jax.eval_shape(lambda: weights.params)
        raw = unflatten(template, restored.state, prefix="params")
        averaged = official.params_to_torch(module, weights.params, shape)
        model = official.params_to_torch(module, raw, shape)
        named = {f"module.{name}": tensor for name, tensor in model.items()}
        trained = [entry.torch_name for entry in entries if entry.trainable]
        adam = _adam(config, template, restored.state)
        state = {
            "optimizer": _optimizer(config, entries, module, shape, adam),
            "model": collections.OrderedDict({"module.sigmas": _sigmas(config), **named}),
            "ema": {
                "decay": rate,
                "num_updates": restored.step,
                "shadow_params": [averaged[name] for name in trained],
            },
            "step": restored.step,
        }
        _write_file(target, lambda path: pth_writer.write(path, state))
        moments = f"moments of {int(adam.count)} updates" if adam else "begins anew"
        rows = [("optimiser", moments), ("not in the file", left_out(config))]
        return Export("an official PyTorch checkpoint", target, averaged, rows)

    return write


FORMS = {".safetensors": _safetensors, ".pth": _checkpoint, ".pt": _checkpoint}


def official_entries(module: Any, shape: Shape) -> list[official.Entry]:
    """`official.correspondence` of a network that the official code has.

    Raises:
      ValueError: it has none like it.
    """
    others = {"augment_dim": 0, "attn_num_groups": 0}
    found = [f"model.{name}" for name, value in others.items() if getattr(module, name, 0) != value]
    if getattr(module, "embedding_type", "") == "log_positional":
        found.append("model.embedding_type='log_positional'")
    if found:
        raise ValueError(f"the official PyTorch code has no network with {', '.join(found)}")
    return official.correspondence(module, shape)


def _is_official(module: Any, shape: Shape) -> bool:
    """Whether the official code has such a network."""
    try:
        official_entries(module, shape)
    except ValueError:
        return False
    return True


def _alone(module: Any, shape: Shape) -> str:
    """Which forms hold this network without its process, in words."""
    if _is_official(module, shape):
        return "--target=<name>.safetensors or <name>.pth holds the network alone"
    return "--target=<name>.safetensors holds the network alone, under our own names"


def _adam(
    config: ml_collections.ConfigDict, template: Any, state: dict[str, np.ndarray]
) -> optax.ScaleByAdamState | None:
    """Adam's moments in a checkpoint, None where it has none."""
    blank = jax.eval_shape(optimizers.from_config(config).init, template)
    stored = unflatten(blank, state, prefix="opt_state")
    found = [part for part in stored if isinstance(part, optax.ScaleByAdamState)]
    return found[0] if found and config.optim.optimizer in ("Adam", "AdamW") else None


def _optimizer(
    config: ml_collections.ConfigDict,
    entries: list[official.Entry],
    module: Any,
    shape: Shape,
    adam: optax.ScaleByAdamState | None,
) -> dict[str, Any]:
    """The state of PyTorch's Adam; what is never trained, or not used, has no moments in it."""
    states: dict[int, Any] = {}
    if adam is not None and int(adam.count):
        first, second = (official.params_to_torch(module, x, shape) for x in (adam.mu, adam.nu))
        for number, entry in enumerate(entries):
            if entry.trainable and entry.path is not None:
                states[number] = {
                    "step": int(adam.count),
                    "exp_avg": first[entry.torch_name],
                    "exp_avg_sq": second[entry.torch_name],
                }
    group = {
        "lr": config.optim.lr,
        "betas": (config.optim.beta1, 0.999),
        "eps": config.optim.eps,
        "weight_decay": config.optim.weight_decay,
        "amsgrad": False,
        "params": list(range(len(entries))),
    }
    return {"state": states, "param_groups": [group]}


def _sigmas(config: ml_collections.ConfigDict) -> np.ndarray:
    """The buffer of noise levels that every official network has, the largest first."""
    model = config.model
    return np.geomspace(model.sigma_max, model.sigma_min, model.num_scales)


def _write_file(target: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Writes a file whole or not at all; one that stands there must be the same.

    Raises:
      ValueError: another file, or a folder, is at `target`.
    """
    if target.is_file():
        with tempfile.TemporaryDirectory() as folder:
            again = pathlib.Path(folder, target.name)
            write(again)
            if filecmp.cmp(target, again, shallow=False):  # an export was killed at its end
                return
    if target.exists():
        raise ValueError(f"{target} exists and holds something else; name another --target")
    with files.whole(target) as partial:
        write(partial)


def left_out(config: ml_collections.ConfigDict) -> str:
    """What a network alone does not say of a run."""
    return (
        f"the process ({config.training.sde}, model.* of it), the prediction "
        f"({prediction(config)}), the range of pixels (data.centered={config.data.centered})"
    )


def prediction(config: ml_collections.ConfigDict) -> str:
    """What the network predicts: `model.prediction`, or what is usual for the SDE."""
    return config.model.prediction or usual_prediction(config)


def usual_prediction(config: ml_collections.ConfigDict) -> str:
    """What a network of the config's SDE predicts where the config does not say."""
    return "score" if sde_lib.SDES[config.training.sde.lower()].variance_exploding else "noise"
