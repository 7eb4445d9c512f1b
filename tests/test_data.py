"""Data sets are what their files say, and batches are a function of (seed, step, host)."""

import gzip
import hashlib
import io
import json
import pathlib
import socket
import sys
import tarfile

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

import data
import data.builder
from configs import schema
from data import datasets, preparation
from data.batches import epoch_order
from data.cifar10 import ARCHIVE, MEMBERS, Cifar10
from data.datasets import Column
from data.digits import stratified_split
from data.fashion_mnist import FashionMnist


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(autouse=True)
def no_user_folders(monkeypatch, tmp_path):
    """No test sees what this machine's user has, nor the network."""
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "default"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(FashionMnist, "FOLDERS", ())

    def offline(url, timeout=0.0):
        raise OSError("no network in tests")

    monkeypatch.setattr(data.builder, "reach", offline)


@pytest.fixture(scope="session")
def tiny():
    """Eleven images whose pixels and labels are their own number."""
    images = np.arange(11, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 1), np.uint8)
    labels = np.arange(11, dtype=np.int32)
    return data.Dataset("tiny", "train", images, labels, 11, (2, 2, 1), 11)


def one_line(caught) -> str:
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# --- digits ---


def test_digits_are_scikit_learns_split_once(digits_folder):
    train, test = (data.load("digits", split, digits_folder) for split in ("train", "test"))
    assert (len(train), len(test)) == (1500, 297)
    assert train.images.shape == (1500, 8, 8, 1)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    assert (train.levels, train.image_shape, train.num_classes) == (17, (8, 8, 1), 10)
    assert train.images.max() == 16

    def rows(images, labels):
        pairs = zip(images, labels, strict=True)
        return sorted(bytes(i.astype(np.uint8).ravel()) + bytes([k]) for i, k in pairs)

    official = load_digits()
    both = rows([*train.images, *test.images], [*train.labels, *test.labels])
    assert both == rows(official.images, official.target)


def test_digits_split_is_balanced_and_fixed(digits_folder):
    train, test = (data.load("digits", split, digits_folder) for split in ("train", "test"))
    counts = np.bincount(load_digits().target)
    assert np.abs(np.bincount(test.labels) - counts * 297 / 1797).max() <= 1.0
    assert train.fingerprint == "digits/train/1500/1e9a540d"  # a published split never changes
    # Shuffled: neither sorted by class nor in scikit-learn's order.
    assert len(set(train.labels[:20].tolist())) > 5
    assert not np.array_equal(train.labels[:20], load_digits().target[:20])


def test_stratified_split_keeps_shares_of_unequal_classes():
    labels = np.repeat([0, 1, 2], [10, 30, 60])
    train, test = stratified_split(labels, 20)
    assert sorted([*train, *test]) == list(range(100))
    assert np.bincount(labels[test]).tolist() == [2, 6, 12]


def test_prepared_digits_are_read_again_not_made_again(digits_folder, monkeypatch):
    first = data.load("digits", "train", digits_folder)
    monkeypatch.setattr(preparation, "prepare", None)
    again = data.load("DIGITS", "train", str(digits_folder))
    np.testing.assert_array_equal(first.images, again.images)
    assert first.fingerprint == again.fingerprint


def test_default_folder_is_named_by_the_environment(tmp_path, monkeypatch):
    assert data.default_folder() == tmp_path / "default"
    monkeypatch.delenv("SCORE_SDE_DATA")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data.default_folder() == pathlib.Path("/home/someone/.cache/score_sde/data")


@pytest.mark.parametrize("name", ["cifar10", "folder", "arrays", "celeba", "imagenet32", "ffhq",
                                  "lsun_church", "tfds:flowers"])  # fmt: skip
def test_a_home_directory_that_nobody_knows_is_refused_by_its_field(name):
    with pytest.raises(
        ValueError, match=r"^data\.data_dir=~nobody-at-all/x: nobody knows"
    ) as caught:
        data.load(name, "train", "~nobody-at-all/x", 32, 3)
    one_line(caught)


def test_homes_in_variables_and_in_names_of_sets_are_refused_by_these(monkeypatch):
    for variable, name in (("SCORE_SDE_DATA", "digits"), ("TFDS_DATA_DIR", "tfds:flowers")):
        monkeypatch.setenv(variable, "~nobody-at-all")
        with pytest.raises(ValueError, match=f"^{variable}=~nobody-at-all: nobody knows"):
            data.load(name, "train", None, 8, 1 if name == "digits" else 3)


@pytest.mark.parametrize("name", ["digits", "folder", "arrays", "ffhq", "lsun_church"])
def test_sets_that_are_read_from_no_bucket_say_so(name):
    with pytest.raises(ValueError, match=rf"^data\.data_dir=gs://b/x: data set {name} is not") as c:
        data.load(name, "train", "gs://b/x", *((8, 1) if name == "digits" else (32, 3)))
    one_line(c)


@pytest.mark.parametrize("name", ["folder", "arrays", "ffhq", "celeba", "tfds:flowers"])
@pytest.mark.parametrize("size", [-1, 0, None])
def test_sizes_that_no_image_has_are_refused(name, size, tmp_path):
    with pytest.raises(ValueError, match=rf"data\.image_size must be .*, not {size} and 3"):
        data.load(name, "train", tmp_path, size, 3)


def test_preparation_survives_a_faster_process(tmp_path, monkeypatch):
    prepare = tfds.core.GeneratorBasedBuilder.download_and_prepare

    def overtaken(self):
        prepare(self)
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", overtaken)
    assert len(data.load("digits", "train", tmp_path)) == 1500


@pytest.mark.parametrize("damage", ["truncated", "flipped", "metadata"])
def test_damaged_prepared_data_are_refused(tmp_path, damage):
    data.load("digits", "test", tmp_path)
    folder = tmp_path / "digits" / "1.0.0"
    if damage == "metadata":
        (folder / "dataset_info.json").write_text("{")
    else:
        (records,) = folder.glob("digits-test.array_record*")
        raw = bytearray(records.read_bytes())
        raw[5000] ^= 1
        records.write_bytes(raw if damage == "flipped" else raw[: len(raw) // 2])
    with pytest.raises(ValueError, match="damaged") as caught:
        data.load("digits", "test", tmp_path)
    assert str(folder) in one_line(caught)


# --- refusals and config ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("digit", "train"),
            "unknown data.dataset 'digit'; known: arrays, burgers, celeba, celebahq, checkerboard, "
            "cifar10, digits, emoji, emoji_names, fashion_mnist, ffhq, folder, gaussian_linear, "
            "hf, imagenet32, imagenet64, lsun_bedroom, lsun_church, mixture, oscillating_series, "
            "slcp, svhn, swiss_roll, tfds, two_moons, two_moons_sbi "
            r"\(the nearest: digits\)",
        ),
        (("digits", "valid"), "unknown split of digits 'valid'; known: test, train"),
        (("digits", "train", None, 32), "digits has images of 8x8 pixels, not 32"),
        (("digits", "train", None, 8, 3), r"digits has 1 channel\(s\), not 3"),
    ],
)
def test_load_refuses(arguments, expected):
    with pytest.raises(ValueError, match=f"^{expected}$"):
        data.load(*arguments)


STRIPES = '''
import numpy as np
from data.toy import PointSet

class Stripes(PointSet):
    """Two lines."""
    name, NUM_CLASSES, NAMES = "stripes", 2, ("left", "right")
    @classmethod
    def place(cls, u):
        side = u[:, 0] < 0.5
        return np.stack([2.0 * side - 1.0, u[:, 1]], 1), side
'''


def test_a_data_set_is_one_file(tmp_path, monkeypatch):
    """A file in the folder, and nothing else, makes a name of configs."""
    (tmp_path / "stripes.py").write_text(STRIPES)
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, "data.stripes", None)  # forgotten again after the test
    del sys.modules["data.stripes"]
    found = datasets.discover(data.__path__)
    assert found.keys() - {"stripes"} == data.DATASETS.keys()
    monkeypatch.setattr(datasets, "DATASETS", found)
    stripes = data.load("Stripes", "test")
    assert stripes.image_shape == (1, 1, 2)
    assert set(stripes.labels) == {0, 1}
    assert (data.grey_levels("stripes"), data.class_names("stripes")) == (0, ("left", "right"))


def test_from_config(digits_folder):
    config = schema.base()
    config.data.update(dataset="digits", image_size=8, num_channels=1, data_dir=str(digits_folder))
    assert len(data.from_config(config, "test")) == 297
    config.data.num_channels = 3
    with pytest.raises(ValueError, match="channel"):
        data.from_config(config, "test")


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_offline_error_says_what_to_fetch_and_where_to_put_it(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, "train", tmp_path)
    message = one_line(caught)
    builder = data.DATASETS[name]
    assert issubclass(builder, data.builder.ImageBuilder)
    for part in (name, builder.URL, *builder.CHECKSUMS, str(tmp_path / name), "data_dir"):
        assert part in message
    assert not any((tmp_path / name).iterdir())


# --- Fashion-MNIST ---


def idx(array) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">i4").tobytes()
    return header + array.astype(np.uint8).tobytes()


FASHION = {
    "train-images-idx3-ubyte.gz": np.random.default_rng(0).integers(0, 256, (5, 28, 28)),
    "train-labels-idx1-ubyte.gz": np.array([9, 0, 3, 3, 1]),
    "t10k-images-idx3-ubyte.gz": np.random.default_rng(1).integers(0, 256, (2, 28, 28)),
    "t10k-labels-idx1-ubyte.gz": np.array([4, 5]),
}


def published(patch, kind, folder, **counts):
    """Lets the files in `folder` be those that the makers of `kind` published, of that many."""
    checksums = {}
    for name in kind.CHECKSUMS:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            checksums[name] = len(content), hashlib.sha256(content).hexdigest()
    patch.setattr(kind, "CHECKSUMS", kind.CHECKSUMS | checksums)
    if counts:
        patch.setattr(kind, "COUNTS", counts)


@pytest.fixture
def fashion_folder(tmp_path, monkeypatch):
    folder = tmp_path / "fashion"
    folder.mkdir()
    for name, array in FASHION.items():
        (folder / name).write_bytes(gzip.compress(idx(array)))
    published(monkeypatch, FashionMnist, folder, train=5, test=2)
    return folder


@pytest.mark.parametrize("unpacked", [False, True])
def test_fashion_mnist_from_idx_files(fashion_folder, unpacked):
    if unpacked:
        for name in FASHION:
            raw = gzip.decompress((fashion_folder / name).read_bytes())
            (fashion_folder / name).unlink()
            (fashion_folder / name.removesuffix(".gz")).write_bytes(raw)
    test = data.load("fashion_mnist", "test", fashion_folder, image_size=28, num_channels=1)
    np.testing.assert_array_equal(test.images[..., 0], FASHION["t10k-images-idx3-ubyte.gz"])
    assert test.labels.tolist() == [4, 5]
    train = data.load("fashion_mnist", "train", fashion_folder)
    np.testing.assert_array_equal(train.images[..., 0], FASHION["train-images-idx3-ubyte.gz"])
    assert train.labels.tolist() == [9, 0, 3, 3, 1]
    assert train.levels == 256


def test_folder_of_the_debian_package_is_found(fashion_folder, monkeypatch):
    monkeypatch.setattr(FashionMnist, "FOLDERS", (str(fashion_folder),))
    assert len(data.load("fashion_mnist", "train")) == 5


def test_missing_idx_file_is_named(fashion_folder):
    (fashion_folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="lacks t10k-labels-idx1") as caught:
        data.load("fashion_mnist", "train", fashion_folder)
    assert str(fashion_folder) in one_line(caught)


IMAGES = idx(FASHION["train-images-idx3-ubyte.gz"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gzip.compress(IMAGES)[:-100], "damaged gzip"),
        (gzip.compress(IMAGES)[:500] + b"?" * 500, "damaged gzip"),
        (IMAGES[:-1], "damaged, 3919 values"),
        (IMAGES + b"x", "damaged, 3921 values"),
        (b"", "not an IDX file"),
        (idx(np.zeros(5)), "not an IDX file"),
        (b"\0\0\x0d" + IMAGES[3:], "not an IDX file"),
        (idx(np.zeros((5, 8, 8))), r"\(8, 8\) pixels"),
        (idx(np.zeros((4, 28, 28))), "4 images, but 5 labels"),
        (gzip.compress(bytes(10**6)), "holds more than 8864 bytes"),
        (b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3 + b"x", "damaged, 1 values"),
    ],
)
def test_damaged_idx_file_is_named(fashion_folder, content, expected, monkeypatch):
    (fashion_folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    published(monkeypatch, FashionMnist, fashion_folder)
    with pytest.raises(ValueError, match=expected) as caught:
        data.load("fashion_mnist", "train", fashion_folder)
    assert "train-images-idx3-ubyte.gz" in one_line(caught)


def test_idx_label_out_of_range(fashion_folder, monkeypatch):
    (fashion_folder / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.array([0, 1, 2, 3, 10])))
    published(monkeypatch, FashionMnist, fashion_folder)
    with pytest.raises(ValueError, match="a label is 10, above 9"):
        data.load("fashion_mnist", "train", fashion_folder)


def test_what_is_not_the_official_file_is_refused_unread(fashion_folder, tmp_path, monkeypatch):
    path = fashion_folder / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    monkeypatch.setattr(FashionMnist, "read", None)
    for content, what in (
        (whole + b"x", f"it has {len(whole) + 1} bytes; fashion_mnist's has {len(whole)}"),
        (whole[:-1] + b"x", "its SHA-256 is [0-9a-f]{64}; fashion_mnist's is "),
    ):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"ubyte.gz: damaged or another file, {what}"
        ) as caught:
            data.load("fashion_mnist", "train", fashion_folder)
        one_line(caught)
    monkeypatch.undo()
    for name, array in FASHION.items():  # unpacked: without a checksum, and too few
        (tmp_path / name.removesuffix(".gz")).write_bytes(idx(array))
    with pytest.raises(ValueError, match="damaged, 2 images, not 10000"):
        data.load("fashion_mnist", "test", tmp_path)


def test_downloaded_files_are_prepared_and_read_back_in_order(
    fashion_folder, tmp_path, monkeypatch
):
    asked = {}

    def download(self, urls):
        asked.update(urls)
        return {name: fashion_folder / name for name in urls}

    monkeypatch.setattr(preparation, "reach", lambda url: None)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    direct = data.load("fashion_mnist", "train", fashion_folder)
    prepared = data.load("fashion_mnist", "train", tmp_path / "root")
    assert asked == {name: FashionMnist.URL + name for name in FASHION}
    assert set(asked.values()) == set(
        preparation.tfds_builder(FashionMnist).url_infos
    )  # each with size and SHA-256
    assert (tmp_path / "root" / "fashion_mnist" / "1.0.0").is_dir()
    np.testing.assert_array_equal(prepared.images, direct.images)
    assert prepared.fingerprint == direct.fingerprint


def test_unreachable_host_is_noticed_at_once(monkeypatch):
    monkeypatch.undo()
    for variable in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        data.builder.reach(f"http://127.0.0.1:{port}/file")
    with pytest.raises(OSError, match="refused"):
        data.builder.reach(f"http://127.0.0.1:{port}/file")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    data.builder.reach(f"http://127.0.0.1:{port}/file")  # left to the proxy


# --- CIFAR-10 ---


def cifar_image(label: int) -> np.ndarray:
    """Red is the row, green the column, blue the label."""
    row, column = np.mgrid[:32, :32]
    return np.stack([row, column, np.full((32, 32), label)], axis=-1).astype(np.uint8)


def cifar_records(labels) -> bytes:
    return b"".join(bytes([k]) + cifar_image(k).transpose(2, 0, 1).tobytes() for k in labels)


CIFAR = {f"data_batch_{i}.bin": cifar_records([i, i + 1]) for i in range(1, 6)} | {
    "test_batch.bin": cifar_records([9, 8, 7])
}


@pytest.fixture
def small_cifar(monkeypatch):
    """CIFAR-10 with as few images as there are in `CIFAR`."""
    monkeypatch.setattr(Cifar10, "COUNTS", {"train": 10, "test": 3})


def write_archive(folder, members) -> pathlib.Path:
    with tarfile.open(folder / ARCHIVE, "w:gz") as tar:
        for name, content in sorted(members.items(), reverse=True):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / ARCHIVE


@pytest.mark.parametrize("place", ["archive", "batches", "unpacked"])
def test_cifar10_from_official_files(tmp_path, place, small_cifar, monkeypatch):
    if place == "archive":
        write_archive(tmp_path, CIFAR)
        published(monkeypatch, Cifar10, tmp_path)
    else:
        folder = tmp_path / "cifar-10-batches-bin" if place == "unpacked" else tmp_path
        folder.mkdir(exist_ok=True)
        for name, content in CIFAR.items():
            (folder / name).write_bytes(content)
    train = data.load("CIFAR10", "train", tmp_path)
    assert train.labels.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    for image, label in zip(train.images, train.labels, strict=True):
        np.testing.assert_array_equal(image, cifar_image(label))
    assert data.load("cifar10", "test", tmp_path).labels.tolist() == [9, 8, 7]


def test_a_small_cifar10_archive_is_not_the_official_one(tmp_path):
    archive = write_archive(tmp_path, CIFAR)
    with pytest.raises(ValueError, match=r"bytes; cifar10's has 170052171$") as caught:
        data.load("cifar10", "train", tmp_path)
    assert str(archive) in one_line(caught)
    archive.unlink()
    for name, content in CIFAR.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"test_batch\.bin: damaged, 9219 bytes, not 30730000$"):
        data.load("cifar10", "test", tmp_path)


def test_damaged_cifar10_archive_is_refused(tmp_path, small_cifar):
    archive = write_archive(tmp_path, CIFAR)
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive"):
        archive.write_bytes(content)
        with pytest.raises(ValueError, match="damaged") as caught:
            Cifar10.read({ARCHIVE: archive}, "train")
        assert str(archive) in one_line(caught)
    write_archive(tmp_path, {name: CIFAR[name] for name in MEMBERS["test"]})
    with pytest.raises(ValueError, match="lacks data_batch_1"):
        Cifar10.read({ARCHIVE: archive}, "train")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, "large"])
def test_odd_members_of_an_archive_are_not_read(tmp_path, kind, small_cifar, monkeypatch):
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        if kind == "large":
            member.size = 1 << 20
        else:
            member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    monkeypatch.setattr(tarfile.ExFileObject, "read", None)
    what = "1048576 bytes" if kind == "large" else "a link or no file at all"
    with pytest.raises(
        ValueError, match=f"test_batch.bin is {what}, not one file of 9219"
    ) as caught:
        Cifar10.read({ARCHIVE: tmp_path / ARCHIVE}, "test")
    one_line(caught)


def test_a_file_of_the_set_stands_for_its_folder(tmp_path, small_cifar):
    for name, content in CIFAR.items():
        (tmp_path / name).write_bytes(content)
    expected = data.load("cifar10", "train", tmp_path).images
    named = data.load("cifar10", "train", tmp_path / "test_batch.bin").images
    np.testing.assert_array_equal(expected, named)
    (tmp_path / "other.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"other\.bin is a file, and none of those of cifar10"):
        data.load("cifar10", "train", tmp_path / "other.bin")


def test_damaged_or_missing_cifar10_batch_is_named(tmp_path, small_cifar):
    for name, content in CIFAR.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "data_batch_3.bin").write_bytes(CIFAR["data_batch_3.bin"][:-1])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin: damaged"):
        data.load("cifar10", "train", tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match="lacks data_batch_3"):
        data.load("cifar10", "train", tmp_path)


def test_cifar10_mocked_by_tfds():
    examples = [{"image": cifar_image(k), "label": k} for k in (3, 1, 4)]
    with tfds.testing.mock_data(as_data_source_fn=lambda *args, **kwargs: examples):
        mocked = data.load("cifar10", "train")
    assert mocked.labels.tolist() == [3, 1, 4]
    np.testing.assert_array_equal(mocked.images[2], cifar_image(4))


@pytest.fixture
def tfds_folder(tmp_path):
    """CIFAR-10 as TFDS's own builder prepares it: PNG images, shuffled, another version."""

    class Prepared(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        name = "cifar10"
        VERSION = tfds.core.Version(Cifar10.TFDS_VERSIONS[0])

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for label in range(7):
                png = io.BytesIO()
                PIL.Image.fromarray(cifar_image(label)).save(png, "png")
                png.seek(0)
                yield label, {"id": str(label), "image": png, "label": label}

    Prepared(data_dir=str(tmp_path / "tfds"), file_format="array_record").download_and_prepare()
    return tmp_path / "tfds"


def test_data_prepared_by_tfds_are_read_from_ram_or_from_disk(tfds_folder):
    in_ram = data.load("cifar10", "train")  # found in TFDS's default folder
    on_disk = data.load("cifar10", "train", tfds_folder, ram_limit=7 * 32 * 32 * 3 - 1)
    assert in_ram.in_memory
    assert not on_disk.in_memory
    assert isinstance(on_disk.images, Column)
    assert sorted(in_ram.labels) == list(range(7))
    for image, label in zip(in_ram.images, in_ram.labels, strict=True):
        np.testing.assert_array_equal(image, cifar_image(label))
    for rows in (2, [4, 1], slice(1, 4), np.array([6, 6, 0]), in_ram.labels < 3):
        np.testing.assert_array_equal(on_disk.images[rows], in_ram.images[rows])
        np.testing.assert_array_equal(on_disk.labels[rows], in_ram.labels[rows])
    from_ram, from_disk = data.Batches(in_ram, 4, 0), data.Batches(on_disk, 4, 0)
    for _ in range(5):
        one, two = next(from_ram), next(from_disk)
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["label"], two["label"])
        assert two["label"].dtype == np.int32


# --- batches ---


def labels_of(dataset, batch_size, count, **kwargs) -> np.ndarray:
    """[steps, B] labels of `count` items; images are checked to belong to them."""
    batches = data.Batches(dataset, batch_size, kwargs.pop("seed", 0), **kwargs)
    items = [next(batches) for _ in range(count)]
    batches.close()
    for item in items:
        assert item["image"].dtype == np.uint8
        assert item["label"].dtype == np.int32
        np.testing.assert_array_equal(item["image"][..., 0, 0, 0], item["label"])
    return np.concatenate([item["label"] for item in items])


@pytest.mark.parametrize("batch_size", [4, 11, 25])
def test_every_epoch_has_every_example_once(tiny, batch_size):
    stream = labels_of(tiny, batch_size, 11).ravel()
    epochs = stream.reshape(batch_size, 11)  # 11 batches are `batch_size` epochs
    assert (np.sort(epochs, axis=1) == np.arange(11)).all()
    assert len({tuple(epoch) for epoch in epochs}) == batch_size


def test_order_is_a_function_of_the_seed(tiny):
    np.testing.assert_array_equal(labels_of(tiny, 4, 9), labels_of(tiny, 4, 9))
    assert not np.array_equal(labels_of(tiny, 4, 9), labels_of(tiny, 4, 9, seed=1))
    # Fixed for ever: a run resumed after an upgrade goes on in the same order.
    assert epoch_order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert epoch_order(7, 2, 8).tolist() == [6, 7, 4, 0, 1, 5, 3, 2]


def test_shuffle_is_uniform():
    places = np.array([epoch_order(3, epoch, 5) for epoch in range(4000)])
    counts = np.stack([np.bincount(places[:, i], minlength=5) for i in range(5)])
    assert np.abs(counts - 800).max() < 4.5 * np.sqrt(800 * 0.8)


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_together_are_one_host(tiny, num_hosts):
    shares = [labels_of(tiny, 8, 7, host=h, num_hosts=num_hosts) for h in range(num_hosts)]
    assert shares[0].shape == (7, 8 // num_hosts)
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), labels_of(tiny, 8, 7))


def test_steps_per_item_and_start_step_do_not_change_the_order(tiny):
    alone = labels_of(tiny, 3, 12)
    np.testing.assert_array_equal(labels_of(tiny, 3, 3, num_steps=4), alone)
    np.testing.assert_array_equal(labels_of(tiny, 3, 7, start_step=5), alone[5:])
    np.testing.assert_array_equal(labels_of(tiny, 3, 2, num_steps=2, start_step=3), alone[3:7])
    item = next(data.Batches(tiny, 6, 0, num_steps=4, num_hosts=2))
    assert item["image"].shape == (4, 3, 2, 2, 1)
    assert item["label"].shape == (4, 3)


def test_resumed_equals_uninterrupted(tiny):
    batches = data.Batches(tiny, 4, 5, num_steps=3)
    next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    assert state["step"] == 3  # what was read ahead does not count
    rest = [next(batches)["label"] for _ in range(4)]
    batches.set_state(state)  # back, in the same iterator
    np.testing.assert_array_equal([next(batches)["label"] for _ in range(4)], rest)
    fresh = data.Batches(tiny, 4, 5, num_steps=1)  # another process, other steps per call
    fresh.set_state(state)
    np.testing.assert_array_equal(
        np.concatenate([next(fresh)["label"] for _ in range(12)]), np.concatenate(rest)
    )
    assert fresh.get_state()["step"] == 15


def test_state_of_another_run_is_refused(tiny):
    state = data.Batches(tiny, 4, 5).get_state()
    other = data.Dataset(
        "tiny", "train", tiny.images[::-1], tiny.labels, 11, tiny.image_shape, tiny.num_classes
    )
    for batches, what in (
        (data.Batches(tiny, 4, 6), "seed was 5 and is now 6"),
        (data.Batches(tiny, 8, 5), "batch_size was 4 and is now 8"),
        (
            data.Batches(other, 4, 5),
            r"^cannot resume: the examples are others than those that the run began with, which "
            r"were 11 of tiny/train in a \(CRC-32 \w{8}\), and are now 11 of tiny/train in b \(CRC"
            r"-32 \w{8}\); name the same ones with --config\.data\.data_dir, or another --workdir$",
        ),
    ):
        with pytest.raises(ValueError, match=what):
            batches.set_state(state, "b", "a")


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": 0},
        {"batch_size": 5, "num_hosts": 2},
        {"num_steps": 0},
        {"host": 2, "num_hosts": 2},
        {"start_step": -1},
        {"seed": -1},
    ],
)
def test_impossible_batches_are_refused(tiny, bad):
    arguments = {"batch_size": 4, "seed": 0} | bad
    with pytest.raises(ValueError, match="batch"):
        data.Batches(tiny, **arguments)


@pytest.mark.parametrize(("batch_size", "num_hosts"), [(4, 1), (4, 2), (11, 1), (16, 4)])
def test_evaluation_sees_every_example_once_in_order(tiny, batch_size, num_hosts):
    hosts = [
        list(data.eval_batches(tiny, batch_size, host=h, num_hosts=num_hosts))
        for h in range(num_hosts)
    ]
    assert len({len(batches) for batches in hosts}) == 1
    seen = []
    for parts in zip(*hosts, strict=True):
        for part in parts:
            assert part["image"].shape == (batch_size // num_hosts, 2, 2, 1)
            np.testing.assert_array_equal(part["image"][:, 0, 0, 0], part["index"])
            np.testing.assert_array_equal(part["label"], part["index"])
            seen.extend(part["index"][part["mask"]].tolist())
    assert seen == list(range(11))


def test_evaluation_batch_must_be_divisible(tiny):
    with pytest.raises(ValueError, match="batch size 5"):
        data.eval_batches(tiny, 5, num_hosts=2)
