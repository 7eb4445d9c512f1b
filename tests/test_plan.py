"""Plans for hardware that is not here: `--mode=plan`."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from models.ops import group_norm, native
from planning import costs, hlo, plan, programs, roofline, topology, trace
from runtime import experiment
from runtime.chips import CHIPS, GIB
from tests import tiny
from training.step import check_batch

SMALL: dict[str, Any] = {"training__ema_rates": (), "training__ema_profiles": ()}

HLO = """
HloModule jit_step, num_partitions=4
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %x, f32[] %y)
}
ENTRY %main {
  %p = f32[128,256]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[128,256]{1,0:T(8,128)} all-reduce(%p), channel_id=1, to_apply=%add
  %ar = (bf16[10,4]{1,0}, f32[]) all-reduce-start(%a, %b), channel_id=2, to_apply=%add
  %done = (bf16[10,4]{1,0}, f32[]) all-reduce-done(%ar)
  %ag = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%q), dimensions={0}
  %cp = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%r)
  ROOT %fusion = f32[] fusion(%all-reduce.1), kind=kLoop, calls=%fused
}
"""


@pytest.mark.parametrize(
    ("name", "chip", "count"),
    [("v5e:4x4", "v5e", 16), ("V4:2x2x2", "v4", 8), ("v6e:1x1", "v6e", 1), ("h100:16", "h100", 16)],
)
def test_a_topology_is_a_chip_and_how_many_there_are(name: str, chip: str, count: int) -> None:
    parsed = topology.parse(name)
    assert (parsed.chip, parsed.size, parsed.name) == (CHIPS[chip], count, name.lower())
    assert parsed.links == (CHIPS[chip].network if name == "h100:16" else CHIPS[chip].links)


@pytest.mark.parametrize(
    "name",
    [
        *("", "v5e", "v5e:", "v5e:4", "v5e:3x3", "v5e:4x4x4", "v4:4x4", "v7:2x2", "h100", "h100:3"),
        *("v5e:1000x1000", "h100:80000"),
        *("h100:2x4", "h100:0", "h100:12", "gpu:8", "v5e:4x-4", "v5e:04x4", "v5e:4x4 ", "h100:8x"),
    ],
)
def test_another_topology_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match="--topology=") as refusal:
        topology.parse(name)
    assert "v5e:AxB, v6e:AxB, v4:AxBxC" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_collectives_are_read_from_the_compiled_text() -> None:
    """An asynchronous one counts where it starts, and results count, not operands."""
    assert hlo.collectives(HLO) == {
        "all-reduce": {"count": 2, "bytes": 128 * 256 * 4 + 10 * 4 * 2 + 4},
        "all-gather": {"count": 1, "bytes": 8 * 8 * 4},
        "collective-permute": {"count": 1, "bytes": 16 * 4},
    }


KERNELS = """HloModule jit_f, is_scheduled=true

%fused (param_0: f32[1000], param_1: f32[10]) -> f32[10] {
  %param_0 = f32[1000]{0} parameter(0)
  %param_1 = f32[10]{0} parameter(1)
  %half = f32[1000]{0} negate(%param_0)
  %part = f32[10]{0} slice(%half), slice={[20:30]}
  ROOT %add = f32[10]{0} add(%part, %param_1)
}

%body (p.1: f32[10]) -> f32[10] {
  %p.1 = f32[10]{0} parameter(0)
  ROOT %double = f32[10]{0:T(256)} multiply(%p.1, %p.1)
}

ENTRY %main (a: f32[1000], b: f32[10]) -> (f32[10], bf16[2,4]) {
  %a = f32[1000]{0} parameter(0), metadata={op_name="x(y)"}
  %b = f32[10]{0} parameter(1)
  %sum = f32[10]{0} fusion(%a, %b), kind=kLoop, calls=%fused
  %twice = f32[10]{0} call(%sum), to_apply=%body
  %conv = (bf16[2,4]{1,0:T(8,128)(2,1)}, u8[16]{0}) custom-call(%twice), custom_call_target="c"
  %first = bf16[2,4]{1,0} get-tuple-element(%conv), index=0
  %copy-start = (bf16[2,4]{1,0}, bf16[2,4]{1,0}, u32[]) copy-start(%first)
  %copy-done = bf16[2,4]{1,0} copy-done(%copy-start)
  ROOT %out = (f32[10]{0}, bf16[2,4]{1,0}) tuple(%twice, %copy-done)
}
"""


def test_the_traffic_of_kernels_is_what_they_read_and_write() -> None:
    """A slice reads what it gives, even of a function of its operand; calls, tuples and fused
    instructions move nothing themselves."""
    fusion = 40 + (40 + 40)
    double = 40 + 2 * 40
    convolution = 16 + 16 + 40
    copy = 16 + 16
    assert hlo.traffic(KERNELS) == fusion + double + convolution + copy
    assert [i.name for i in hlo.run(hlo.computations(KERNELS)) if i.opcode == "multiply"] == [
        "double"
    ]


def test_a_ring_sends_twice_what_it_reduces_but_for_a_share() -> None:
    collectives = {"all-reduce": {"count": 1, "bytes": 800.0}}
    assert roofline.sent(collectives, 8) == 2 * 7 * 100
    assert roofline.sent(collectives, 1) == 0
    gathered = {"all-gather": {"count": 1, "bytes": 800.0}}
    assert roofline.sent(gathered, 8) == 700


@pytest.mark.parametrize(
    ("flops", "traffic", "sent", "seconds", "by"),
    [(6.0, 2.0, 1.0, 3.0, "arithmetic"), (2, 40, 1, 10, "memory"), (2, 2, 60, 12, "links")],
)
def test_the_slowest_of_three_bounds_the_time(
    flops: float, traffic: float, sent: float, seconds: float, by: str
) -> None:
    assert roofline.bound(flops, traffic, sent, rate=2, bandwidth=4, links=5) == (seconds, by)


def test_shares_days_and_batches_follow_from_the_bound() -> None:
    assert roofline.utilisation(50.0, 2.0, 100.0) == 0.25
    assert roofline.days(1728000, 0.1) == 2.0
    assert roofline.line((4, 90.0), (8, 130.0)) == (50.0, 10.0)
    assert roofline.largest_batch(1000, 300.0, 70.0) == 10
    assert roofline.largest_batch(1000, 1300.0, 70.0) == 0


def test_what_a_compiler_lacks_is_read_from_its_message() -> None:
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 21.50G of 15.75G hbm. Exceeded hbm capacity by 5.75G."
    )
    assert costs.lack(message, 3 * GIB) == 21.5 * GIB
    assert costs.lack("INVALID_ARGUMENT: Used 21.50G of 15.75G hbm", 3 * GIB) is None
    of_temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (30.50G) exceeds available HBM (15.75G)."
    )
    assert costs.lack(of_temporaries, 3 * GIB) == 33.5 * GIB


def test_traffic_is_what_products_read_and_write_as_often_as_they_run() -> None:
    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=3)[0]

    jaxpr = jax.make_jaxpr(product)(np.zeros((8, 16), np.float32), np.zeros((16, 16), np.float32))
    assert trace.traffic(jaxpr.jaxpr) == 3 * 4 * (8 * 16 + 16 * 16 + 8 * 16)


def test_a_gpu_of_which_jax_takes_three_quarters_has_so_much_room() -> None:
    assert CHIPS["h100"].usable == CHIPS["h100"].memory * 3 // 4
    assert CHIPS["v5e"].usable == 16 * GIB
    assert CHIPS["h100"].rate("float32") == CHIPS["h100"].rate("bfloat16") / 2


def test_evaluations_are_those_of_the_sampler() -> None:
    assert programs.score(tiny.config(), 4).times == 25
    both = programs.score(tiny.config(sampling__corrector="langevin"), 4)
    assert (both.times, both.assumed) == (50, False)
    flow = programs.score(tiny.config(sampling__method="ode"), 4)
    assert (flow.times, flow.assumed) == (programs.FLOW_EVALUATIONS, True)
    measured = programs.likelihood(tiny.config(eval__bpd_num_repeats=5), 4)
    assert measured.times == 5 * programs.LIKELIHOOD_EVALUATIONS[1e-2]


def test_native_functions_of_the_cpu_are_not_in_the_program_of_another_chip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "available", lambda: True)
    x, scale = jnp.zeros((2, 4, 32)), jnp.zeros(32)

    def primitives() -> str:
        return str(jax.make_jaxpr(lambda x: group_norm.group_norm(x, scale, scale, 4))(x))

    assert "norm[" in primitives()
    with native.elsewhere():
        assert "norm[" not in primitives()
    assert "norm[" in primitives()


def test_the_step_of_each_chip_lowers_for_tpus_and_gpus() -> None:
    """A small one, as tracing takes the time; tests/test_training.py lowers one of images."""
    step = programs.training(configs.load("toy/mixture_dsm_vp"), 8, 4)
    state, batches = step.share(4)
    assert batches["image"].shape == (1, 2, 1, 1, 2)
    assert state == step.arguments[0]
    flops = [costs.Work(step, 4, platform).flops for platform in ("tpu", "cuda")]
    assert flops[0] == flops[1] > 1e4


def test_a_workdir_that_is_a_file_is_refused_before_any_work(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"--workdir=.*file is no folder"):
        plan.plan(configs.load("quickstart"), "v5e:2x2", tmp_path / "file", compile=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_plan_has_memory_times_and_advice(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configs.load("toy/mixture_likelihood")
    config.training.ema_rates, config.training.ema_profiles = (0.9,), (0.05, 0.1)
    config.sampling.method, config.sampling.num_steps = "ddim", 30
    plan.plan(config, "v5e:2x2", tmp_path, compile=False)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 120
    assert "ESTIMATED before compilation" in printed
    stored = json.loads((tmp_path / "plan.json").read_text())["v5e:2x2"]
    memory, step = stored["memory"], stored["training"]
    parts = experiment.build(config)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(programs.weights(parts)))
    assert memory["parameters"] == 4 * count
    assert memory["averages"] == 4 * 4 * count  # the rate of sampling, one more, and two profiles
    assert memory["fits"]
    assert not stored["advice"]
    assert step["collectives"]["all-reduce"]["bytes"] == memory["parameters"]
    assert step["seconds"] == pytest.approx(step["bytes"] / 819e9)
    assert step["bound_by"] == "memory"
    assert step["days"] == pytest.approx(config.training.n_iters * step["seconds"] / 86400)
    assert stored["sampling"]["evaluations"] == 31  # the last one takes noise away
    assert stored["likelihood"]["evaluations_assumed"]
    assert not step["bytes_counted"]
    assert "B (e)" in printed


def test_a_state_in_slices_takes_its_share_of_the_memory() -> None:
    config = configs.load("toy/mixture_dsm_vp")
    config.training.ema_rates = (0.9,)
    sizes = {}
    for in_slices in (False, True):
        config.training.shard_state = in_slices
        step = programs.training(config, 8, 4)
        work = costs.Work(step, 4, "tpu")
        assert work.flops > 1e4
        estimate = costs.estimated(step, work, 4, costs.Ratios())
        state, _ = step.share(4)
        sizes[in_slices] = [costs.nbytes(tree) for tree in (state.params, state.ema_params)]
        sizes[in_slices] += [costs.nbytes((state.opt_state, state.averages)), estimate.memory]
        sent = roofline.sent(estimate.collectives, 4)
        assert sent == pytest.approx(2 * 3 / 4 * sizes[in_slices][0])
    whole, sliced = sizes[False], sizes[True]
    assert sliced[0] == whole[0]
    assert sliced[1] == pytest.approx(whole[1] / 4, rel=0.02)
    assert sliced[2] == pytest.approx(whole[2] / 4, rel=0.02)
    assert whole[3] - sliced[3] == pytest.approx(0.75 * (whole[1] + whole[2]), rel=0.02)


def test_what_does_not_fit_is_said_with_what_would_help() -> None:
    config = tiny.config()
    memory = {"parameters": 10, "optimiser": 20, "averages": 10, "needed": 900, "usable": 100}
    memory |= {"there": 100, "fits": False, "largest_batch_estimate": 4}
    lines = plan.advice(config, memory, 8, topology.parse("v5e:2x2"))
    assert [line.partition("=")[0] for line in lines[:4]] == [
        *("training.shard_state", "training.accumulation", "model.remat", "model.dtype")
    ]
    assert "more chips than 4" in lines[4]
    [line] = plan.advice(config, {**memory, "parameters": 100}, 8, topology.parse("v5e:1x1"))
    assert "the state alone" in line
    first, _ = plan.advice(config, {**memory, "optimiser": 90}, 8, topology.parse("v5e:2x2"))
    assert first.startswith("training.shard_state=True")
    close = {**memory, "needed": 94}
    assert "MEM_FRACTION" in plan.advice(config, close, 1, topology.parse("h100:8"))[-1]


def test_a_batch_that_the_chips_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training.batch_size=6 must be .* \(16\)"):
        plan.make(tiny.config(training__batch_size=6), "v5e:4x4")
    options = tiny.config(training__batch_size=8, training__accumulation=2).training
    assert check_batch(options, 4) == 2
    with pytest.raises(ValueError, match=r"training.accumulation=2 does not divide the 1 images"):
        check_batch(options, 8)


def test_without_a_compiler_one_line_says_which_extra_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology, "_installed", lambda package: False)
    for name, extra in (("v5e:2x2", "plan-tpu"), ("h100:8", "plan-cuda")):
        with pytest.raises(topology.Absent, match=extra) as refusal:
            topology.devices(topology.parse(name))
        assert "\n" not in str(refusal.value)


def test_the_assembler_of_the_extra_is_as_good_as_a_toolkit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """The compiler of GPUs needs ptxas, on the PATH or of the package nvidia-cuda-nvcc."""
    wheel = tmp_path / "nvidia_cuda_nvcc-13.0.dist-info"
    wheel.mkdir()
    (wheel / "METADATA").write_text("Name: nvidia-cuda-nvcc\nVersion: 13.0\n")
    (wheel / "RECORD").write_text("nvidia/cu13/bin/ptxas,,\n")
    monkeypatch.setattr(topology, "_installed", lambda package: True)
    monkeypatch.setattr(topology.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(topology.Absent, match="for want of ptxas"):
        topology.require_compiler("cuda")
    (tmp_path / "nvidia/cu13/bin").mkdir(parents=True)
    (tmp_path / "nvidia/cu13/bin/ptxas").touch()
    topology.require_compiler("cuda")


@pytest.mark.parametrize("name", ["v5e:2x2", "h100:2"])
def test_a_small_step_is_compiled_where_the_compiler_is_there(name: str) -> None:
    """It agrees with the estimate within factors that are no mistake of units: fusion and padding
    are the compiler's."""
    chips = topology.parse(name)
    try:
        topology.require_compiler(chips.chip.platform)
    except topology.Absent as reason:
        pytest.skip(str(reason))
    config = tiny.config(**SMALL)
    step = programs.training(config, 8, chips.size)
    work = costs.Work(step, chips.size, chips.chip.platform)
    estimate = costs.estimated(step, work, chips.size, costs.Ratios())
    compiled = costs.compiled(step, topology.devices(chips), estimate)
    assert compiled.compile_seconds is not None
    assert 0.2 < compiled.arguments / estimate.arguments < 20
    sums = [costs.collectives["all-reduce"]["bytes"] for costs in (compiled, estimate)]
    assert sums[0] == pytest.approx(sums[1], rel=0.02)  # a few gradients are zero when compiled
    assert 1 < compiled.traffic / estimate.traffic < 50
