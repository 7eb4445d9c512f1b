"""Files of other projects are read to the last bit, and nothing in them is executed."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import pathlib
import pickle
import time
import zipfile
from typing import Any

import flax.serialization
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from interop import flax_msgpack, formats, pth, sources
from tests import golden_cases


def checkpoint_files() -> dict[pathlib.Path, str]:
    """The official files among the golden ones, by what they hold."""
    found = {}
    for path in golden_cases.files("checkpoints", "*"):
        with contextlib.suppress(ValueError, OSError):
            found[path] = formats.recognise(path)
    return found


CHECKPOINTS = checkpoint_files()


def of_format(name):
    found = [path for path, kind in CHECKPOINTS.items() if kind == name]
    return pytest.mark.parametrize("path", found, ids=lambda path: path.name)


def config_of(path: pathlib.Path) -> dict:
    """The config of an official file: of the state with the same whole stem."""
    (case,) = (case for case in golden_cases.checkpoints() if path in case.files)
    return golden_cases.load(case.expected)["config_json"]


@pytest.mark.golden
@of_format("pth")
def test_official_pytorch_checkpoint(path):
    content = pth.read_pth(path)
    config = config_of(path)
    assert content.keys() == {"optimizer", "model", "ema", "step"}
    sigmas = content["model"]["module.sigmas"]
    assert sigmas.dtype == np.float64
    expected = np.geomspace(
        config["model"]["sigma_max"], config["model"]["sigma_min"], config["model"]["num_scales"]
    )
    np.testing.assert_allclose(sigmas, expected, rtol=1e-6)
    assert 0 < content["ema"]["decay"] < 1

    parameters = [name for name in content["model"] if name != "module.sigmas"]
    shapes = [content["model"][name].shape for name in parameters]
    frozen = "module.all_modules.0.W"  # of the Fourier embedding; neither averaged nor trained
    averaged = content["ema"]["shadow_params"]
    trained = [shape for name, shape in zip(parameters, shapes, strict=True) if name != frozen]
    assert [average.shape for average in averaged] == trained
    assert all(np.isfinite(average).all() for average in averaged)
    for index, moments in content["optimizer"]["state"].items():
        assert parameters[index] != frozen
        assert moments["exp_avg"].shape == moments["exp_avg_sq"].shape == shapes[index]
        assert (moments["exp_avg_sq"] >= 0).all()


@pytest.mark.golden
@of_format("flax")
def test_official_jax_checkpoint(path):
    content = flax_msgpack.read_flax_checkpoint(path)
    shapes = [
        jax.tree.map(np.shape, content[name])
        for name in ("params", "params_ema", "grad_ema", "grad_sq_ema")
    ]
    assert all(tree == shapes[0] for tree in shapes)
    assert all((leaf >= 0).all() for leaf in jax.tree.leaves(content["grad_sq_ema"]))
    assert 0 < content["ema_rate"] < 1
    assert content["optimizer_step"] == content["step"]
    assert (content["rng"].dtype, content["rng"].shape) == (np.uint32, (2,))


def sorted_tensors(arrays) -> list[bytes]:
    """The tensors, on which two formats agree whatever the order of tensors and of their axes."""
    return sorted(np.sort(np.ravel(array)).tobytes() for array in arrays)


@pytest.mark.golden
@of_format("flax")
def test_both_official_formats_hold_the_same(path):
    twins = [
        twin
        for twin, kind in CHECKPOINTS.items()
        if kind == "pth" and path.name.startswith(twin.stem)
    ]
    if not twins:
        pytest.skip(f"no .pth beside {path.name}")
    theirs, ours = pth.read_pth(twins[0]), flax_msgpack.read_flax_checkpoint(path)
    raw = {name: x for name, x in theirs["model"].items() if name != "module.sigmas"}
    assert sorted_tensors(raw.values()) == sorted_tensors(jax.tree.leaves(ours["params"]))
    averaged = sorted_tensors(theirs["ema"]["shadow_params"])
    assert set(averaged) <= set(sorted_tensors(jax.tree.leaves(ours["params_ema"])))
    assert theirs["step"] == ours["step"]


# --- PyTorch files written here, with a stand-in for PyTorch ---


class Tensor:
    """A view of a storage, pickled as PyTorch does."""

    def __init__(self, storage, offset, shape, stride, kind="FloatStorage"):
        hooks: dict[str, Any] = collections.OrderedDict()
        self.arguments = (Storage(storage, kind), offset, shape, stride, False, hooks)

    def __reduce_ex__(self, protocol):
        return Named("torch._utils", "_rebuild_tensor_v2"), self.arguments


class Storage:
    """The storage that a tensor is a view of."""

    def __init__(self, array, kind):
        self.array, self.kind = np.asarray(array), kind


class Named:
    """Pickled as the global `module.name`, which need not exist."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError("only to be pickled")


class Reduced:
    """Pickled as the call `module.name(*args)`."""

    def __init__(self, module, name, *args):
        self.parts = (Named(module, name), args)

    def __reduce_ex__(self, protocol):
        return self.parts


PythonPickler: Any = pickle._Pickler  # type: ignore[attr-defined]


class Pickler(PythonPickler):
    """Not the one written in C, which writes no names that it cannot import."""

    dispatch = dict(PythonPickler.dispatch)  # noqa: RUF012

    def __init__(self, file, *more):
        super().__init__(file, protocol=2)
        self.storages: list[np.ndarray] = []
        self.more = more  # before PyTorch 1.6: of what a storage is a view; None

    def save_named(self, obj):
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    dispatch[Named] = save_named

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.storages.append(obj.array)
        key = str(len(self.storages) - 1)
        return ("storage", Named("torch", obj.kind), key, "cuda:0", obj.array.size, *self.more)


def write_pth(path, content, order="little", compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    pickler = Pickler(stream)
    pickler.dump(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        if order:
            archive.writestr("archive/byteorder", order)
        for i, storage in enumerate(pickler.storages):
            swapped = storage.astype(storage.dtype.newbyteorder(">")) if order == "big" else storage
            archive.writestr(f"archive/data/{i}", swapped.tobytes())
    return path


def write_legacy_pth(path, content, little=True, version=1001, view=None):
    """A file of PyTorch < 1.6: five pickles and the storages in one stream."""
    with open(path, "wb") as file:
        file.write(pth.LEGACY_MAGIC + pickle.STOP)
        pickle.dump(version, file, protocol=2)
        pickle.dump({"protocol_version": version, "little_endian": little}, file, protocol=2)
        pickler = Pickler(file, view)
        pickler.dump(content)
        pickle.dump([str(i) for i in range(len(pickler.storages))], file, protocol=2)
        for storage in pickler.storages:
            file.write(storage.size.to_bytes(8, "little") + storage.tobytes())
    return path


def write_pickle(path, data: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return path


STORAGES = [
    ("FloatStorage", np.float32),
    ("DoubleStorage", np.float64),
    ("HalfStorage", np.float16),
    ("BFloat16Storage", ml_dtypes.bfloat16),
    ("LongStorage", np.int64),
    ("ByteStorage", np.uint8),
    ("BoolStorage", np.bool_),
]


@pytest.mark.parametrize("order", ["little", "big", None, "legacy"])
@pytest.mark.parametrize(("kind", "dtype"), STORAGES, ids=[kind for kind, _ in STORAGES])
def test_views_of_every_storage(tmp_path, kind, dtype, order):
    """Offsets, transposed and expanded views, scalars and empty tensors, as NumPy has them."""
    storage = np.random.default_rng(0).integers(0, 100, 24).astype(dtype)
    content = {
        "whole": Tensor(storage, 0, (4, 6), (6, 1), kind),
        "part": [Tensor(storage, 7, (2, 3), (6, 2), kind)],
        "transposed": (Tensor(storage, 0, (6, 4), (1, 6), kind), "text"),
        "expanded": Tensor(storage[:3], 0, (5, 3), (0, 1), kind),
        "scalar": Tensor(storage, 23, (), (), kind),
        "empty": Tensor(storage, 0, (0, 3), (3, 1), kind),
    }
    if order == "legacy":
        path = write_legacy_pth(tmp_path / "a.pth", content)
    else:
        path = write_pth(tmp_path / "a.pth", content, order)
    read = pth.read_pth(path)
    assert pth.is_pth(path)
    table = storage.reshape(4, 6)
    expected = {
        "whole": table,
        "part": [table[1:3, 1:6:2]],
        "transposed": (table.T, "text"),
        "expanded": np.broadcast_to(storage[:3], (5, 3)),
        "scalar": storage[23],
        "empty": np.zeros((0, 3), dtype),
    }
    jax.tree.map(np.testing.assert_array_equal, read, expected)
    assert all(a.dtype == dtype for a in jax.tree.leaves(read) if not isinstance(a, str))


def test_other_values(tmp_path):
    """Parameters, NumPy numbers (an official file's learning rate is one), Python's own."""
    values: dict[str, Any] = {
        "lr": np.float64(2e-4),
        "count": np.int32(7),
        "none": None,
        "pair": (1, 2.5, True),
    }
    values["ordered"] = collections.OrderedDict(a=[1, {"b": "c"}])
    read = pth.read_pth(write_pth(tmp_path / "a.pth", values))
    assert read == values
    assert type(read["lr"]) is np.float64

    weight = Tensor(np.array([1, 2], np.float32), 0, (2,), (1,))
    content = {"w": Reduced("torch._utils", "_rebuild_parameter", weight, True, {})}
    read = pth.read_pth(write_pth(tmp_path / "b.pth", content))
    np.testing.assert_array_equal(read["w"], [1, 2])


def attack(mark: pathlib.Path) -> dict[str, object]:
    """Forbidden pickles, by the name that each should be refused for."""
    command, code = f"touch {mark}", f"open({str(mark)!r}, 'w')"
    return {
        "os.system": Reduced("os", "system", command),
        "posix.system": Reduced("posix", "system", command),
        "builtins.eval": Reduced("builtins", "eval", code),
        "__builtin__.eval": Reduced("__builtin__", "eval", code),
        "pathlib.Path.touch": Reduced("pathlib", "Path.touch", str(mark)),
        "collections.deque": Reduced("collections", "deque"),
        "torch.load": Reduced("torch", "load", str(mark)),
        "torch._utils._rebuild_tensor": Named("torch._utils", "_rebuild_tensor"),
    }


@pytest.mark.parametrize("write", [write_pth, write_legacy_pth])
@pytest.mark.parametrize("name", attack(pathlib.Path()))
def test_malicious_pickles_are_refused_by_name(tmp_path, name, write):
    mark = tmp_path / "executed"
    path = write(tmp_path / "a.pth", {"step": 1, "model": attack(mark)[name]})
    with pytest.raises(ValueError, match=rf"a\.pth cannot be .*: it asks for {name}, which is not"):
        pth.read_pth(path)
    assert not mark.exists()


def test_the_malicious_pickle_would_have_worked(tmp_path):
    """Otherwise the test above would show nothing."""
    stream = io.BytesIO()
    Pickler(stream).dump(attack(tmp_path / "executed")["builtins.eval"])
    pickle.loads(stream.getvalue()).close()
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", pth.ALLOWED)
def test_what_is_allowed_cannot_be_tampered_with(tmp_path, name):
    """BUILD with slots is `setattr`: a pickle must not change what later ones call."""
    before = vars(pth).copy()
    module, _, function = name.rpartition(".")
    data = b"\x80\x02" + pickle.GLOBAL + f"{module}\n{function}\n".encode()
    state = pickle.dumps((None, {"function": 1, "__defaults__": (1,), "dtype": "f8"}), 2)
    with pytest.raises(ValueError, match="cannot be read"):
        pth.read_pth(write_pickle(tmp_path / "a.pth", data + state[2:-1] + b"b."))
    assert vars(pth) == before
    assert pth._tensor.__defaults__ == (False, None, None)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ((0, (5, 5), (5, 1)), "does not fit into its storage of 24 elements"),
        ((1, (24,), (1,)), "does not fit"),
        ((25, (1,), (1,)), "does not fit"),
        ((-1, (3,), (1,)), "offset -1"),
        ((5, (3,), (-1,)), r"stride \(-1,\)"),
        ((0, (3, 3), (1,)), "shape"),
        ((0, (2, 2**62), (1, 2**62)), "does not fit"),
    ],
)
def test_tensors_do_not_reach_beyond_their_storage(tmp_path, view, message):
    content = {"w": Tensor(np.zeros(24, np.float32), *view)}
    with pytest.raises(ValueError, match=message):
        pth.read_pth(write_pth(tmp_path / "a.pth", content))


def test_damaged_pytorch_files(tmp_path):
    """Whatever is cut off or changed: one line that names the file."""
    tensor = Tensor(np.arange(100.0), 0, (100,), (1,), "DoubleStorage")
    source = write_pth(tmp_path / "a.pth", {"w": tensor})
    whole = source.read_bytes()
    start = whole.index(np.arange(1.0, 3.0).tobytes())
    flipped = whole[:start] + b"\xff" + whole[start + 1 :]
    legacy = pth.LEGACY_MAGIC + whole
    older = write_legacy_pth(tmp_path / "older.pth", {"w": tensor}).read_bytes()
    for data, message in [
        (whole[: len(whole) // 2], "cannot be read"),
        (whole[:10], "cannot be read"),
        (b"", "cannot be read"),
        (flipped, "Bad CRC-32 for file 'archive/data/0'"),
        (legacy, "within its magic number"),
        (older[:200], "cannot be read"),
        (older[:-1], "storage 0 has 100 elements in 799 bytes, expected 100"),
    ]:
        source.write_bytes(data)
        with pytest.raises(ValueError, match=rf"^\S*a\.pth [^\n]*{message}[^\n]*$"):
            pth.read_pth(source)
    with pytest.raises(FileNotFoundError):
        pth.read_pth(tmp_path / "b.pth")


def test_odd_pytorch_files(tmp_path):
    weights = {"w": Tensor(np.zeros(3, np.float32), 0, (3,), (1,))}
    cases: list[tuple[str, Any, dict[str, Any], str]] = [
        ("list", [1], {}, "holds a list, expected a dictionary"),
        ("bomb", weights, {"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        ("order", weights, {"order": "middle"}, "byte order"),
    ]
    for name, content, options, message in cases:
        with pytest.raises(ValueError, match=message):
            pth.read_pth(write_pth(tmp_path / name, content, **options))
    wrong = {"w": Tensor(np.zeros(4, np.float32), 0, (1,), (1,), "LongStorage")}
    with pytest.raises(ValueError, match="storage 0 has 2 elements of int64, expected 4"):
        pth.read_pth(write_pth(tmp_path / "size", wrong))
    with pytest.raises(ValueError, match="not little-endian"):
        pth.read_pth(write_legacy_pth(tmp_path / "endian", weights, little=False))
    with pytest.raises(ValueError, match=r"storage .* is not allowed"):
        pth.read_pth(write_legacy_pth(tmp_path / "view", weights, view=("0", 1, 2)))
    with pytest.raises(ValueError, match="version 7, expected 1001"):
        pth.read_pth(write_legacy_pth(tmp_path / "version", weights, version=7))
    stream = io.BytesIO()
    Pickler(stream).dump(weights)
    with pytest.raises(ValueError, match="data/0 is missing"):
        pth.read_pth(write_pickle(tmp_path / "missing", stream.getvalue()))
    np.savez(tmp_path / "a.npz", w=np.zeros(3))
    with pytest.raises(ValueError, match=r"0 members are named data\.pkl"):
        pth.read_pth(tmp_path / "a.npz")


def nested(depth: int, times: int) -> list[Any]:
    """A list of `times` the same list, and so on."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value] * times
    return value


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    Pickler(stream).dump(value)
    return stream.getvalue()


def expanded(size: int) -> Tensor:
    return Tensor(np.zeros(1, np.float32), 0, (size,), (0,))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickled({"model": nested(29, 2)}), r"more than [\d,]+ values, in [\d,]+ bytes"),
        (pickled({"model": nested(40, 2)}), "deeper than 32 levels, or contains itself"),
        (pickled({"model": circle()}), "deeper than 32 levels, or contains itself"),
        (b"\x80\x02" + b"]" * 9999 + b"a" * 9998 + b".", "deeper than 32 levels"),
        (pickled({"w": expanded(10**12)}), "tensors have over 16 times the bytes"),
        (pickled({"w": [expanded(10**5)] * 9}), "tensors have over 16 times the bytes"),
        (b"\x80\x02}" + 40 * b"\x86" + b"K\x01s.", "cannot be read"),
        (b"\x80\x02})" + b"2\x86" * 40 + b"K\x01s.", "a tuple as the key of a dictionary"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "holds a list"),  # memo number 2^31 - 1
        (
            b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
            "it replaces OrderedDict.items, which is not allowed",
        ),
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x00.", "cannot be read"),
    ],
)
def test_small_files_that_make_much(tmp_path, data, message):
    """Refused by name, at once; they took 10 GB, half a minute, or a call that is not there."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(4))
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as error:
        pth.read_pth(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert time.process_time() - start < 2


def test_storages_are_no_larger_than_the_file(tmp_path):
    """Members of an archive may overlap; each would be read again."""
    path = write_pth(tmp_path / "a.pth", {"w": Tensor(np.zeros(999, np.float32), 0, (1,), (1,))})
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (info,) = (i for i in archive.infolist() if i.filename.endswith("data/0"))
    place = data.rindex(b"archive/data/0") - 46
    entry = bytearray(data[place:])
    assert entry[:4] == b"PK\x01\x02"
    assert info.file_size == 3996
    entry[20:28] = 2 * (2**31).to_bytes(4, "little")
    path.write_bytes(data[:place] + entry)
    with pytest.raises(ValueError, match=r"data/0 and .* are larger than the file"):
        pth.read_pth(path)


# --- the official JAX format, written with Flax's own serialisation ---


def jax_state():
    rng = np.random.default_rng(0)

    def tree(sign=1):
        return {
            "Conv_0": {"kernel": rng.standard_normal((3, 3, 2, 4)).astype(np.float32)},
            "Dense_0": {"bias": np.abs(rng.standard_normal(4)).astype(ml_dtypes.bfloat16)},
        }

    params, m, v = tree(), tree(), tree()
    moments = jax.tree.map(lambda m, v: {"grad_ema": m, "grad_sq_ema": v}, m, v)
    return {
        "step": np.int32(7),
        "optimizer": {"target": params, "state": {"step": 7, "param_states": moments}},
        "lr": 2e-4,
        "model_state": {},
        "ema_rate": 0.999,
        "params_ema": tree(),
        "rng": np.array([0, 42], np.uint32),
    }, {"grad_ema": m, "grad_sq_ema": v}


def write_flax(path, state):
    path.write_bytes(flax.serialization.msgpack_serialize(state))
    return path


def test_jax_checkpoint(tmp_path):
    state, moments = jax_state()
    read = flax_msgpack.read_flax_checkpoint(write_flax(tmp_path / "checkpoint_3", state))
    expected = {
        **moments,
        "params": state["optimizer"]["target"],
        "params_ema": state["params_ema"],
        "rng": state["rng"],
        "model_state": {},
    }
    for name, tree in expected.items():
        jax.tree.map(np.testing.assert_array_equal, read.pop(name), tree)
    assert read.pop("unused") == ["lr", "rng"]
    assert read == {"step": 7, "optimizer_step": 7, "lr": 2e-4, "ema_rate": 0.999}
    assert type(read["step"]) is int


def remove(state, *path):
    for name in path[:-1]:
        state = state[name]
    del state[path[-1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: remove(s, "params_ema"), "the file lacks params_ema"),
        (lambda s: remove(s, "optimizer", "state"), "optimizer lacks state"),
        (
            lambda s: remove(
                s, "optimizer", "state", "param_states", "Conv_0", "kernel", "grad_ema"
            ),
            "optimizer/state/param_states/Conv_0/kernel lacks grad_ema",
        ),
        (lambda s: remove(s, "params_ema", "Conv_0"), "params_ema has other parameters"),
        (
            lambda s: s["params_ema"]["Conv_0"].update(kernel=np.zeros(3)),
            r"params_ema/Conv_0/kernel has shape \(3,\), expected \(3, 3, 2, 4\)",
        ),
        (
            lambda s: s["optimizer"]["target"].update(W="text"),
            "optimizer/target/W is a str, expected an array",
        ),
        (lambda s: s.update(step="many"), "step is many, expected one int"),
        (lambda s: s.update(model_state=None), "model_state is a NoneType, expected a dict"),
    ],
)
def test_other_msgpack_files_are_refused(tmp_path, change, message):
    state, _ = jax_state()
    change(state)
    path = write_flax(tmp_path / "checkpoint_3", state)
    with pytest.raises(ValueError, match=rf"^\S*checkpoint_3 is no official JAX .*: {message}"):
        flax_msgpack.read_flax_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.999, 2])
def test_damaged_msgpack_files(tmp_path, keep):
    path = write_flax(tmp_path / "checkpoint_3", jax_state()[0])
    data = path.read_bytes()
    path.write_bytes((2 * data)[: int(keep * len(data))] if keep != 1 else b"\xc1")
    with pytest.raises(ValueError, match=r"^\S*checkpoint_3 cannot be read as a Flax.*: .+$"):
        flax_msgpack.read_flax_checkpoint(path)


# --- safetensors, and telling formats apart ---


def test_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors: dict[str, np.ndarray] = {
        "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "n": np.arange(2),
    }
    safetensors.numpy.save_file(tensors, path)
    jax.tree.map(np.testing.assert_array_equal, formats.read_safetensors(path), tensors)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as .*: .+$"):
        formats.read_safetensors(path)
    with pytest.raises(FileNotFoundError):
        formats.read_safetensors(tmp_path / "other")


def test_what_is_no_file_is_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", pathlib.Path("/dev/zero")):
        with pytest.raises(ValueError, match=rf"--source={path} is a pipe, socket or device"):
            formats.recognise(path)
    with pytest.raises(FileNotFoundError, match=r"--source=.*none: there is no such file"):
        formats.recognise(tmp_path / "none")


def test_a_plain_pickle_is_told_what_is_wanted(tmp_path):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"{protocol}.pth"
        path.write_bytes(pickle.dumps({"epoch": 3}, protocol))
        with pytest.raises(ValueError, match=r"is a plain pickle, .*; wanted is what torch\.save"):
            formats.recognise(path)


def test_a_run_of_our_own_needs_no_import(tmp_path):
    step = tmp_path / "checkpoints" / "6"
    step.mkdir(parents=True)
    (step / "state.npz").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, step.parent, step, step / "state.npz"):
        with pytest.raises(ValueError, match=r"is a run of this program") as refusal:
            formats.recognise(path)
        assert f"--workdir={tmp_path} " in str(refusal.value)
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text("{}")
    assert formats.recognise(export) == "diffusers"


def test_formats_are_recognised_from_the_content(tmp_path):
    pytorch = write_pth(tmp_path / "a", {"w": 1})
    assert formats.recognise(pytorch) == "pth"
    pytorch.write_bytes(pytorch.read_bytes()[:50])
    assert formats.recognise(pytorch) == "pth", "damaged, which the reader says"
    assert formats.recognise(write_flax(tmp_path / "b", jax_state()[0])) == "flax"
    safetensors.numpy.save_file({"w": np.zeros(3)}, tmp_path / "c")
    assert formats.recognise(tmp_path / "c") == "safetensors"
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        formats.recognise(tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text("{}")
    assert formats.recognise(tmp_path / "folder") == "diffusers"
    np.savez(tmp_path / "d.npz", w=np.zeros(3))
    (tmp_path / "e").write_text(json.dumps({"a": 1}))
    (tmp_path / "f").write_bytes(b"")
    for name in ("d.npz", "e", "f"):
        with pytest.raises(ValueError, match=r"is in no known format; known: PyTorch .*diff"):
            formats.recognise(tmp_path / name)
    with pytest.raises(ValueError, match=r"known: .*guided-diffusion's \.pt"):
        formats.recognise(tmp_path / "e")
    with pytest.raises(FileNotFoundError):
        formats.recognise(tmp_path / "nowhere")


@pytest.mark.parametrize("length", [0, 4, 8, 20])
def test_a_broken_header_is_that_of_the_ending(tmp_path, length):
    """Cut anywhere in its header, whose length may begin like a msgpack map; or of other bytes."""
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file({f"w{i}": np.zeros(3) for i in range(6)}, path)
    whole = path.read_bytes()
    for content in (whole[:length], b"\x88" + whole[1:length], b"<html>" * 9):
        path.write_bytes(content)
        assert formats.recognise(path) == "safetensors"
        with pytest.raises(ValueError, match=r"net\.safetensors cannot be read as safetensors: ."):
            sources.open_source(path)


def test_a_folder_of_files_asks_for_one_of_them(tmp_path):
    for name in ("checkpoint_24.pth", "net.pkl", "checkpoint_8", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    listed = "checkpoint_24.pth, checkpoint_8, net.pkl"
    with pytest.raises(ValueError, match=rf"would; name one file in it: {listed}$"):
        sources.open_source(tmp_path)
