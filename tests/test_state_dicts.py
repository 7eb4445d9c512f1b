"""The parts of PyTorch files: weights and averages under the names of many projects."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from interop import state_dicts

NAMES = ("all_modules.0.weight", "all_modules.0.bias")


def tensors(value: float, prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}{name}": np.full(2, value, np.float32) for name in NAMES}


def value_of(weights: Any) -> float:
    """The one number in all tensors, whose names are without a prefix."""
    assert tuple(weights) == NAMES
    (value,) = {float(x) for tensor in weights.values() for x in tensor}
    return value


@pytest.mark.parametrize(
    ("content", "raw", "average", "unused"),
    [
        (tensors(1), 1, None, []),
        ({"model": tensors(1), "ema_model": tensors(2), "step": 7}, 1, 2, []),
        ({"model": tensors(1), "model_ema": tensors(2), "epoch": 3}, 1, 2, ["epoch"]),
        ({"state_dict": tensors(1), "state_dict_ema": tensors(2)}, 1, 2, []),
        ({"net": tensors(1), "ema": tensors(2, "module."), "args": None}, 1, 2, ["args"]),
        ({"model": tensors(1), "ema": {"decay": 0.9, "shadow": tensors(2)}}, 1, 2, []),
        ({"model": tensors(1), "ema": tensors(2), "model_ema": tensors(3)}, 1, 2, ["model_ema"]),
        (
            {
                "model": tensors(1),
                "ema": {
                    **tensors(3, "online_model."),
                    **tensors(2, "ema_model."),
                    "initted": np.array(True),
                },
            },
            1,
            2,
            ["ema.initted", "ema.online_model"],
        ),
        ({**tensors(1, "online_model."), **tensors(2, "ema_model.")}, 1, 2, []),
        ({"ema_model": tensors(2)}, 2, None, []),
        ({"model": tensors(1), "ema": {n.replace(".", ""): x for n, x in tensors(2).items()}},
         1, 2, []),
        ([tensors(1, "module."), {"state": {}}, 3, 400, tensors(2)], 1, 2, ["epoch"]),
        ([tensors(1), {"state": {}, "param_groups": []}], 1, None, ["optimizer.param_groups"]),
        ({"model": tensors(1), "optimizer": {"state": {}}, "ema": None}, 1, None, []),
        # torch.optim.swa_utils.AveragedModel, and a state_dict inside another
        (
            {"net": tensors(1), "ema": {"n_averaged": np.array(3), **tensors(2, "module.")}},
            1,
            2,
            ["ema.n_averaged"],
        ),
        ({"model": tensors(1), "ema_model": {"module": tensors(2), "rate": 1}}, 1, 2,
         ["ema_model.rate"]),
        # averages among the tensors of the model; LitEma's have no dots
        ({"state_dict": {**tensors(1, "model."), **tensors(2, "ema.")}}, 1, 2, []),
        ({**tensors(1, "net."), **tensors(2, "model_ema.module.")}, 1, 2, []),
        (
            {
                "state_dict": {
                    **tensors(1, "model.diffusion_model."),
                    "model_ema.decay": np.array(0.5),
                    "model_ema.num_updates": np.array(9),
                    **{
                        f"model_ema.diffusion_model{name.replace('.', '')}": x
                        for name, x in tensors(2).items()
                    },
                },
                "global_step": 4,
            },
            1,
            2,
            ["global_step", "model_ema.num_updates"],
        ),
    ],
)  # fmt: skip
def test_parts(content: Any, raw: float, average: float | None, unused: list[str]) -> None:
    parts = state_dicts.parts(content)
    assert value_of(parts.model) == raw
    assert (parts.average and value_of(parts.average.weights)) == average
    assert sorted(parts.unused) == unused
    assert parts.only_averages is (raw == 2)


def test_the_ncsn_authors_list() -> None:
    parts = state_dicts.parts([tensors(1), {"state": {1: 2}}, 3, 400, tensors(2)])
    assert (parts.step, parts.optimizer) == (400, {"state": {1: 2}})


def test_averages_in_the_order_of_the_model() -> None:
    """`shadow_params` beside the model, as torch_ema's `state_dict` has them."""
    shadow = [np.full(2, 2.0, np.float32)] * 2
    parts = state_dicts.parts({"model": tensors(1), "decay": 0.9, "shadow_params": shadow})
    assert parts.average is not None
    assert parts.average.weights is shadow
    assert parts.unused == ["decay"]


def test_litema_says_its_rate() -> None:
    averages = {"decay": np.array(0.5), **{n.replace(".", ""): x for n, x in tensors(2).items()}}
    parts = state_dicts.parts({"model": tensors(1), "ema": averages})
    assert parts.average is not None
    assert parts.average.rate == 0.5
    with pytest.raises(ValueError, match="ema lacks shadow_params"):
        state_dicts.parts({"model": tensors(1), "ema": {"decay": 0.5, "x": np.zeros(1)}})


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "diffusion_model.", "module._orig_mod."]
)
def test_prefixes_of_all_names_are_stripped(prefix: str) -> None:
    assert value_of(state_dicts.parts({"model": tensors(1, prefix)}).model) == 1
    content = {"state_dict": {**tensors(1, prefix), f"{prefix}sigmas": np.zeros(3)}}
    assert state_dicts.parts(content).model.keys() == {*NAMES, "sigmas"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {**tensors(1, "net."), **{f"loss.{i}": np.zeros(1) for i in range(500)}},
            r"the weights begin with 'net.', but for 500 of 502: loss.0, .*, and 492 more$",
        ),
        ({**tensors(1, "a."), **tensors(1, "b.")}, "have several prefixes, a., b.; one network"),
        ({**tensors(1), "x": "text"}, "in model, x is no tensor"),
        (
            {**tensors(1, "net."), **tensors(2, "ema."), **tensors(3, "model_ema.")},
            "model holds several averages, ema, model_ema; one is read",
        ),
        (
            {"conv.weight": np.zeros(1)},
            r"it holds model \(dictionary of conv.weight\), but no state_dict 'model' with "
            "all_modules or begin_conv in its names; wanted are weights of",
        ),
        (math.nan, r"^it holds model \(float nan\), but no state_dict"),
        ({f"{i}.w": np.zeros(1) for i in range(9)}, r"dictionary of 0\.w, 1\.w, and 7 more"),
    ],
)
def test_other_names_are_refused_in_a_short_line(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        state_dicts.parts({"model": model})
    assert len(str(error.value)) < 400


def test_a_file_without_weights_is_told_what_it_holds() -> None:
    with pytest.raises(ValueError, match=r"^it holds epoch \(int 3\), but no .*; wanted are"):
        state_dicts.parts({"epoch": 3})
    with pytest.raises(ValueError, match=r"^it holds nothing, but no"):
        state_dicts.parts({})
    with pytest.raises(ValueError, match=r"^it holds float nan, expected a dictionary of weights"):
        state_dicts.parts(math.nan)


@pytest.mark.parametrize("content", [[], [1], [[1], 2], "text", [tensors(1)] * 6, 3])
def test_what_is_no_checkpoint(content: Any) -> None:
    with pytest.raises(ValueError, match="expected a dictionary"):
        state_dicts.parts(content)
