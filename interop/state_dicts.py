"""What a PyTorch file holds: weights, averages, moments, by the names that projects give them.

| the file holds | written by |
|---|---|
| tensors by name | `torch.save(model.state_dict())` |
| `model`, `optimizer`, `step`, `ema`: {`decay`, `shadow_params`: [...]} | score_sde |
| [model, optimizer, epoch, step, averages by name] | NCSN, NCSNv2 |
| `model` and `ema_model` or `model_ema`, `state_dict` and `state_dict_ema`, ... | most others |
| `ema`: `online_model.*` and `ema_model.*` | ema-pytorch (lucidrains) |
| `state_dict`: `model.*` and `model_ema.*`, the latter without dots | Lightning, latent-diffusion |
| an average with `n_averaged` and `module.*` | `torch.optim.swa_utils.AveragedModel` |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from runtime import errors

Tensors = dict[str, np.ndarray]

MODEL = ("model", "state_dict", "model_state_dict", "net", "network", "score_model", "unet")
AVERAGES = (
    "ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema", "model_state_dict_ema",
    "ema_model_state_dict", "ema_net", "net_ema", "ema_network", "ema_weights", "ema_params",
    "params_ema", "shadow", "shadow_params", "averaged_model", "swa_model",
)  # fmt: skip
COUNTERS = ("n_averaged", "num_updates", "initted", "step")  # of averages, beside their weights
WRAPPED = ("module", "params")  # what averages may lie in, beside the names of `MODEL`
LIST = ("model", "optimizer", "epoch", "step", "ema_model")  # of the NCSN authors
# The first layers of our networks in PyTorch, by which they are found behind any prefix.
OFFICIAL = ("all_modules", "begin_conv")  # a U-Net; NCSN and NCSNv2
DIFFUSERS = ("conv_in",)


class Average(NamedTuple):
    """Averaged weights: by name, or in the order of the trainable tensors."""

    weights: Tensors | list[np.ndarray]
    rate: float  # 0 if the file does not say


class Parts(NamedTuple):
    """The parts of a file that a training state is made of; the names are without prefixes."""

    model: Tensors
    average: Average | None
    optimizer: Mapping[str, Any] | None
    step: Any
    unused: list[str]  # names of what is none of them
    only_averages: bool  # `model` are averages, and no other weights are there


def parts(content: Any) -> Parts:
    """The parts of what `pth.read` returned.

    Raises:
      ValueError: no weights of an official network, or an average of an unknown form.
    """
    state = _by_name(content)
    unused: list[str] = []
    raw, average = None, None
    for name in AVERAGES:
        if average is None and state.get(name) is not None:
            average, inner = _average(name, state[name], unused)
            raw = raw or inner
        elif state.get(name) is not None:
            unused.append(name)
    models = [name for name in MODEL if is_network(state.get(name))]
    if models:
        unused += ["ema.online_model"] * bool(raw)
        raw = _tensors(models[0], state[models[0]])
        unused += models[1:]
    only_averages = raw is None and average is not None
    if only_averages and average is not None and isinstance(average.weights, dict):
        raw, average = average.weights, None
    if raw is None:
        raise ValueError(
            f"it holds {_contents(state)}, but no state_dict 'model' with {' or '.join(OFFICIAL)} "
            "in its names; wanted are weights of an official network, as "
            "torch.save(model.state_dict()) writes them (of a diffusers model, name the folder)"
        )
    model = stripped(raw, OFFICIAL, "the weights")
    if average is not None and isinstance(average.weights, dict):
        named = stripped(_dotted(average.weights, raw), OFFICIAL, "the averages")
        average = average._replace(weights=named)
    optimizer = state.get("optimizer")
    if isinstance(optimizer, Mapping):
        unused += [f"optimizer.{name}" for name in optimizer if name != "state"]
    used = {*models, *AVERAGES, "optimizer", "step"}
    unused += [str(name) for name in state if name not in used and name not in unused]
    return Parts(model, average, optimizer, state.get("step"), unused, only_averages)


def _by_name(content: Any) -> dict[str, Any]:
    """The entries of a file by name, whichever of its forms it has."""
    if isinstance(content, list | tuple):
        if not content or len(content) > len(LIST) or not is_network(content[0]):
            raise ValueError(
                f"it holds {_kind(content)}, expected a dictionary, or {', '.join(LIST)}"
            )
        return dict(zip(LIST, content, strict=False))
    if not isinstance(content, dict):
        raise ValueError(f"it holds {_kind(content)}, expected a dictionary of weights")
    if content and all(isinstance(value, np.ndarray) for value in content.values()):
        both = any(str(name).startswith("ema_model.") for name in content)
        content = {"ema" if both else "model": content}
    return _separated(content)


def _separated(state: dict[str, Any]) -> dict[str, Any]:
    """The entries, averages among the tensors of a model apart (`model.*` and `model_ema.*`).

    Raises:
      ValueError: several averages are among them.
    """
    for entry in [name for name in MODEL if is_network(state.get(name))]:
        first = {str(name): str(name).partition(".")[0] for name in state[entry]}
        parts = sorted({*first.values()} & {*AVERAGES} - {entry})
        if len(parts) > 1:
            raise ValueError(
                f"{entry} holds several averages, {errors.abridged(parts, ', ')}; one is read"
            )
        for part in parts:
            within = {name: x for name, x in state[entry].items() if first[str(name)] == part}
            rest = {name: x for name, x in state[entry].items() if name not in within}
            if rest and part not in state:
                named = {str(name).removeprefix(f"{part}."): x for name, x in within.items()}
                state = {**state, entry: rest, part: named}
    return state


def _contents(state: Mapping[Any, Any]) -> str:
    """The entries of a file in a few words: "epoch (int), model (dictionary of conv.weight)"."""
    names = [f"{str(name)[:40]} ({_kind(value)})" for name, value in state.items()]
    return errors.abridged(names, ", ", 4) or "nothing"


def _kind(value: Any) -> str:
    """A value in a few words, such as "tensor", "dictionary of conv.weight", "float nan"."""
    if isinstance(value, np.ndarray):
        return "tensor"
    if isinstance(value, dict):
        return f"dictionary of {errors.abridged([str(name)[:40] for name in value], ', ', 2)}"
    if isinstance(value, int | float):
        return f"{type(value).__name__} {str(value)[:20]}"
    return type(value).__name__


def is_network(value: Any) -> bool:
    """True if these are named tensors of an official network, behind whatever prefix."""
    return isinstance(value, dict) and any(
        _prefix(str(name), OFFICIAL) is not None for name in value
    )


def _prefix(name: str, layers: tuple[str, ...]) -> str | None:
    """What stands before one of `layers` in a tensor's name; None if none of them is there."""
    first, *_ = [*(i for i, part in enumerate(name.split(".")[:-1]) if part in layers), None]
    return None if first is None else "".join(f"{part}." for part in name.split(".")[:first])


def _tensors(what: str, value: Mapping[Any, Any]) -> Tensors:
    strange = [str(name) for name, tensor in value.items() if not isinstance(tensor, np.ndarray)]
    if strange:
        raise ValueError(f"in {what}, {strange[0]} is no tensor")
    return {str(name): tensor for name, tensor in value.items()}


def stripped(tensors: Mapping[str, np.ndarray], layers: tuple[str, ...], what: str) -> Tensors:
    """The tensors without what wrappers of a network (`module.`, `_orig_mod.`) put before names.

    Raises:
      ValueError: only some of the names have that prefix, or there are several.
    """
    prefixes = sorted({p for name in tensors if (p := _prefix(name, layers)) is not None})
    if len(prefixes) > 1:
        raise ValueError(
            f"the names of {what} have several prefixes, {errors.abridged(prefixes, ', ')}; "
            "one network is read"
        )
    prefix = prefixes[0] if prefixes else ""
    without = [name for name in tensors if not name.startswith(prefix)]
    if without:
        raise ValueError(
            f"the names of {what} begin with {prefix!r}, but for {len(without)} of {len(tensors)}: "
            f"{errors.abridged(without, ', ')}"
        )
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _average(what: str, value: Any, unused: list[str]) -> tuple[Average, Tensors | None]:
    """The averages in an entry, and the raw weights that may be beside them."""
    if isinstance(value, list):
        return Average(_listed(what, value), 0.0), None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is a {type(value).__name__}, expected averaged weights")
    value = _unwrapped(what, value, unused)
    if any(str(name).startswith("ema_model.") for name in value):
        split = {"ema_model.": {}, "online_model.": {}}  # type: dict[str, Any]
        for name, tensor in value.items():
            part = next((p for p in split if str(name).startswith(p)), None)
            if part is None:
                unused.append(f"{what}.{name}")
            else:
                split[part][str(name).removeprefix(part)] = tensor
        raw = split["online_model."]
        average = Average(_tensors(what, split["ema_model."]), 0.0)
        return average, _tensors(what, raw) if raw else None
    rate = _rate(what, value["decay"]) if "decay" in value else 0.0
    entry = next((name for name in ("shadow", "shadow_params") if name in value), None)
    if entry is None:
        if "decay" in value and not is_network(value) and not _is_dotless(value):
            raise ValueError(f"{what} lacks shadow_params")
        unused += [f"{what}.{name}" for name in COUNTERS if name in value]
        left = {name: x for name, x in value.items() if name not in ("decay", *COUNTERS)}
        return Average(_tensors(what, left), rate), None
    if "decay" not in value:
        raise ValueError(f"{what} lacks decay")
    unused += [f"{what}.{name}" for name in value if name not in (entry, "decay")]
    shadow = value[entry]
    if isinstance(shadow, dict):
        return Average(_tensors(what, shadow), rate), None
    return Average(_listed(f"{what}.{entry}", shadow), rate), None


def _unwrapped(what: str, value: dict[Any, Any], unused: list[str]) -> dict[Any, Any]:
    """The dictionary of averages that lies in another one, as `{"module": {...}}`."""
    inside = [name for name in (*MODEL, *WRAPPED) if is_network(value.get(name))]
    if len(inside) != 1:
        return value
    unused += [f"{what}.{name}" for name in value if name not in inside]
    inner: dict[Any, Any] = value[inside[0]]
    return inner


def _rate(what: str, decay: Any) -> float:
    rate = np.asarray(decay)
    if rate.size != 1 or rate.dtype.kind not in "iuf":
        raise ValueError(f"{what}.decay is {str(decay)[:40]}, expected a number")
    return float(rate.item())


def _is_dotless(value: Mapping[Any, Any]) -> bool:
    """True if these are tensors of an official network whose names have lost their dots."""
    return any(layer in str(name) for name in value for layer in OFFICIAL)


def _listed(what: str, value: Any) -> list[np.ndarray]:
    if not isinstance(value, list) or not all(isinstance(x, np.ndarray) for x in value):
        raise ValueError(f"{what} is no list of tensors")
    return value


def _dotted(averages: Tensors, model: Tensors) -> Tensors:
    """The averages by their real names, where their class took the dots out (LitEma).

    The averaged module may be one inside the `model`: its names then begin later.
    """
    depth = max((name.count(".") for name in model), default=0)
    for start in range(depth + 1):
        inner = {name: name.split(".", start)[-1] for name in model if name.count(".") >= start}
        names = {short.replace(".", ""): name for name, short in inner.items()}
        if averages and all(name in names for name in averages):
            return {names[name]: tensor for name, tensor in averages.items()}
    return averages
