"""TFRecord files: those that TensorFlow wrote, whole, damaged and cut off."""

import os

import numpy as np
import pytest

from data import tfrecords
from tests import golden_cases
from tests.official_files import write_records as write


def stylegan_files():
    names = [path.stem for path in golden_cases.files("data", "*_expected.npz")]
    stems = [name.removesuffix("_expected") for name in names]
    return [path for path in golden_cases.files("data", "*.tfrecords") if path.stem in stems]


@pytest.mark.parametrize("path", stylegan_files(), ids=lambda path: path.stem)
def test_stylegan_pictures_are_those_that_tensorflow_reads(path, tmp_path):
    golden = golden_cases.load(path.with_name(f"{path.stem}_expected.npz"))
    records = tfrecords.TFRecords(path, tmp_path / "index")
    images = [tfrecords.stylegan_image(records[row]) for row in range(len(records))]
    np.testing.assert_array_equal(images, golden["images_nhwc"])


@pytest.mark.parametrize(
    "path", golden_cases.files("data", "*-flipped.tfrecords"), ids=lambda path: path.stem
)
def test_a_changed_bit_is_noticed_in_its_record_alone(path, tmp_path):
    records = tfrecords.TFRecords(path, tmp_path / "index")
    with pytest.raises(ValueError, match="record 3 does not match its checksum"):
        records[3]
    assert tfrecords.stylegan_image(records[4]).shape == (32, 32, 3)


@pytest.mark.parametrize(
    "path", golden_cases.files("data", "*-truncated.tfrecords"), ids=lambda path: path.stem
)
def test_a_file_that_is_cut_off_says_in_which_record(path, tmp_path):
    with pytest.raises(ValueError, match="is cut off in record 4, 4 are whole"):
        tfrecords.TFRecords(path, tmp_path / "index")


def test_records_are_read_in_any_order(tmp_path):
    contents = [b"", b"one", bytes(range(256)) * 40]
    records = tfrecords.TFRecords(write(tmp_path / "a.tfrecords", *contents), tmp_path)
    assert [records[row] for row in (2, 0, 1)] == [contents[2], b"", b"one"]


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path):
    path = write(tmp_path / "a.tfrecords", bytes(9000), bytes(9000))
    records = tfrecords.TFRecords(path, tmp_path / "index")
    os.truncate(path, 10_000)
    assert records[0] == bytes(9000)
    with pytest.raises(ValueError, match=r"a\.tfrecords was cut off while it was read"):
        records[1]


def test_a_changed_bit_and_a_cut_are_noticed(tmp_path):
    path = write(tmp_path / "a.tfrecords", b"one", b"two")
    content = bytearray(path.read_bytes())
    content[12] ^= 1
    path.write_bytes(content)
    records = tfrecords.TFRecords(path, tmp_path / "index")
    with pytest.raises(ValueError, match="record 0 does not match its checksum"):
        records[0]
    assert records[1] == b"two"
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is cut off in record 1, 1 are whole"):
        tfrecords.TFRecords(path, tmp_path / "index")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x89PNG and no TFRecord at all", "is no TFRecord file"),
        (b"short", "is cut off in record 0"),
    ],
)
def test_other_files_are_refused(tmp_path, content, words):
    path = tmp_path / "a.tfrecords"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        tfrecords.TFRecords(path, tmp_path / "index")


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b""])
def test_other_records_are_refused(data):
    with pytest.raises(ValueError, match=r"no tf.train.Example|has the features none"):
        tfrecords.stylegan_image(data)
