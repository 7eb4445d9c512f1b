"""Files of images from strangers: what is read as what, what is told, what is refused."""

from __future__ import annotations

import io
import os
import pathlib
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, features

from data import images

SHAPE = (8, 8, 1)
NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def read(path: pathlib.Path, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, list[str]]:
    """The image, and the lines that were told about it."""
    lines: list[str] = []
    image = images.read_image(path, shape, lambda kind, line: lines.append(line))
    assert all(line.startswith(str(path)) and "\n" not in line for line in lines)
    return image, lines


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    crc = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def with_chunk(path: pathlib.Path, extra: bytes, before: bytes = b"IDAT") -> None:
    content = path.read_bytes()
    place = content.index(before) - 4
    path.write_bytes(content[:place] + extra + content[place:])


def png(path: pathlib.Path, pixels: np.ndarray = NOISE, **options: Any) -> pathlib.Path:
    Image.fromarray(pixels).save(path, "PNG", **options)
    return path


def test_what_pillow_reads_is_read_and_no_program_is_asked() -> None:
    for suffix in (
        ".avif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jfif",
        ".jpe",
        ".jp2",
        ".tga",
        ".qoi",
        ".mpo",
    ):
        assert suffix in images.SUFFIXES
    for suffix in (".eps", ".ps", ".pdf", ".wmf", ".mpg", ".h5", ".pfm", ".txt"):
        assert suffix not in images.SUFFIXES


@pytest.mark.parametrize("suffix", [".ppm", ".jfif", ".avif", ".tga", ".qoi", ".jp2"])
def test_further_formats_are_read(tmp_path: pathlib.Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow knows no AVIF")
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (8, 8), (200, 100, 50)).save(path)
    image, lines = read(path, (8, 8, 3))
    assert not lines
    assert np.abs(image.astype(int) - [200, 100, 50]).max() <= 3


def test_files_that_other_programs_would_interpret_are_not_opened(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EOF\n")
    with pytest.raises(
        ValueError, match=r"a\.png cannot be read: it is no image of a known kind, but t"
    ):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", ["bomb", "checksum", "unknown"])
def test_pixels_are_read_beside_broken_metadata(
    tmp_path: pathlib.Path, kind: str, before: bytes
) -> None:
    expected, _ = read(png(tmp_path / "good.png"))
    path = png(tmp_path / "a.png")
    size = PngImagePlugin.MAX_TEXT_CHUNK + 1
    body = b"Comment\0\0" + zlib.compress(bytes(size))
    extra = {
        "bomb": chunk(b"zTXt", body),
        "checksum": chunk(b"tEXt", b"Comment\0x", 0),
        "unknown": chunk(b"gAMA", b"", 0),
    }[kind]
    with_chunk(path, extra, before)
    image, lines = read(path)
    np.testing.assert_array_equal(image, expected)
    if (kind, before) == ("bomb", b"IDAT"):
        assert len(lines) == 1
    assert all("has broken metadata, which is left out" in line for line in lines)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"IDAT") + 60])  # the pixels are damaged as well
    with pytest.raises(ValueError, match=r"a\.png cannot be read: [^\n]+$"):
        read(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_broken_exif_is_left_out(tmp_path: pathlib.Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    rest = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03"  # five entries are announced, none there
    Image.fromarray(NOISE).save(path, exif=rest)
    image, lines = read(path)
    assert image.shape == SHAPE
    assert len(lines) == 1
    assert "has broken metadata, which is left out (Corrupt EXIF data." in lines[0]


def test_exif_of_a_kind_that_pillow_cannot_parse_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Image.Image) -> Image.Exif:
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "getexif", broken)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    _, lines = read(png(tmp_path / "a.png", exif=exif))
    assert len(lines) == 1
    assert "broken metadata, which is left out (unpack requires a buffer of 2 bytes)" in lines[0]


@pytest.mark.parametrize("turn", range(1, 9))
def test_turns_are_those_of_pillow(tmp_path: pathlib.Path, turn: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    path = png(tmp_path / "a.png", exif=exif)
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(read(path, (8, 8, 3))[0], expected)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_grey_tiff_is_turned_too(
    tmp_path: pathlib.Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "IN_MEMORY", 2**26 if in_memory else 0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(NOISE[..., 0]).save(tmp_path / "a.tif", exif=exif)
    image, _ = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(image[..., 0], np.rot90(NOISE[..., 0], -1))


def test_lab_is_read_in_grey_and_colour(tmp_path: pathlib.Path) -> None:
    from PIL import ImageCms

    colours = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (8, 8), (200, 100, 50)), *colours, outputMode="LAB"
    )
    assert lab is not None
    lab.save(tmp_path / "a.tif")
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    for shape, expected in ((SHAPE, [grey]), ((8, 8, 3), [200, 100, 50])):
        assert np.abs(read(tmp_path / "a.tif", shape)[0].astype(int) - expected).max() <= 3


DEEP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 65  # 12 bits, 4095 at most


def test_twelve_bits_in_sixteen_are_told_or_scaled(tmp_path: pathlib.Path) -> None:
    right = np.rint(DEEP / (4095 / 255))[..., None]
    path = png(tmp_path / "a.png", DEEP)
    image, lines = read(path)
    assert image.max() == 16
    assert len(lines) == 1
    assert "the largest value is 4095 of 65535: it becomes dark" in lines[0]
    with_chunk(path, chunk(b"sBIT", b"\x0c"))
    image, lines = read(path)
    np.testing.assert_array_equal(image, right)
    assert not lines
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 4080  # the largest value: 12 bits
    Image.fromarray(DEEP).save(tmp_path / "a.tif", tiffinfo=tags)
    image, lines = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(image, right)
    assert not lines


def test_sixteen_bits_are_left_as_they_are(tmp_path: pathlib.Path) -> None:
    """A PNG file with sBIT has its values scaled to 16 bits already, as its standard asks."""
    scaled = (DEEP << 4) | (DEEP >> 8)
    for name, values in (("full", scaled), ("dark", scaled // 16 // 16 << 4), ("black", 0 * DEEP)):
        path = png(tmp_path / f"{name}.png", values)
        expected = read(path)[0]
        np.testing.assert_array_equal(expected[..., 0], np.rint(values / 257.0))
        with_chunk(path, chunk(b"sBIT", b"\x0c"))
        np.testing.assert_array_equal(read(path)[0], expected)
    assert not read(tmp_path / "full.png")[1]
    assert not read(tmp_path / "black.png")[1]
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 4095\n" + DEEP.astype(">u2").tobytes())
    image, lines = read(tmp_path / "a.pgm")  # whose header says what is white
    assert np.abs(image[..., 0].astype(int) - np.rint(DEEP / (4095 / 255))).max() <= 1
    assert not lines


def test_dark_colours_of_sixteen_bits_are_told(tmp_path: pathlib.Path) -> None:
    rows = np.repeat(DEEP.astype(">u2")[..., None], 3, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    _, lines = read(tmp_path / "a.png", (8, 8, 3))
    assert len(lines) == 1
    assert "the largest value is 3840 of 65535" in lines[0]


def test_what_is_no_regular_file_is_not_opened(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in (
        (tmp_path / "pipe.png", "it is a pipe, socket or device, not a file"),
        (tmp_path, "it is a folder, not a file"),
        (tmp_path / "gone.png", "No such file or directory"),
    ):
        with pytest.raises(ValueError, match=f"^{path} cannot be read: {reason}$"):
            read(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (
            b"hello, these are words\n",
            "text that begins with 'hello, these are words'",
        ),
        (b"\n<html>\n<body>\n", r"text that begins with '<html>\n<body>'"),
        (b"", "empty"),
        (b"PK\x03\x04\x14\x00\x08\x00\x08", "begins with the bytes 50 4b 03 04 14 00 08 00"),
    ],
)
def test_what_is_no_image_is_told_by_its_beginning(
    content: bytes, kind: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png cannot be read") as refusal:
        read(path)
    assert str(refusal.value) == (
        f"{path} cannot be read: it is no image of a known kind, but {kind}"
    )


def bomb(path: pathlib.Path, side: int) -> pathlib.Path:
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


class Spy:
    """`images.upright` that notes what `look` sees when it is called, and turns nothing."""

    def __init__(self, look: Callable[[Image.Image], Any]):
        self.look, self.notes = look, list[Any]()

    def __call__(self, picture: Image.Image, flaw: images.Warn) -> Image.Image:
        self.notes.append(self.look(picture))
        return picture


def test_images_of_many_pixels_are_refused_or_decoded_one_at_a_time(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    path = bomb(tmp_path / "bomb.png", 20_000)
    with pytest.raises(ValueError, match=r"bomb\.png .*: a picture has up to \d+ pixels"):
        read(path)
    monkeypatch.setattr(images, "MANY", 32)
    path = png(tmp_path / "a.png")
    spy = Spy(lambda picture: images.one_large.locked())
    monkeypatch.setattr(images, "upright", spy)
    read(path)
    assert spy.notes == [True]
    assert not images.one_large.locked()
    assert not recwarn.list


def test_a_large_jpeg_is_decoded_reduced(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (1024, 1024), "red").save(tmp_path / "a.jpg")
    spy = Spy(lambda picture: picture.size)
    monkeypatch.setattr(images, "upright", spy)
    read(tmp_path / "a.jpg")
    assert spy.notes == [(128, 128)]


def test_names_that_are_no_text_are_shown_in_one_line(tmp_path: pathlib.Path) -> None:
    path = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.png"))
    with pytest.raises(ValueError, match=r"/caf\\udce9\\n\.png cannot be read: ") as caught:
        images.read_image(path, SHAPE)
    str(caught.value).encode()
    Image.fromarray(NOISE).save(io.BytesIO(), "PNG")
    png(path)
    assert images.read_image(path, SHAPE).shape == SHAPE


def test_what_pillow_warns_of_is_told_with_the_name_of_the_file(
    tmp_path: pathlib.Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "a.tif"
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "a description that lies far away"
    Image.fromarray(NOISE).save(path, tiffinfo=tags)
    expected, lines = read(path)
    assert not lines
    content = bytearray(path.read_bytes())
    entry = content.index(struct.pack("<HH", 270, 2))
    content[entry + 4 : entry + 8] = struct.pack("<I", 2**30)  # characters, beyond the file's end
    path.write_bytes(content)
    image, lines = read(path)
    np.testing.assert_array_equal(image, expected)
    assert len(lines) == 1
    assert "has broken metadata, which is left out (" in lines[0]
    assert not recwarn.list


def test_a_file_that_declares_more_pixels_than_it_can_hold_is_not_decoded(tmp_path):
    path = tmp_path / "a.bmp"
    head = struct.pack("<IiiHHIIiiII", 40, 2**24, 7, 1, 8, 0, 0, 0, 0, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 62, 0, 0, 62) + head + bytes(8))
    with pytest.raises(ValueError, match="it declares 117440512 pixels in a file of 62 bytes"):
        images.read_image(path, (8, 8, 3))
