"""The demo: its choices, orders and queue, and that its numbers are those of the command line."""

from __future__ import annotations

import base64
import io
import pathlib
import shlex
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

import configs
import main
import sampling
from control.run import TASKS as CONTROL
from demo import choices, jobs, orders
from demo import weights as demo_weights
from demo.fields import values_of
from demo.programs import Programs
from demo.queue import CANCELLED, DONE, FAILED, MOST_WAITING, RUNNING, Full, Job, Queue
from demo.weights import Weights
from diffusion import ode
from interop import cards
from runtime import effects
from runtime.arrays import read_archive
from runtime.errors import Refused
from tests import tiny
from tests.test_control import restored
from tests.test_training import ROOT, use_devices

SHIPPED = demo_weights.shipped()
MOONS, DIGITS = SHIPPED["two-moons"], SHIPPED["digits"]


def nothing(number: str) -> None:
    """No job has drawn anything."""


def ordered(weights: Weights, task: str, **parts: Any) -> orders.Order:
    """The order of a task with these settings, or further parts."""
    body = {"task": task, "weights": weights.name, **parts}
    return orders.read(body, {weights.name: weights}, nothing)


def mask_of(weights: Weights) -> str:
    """A mask whose lower right quarter is unknown."""
    height, width, _ = weights.parts.image_shape
    known = np.ones((height, width), int)
    known[height // 2 :, width // 2 :] = 0
    return "".join(map(str, known.ravel()))


def picture(size: tuple[int, int] = (20, 30), kind: str = "PNG") -> str:
    """A file of a picture, black and white, in base64."""
    file = io.BytesIO()
    pixels = np.zeros(size, np.uint8)
    pixels[:, size[1] // 2 :] = 255
    Image.fromarray(pixels).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


INPUTS = [{"from": "test", "index": 2}]
TASKS: dict[str, dict[str, Any]] = {
    "sample": {},
    "inpaint": {"inputs": INPUTS, "mask": mask_of(DIGITS)},
    "interpolate": {"inputs": [{"from": "test", "index": 2}, {"from": "test", "index": 3}]},
    "likelihood": {},
}


# The choices.


def test_all_weights_that_are_part_of_the_project_are_offered() -> None:
    names = [n for n, card in cards.cards().items() if card.address.startswith(cards.SHIPPED)]
    assert list(SHIPPED) == names


@pytest.mark.parametrize("name", SHIPPED)
def test_every_default_is_a_choice_and_every_choice_makes_a_config(name: str) -> None:
    """Each sampler that is offered serves the weights, and no field is set without effect."""
    weights = SHIPPED[name]
    for task in choices.TASKS.values():
        if not task.refusal(weights):
            fields = task.fields(weights)
            assert values_of(fields, {}) == {
                field.name: field.default for field in fields if field.name in values_of(fields, {})
            }
    for method in choices.methods(weights):
        order = ordered(weights, "sample", settings={"sampling.method": method})
        sampling.from_config(order.config)
        assert effects.without_effect(order.config, "sample", order.overrides) == []


def test_a_field_acts_where_others_have_its_values() -> None:
    fields = choices.sample_fields(DIGITS)
    settings = {"sampling.method": "pc", "sampling.corrector": "none", "sampling.snr": 0.5}
    values = values_of(fields, settings)
    assert "sampling.snr" not in values
    assert values["sampling.predictor"] == "reverse_diffusion"
    values = values_of(fields, settings | {"sampling.corrector": "langevin"})
    assert values["sampling.snr"] == 0.5
    assert "sampling.num_steps" not in values_of(fields, {"sampling.method": "ode"})
    assert set(choices.ODE_SOLVERS) <= ode.solvers().keys()


def test_a_default_out_of_bounds_is_brought_within_them() -> None:
    config = MOONS.config.copy_and_resolve_references()
    config.sampling.churn = 400.0
    config.sampling.num_steps = 0
    fields = {f.name: f for f in choices.sample_fields(Weights("x", config, (), False, MOONS.load))}
    assert fields["sampling.churn"].default == fields["sampling.churn"].high == 100.0
    assert fields["sampling.num_steps"].default == MOONS.parts.sde.N


SAMPLE = {"task": "sample", "weights": "digits"}
PAINT = {"task": "inpaint", "weights": "digits", "inputs": INPUTS, "mask": mask_of(DIGITS)}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "must be an object"),
        ({"task": "sample"}, "what is asked names no weights; valid: .*digits"),
        ({**SAMPLE, "weights": "x"}, "unknown weights 'x'; known: checkerboard, digits"),
        ({"weights": "digits"}, "the order names no task; valid: sample, class, inpaint"),
        ({"task": "rm", "weights": "digits"}, "unknown task 'rm'; known: class, colorize, field"),
        ({**SAMPLE, "shell": "x"}, "unknown part of an order 'shell'; known: classes, inputs"),
        ({**SAMPLE, "settings": 3}, "settings must be values by the names"),
        (
            {**SAMPLE, "settings": {"sampling.guide": "/etc"}},
            "unknown setting 'sampling.guide'; known: sampling.batch_size",
        ),
        (
            {**SAMPLE, "settings": {"sampling.method": "magic"}},
            "sampler is 'magic'; valid: dpmpp_2m_sde, pc, ode",
        ),
        (
            {**SAMPLE, "settings": {"sampling.num_steps": 10**6}},
            "steps is 1000000; valid: a whole number from 1 to 1000",
        ),
        ({**SAMPLE, "settings": {"sampling.num_steps": 2.5}}, "steps is 2.5; valid: a whole"),
        ({**SAMPLE, "settings": {"sampling.num_steps": True}}, "steps is True; valid: a whole"),
        (
            {**SAMPLE, "settings": {"sampling.num_steps": None}},
            "steps is empty; valid: a whole number from 1 to 1000",
        ),
        ({**SAMPLE, "settings": {"sampling.seed": 2**32}}, "seed is 4294967296; valid"),
        ({**SAMPLE, "settings": {"sampling.seed": 10**400}}, "seed is 1000"),
        ({**SAMPLE, "settings": {"sampling.num_samples": 65}}, "images is 65; valid: .* 1 to 64"),
        (
            {**SAMPLE, "settings": {"sampling.method": "ddim", "sampling.eta": float("nan")}},
            "eta is nan; valid: a number from 0 to 1",
        ),
        (
            {**SAMPLE, "settings": {"sampling.method": "annealed_langevin"}},
            None,
        ),
        (
            {
                **SAMPLE,
                "settings": {"sampling.method": "annealed_langevin", "sampling.num_steps": 1000},
                "weights": "many",
            },
            "100000 evaluations of the score for an image; the demo does up to 5000",
        ),
        ({"task": "colorize", "weights": "digits"}, "colour needs colour: the images of digits"),
        ({"task": "inpaint", "weights": "two-moons"}, "two-moons draws points of the plane"),
        ({"task": "class", "weights": "digits"}, "digits was not told classes"),
        ({"task": "field", "weights": "digits"}, "digits draws images: a field of arrows"),
        ({**PAINT, "mask": "01"}, "a mask is 8 x 8 times 0"),
        ({**PAINT, "mask": "2" * 64}, "a mask is 8 x 8 times 0"),
        ({**PAINT, "mask": "1" * 64}, "the mask hides nothing"),
        ({**PAINT, "mask": "0" * 64}, "the mask knows no pixel"),
        ({**PAINT, "inputs": None}, "inpaint begins with one image"),
        ({**PAINT, "inputs": [{"from": "../etc"}]}, 'an image is from "test", "job" or "upload"'),
        ({**PAINT, "inputs": [{"from": "test", "index": 16}]}, "image is 16; valid: 0 to 15"),
        ({**PAINT, "inputs": [{"from": "test", "index": -1}]}, "image is -1; valid: 0 to 15"),
        ({**PAINT, "inputs": [{"from": "test", "index": "0"}]}, "image is '0'; valid: 0 to 15"),
        ({**PAINT, "inputs": [{"from": "job", "job": "1", "index": 0}]}, "are not here any more"),
        ({**PAINT, "inputs": [{"from": "upload", "data": "***"}]}, "has to be in base64"),
        ({**PAINT, "inputs": [{"from": "upload"}]}, "up to 1 MiB, in base64"),
        (
            {**PAINT, "inputs": [{"from": "upload", "data": "QUJD" * 2**20}]},
            "up to 1 MiB, in base64",
        ),
        (
            {**PAINT, "inputs": [{"from": "upload", "data": base64.b64encode(b"MZ!").decode()}]},
            "the picture cannot be read: it is no image of a known kind, but text that begins",
        ),
    ],
)
def test_an_order_that_cannot_be_served_is_refused_in_one_line(
    body: Any, message: str | None
) -> None:
    many = dict(SHIPPED)
    config = DIGITS.config.copy_and_resolve_references()
    config.sampling.n_steps_each = 100
    many["many"] = Weights("many", config, (), False, DIGITS.load)
    if message is None:
        assert orders.read(body, many, nothing).config.sampling.method == "annealed_langevin"
        return
    with pytest.raises((ValueError, KeyError), match=message) as refusal:
        orders.read(body, many, nothing)
    assert "\n" not in str(refusal.value)


def test_a_picture_of_a_stranger_becomes_levels() -> None:
    """The middle square, in the levels and channels of the weights."""
    image = orders.uploaded(picture(), DIGITS)
    assert image.shape == (8, 8, 1)
    assert set(image[:, 0].ravel()) == {0}
    assert set(image[:, -1].ravel()) == {16}


def test_a_picture_that_claims_to_be_huge_is_refused() -> None:
    content = bytearray(base64.b64decode(picture(kind="BMP")))
    content[18:26] = (60_000).to_bytes(4, "little") * 2
    with pytest.raises(ValueError, match=r"be read: a picture has up to \d+ pixels"):
        orders.uploaded(base64.b64encode(content).decode(), DIGITS)


# The command line of an order.


def parsed(command: str) -> Any:
    """The config of a command line."""
    argv = shlex.split(command)[1:]
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver():
        patch.setattr(sys, "argv", argv)
        flags.FLAGS.unparse_flags()
        main.parse_flags(argv)
        return flags.FLAGS.mode, flags.FLAGS.config.copy_and_resolve_references()


@pytest.mark.parametrize("task", TASKS)
def test_the_command_has_the_config_of_the_order(task: str) -> None:
    order = ordered(DIGITS, task, **TASKS[task])
    mode, config = parsed(order.command)
    assert mode == order.mode
    assert config.to_dict() == order.config.to_dict()


def test_a_command_has_a_folder_of_its_own_and_says_what_differs_alone() -> None:
    first = ordered(MOONS, "sample", settings={"sampling.seed": 3})
    second = ordered(MOONS, "sample", settings={"sampling.seed": 4})
    words = shlex.split(first.command)
    assert words[:4] == ["python", "main.py", "--mode=sample", "--source=two-moons"]
    assert words[4].startswith("--workdir=runs/demo/two-moons-")
    assert words[4] != shlex.split(second.command)[4]
    assert "--config.sampling.seed=3" in words
    assert not any("sampling.method" in word for word in words)


def test_where_there_is_no_command_a_line_says_why() -> None:
    apart = [{"from": "test", "index": 2}, {"from": "test", "index": 7}]
    order = ordered(DIGITS, "interpolate", inputs=apart)
    assert order.command == ""
    assert "none in a row" in order.remark
    own = [{"from": "upload", "data": picture()}]
    assert ordered(DIGITS, "likelihood", inputs=own).command == ""
    assert "field.png" in ordered(MOONS, "field").remark
    assert orders.MASK in ordered(DIGITS, "inpaint", **TASKS["inpaint"]).remark


def commanded(order: orders.Order, capsys: pytest.CaptureFixture[str]) -> pathlib.Path:
    """The folder of the order's command, which is run."""
    words = shlex.split(order.command)[1:]
    assert tiny.run(capsys, *words) == (0, [])
    return pathlib.Path(next(w for w in words if w.startswith("--workdir=")).partition("=")[2])


@pytest.fixture
def here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder where commands are typed, with one device."""
    use_devices(monkeypatch, 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded_anew(weights: Weights) -> Weights:
    """The weights as a process with these devices loads them."""
    return Weights(weights.name, weights.config, weights.arguments, False, weights.load)


FEW = {"sampling.num_steps": 6, "sampling.num_samples": 12, "sampling.seed": 5}
PC = {"sampling.method": "pc", "sampling.corrector": "langevin"}


@pytest.mark.parametrize(
    "settings", [pytest.param(FEW, marks=pytest.mark.slow), FEW | PC], ids=["edm", "pc"]
)
def test_samples_are_those_of_the_command_bit_for_bit(
    settings: dict[str, Any], here: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a program that was compiled for another seed and number of points, too."""
    programs, weights = Programs(), loaded_anew(MOONS)
    first = jobs.work(
        ordered(weights, "sample", settings=settings | {"sampling.seed": 1}), programs
    )
    assert first.words["compiled"] > 0.0
    order = ordered(weights, "sample", settings=settings)
    parts: list[Any] = []
    result = jobs.work(order, programs, parts.append)
    assert len(programs.by_key) == 1
    stored = read_archive(commanded(order, capsys) / "samples" / "shard_000000.npz")
    assert result.samples is not None
    np.testing.assert_array_equal(result.samples, stored["image"])
    np.testing.assert_array_equal(result.numbers["nfe"], stored["nfe"])
    assert result.words["nfe"] == stored["nfe"].mean()
    assert result.words["compiled"] == 0.0
    [part] = parts
    assert (part["first"], part["count"], len(part["scatters"])) == (0, 12, 7)


@pytest.mark.slow
def test_images_that_come_in_parts_are_those_of_the_command(
    here: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last state that is told of a part is what was drawn."""
    weights, parts = loaded_anew(DIGITS), list[Any]()
    settings = {"sampling.num_steps": 4, "sampling.num_samples": 6, "sampling.batch_size": 4}
    order = ordered(weights, "sample", settings=settings)
    result = jobs.work(order, Programs(), parts.append)
    assert [(part["first"], part["frames"]["shape"][:2]) for part in parts] == [
        *((0, (5, 4)), (4, (5, 2)))
    ]
    folder = commanded(order, capsys) / "samples"
    shards = [read_archive(folder / f"shard_{first:06d}.npz") for first in (0, 4)]
    assert result.samples is not None
    np.testing.assert_array_equal(
        result.samples, np.concatenate([shard["image"] for shard in shards])
    )
    last = np.frombuffer(base64.b64decode(parts[1]["frames"]["data"]), np.uint8)[-2 * 64 :]
    shown = jobs.pictures(result.samples[4:], 17)
    assert last.tobytes() == base64.b64decode(shown["data"])


@pytest.mark.slow
def test_likelihoods_are_those_of_the_command(
    here: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = loaded_anew(MOONS)
    settings = {"eval.bpd_num_images": 20, "eval.bpd_rtol": 0.05}
    order = ordered(weights, "likelihood", settings=settings)
    result = jobs.work(order, Programs())
    stored = read_archive(commanded(order, capsys) / "eval" / "nats_per_dim.npz")
    np.testing.assert_array_equal(result.numbers["nats"], stored["nats"])
    assert result.words["mean"] == stored["nats"].mean()
    assert result.words["nfe"] == stored["nfe"].mean()


def test_the_field_is_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the network, at the time of the noise that was asked for; it points back to the data."""
    use_devices(monkeypatch, 1)
    weights = loaded_anew(MOONS)
    programs = Programs()
    monkeypatch.setattr(choices, "no_likelihood", lambda weights: "not now")
    for noise in (0.2, 2.0):
        result = jobs.work(ordered(weights, "field", settings={"noise": noise}), programs)
        assert result.words["noise"] == pytest.approx(noise, rel=1e-3)
        half = result.words["half"]
        places = np.frombuffer(base64.b64decode(result.words["places"]["data"]), "<i2")
        places = places.reshape(-1, 2) / 32767.0 * half
        outside = np.abs(places).max(1) > 0.9 * half
        inwards = -(places * result.numbers["score"]).sum(1)
        assert (inwards[outside] > 0).all()
    assert len(programs.by_key) == 1


@pytest.mark.slow
@pytest.mark.parametrize("task", ["inpaint", "interpolate"])
def test_images_of_control_are_those_of_the_command_bit_for_bit(
    task: str, here: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command draws the images before the chosen ones, too; another mask or image compiles
    nothing."""
    settings: dict[str, Any] = {"control.num_variants": 3}
    if task == "inpaint":
        settings |= {"sampling.num_steps": 5, "control.jump": 2, "control.repeats": 2}
        settings |= {"control.seed": 9}
    else:
        settings |= {"control.method": "ddim", "sampling.num_steps": 5}
    programs, weights = Programs(), loaded_anew(DIGITS)
    inputs = [{"from": "test", "index": i} for i in range(len(TASKS[task]["inputs"]))]
    other: dict[str, Any] = {"inputs": inputs, "settings": dict(settings)}
    if task == "inpaint":
        other["mask"] = "0" + "1" * 63
        other["settings"]["control.seed"] = 1
    jobs.work(ordered(weights, task, **other), programs)
    order = ordered(weights, task, settings=settings, **TASKS[task])
    result = jobs.work(order, programs)
    assert len(programs.by_key) == 1
    if order.mask is not None:
        (here / orders.MASK).write_bytes(jobs.mask_file(order.mask))
    stored = read_archive(commanded(order, capsys) / "control" / task / "results.npz")
    assert result.samples is not None
    np.testing.assert_array_equal(result.samples, stored["image"][-3:])
    np.testing.assert_array_equal(result.numbers["x"], stored["x"][-3:])
    assert len(stored["image"]) == 9
    if order.mask is not None:
        known = np.broadcast_to(order.mask > 0, result.samples.shape)
        original = np.broadcast_to(DIGITS.test_examples[2], result.samples.shape)
        np.testing.assert_array_equal(result.samples[known], original[known])
        assert (result.samples != original).any()


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> Weights:
    """Weights of small colour images, not trained, that were told one of four classes."""
    use_devices(monkeypatch, 1)
    config = tiny.config(
        data__dataset="emoji",
        data__num_channels=3,
        model__num_labels=4,
        training__label_dropout=0.1,
        sampling__method="ddim",
        sampling__num_frames=0,
    )
    return Weights(
        "colours",
        config,
        ("--config=configs/emoji/vp.py", "--workdir=runs/emoji"),
        True,
        lambda parts: restored(config, parts, pathlib.Path()),
    )


def test_large_images_are_shown_in_fewer_states_and_numbers() -> None:
    config = DIGITS.config.copy_and_resolve_references()
    config.data.image_size, config.data.num_channels = 256, 3
    config.model.attn_resolutions = ()
    large = Weights("large", config, (), False, DIGITS.load)
    fields = {field.name: field for field in choices.sample_fields(large)}
    assert fields["sampling.num_samples"].high == fields["sampling.num_samples"].default == 1
    config.data.image_size = 1024
    huge = Weights("huge", config, (), False, DIGITS.load)
    assert choices.frames(huge) * 3 * 1024**2 <= choices.MOST_SHOWN


@pytest.mark.slow
def test_colours_fit_the_grey_of_ones_own_picture(colours: Weights) -> None:
    """Each pixel keeps the mean of its red, green and blue, by the method that keeps it."""
    own = [{"from": "upload", "data": picture()}]
    settings = {"sampling.num_steps": 4, "control.repeats": 1, "control.num_variants": 2}
    order = ordered(colours, "colorize", inputs=own, settings=settings)
    result = jobs.work(order, Programs())
    assert order.inputs is not None
    assert result.samples is not None
    assert result.samples.shape == (2, 8, 8, 3)
    sums = (image.astype(int).sum(-1) for image in (result.samples, order.inputs.images))
    assert np.abs(np.subtract(*sums)).max() <= 1
    assert [column["title"] for column in result.words["columns"]] == [
        *("measured", "drawn", "original")
    ]
    assert result.words["command"] == ""


@pytest.mark.slow
def test_images_of_a_class_are_guided(colours: Weights) -> None:
    """The stronger, the further from those without guidance; the command names class and scale."""
    found = []
    for scale in (1.0, 8.0):
        settings = {"sampling.num_steps": 4, "control.num_variants": 2, "control.scale": scale}
        order = ordered(colours, "class", classes=[2], settings=settings)
        assert "--config.control.classes=(2,)" in shlex.split(order.command)
        assert order.config.control.scale == scale
        found.append(jobs.work(order, Programs()))
    assert found[0].words["columns"][-1]["names"] == ["class 2", "class 2"]
    assert np.abs(found[0].numbers["x"] - found[1].numbers["x"]).max() > 1e-3


def test_classes_that_are_not_there_or_too_many_are_refused(colours: Weights) -> None:
    with pytest.raises(ValueError, match="whole numbers from 0 to 3"):
        ordered(colours, "class", classes=[4])
    with pytest.raises(ValueError, match="these are 136 images; the demo draws up to 64"):
        ordered(colours, "class", classes=[1] * 17, settings={"control.num_variants": 8})
    colours.config.control.guide = "no/such/run"
    assert choices.no_classes(colours).startswith("control.guide='no/such/run' holds no run")


# One's own weights.


def test_weights_of_a_run_are_offered_first_with_its_own_command_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    config = tiny.config()
    arguments = ["--mode=demo", "--port", "0", "--config=configs/quickstart.py", "--host=::1"]
    arguments += ["--workdir", str(workdir), "--config.model.nf=8"]
    offered = demo_weights.offered(config, None, workdir, arguments)
    assert list(offered) == ["run", *SHIPPED]
    assert offered["run"].arguments == (
        *("--config=configs/quickstart.py", "--workdir", str(workdir), "--config.model.nf=8"),
    )
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        _ = offered["run"].trained


def test_a_source_is_imported_into_the_workdir(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configs.load("toy/swiss_roll_velocity")
    arguments = cards.completed(
        ["main.py", "--mode=demo", "--source=swiss-roll", "--workdir=here"], ROOT, main.MODES
    )[1:]
    offered = demo_weights.offered(config, "swiss-roll", tmp_path / "run", arguments)
    assert (tmp_path / "run" / "config.json").is_file()
    assert offered["swiss-roll"].arguments == ("--source=swiss-roll",)
    imported, shipped = offered["swiss-roll"].trained, SHIPPED["swiss-roll"].trained
    assert imported.sha256 == shipped.sha256


def test_weights_without_a_folder_or_a_config_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Refused, match="--workdir is required: --config is of a run"):
        demo_weights.offered(tiny.config(), None, None, [])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Refused, match=r"--config is required: .* has a config\.py"):
        demo_weights.offered(None, None, tmp_path, [f"--workdir={tmp_path}"])


def test_a_task_of_control_is_one_of_the_program() -> None:
    others = {"sample", "likelihood", "field"}
    assert set(choices.TASKS) - others <= set(CONTROL)


# The queue.


class Blocked:
    """Work that goes on until it is let go."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.over.wait(30)
        return "done"


def until(condition: Callable[[], bool]) -> None:
    """Waits for what another thread does."""
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come about")


def test_jobs_are_done_one_after_the_other() -> None:
    queue: Queue[Callable[[], Any]] = Queue(lambda work, tell: work())
    first = Blocked()
    done: list[int] = []
    running = queue.add(first)
    assert first.begun.wait(30)
    waiting = [queue.add(lambda i=i: done.append(i)) for i in range(MOST_WAITING)]  # type: ignore[misc]
    with pytest.raises(Full, match="8 jobs wait already"):
        queue.add(first)
    assert running.state == RUNNING
    assert [queue.position(job) for job in waiting] == list(range(1, MOST_WAITING + 1))
    assert queue.cancel(waiting[2].number)
    assert not queue.cancel("17")
    assert queue.position(waiting[3]) == 3
    first.over.set()
    until(lambda: waiting[-1].state == DONE)
    assert done == [0, 1, 3, 4, 5, 6, 7]
    assert (running.result, waiting[2].state) == ("done", CANCELLED)
    assert queue.close(30)


def test_a_job_that_fails_tells_why_and_the_next_one_is_done() -> None:
    def fail() -> None:
        raise ValueError("no\nway")

    queue: Queue[Callable[[], Any]] = Queue(lambda work, tell: work())
    jobs_ = [queue.add(fail), queue.add(lambda: 3)]
    until(lambda: jobs_[1].state == DONE)
    assert (jobs_[0].state, jobs_[0].line) == (FAILED, "no way")
    assert jobs_[1].result == 3
    assert queue.close(30)


def test_a_job_that_runs_is_stopped_where_it_can_be() -> None:
    """After the part that it tells of; one that tells of none runs to its end, for nobody."""
    going_on, begun = threading.Event(), threading.Event()

    def do(work: int, tell: Callable[[Any], None]) -> int:
        for part in range(work):
            tell(part)
            begun.set()
            assert going_on.wait(30)
        begun.set()
        assert going_on.wait(30)
        return work

    queue: Queue[int] = Queue(do)
    for parts in (3, 0):
        going_on.clear()
        begun.clear()
        job = queue.add(parts)
        assert begun.wait(30)
        assert queue.cancel(job.number)
        going_on.set()
        until(lambda job=job: job.state == CANCELLED)  # type: ignore[misc]
        assert (job.result, job.parts) == (None, [0, 1][:parts])
        assert not queue.cancel(job.number)
    assert queue.close(30)


def test_the_last_jobs_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.queue.MOST_KEPT", 2)
    queue: Queue[Callable[[], Any]] = Queue(lambda work, tell: work())
    added: list[Job[Callable[[], Any]]] = []
    for _ in range(5):
        added.append(queue.add(lambda: None))
        until(lambda: added[-1].state == DONE)
    assert [queue.get(job.number) is not None for job in added] == [False, False, True, True, True]
    assert queue.close(30)


def test_a_queue_that_is_closed_cancels_who_waits() -> None:
    queue: Queue[Callable[[], Any]] = Queue(lambda work, tell: work())
    first = Blocked()
    queue.add(first)
    assert first.begun.wait(30)
    waiting = queue.add(lambda: None)
    assert not queue.close(0.01)
    assert waiting.state == CANCELLED
    first.over.set()
    assert queue.close(30)


def test_programs_that_were_used_last_are_kept() -> None:
    programs = Programs(most=2)
    made: list[str] = []

    def get(key: str) -> str:
        return programs.get(key, lambda: made.append(key) or key)  # type: ignore[func-returns-value]

    assert [get(key) for key in "ABACAB"] == list("ABACAB")
    assert made == list("ABCB")
