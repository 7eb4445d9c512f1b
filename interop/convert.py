"""`--mode=import`: other projects' files to a run that can be sampled, evaluated and trained."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import ml_collections
import numpy as np
import optax

import configs
import models
import sde_lib
from configs import defaults, schema, stored
from configs.attention import heights
from interop import cards, edm, hub, sources
from interop.exports import prediction, usual_prediction
from interop.flax_parameters import FlaxParameters
from interop.guided_diffusion import GuidedDiffusionFile
from interop.model_card import ORIGIN
from interop.weights import Weights
from runtime import devices, errors, experiment, figures, files
from runtime.arrays import flatten
from runtime.checkpoints import Checkpoints
from runtime.ema import from_config
from runtime.workdir import open_run, stored_config
from training import optimizers
from training.state import TrainState

# `--mode=import` writes it beside config.json, so that overrides need not be repeated.
CONFIG_FILE = '''"""The config of this folder's run, with all that was overridden at its import."""

import json
import pathlib

from configs import schema


def get_config():
    config = schema.base()
    with config.unlocked():
        config.update(json.loads(pathlib.Path(__file__).with_name("config.json").read_text()))
    return config
'''


def import_run(
    config: ml_collections.ConfigDict | None, source: str, workdir: pathlib.Path
) -> None:
    """Imports the weights of others into a workdir, see `import_once`, and says how to go on."""
    config = import_once(config, source, workdir)
    if models.has_samples(config):
        command = f"--mode=sample --config={workdir / 'config.py'} --workdir={workdir}"
        print(f"python main.py {command}")
    else:
        print(
            f"it guides a score network: --mode=control --config.control.guide={workdir}, or "
            f"--mode=eval and sample --config.sampling.guide={workdir}"
        )


def import_once(
    config: ml_collections.ConfigDict | None, source: str, workdir: pathlib.Path
) -> ml_collections.ConfigDict:
    """Imports what `source` names, unless the workdir has it, and returns the config of the run.

    Raises:
      ValueError: the workdir has other weights, or is a run of another config.
    """
    if devices.of_primary((workdir / ORIGIN).is_file()):
        refuse_other_weights(source, workdir)
        if config is None:
            return stored_config(workdir)
        open_run(config, workdir)
        if devices.is_primary():
            print(f"{workdir} has the weights of {source}")
        return config
    path = hub.local(source)
    if devices.is_primary():
        of_path = opened(path, workdir)
        _, config = import_opened(config, of_path, workdir)
        digest = files.sha256(of_path.path)
        files.write_json(
            workdir / ORIGIN,
            {"source": cards.split(source)[0], "path": str(path), "sha256": digest},
        )
    devices.of_primary(True)  # all wait for it
    return config or stored_config(workdir)


def refuse_other_weights(source: str, workdir: pathlib.Path) -> None:
    """Raises ValueError unless the weights that a workdir has are those of `source`: of its name,
    or, where that is of a file on this machine, of its SHA-256."""
    before = files.read_json(workdir / ORIGIN, "use another --workdir")
    path = pathlib.Path(source).expanduser()
    if cards.find(source) is None and path.exists():
        same = files.sha256(sources.open_source(path).path) == before["sha256"]
    else:
        same = before["source"] == cards.split(source)[0]
    if not same:
        raise ValueError(f"{workdir} has the weights of {before['source']}; use another --workdir")


def import_weights(
    config: ml_collections.ConfigDict | None,
    source: str | pathlib.Path,
    workdir: pathlib.Path,
) -> TrainState:
    """Writes the weights in `source` (see `hub.local`) as the first checkpoint in `workdir`: see
    `import_opened`."""
    return import_opened(config, opened(source, workdir), workdir)[0]


def opened(source: str | pathlib.Path, workdir: pathlib.Path) -> sources.Opened:
    """The file or folder `source` (see `hub.local`), of which a run is to be made in `workdir`.

    Raises:
      FileNotFoundError: no such source.
      ValueError: an unknown or damaged file; a workdir that no import writes to.
    """
    files.refuse_url(str(workdir), "--workdir", "a run that is imported there can be copied")
    return sources.open_source(hub.local(str(source)))


def import_opened(
    config: ml_collections.ConfigDict | None, opened: sources.Opened, workdir: pathlib.Path
) -> tuple[TrainState, ml_collections.ConfigDict]:
    """Writes the weights of an opened source as the first checkpoint in `workdir`, and config.json
    and a config.py that reads it beside the checkpoints.

    Without a config, the one in configs/ whose network has the file's tensors is taken; a diffusers
    folder describes its network itself, and its scheduler the SDE and the prediction. Weights
    without averages stand in for them; without moments, the optimiser begins anew. What was taken,
    and what in the file was not, is printed.

    Returns:
      The state that was written, as NumPy arrays and with the key's raw data; and its config.

    Raises:
      ValueError: tensors that are not the config's network's; a config that does not fit or, if
        none is given, none or several that do; a workdir with checkpoints. Nothing has been
        written.
    """
    origin = "--config"
    if config is None:
        config, origin = find_config(opened)
    configs.check(config)
    sde_lib.from_config(config)
    if isinstance(opened, Described):
        refuse_differences(config, opened.config_values(config.data.image_size), opened)
        origin = str(opened.scheduler or origin)
    checkpoints = open_run(config, workdir)
    module = experiment.network(config)
    weights = opened.weights(module, experiment.image_shape(config))
    state = state_of(config, module, weights)

    if not checkpoints.steps():
        checkpoints.save(weights.step, vars(state), None, json.dumps(config.to_dict()))
        checkpoints.wait()
    elif not holds(checkpoints, state):
        raise ValueError(f"{checkpoints.directory} holds other checkpoints; use another --workdir")
    if not (workdir / "config.json").is_file():
        files.write_json(workdir / "config.json", config.to_dict())
    if not (workdir / "config.py").is_file():
        files.write_text(workdir / "config.py", CONFIG_FILE)
    print(figures.table(summary(config, origin, opened, weights)))
    print(f"checkpoint {weights.step} is in {checkpoints.directory}")
    return state, config


Described = sources.DiffusersFolder | edm.EdmFile  # files that say what they are
Undescribed = sources.PytorchFile | sources.FlaxFile | GuidedDiffusionFile | FlaxParameters


def holds(checkpoints: Checkpoints, state: TrainState) -> bool:
    """True if the checkpoints are this one alone: an import that was killed had written it."""
    if checkpoints.steps() != [int(state.step)]:
        return False
    stored, imported = checkpoints.restore().state, flatten(vars(state))
    return stored.keys() == imported.keys() and all(
        np.array_equal(stored[name], array) for name, array in imported.items()
    )


def summary(
    config: ml_collections.ConfigDict, origin: str, opened: sources.Opened, weights: Weights
) -> list[tuple[str, str]]:
    """The rows that an import prints; `origin` is whatever said which SDE and prediction it is."""
    count = sum(leaf.size for leaf in jax.tree.leaves(weights.params))
    ema = "averages alone, for raw too" if weights.only_averages else "one set, for raw and EMA"
    if weights.ema:
        rate = f"rate {weights.ema_rate:g}" if weights.ema_rate else "of an unknown rate"
        ema = f"EMA, {rate}, and raw"
    moments = f"moments of {weights.updates} updates" if weights.first_moment else "begins anew"
    types = f" ({', '.join(sorted(opened.types))}, to float32)" if opened.types else ""
    levels = f"{config.model.num_scales} levels"
    times = "all times" if config.training.continuous else levels
    what = prediction(config) if models.has_samples(config) else "classes, of noisy images"
    return [
        ("source", f"{opened.path} ({opened.format})"),
        ("SHA-256", files.sha256(opened.path)),
        ("tensors read", f"{opened.num_tensors}{types}"),
        ("parameters", f"{count:,}"),
        ("weights", ema),
        ("optimiser", moments),
        ("step", str(weights.step)),
        ("SDE", f"{config.training.sde}, {times} (from {origin})"),
        ("prediction", f"{what} (from {origin})"),
        ("not used", errors.abridged(opened.unused, ", ") or "nothing"),
    ]


def state_of(config: ml_collections.ConfigDict, module: nn.Module, weights: Weights) -> TrainState:
    """The training state, in NumPy, that goes on from these weights."""
    optimizer = optimizers.from_config(config)
    blank = jax.eval_shape(optimizer.init, weights.params)
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), blank)
    _, key = jax.random.split(jax.random.key(config.seed))  # as `state.new_state`
    step: Any = np.asarray(weights.step, np.int32)
    key_data: Any = np.asarray(jax.random.key_data(key))
    return TrainState(
        step=step,
        params=weights.params,
        opt_state=with_moments(blank, weights),
        ema_params=weights.ema or weights.params,
        key=key_data,
        averages=dict.fromkeys(from_config(config).further, weights.ema or weights.params),
    )


def with_moments(opt_state: optax.OptState, weights: Weights) -> optax.OptState:
    """The optimiser's state with the moments of the file, at its step of the learning rate."""

    def fill(state: Any) -> Any:
        if isinstance(state, optax.ScaleByAdamState) and weights.first_moment is not None:
            count = np.asarray(weights.updates, np.int32)
            return state._replace(count=count, mu=weights.first_moment, nu=weights.second_moment)
        if isinstance(state, optax.ScaleByScheduleState):
            return state._replace(count=np.asarray(weights.step, np.int32))
        return state

    return tuple(fill(state) for state in opt_state)


def find_config(opened: sources.Opened) -> tuple[ml_collections.ConfigDict, str]:
    """The only config in configs/ whose network the file fits, or, where a diffusers folder fits
    none, one that describes the folder's network; and where the SDE is from.

    Raises:
      ValueError: none fits, or several do; names them.
    """
    if isinstance(opened, Described):
        values = opened.config_values(None)
        fitting = described_by(values)
        if not fitting:
            origin = opened.described_in
            if "training.sde" not in values:
                origin = "the default of such networks, as there is no scheduler_config.json"
            return described_config(values, opened.description), origin
    else:
        fitting = fitting_configs(opened)
        if not fitting:
            raise ValueError(
                f"{opened.path} fits no config in configs/ (it is {opened.found}); name one with "
                "--config"
            )
    if len(fitting) > 1:
        names = ", ".join(f"configs/{name}.py" for name in fitting)
        raise ValueError(
            f"{opened.path} fits the network of several configs; choose one with --config: {names}"
        )
    return stored.load(fitting[0]), f"configs/{fitting[0]}.py, the only one that fits"


def described_by(values: dict[str, Any]) -> list[str]:
    """Names of the configs in configs/ that have these values; of several, the one of which numbers
    are published, if there is one."""
    shipped = stored.shipped().items()
    fitting = [n for n, c in shipped if models.has_score(c) and not differences(c, values)]
    numbered = {card.config for card in cards.cards().values() if card.evaluations}
    of_numbers = [name for name in fitting if name in numbered]
    return of_numbers if len(of_numbers) == 1 else fitting


def fitting_configs(opened: Undescribed) -> list[str]:
    """Names of the configs in configs/ whose network has the file's tensors."""
    verdicts: dict[Any, bool] = {}  # of networks, which configs share
    fitting = []
    for name, config in stored.shipped().items():
        module, shape = experiment.network(config), experiment.image_shape(config)
        key = repr(module), shape
        if key not in verdicts:
            verdicts[key] = opened.fits(module, shape)
        if verdicts[key]:
            fitting.append(name)
    return fitting


def described_config(
    values: dict[str, Any], description: dict[str, Any]
) -> ml_collections.ConfigDict:
    """A config for what `DiffusersFolder.config_values` describes; where these do not say which
    SDE it is, VE continuous for NCSN++, VP discrete for DDPM."""
    config = schema.base()
    usual = "vesde" if values["model.name"] == "ncsnpp" else "vpsde"
    sde = values.get("training.sde", usual)
    continuous = values.get("training.continuous", usual == "vesde")
    if sde == "edm":
        defaults.edm_training(config, values["model.sigma_data"])
    else:
        (defaults.ve if sde == "vesde" else defaults.vp)(config, continuous=continuous)
    with config.unlocked():
        config.update(flax.traverse_util.unflatten_dict(values, sep="."))
    config.model.dropout = float(description.get("dropout") or 0.0)
    return config


def differences(config: ml_collections.ConfigDict, values: dict[str, Any]) -> list[str]:
    """Overrides, such as `--config.model.nf=32`, that would give `config` these `values`."""
    fields = flax.traverse_util.flatten_dict(config.to_dict(), sep=".")
    fields["training.sde"] = fields["training.sde"].lower()
    described = {name: fields[name] for name in values}
    levels = heights(values["data.image_size"], values["model.ch_mult"])
    attention = described["model.attn_resolutions"]  # at heights that the network has
    described["model.attn_resolutions"] = tuple(height for height in levels if height in attention)
    if values.get("model.prediction") == "" and prediction(config) == usual_prediction(config):
        described["model.prediction"] = ""
    return stored.config_differences(
        described,
        values,
        wording=lambda name, old, new: f"--config.{name}={values[name]}".replace(" ", ""),
    )


def refuse_differences(
    config: ml_collections.ConfigDict, values: dict[str, Any], opened: Described
) -> None:
    """Raises ValueError unless `config` describes the network, SDE and prediction of a source."""
    overrides = differences(config, values)
    if overrides:
        what = "network, SDE or prediction" if "training.sde" in values else "network"
        raise ValueError(
            f"the config has another {what} than {opened.described_in}; it would need "
            f"{' '.join(overrides)}"
        )
