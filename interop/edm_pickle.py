"""Pickles of EDM's networks (NVlabs/edm: `edm-*.pkl`, `network-snapshot-*.pkl`), none of whose code
is run.

Such a file is a pickle of a dictionary, whose entry "ema" is a network: an object that names its
class, carries the text of the module that defines it, and has its attributes, with `_parameters`,
`_buffers`, `_modules`, `_init_args` and `_init_kwargs` among them. The text is never looked at.
Tensors lie in the pickle as bytes that `torch.save` wrote, one storage each, with pickles of their
own. What each name means here, this file and `pth` say; any other name is refused.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from interop import pth, unpickle
from runtime import errors

MOST_VERSION = 6  # of EDM's persistence
HEAD = 4096  # bytes in which the first object begins
PLAIN = (str, int, float, bool, type(None))


class Object:
    """An object of the file: the name of its class and its attributes."""

    def __init__(self, name: str, state: Mapping[str, Any]):
        self.name, self.state = name, state


class Network(NamedTuple):
    """A network of a file.

    Attributes:
      preconditioning: the class of the whole, "EDMPrecond", "VPPrecond", ...
      architecture: the class of the network in it, "SongUNet" or "DhariwalUNet".
      outer, inner: the attributes of both that are plain: numbers, texts and lists of them. Those
        of the constructor come first.
      tensors: by name, "model.map_layer0.weight", buffers among them.
      unused: what else is in the file, by name.
    """

    preconditioning: str
    architecture: str
    outer: dict[str, Any]
    inner: dict[str, Any]
    tensors: dict[str, np.ndarray]
    unused: list[str]


def is_edm(path: str | os.PathLike[str]) -> bool:
    """True if the file looks like a pickle of EDM: one whose first object is a persistent one."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    return head[:1] == pickle.PROTO and b"torch_utils.persistence" in head


def read(path: str | os.PathLike[str]) -> Network:
    """The network under "ema" in a file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged, no pickle of EDM, or with something in it that is not allowed.
    """
    with open(path, "rb") as file:
        try:
            content = _Unpickler(file).load()
            return _network(content)
        except Exception as error:
            text = errors.one_line(error, 300)
            raise ValueError(f"{path} cannot be read as a pickle of EDM: {text}") from error


def _object(described: Any) -> Object:
    """`torch_utils.persistence._reconstruct_persistent_obj`, but for the class."""
    match described:
        case {"type": "class", "version": int(version), "class_name": str(name), "state": state}:
            pass
        case _:
            raise ValueError("an object without class and state is not allowed")
    if version > MOST_VERSION:
        raise ValueError(f"version {version} of an object; known are those up to {MOST_VERSION}")
    if not isinstance(state, dict):
        raise ValueError(f"the state of {name[:60]} is a {type(state).__name__}")
    return Object(name, state)


def _storage(data: Any) -> pth.Storage:
    """`torch.storage._load_from_bytes`: a storage as `torch.save` wrote it before version 1.6."""
    if not isinstance(data, bytes):
        raise ValueError(f"a storage in a {type(data).__name__} is not allowed")
    return pth.read_storage(data)


class _Empty:
    """A class whose empty object a state follows: `torch.nn.ModuleDict`."""

    def __init__(self, name: str):
        self.name = name


ALLOWED: dict[str, Any] = {
    **{
        name: pth.ALLOWED[name]
        for name in (
            *("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "numpy.dtype"),
            *("torch._utils._rebuild_parameter", "numpy.core.multiarray.scalar"),
            *("numpy._core.multiarray.scalar", "_codecs.encode"),
        )
    },
    "torch_utils.persistence._reconstruct_persistent_obj": unpickle.Call(_object),
    "torch.storage._load_from_bytes": unpickle.Call(_storage),
    "torch.nn.modules.container.ModuleDict": _Empty("ModuleDict"),
}


class _Unpickler(unpickle.Unpickler):
    """The unpickler of such files: beside plain containers, empty sets and objects of `_Empty`.

    Tensors are in the pickle itself, which is as large as they are.
    """

    dispatch: ClassVar[Any] = dict(unpickle.Unpickler.dispatch)

    def __init__(self, file: Any):
        super().__init__(file, ALLOWED, self._refuse)

    @staticmethod
    def _refuse(persistent_id: Any) -> Any:
        del persistent_id
        raise ValueError("it refers to something outside of it")

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack[-1]
        if type(kind) is not _Empty or arguments != ():
            raise ValueError(f"it makes an object of a {type(kind).__name__}: not allowed")
        self.stack[-1] = Object(kind.name, {})

    def load_empty_set(self) -> None:
        self.append(())

    def load_build(self) -> None:
        target = self.stack[-2]
        if type(target) is not Object:
            super().load_build()
            return
        state = self.stack.pop()
        if type(state) is not dict or target.state:
            raise ValueError(f"it sets the state of a {target.name} with a {type(state).__name__}")
        target.state = state


_Unpickler.dispatch[pickle.NEWOBJ[0]] = _Unpickler.load_newobj
_Unpickler.dispatch[pickle.EMPTY_SET[0]] = _Unpickler.load_empty_set
_Unpickler.dispatch[pickle.BUILD[0]] = _Unpickler.load_build


def _network(content: Any) -> Network:
    if not isinstance(content, dict) or not isinstance(content.get("ema"), Object):
        names = [str(name)[:40] for name in content] if isinstance(content, dict) else []
        raise ValueError(
            "it has no network under 'ema'; it has "
            + (errors.abridged(names, ", ") or f"a {type(content).__name__}")
        )
    whole = content["ema"]
    inside = _children(whole).get("model")
    if inside is None:
        raise ValueError(f"its {whole.name[:60]} has no network named 'model'")
    tensors = dict(_tensors(whole, "", 0))
    if not tensors:
        raise ValueError(f"its {whole.name[:60]} has no tensors")
    others = [str(name)[:40] for name in content if name != "ema"]
    return Network(whole.name, inside.name, _plain(whole), _plain(inside), tensors, others)


def _children(module: Object) -> dict[str, Object]:
    """The modules inside a module by name; those that are None are not there."""
    named = module.state.get("_modules", {})
    if not isinstance(named, dict):
        raise ValueError(f"the modules of a {module.name[:60]} are a {type(named).__name__}")
    found = {}
    for name, child in named.items():
        if child is None:
            continue
        if not isinstance(name, str) or not isinstance(child, Object):
            raise ValueError(f"{str(name)[:40]} in a {module.name[:60]} is no module")
        found[name] = child
    return found


def _tensors(module: Object, prefix: str, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    """All parameters and buffers by name."""
    if depth > unpickle.MAX_DEPTH:
        raise ValueError(f"modules are nested deeper than {unpickle.MAX_DEPTH} levels")
    for kind in ("_parameters", "_buffers"):
        named = module.state.get(kind, {})
        if not isinstance(named, dict):
            raise ValueError(f"{kind} of a {module.name[:60]} are a {type(named).__name__}")
        for name, tensor in named.items():
            if isinstance(tensor, np.ndarray):
                yield f"{prefix}{name}", tensor
            elif tensor is not None:
                raise ValueError(f"{prefix}{name} is a {type(tensor).__name__}, no tensor")
    for name, child in _children(module).items():
        yield from _tensors(child, f"{prefix}{name}.", depth + 1)


def _plain(module: Object) -> dict[str, Any]:
    """The arguments of a module's constructor, and those of its attributes that are plain."""
    attributes = {k: v for k, v in module.state.items() if not str(k).startswith("_")}
    arguments = module.state.get("_init_kwargs", {})
    if not isinstance(arguments, dict) or module.state.get("_init_args", ()) not in ((), []):
        raise ValueError(f"the arguments of {module.name[:60]} are without names")
    return {
        name: _value(value) for name, value in (arguments | attributes).items() if _is_plain(value)
    }


def _value(value: Any) -> Any:
    return [_value(item) for item in value] if isinstance(value, list | tuple) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= pth.MAX_AXES and all(isinstance(item, PLAIN) for item in value)
    return isinstance(value, PLAIN)
