"""The weights that are part of the project are what their cards say, and draw their data."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import configs
import data
from benchmarks import shipped
from interop import cards, convert, hub, official, sources
from runtime import experiment, files
from tests import tiny

NAMES = list(shipped.shipped())


def test_the_folder_has_the_files_of_the_cards_and_is_small() -> None:
    there = {path.name: path.stat().st_size for path in hub.SHIPPED.iterdir()}
    addressed = [card.address.removeprefix(cards.SHIPPED) for card in shipped.shipped().values()]
    assert sorted(there) == sorted(addressed)
    assert sum(there.values()) < 8e6


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_of_its_card(name: str) -> None:
    """Its SHA-256, its network, and nothing else in it."""
    card = shipped.shipped()[name]
    opened = sources.open_source(hub.local(name))
    config = configs.load(card.config)
    opened.weights(experiment.network(config), experiment.image_shape(config))
    assert opened.types == {"float16"}
    assert files.sha256(opened.path) == card.sha256


def test_a_file_that_was_changed_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its hash; so is one that is not there."""
    card = shipped.shipped()["digits"]
    path = tmp_path / card.address.removeprefix(cards.SHIPPED)
    monkeypatch.setattr(hub, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match=r"is not what this version ships; git checkout"):
        hub.local("digits")
    content = bytearray((pathlib.Path(hub.__file__).parent / "shipped" / path.name).read_bytes())
    path.write_bytes(content)
    assert hub.local("digits") == path
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="ships"):
        hub.local("digits")


def test_a_hash_is_written_into_its_card_alone() -> None:
    text = cards.FILE.read_text()
    assert shipped.with_hash(text, "digits", cards.cards()["digits"].sha256) == text
    changed = shipped.with_hash(text, "digits", "ab" * 32)
    before, after = cards.read(text), cards.read(changed)
    assert after["digits"].sha256 == "ab" * 32
    assert {n: c for n, c in after.items() if n != "digits"} == {
        n: c for n, c in before.items() if n != "digits"
    }
    with pytest.raises(ValueError, match="nobody has no line"):
        shipped.with_hash(text, "nobody", "ab" * 32)


def test_weights_are_written_as_they_were_trained(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a run to the file: the averages, in float16, under our names."""
    config = tiny.config()
    monkeypatch.setattr(hub, "SHIPPED", tmp_path)
    monkeypatch.setattr(shipped.configs, "load", lambda name: config)
    module, shape = experiment.network(config), experiment.image_shape(config)
    rng = np.random.default_rng(0)
    tensors = {
        "/".join(place): rng.standard_normal(sides, np.float32)
        for place, sides in official.parameter_shapes(module, shape).items()
    }
    safetensors.numpy.save_file(tensors, tmp_path / "source.safetensors")
    convert.import_weights(config, tmp_path / "source.safetensors", tmp_path / "run")
    card = cards.Card("tiny", f"{cards.SHIPPED}tiny.safetensors", "tiny")
    written = safetensors.numpy.load_file(shipped.write(card, tmp_path / "run"))
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor.astype(np.float16))


def test_digits_by_name_are_digits(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command without config or workdir draws pictures whose mean is that of the data, pixel by
    pixel, as far as 64 can tell; the same command again draws nothing."""
    monkeypatch.chdir(tmp_path)
    few = ("--config.sampling.num_steps=15", "--config.sampling.num_frames=0")
    argv = ["main.py", "--mode=sample", "--source=digits", *few]
    assert tiny.run(capsys, *argv) == (0, [])
    folder = tmp_path / "runs/digits/samples"
    assert (folder / "grid.png").exists()
    images = np.stack([np.asarray(Image.open(path)) for path in folder.glob("images/*.png")])
    digits = np.asarray(data.load("digits", "train").images) / 16.0
    samples, train = (x.reshape(len(x), -1) for x in (images / 255.0, digits))
    error = np.sqrt(train.var(0) / len(samples) + 1e-4)
    assert len(samples) == 64
    assert np.abs((samples.mean(0) - train.mean(0)) / error).max() < 4.5
    written = [path.stat().st_mtime_ns for path in sorted(folder.glob("images/*.png"))]
    assert tiny.run(capsys, *argv)[0] == 0
    assert written == [path.stat().st_mtime_ns for path in sorted(folder.glob("images/*.png"))]
