"""A folder of images: what is read, in which order, how it is made to fit, what is refused."""

import json
import os
import pathlib
import re
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

import data
from data import folder as folders
from data import images, trees
from data.datasets import Column
from data.pictures import Fit, Request
from evaluation.metrics import classifier
from runtime import experiment
from tests import tiny
from tests.test_trees import packed


def picture(path: pathlib.Path, colour=(200, 100, 50), size=(12, 8), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


@pytest.fixture
def pictures(tmp_path):
    """Twenty images in two sub-folders, whose red is their number."""
    for i in range(20):
        name = f"{'cats' if i % 2 else 'dogs/old'}/{i:02}.{'PNG' if i % 3 else 'bmp'}"
        picture(tmp_path / "set" / name, (10 * i, 0, 0))
    (tmp_path / "set" / "notes.txt").write_text("not an image")
    (tmp_path / "set" / ".hidden.png").write_bytes(b"")
    return tmp_path / "set"


def load(root, split="train", size=4, channels=3, *more, **options):
    return data.load("folder", split, root, size, channels, *more, **options)


def numbers(dataset) -> list[int]:
    return (dataset.take(np.arange(len(dataset)))[0][:, 0, 0, 0] // 10).tolist()


def one_line(caught) -> str:
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_sub_folders_are_labels_and_a_tenth_is_for_testing(pictures):
    train, test = load(pictures), load(pictures, "test")
    assert (len(train), len(test)) == (18, 2)
    assert sorted(numbers(train) + numbers(test)) == list(range(20))
    for part in (train, test):
        assert part.labels.tolist() == [int(number % 2 == 0) for number in numbers(part)]
        assert (part.levels, part.image_shape, part.num_classes) == (256, (4, 4, 3), 2)
    assert set(train.labels[:6]) == {0, 1}  # mixed
    assert data.grey_levels("folder") == 256


def test_the_order_is_that_of_names_alone(pictures, tmp_path, monkeypatch):
    elsewhere = tmp_path / "copy"
    shutil.copytree(pictures, elsewhere)
    names = trees.names_of
    monkeypatch.setattr(trees, "names_of", lambda *where: sorted(names(*where), reverse=True))
    for split in ("train", "test"):
        assert load(elsewhere, split).fingerprint == load(pictures, split).fingerprint
    composed, decomposed = "caf\u00e9/a.png", "cafe\u0301/a.png"
    assert folders.portable(decomposed) == composed
    assert folders.label_of(decomposed) == "caf\u00e9"


def test_train_and_test_folders_are_the_splits(tmp_path):
    for name in ("train/b/1", "train/a/2", "train/a/3", "test/b/4", "test/c/5", "other/6"):
        picture(tmp_path / f"{name}.png", (10 * int(name[-1]), 0, 0))
    train, test = load(tmp_path), load(tmp_path, "test")
    labels = {n: k for d in (train, test) for n, k in zip(numbers(d), d.labels, strict=True)}
    assert labels == {1: 1, 2: 0, 3: 0, 4: 1, 5: 2}
    assert train.num_classes == test.num_classes == 3
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(ValueError, match="has a sub-folder train, but must have train and test"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a/1", "Train/a/2", "test/a/3"], "has sub-folders Train, train, test, but must"),
        (["train/1", "val/2", "valid/3"], "has sub-folders train, val, valid, but must"),
        (["test/1", "val/2", "cats/3"], r"test, val, but must have .*; beside it are cats$"),
    ],
)
def test_splits_that_are_not_clear_are_refused(tmp_path, names, message):
    for name in names:
        picture(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    one_line(caught)


@pytest.mark.parametrize("test_name", ["Test", "TEST", "val", "Valid", "validation"])
def test_splits_are_told_without_case_and_validation_is_the_test(tmp_path, test_name):
    for name in ("TRAIN/b/1", "TRAIN/a/2", f"{test_name}/a/3", "more/a/4"):
        picture(tmp_path / f"{name}.png", (10 * int(name[-1]), 0, 0))
    train, test = load(tmp_path), load(tmp_path, "test")
    assert (sorted(numbers(train)), numbers(test), train.num_classes) == ([1, 2], [3], 2)
    assert "3 images (2 train, 1 test), 2 classes" in train.summary
    assert ("is the split test" in train.summary) == test_name.lower().startswith("val")
    assert train.summary.endswith("a sub-folder more beside the splits passed over")
    shutil.rmtree(tmp_path / "TRAIN")
    if test_name.lower() != "test":
        assert load(tmp_path).num_classes == 2  # no splits, but two classes


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["photos/train/1", "photos/Test/2"], r"train/ and test/ inside photos/ split nothing: "),
        (["a/train/1", "b/train/2", "b/val/3"], r"inside b/ .* name b/ itself as data.data_dir "),
        (["training/1", "testing/2"], r"sub-folders testing, training read as labels: to split"),
        (["train2017/a/1", "val2017/2"], r"sub-folders train2017, val2017 read as labels"),
        (["a/1", "trains/2", "a/train/3", "valley/4"], r"3 classes, 0 files passed over$"),
        (["a/1", "trains/2", "contest/train/3"], r"3 classes, 0 files passed over$"),
    ],
)
def test_folders_that_could_be_splits_and_are_none_are_said(tmp_path, names, note, kind):
    for name in names:
        picture(tmp_path / "set" / f"{name}.png")
    place = tmp_path / "set" if kind == "folder" else packed(tmp_path / "set")
    classes = len({name.partition("/")[0] for name in names})
    dataset = load(place)
    assert dataset.num_classes == classes
    assert re.search(note, dataset.summary.replace(f"{classes} class,", "1 classes,"))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_lies_beside_the_splits_is_counted(tmp_path, kind):
    for name in ("train/1", "test/2", "3", "4", ".5"):
        picture(tmp_path / "set" / f"{name}.png")
    for name in (".git/a/1.png", ".git/.2.png", "train/.git/3.txt"):
        picture(tmp_path / "set" / name, format="PNG")
    (tmp_path / "set" / "notes.txt").write_text("none")
    place = tmp_path / "set" if kind == "folder" else packed(tmp_path / "set")
    said = "5 files passed over (images beside the splits 2, .txt 1, hidden 1, hidden folders 1)"
    assert said in load(place).summary


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_hidden_folders_are_counted_once_each(tmp_path, kind):
    for name in ("a/1", "a/2", ".git/a/1", ".git/.b/2", "a/.c/d/3", "a/.c/4", "a/.5"):
        picture(tmp_path / "set" / f"{name}.png")
    place = tmp_path / "set" if kind == "folder" else packed(tmp_path / "set")
    summary = load(place).summary
    assert "2 images (1 train, 1 test), 1 class" in summary
    assert summary.endswith("3 files passed over (hidden folders 2, hidden 1)")


def test_names_that_lead_out_of_a_zip_file_are_passed_over(tmp_path):
    for name in ("1.png", "2.png", "3.png"):
        picture(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("1.png", "2.png", "../../3.png"):
            archive.write(tmp_path / pathlib.Path(name).name, name)
    said = r"2 images .*, 1 file passed over \(names that lead out of the zip file 1\)$"
    assert re.search(said, load(tmp_path / "a.zip").summary)


def test_classes_that_only_test_images_have_are_warned_of(tmp_path, caplog):
    for name in ("train/cats/1", "train/dogs/2", "test/cats/3", "test/owls/4", "test/newts/5"):
        picture(tmp_path / "set" / f"{name}.png")
    load(tmp_path / "set")
    (warning,) = caplog.messages
    assert re.search(
        r"set: 2 classes of 4 have no image to train on, all of theirs are for testing; one is "
        r"that of test/(owls/4|newts/5)\.png$",
        warning,
    )
    caplog.clear()
    (tmp_path / "set" / "train" / "owls").mkdir()
    (tmp_path / "set" / "train" / "newts").mkdir()
    for name in ("owls/6", "newts/7"):
        picture(tmp_path / "set" / "train" / f"{name}.png")
    load(tmp_path / "set")
    assert not caplog.messages


def test_what_was_read_and_what_was_not_is_said(pictures):
    (pictures / "film.MP4").write_bytes(b"")
    (pictures / "README").write_bytes(b"")
    (pictures / "dogs" / "more.txt").write_bytes(b"")
    (pictures / "gone.png").symlink_to(pictures / "nowhere")
    os.mkfifo(pictures / "pipe.png")
    said = (
        f"data.data_dir={pictures}: 20 images (18 train, 2 test), 2 classes, 7 files passed over "
        "(.txt 2, "
    )
    for split in ("train", "test"):
        summary = load(pictures, split).summary
        assert summary.startswith(said)
        for kind in (".mp4 1", "without ending 1", "hidden 1", "broken links 1", "like 1"):
            assert kind in summary


def test_a_run_says_once_what_it_reads(pictures, capsys):
    settings = {"dataset": "folder", "data_dir": str(pictures), "image_size": 8}
    parts = experiment.build(tiny.config(**{f"data__{k}": v for k, v in settings.items()}))
    assert not capsys.readouterr().out
    for split in ("train", "test", "train"):
        parts.dataset(split)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == parts.dataset("train").summary


def test_linked_folders_and_files_are_read_without_circles(tmp_path):
    root, elsewhere = tmp_path / "set", tmp_path / "real"
    for i in range(10):
        picture(root / "cat" / f"{i}.png", (10 * i, 0, 0))
        picture(elsewhere / "dog" / f"{i}.png", (10 * (i + 10), 0, 0))
    picture(elsewhere / "cat.png", (200, 0, 0))
    (root / "dog").symlink_to("../real/dog")
    (root / "cat" / "linked.png").symlink_to(elsewhere / "cat.png")
    for place, target in (
        (root / "up", ".."),
        (root / "cat" / "again", "../../set"),
        (root / "dogs", "../real/dog"),
        (root / "self", "self"),
        (elsewhere / "dog" / "back", root / "cat"),
    ):
        place.symlink_to(target)
    train, test = load(root), load(root, "test")
    labels = {n: k for d in (train, test) for n, k in zip(numbers(d), d.labels, strict=True)}
    assert labels == {i: int(10 <= i < 20) for i in range(21)}
    assert train.num_classes == 2
    assert f"{trees.LINKED} 4" in train.summary
    assert "broken links 1" in train.summary


def test_links_to_splits_are_followed(tmp_path):
    for i in range(4):
        picture(tmp_path / "pool" / f"{i}.png", (10 * i, 0, 0))
    for split in ("train", "test"):
        (tmp_path / "set" / split).mkdir(parents=True)
        (tmp_path / "set" / split / "a").symlink_to(tmp_path / "pool")
    assert sorted(numbers(load(tmp_path / "set"))) == [0, 1, 2, 3]


def test_names_that_are_no_text_are_read(tmp_path):
    names = [os.fsdecode(b"caf\xe9/%d\xff.png" % i) for i in range(4)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with open(tmp_path / name, "wb") as file:
            Image.new("RGB", (4, 4)).save(file, "PNG")
    for memory in (2**20, 1):
        train = load(tmp_path, ram_limit=memory)
        assert (len(train), train.num_classes) == (3, 1)
        train.fingerprint.encode()
        train.summary.encode()
    (tmp_path / names[0]).write_bytes(b"")
    with pytest.raises(ValueError, match=r"caf\\udce9/0\\udcff\.png cannot be read") as caught:
        [load(tmp_path, split) for split in ("train", "test")]
    one_line(caught).encode()


def test_a_kind_of_flaw_is_told_once(tmp_path, caplog):
    for i in range(12):
        deep = np.full((4, 4), i + 1, np.uint16)
        Image.fromarray(deep).save(tmp_path / f"{i}.png")
    load(tmp_path)
    (record,) = caplog.records
    assert "it becomes dark" in record.getMessage()
    assert record.getMessage().endswith("of others like it nothing is said")


def test_images_outside_of_sub_folders_have_the_first_label(tmp_path):
    for name in ("a/1", "2", "3"):
        picture(tmp_path / f"{name}.png", (10 * int(name[-1]), 0, 0))
    both = [load(tmp_path, split) for split in ("train", "test")]
    labels = {n: k for d in both for n, k in zip(numbers(d), d.labels, strict=True)}
    assert labels == {1: 1, 2: 0, 3: 0}


def test_sets_larger_than_memory_are_read_when_asked(pictures):
    whole, lazy = load(pictures), load(pictures, ram_limit=100)
    assert isinstance(lazy.images, Column)
    assert not lazy.in_memory
    rows = np.array([3, 0, 3])
    for got, expected in zip(lazy.take(rows), whole.take(rows), strict=True):
        np.testing.assert_array_equal(got, expected)
    batch = next(data.Batches(lazy, 4, 0))
    np.testing.assert_array_equal(batch["image"], next(data.Batches(whole, 4, 0))["image"])
    # Caches are named by fingerprints: another size, or another file, is another set.
    assert lazy.fingerprint != load(pictures, size=5, ram_limit=100).fingerprint
    before = lazy.fingerprint
    path = pictures / folders.ImageFolder(Request(pictures, "train", 4, 3)).names[5]
    path.rename(path.with_stem("renamed"))
    assert load(pictures, ram_limit=100).fingerprint != before


def test_fitting_cuts_the_middle_and_keeps_proportions():
    wide = np.zeros((6, 18, 3), np.uint8)
    wide[:, 6:12] = 255  # the middle square
    assert (images.fitted(Image.fromarray(wide), (6, 6, 3)) == 255).all()
    tall = Image.fromarray(wide.swapaxes(0, 1))
    assert (images.fitted(tall, (6, 6, 3)) == 255).all()
    stripes = np.tile(np.array([0, 255], np.uint8)[None, :, None], (32, 16, 3))
    grey = images.fitted(Image.fromarray(stripes), (4, 4, 3))
    assert np.abs(grey[:, 1:3].astype(int) - 127).max() < 12  # antialiased, not picked out
    assert images.fitted(Image.new("RGB", (3, 3), "red"), (8, 8, 1)).tolist()[0][0] == [76]


def test_transparency_is_white_and_16_bits_are_scaled():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (images.fitted(clear, (4, 4, 3)) == 255).all()
    half = images.fitted(Image.new("LA", (4, 4), (0, 128)), (4, 4, 1))
    assert np.abs(half.astype(int) - 127).max() <= 1
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 255])
    palette.info["transparency"] = 0
    assert (images.fitted(palette, (4, 4, 3)) == 255).all()
    deep = Image.fromarray(np.full((4, 4), 257 * 200, np.uint16))
    assert (images.fitted(deep, (4, 4, 3)) == 200).all()
    with pytest.raises(ValueError, match="have no known range"):
        images.fitted(Image.new("F", (4, 4)), (4, 4, 1))


def test_exif_orientation_is_respected(tmp_path):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: stored with its top at the left
    stored = Image.fromarray(np.rot90(upright).copy())
    stored.save(tmp_path / "turned.png", exif=exif)
    found = images.read_image(tmp_path / "turned.png", (8, 8, 3))
    np.testing.assert_array_equal(found, upright)


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_broken_files_are_named(pictures, damage):
    victim = pictures / "cats" / "07.PNG"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(victim)
    whole = victim.read_bytes()
    victim.write_bytes({"text": b"hello", "truncated": whole[:5000], "empty": b""}[damage])
    reason = "truncated" if damage == "truncated" else "no image of a known kind"
    with pytest.raises(
        ValueError, match=re.escape(f"{victim} cannot be read: ") + f".*{reason}"
    ) as e:
        [load(pictures, split) for split in ("train", "test")]
    one_line(e)


def test_refusals(tmp_path):
    for arguments, expected in [
        ((None,), "name the folder with --config.data.data_dir"),
        ((tmp_path,), "has no images for the split 'train'"),
        ((tmp_path, "train", 4, 2), "num_channels 1 or 3, not 4 and 2"),
        ((tmp_path, "train", 4, 3, 1 << 30, False, Fit(-1)), "data.crop=-1 must be a number of"),
        ((tmp_path, "valid"), "unknown split of folder 'valid'"),
    ]:
        with pytest.raises(ValueError, match=re.escape(expected)) as caught:
            load(*arguments)
        one_line(caught)
    absent = tmp_path / "none"
    with pytest.raises(FileNotFoundError, match=f"there is no folder {absent}$"):
        load(absent)
    picture(tmp_path / "only.png")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(
        ValueError,
        match=r"has no images for the split 'train': it holds 1 image \(0 train, 1 test\), "
        r"1 class, 1 file passed over \(\.txt 1\); a data set has two images or more$",
    ):
        load(tmp_path)


def test_features_of_classes_need_labels(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="folder has no labels, and features") as caught:
        classifier.load(load(tmp_path), load(tmp_path, "test"), tmp_path)
    one_line(caught)


@pytest.mark.slow
def test_a_folder_is_trained_on_sampled_and_judged(tmp_path, pictures, capsys):
    more = {
        "data.dataset": "folder",
        "data.data_dir": pictures,
        "data.image_size": 4,
        "data.num_channels": 3,
        "eval.features": "classifier",
        "eval.batch_size": 4,
        "eval.num_samples": 24,
        "eval.bpd_num_images": 2,
    }
    overrides = [f"--config.{name}={value}" for name, value in more.items()]
    for mode in ("train", "sample", "eval"):
        code, lines = tiny.run(capsys, *tiny.arguments(tmp_path / "run", mode, *overrides))
        assert (code, lines) == (0, [])
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) >= 1
    results = json.loads((tmp_path / "run" / "eval" / "results.json").read_text())
    assert results["features"] == "features: classifier trained on folder, not Inception"
    assert np.isfinite([results["frechet_distance"], results["bits_per_dim"]]).all()
