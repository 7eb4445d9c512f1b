"""What TFDS prepared as array_record, written by TFDS itself, and what is refused."""

import io
import json
import re
import shutil

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds

import data
from data import crops, prepared
from data.pictures import Fit, shares
from tests.test_lsun import encoded, noise

PICTURES = [noise(9, 11, i) for i in range(24)]


class Flowers(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Pictures with a class and words."""

    VERSION = tfds.core.Version("1.0.0")
    counts = (12, 6, 6)

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=3),
            "words": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        starts = np.cumsum([0, *self.counts])
        names = ("train", "validation", "test")
        return {
            name: self._generate_examples(range(starts[i], starts[i + 1]))
            for i, name in enumerate(names)
        }

    def _generate_examples(self, rows):
        for row in rows:
            image = io.BytesIO(encoded(PICTURES[row], "PNG"))
            yield row, {"image": image, "label": row % 3, "words": f"flower {row}"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    Flowers(data_dir=str(root), file_format="array_record").download_and_prepare()
    return root


@pytest.fixture
def root(written, tmp_path, monkeypatch):
    """A folder of TFDS's that a test may spoil; `prepared_flowers` is in it."""
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "default"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return shutil.copytree(written, tmp_path / "tfds")


def load(root, split="train", name="tfds:flowers", size=9, **options):
    return data.load(name, split, root, size, 3, **options)


def refused(message, *arguments, kind=ValueError, **options):
    with pytest.raises(kind, match=message) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ram_limit", [1 << 30, 0])
@pytest.mark.parametrize("below", [None, "", "flowers/1.0.0"])
def test_examples_are_those_that_tfds_wrote(root, below, ram_limit):
    place = None if below is None else root / below
    for split, rows in (("train", range(12)), ("test", range(18, 24))):
        dataset = load(place, split, ram_limit=ram_limit)
        images, labels = dataset.take(np.arange(len(dataset)))
        np.testing.assert_array_equal(images, [PICTURES[row][:, 1:10] for row in rows])
        assert labels.tolist() == [row % 3 for row in rows]
        assert dataset.num_classes == 3
    crops = load(place, fit=Fit(crop=5), size=5).images
    np.testing.assert_array_equal(crops[3], PICTURES[3][2:7, 3:8])


def test_without_a_split_for_testing_a_tenth_is(root):
    folder = root / "flowers" / "1.0.0"
    info = json.loads((folder / prepared.INFO).read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] == "train"]
    (folder / prepared.INFO).write_text(json.dumps(info))
    parts = [load(root, split).images.tobytes() for split in ("train", "test")]
    for part, rows in zip(parts, shares(12).values(), strict=True):
        assert part == b"".join(PICTURES[row][:, 1:10].tobytes() for row in rows)


def newest(name, root):
    place = prepared.place_of(name, root)
    return place and place.name


def test_the_newest_version_is_read_unless_one_is_named(root):
    folder = root / "flowers"
    shutil.copytree(folder / "1.0.0", folder / "1.0.10")
    shutil.copytree(folder / "1.0.0", folder / "1.0.9")
    assert newest("flowers", root) == "1.0.10"
    assert newest("flowers/1.0.9", root) == "1.0.9"
    folder.rename(root / "small")
    (root / "flowers").mkdir()
    (root / "small").rename(root / "flowers" / "small")
    assert newest("flowers/small", root) == "1.0.10"
    refused("has 1 config; name one of small after flowers/", root)


def test_a_bucket_is_copied_until_it_changes(root, tmp_path, monkeypatch, caplog):
    files = fsspec.filesystem("memory")
    files.put(str(root / "flowers"), "/bucket/tfds/flowers", recursive=True)
    expected = load(root).images
    try:
        np.testing.assert_array_equal(load("memory://bucket/tfds").images, expected)
        parts = [load("memory://bucket/tfds", split) for split in ("train", "test")]
        copy = next((tmp_path / "default" / "buckets").iterdir()) / "flowers"
        said = f"memory://bucket/tfds, copied to {copy / '1.0.0'}: 12 images of train, 3 classes"
        assert parts[0].summary == said
        assert not caplog.records
        before = {path: path.stat().st_ino for path in copy.rglob("*")}
        files.pipe("/bucket/tfds/flowers/1.0.0/more", b"more")
        load("memory://bucket/tfds")
        assert (copy / "1.0.0" / "more").read_bytes() == b"more"
        again = {path: path.stat().st_ino for path in copy.rglob("*")}
        load("memory://bucket/tfds")
        assert again == {path: path.stat().st_ino for path in copy.rglob("*")} != before
        assert [path.name for path in copy.parent.iterdir()] == ["flowers"]
        (copy / "1.0.0" / "more").unlink()
        with monkeypatch.context() as patch:
            patch.setattr(type(files), "get_file", None)
            refused(r"^data\.data_dir=memory://bucket/tfds cannot be copied to .*/flowers: ",
                    "memory://bucket/tfds", kind=OSError)  # fmt: skip
        files.rm("/bucket", recursive=True)
        np.testing.assert_array_equal(load("memory://bucket/tfds", "test").images[:1],
                                      [PICTURES[18][:, 1:10]])  # fmt: skip
        (line,) = (record.getMessage() for record in caplog.records)
        assert line == (
            f"data.data_dir=memory://bucket/tfds has no folder flowers; its copy in {copy} is read"
        )
        refused("has no folder flowers", "memory://other", kind=FileNotFoundError)
    finally:
        files.store.clear()
    refused("the library for nowhere:// is not here", "nowhere://bucket")

    def absent(url):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    refused("the library for gs:// is not here .Please install gcsfs", "gs://bucket")


def test_what_is_absent_or_prepared_otherwise_is_refused(root):
    refused("there is no .*/none; prepare it", root, name="tfds:none", kind=FileNotFoundError)
    refused("tfds is followed by a colon and the name", root, name="tfds")
    folder = root / "flowers" / "1.0.0"
    info = json.loads((folder / prepared.INFO).read_text())
    (folder / prepared.INFO).write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    refused("was prepared as tfrecord, which has no random access", root)
    del info["fileFormat"]
    (folder / prepared.INFO).write_text(json.dumps(info))
    refused("was prepared as tfrecord", root)
    (folder / prepared.INFO).write_text("{")
    refused(r"dataset_info\.json cannot be read", root)


@pytest.mark.parametrize("damage", ["absent", "cut", "flipped"])
def test_damaged_files_are_refused(root, damage):
    (path,) = (root / "flowers" / "1.0.0").glob("flowers-train.array_record*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    refused(r"1\.0\.0(: record \d+ of train|/\S+record-\S+)?( is damaged| has 0 of 1 files)", root)


@pytest.mark.parametrize(("file", "field", "value", "message"), [
    (prepared.INFO, "splits", 5, r"its splits is 5, not a list; prepare the set again"),
    (prepared.INFO, "splits", [5], r"its splits is 5, not a description of each split"),
    (prepared.INFO, "splits", [], r"has no split 'train'; it has none$"),
    (prepared.INFO, "splits", [{"name": "train"}], r"has no split 'train'; it has none$"),
    (prepared.INFO, "splits", [{"name": 7}], r"its name is 7, not a text"),
    (prepared.INFO, "splits", [{"name": "train", "shardLengths": 1}], "shardLengths is 1, not a l"),
    *[(prepared.INFO, "splits", [{"name": "train", "shardLengths": [length]}],
       r"its shardLengths is .*, not a whole number, 0 or more") for length in ("x", -1, 1.5, None,
                                                                                True, [12])],
    (prepared.INFO, "name", "/etc/*", r"its name is '/etc/\*', not the name of a data set"),
    (prepared.INFO, "name", 5, "its name is 5, not a text"),
    (prepared.FEATURES, "featuresDict", [], r"its featuresDict is \[\], not an object"),
    (prepared.FEATURES, "featuresDict", {"features": "x"}, "its features is 'x', not an object"),
    (prepared.FEATURES, "featuresDict", {"features": {"image": 0}}, "image is 0, not an object"),
    (prepared.FEATURES, "featuresDict", {"features": {"image": {"pythonClassName": 1}}},
     "pythonClassName is 1, not a text"),
    (prepared.FEATURES, "featuresDict", {"features": {
        "image": {"pythonClassName": "a.Image"},
        "label": {"pythonClassName": "a.ClassLabel", "classLabel": {"numClasses": "x"}},
    }}, "numClasses is 'x', not a whole number"),
])  # fmt: skip
def test_descriptions_of_wrong_types_are_refused_by_file_and_field(
    root, file, field, value, message
):
    path = root / "flowers" / "1.0.0" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    refused(rf"1\.0\.0(/{re.escape(file)} is damaged:.*)? {message}", root)


def test_one_cut_file_of_several_is_named(root):
    folder = root / "flowers" / "1.0.0"
    (path,) = folder.glob("flowers-train.array_record*")
    content = path.read_bytes()
    for number, part in enumerate((content, content[: len(content) // 2])):
        path.with_name(f"flowers-train.array_record-0000{number}-of-00002").write_bytes(part)
    info = json.loads((folder / prepared.INFO).read_text())
    (split,) = (split for split in info["splits"] if split["name"] == "train")
    split["shardLengths"] = ["12", "12"]
    (folder / prepared.INFO).write_text(json.dumps(info))
    refused(r"array_record-00001-of-00002 is damaged or cut off: of its \d+ bytes .*; prep", root)


def test_labels_out_of_range_and_features_without_one_image_are_refused(root):
    path = root / "flowers" / "1.0.0" / prepared.FEATURES
    text = path.read_text()
    path.write_text(text.replace('"numClasses": "3"', '"numClasses": "2"'))
    refused(r"has labels from 0 to 2, but features\.json has 2 classes", root)
    path.write_text(text.replace(".Image", ".Audio"))
    refused(r"has not one image among image \(Audio\), label", root)


@pytest.mark.parametrize(("name", "size", "place"), [
    ("celeba", (218, 178), "celeb_a/2.1.0"),
    ("imagenet32", (32, 32), "downsampled_imagenet/32x32/2.0.0"),
])  # fmt: skip
def test_sets_that_tfds_calls_otherwise_are_found(tmp_path, monkeypatch, name, size, place):
    pictures = [noise(size[0], size[1], i) for i in range(4)]
    monkeypatch.setattr(f"{__name__}.PICTURES", pictures)
    monkeypatch.setattr(Flowers, "counts", (1, 2, 1))
    Flowers(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / "flowers" / "1.0.0").rename(tmp_path / place)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "default"))
    for root in (tmp_path, None):
        test = data.load(name, "test", root, 32, 3)
        if name == "celeba":
            expected = [crops.face(picture, 32) for picture in pictures[1:3]]
        np.testing.assert_array_equal(test.images, expected if name == "celeba" else pictures[1:3])
