"""Emoji are the font's own pictures, each once, and variants of one emoji share a split."""

import importlib
import pathlib
import shutil
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

import data
from data import emoji
from data.emoji import FONT, LIST, Emoji, Listed
from runtime import experiment

FILES = {name: pathlib.Path(place) / name for name, place in Emoji.PLACES.items()}
installed = pytest.mark.skipif(
    not all(path.is_file() for path in FILES.values()), reason="no font or list of emoji here"
)

FEW = """# group: Smileys & Emotion
1F600                    ; fully-qualified     # x E1.0 grinning face
263A FE0F                ; fully-qualified     # x E0.6 smiling face
263A                     ; unqualified         # x E0.6 smiling face
# group: People & Body
1F44B 1F3FB              ; fully-qualified     # x E1.0 waving hand: light skin tone
1F468 200D 1F33E         ; fully-qualified     # x E4.0 man farmer
# group: Component
1F3FB                    ; component           # x E1.0 light skin tone
# group: Flags
1F1E7 1F1FB              ; fully-qualified     # x E2.0 flag: Bouvet Island
1F1F3 1F1F4              ; fully-qualified     # x E2.0 flag: Norway
1F1FA 1F1F8 1F600        ; fully-qualified     # x E2.0 flag: none that any font has
# group: Symbols
0031 FE0F 20E3           ; fully-qualified     # x E0.6 keycap: 1
"""


@pytest.fixture
def few(tmp_path):
    (tmp_path / LIST).write_text(FEW)
    return tmp_path / LIST


def test_list_has_the_fully_qualified_ones_by_group(few):
    found = emoji.read_list(few)
    assert [e.group for e in found[:4:2]] == ["Smileys & Emotion", "People & Body"]
    assert found[1] == Listed((0x263A, 0xFE0F), "Smileys & Emotion", "smiling face")
    assert len(found) == 8


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "# group: Robots\n1F600 ; fully-qualified # x E1.0 a robot\n",
            r"unknown group in .* 'Robots'",
        ),
        ("hello\n", "is not Unicode's list of emoji"),
    ],
)
def test_another_list_is_refused(few, content, expected):
    few.write_text(content)
    with pytest.raises(ValueError, match=expected):
        emoji.read_list(few)


def test_variants_of_one_emoji_share_a_unit():
    def unit(name, group="People & Body"):
        return emoji.unit(Listed((1,), group, name))

    assert unit("woman farmer: dark skin tone") == unit("farmer") == unit("man farmer") == "farmer"
    assert unit("family: man, boy") == unit("family: woman, woman, girl")
    assert unit("woman") == unit("man: medium skin tone, red hair")
    assert unit("cook") != unit("farmer")
    assert unit("flag: Norway", "Flags") != unit("flag: Chad", "Flags")


def test_a_tenth_of_the_units_is_for_testing():
    names = [Listed((1,), "Objects", f"thing {i}") for i in range(4000)]
    assert abs(sum(map(emoji.is_test, names)) / 4000 - emoji.TEST_SHARE) < 0.015


def test_missing_files_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(Emoji, "PLACES", dict.fromkeys(Emoji.PLACES, str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError) as caught:
        data.load("emoji", "train", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("fonts-noto-color-emoji", "unicode-data", FONT, LIST, "data_dir", str(tmp_path)):
        assert part in message
    (tmp_path / FONT).write_bytes(b"no font")
    with pytest.raises(FileNotFoundError, match=f"needs {LIST}"):
        data.load("emoji", "train", tmp_path)
    (tmp_path / LIST).write_text(FEW)
    with pytest.raises(ValueError, match="is not a font of colour bitmaps"):
        data.load("emoji", "train", tmp_path)


@installed
def test_emoji_of_a_short_list_in_data_dir(few):
    """One picture for both flags of Norway, none where the font has none; the rest as labelled."""
    splits = [data.load("emoji", split, few.parent, 32, 3) for split in ("train", "test")]
    assert sum(map(len, splits)) == 6
    labels = np.concatenate([part.labels for part in splits])
    assert np.bincount(labels, minlength=9).tolist() == [2, 2, 0, 0, 0, 0, 0, 1, 1]
    images = np.concatenate([part.images for part in splits])
    assert (images[:, 0, 0] > 250).all()  # white corners
    flag = images[labels.tolist().index(8)].astype(int)
    red, blue = flag[8, 6], flag[15, 12]  # Norway: red field, a blue cross in a white one
    assert red[0] > 150 > red[1] + 50
    assert blue[2] > blue[0] + 30


@installed
def test_emoji_are_the_same_where_nothing_is_prepared(tmp_path, monkeypatch):
    """Without TFDS the font is read anew each time."""
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path))
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / LIST).write_text(FEW)
    places = {FONT: str(FILES[FONT].parent), LIST: str(tmp_path / "list")}
    monkeypatch.setattr(Emoji, "PLACES", places)
    prepared = data.load("emoji", "train").fingerprint
    folders = list(tmp_path.glob("emoji/*"))
    assert folders
    shutil.rmtree(tmp_path / "emoji")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert data.load("emoji", "train").fingerprint == prepared
    assert not list(tmp_path.glob("emoji/*"))


@installed
@pytest.mark.skipif(not features.check("raqm"), reason="Pillow cannot draw sequences here")
def test_pictures_are_those_that_a_text_engine_draws():
    font = emoji.PictureFont(FILES[FONT])
    drawn = ImageFont.truetype(str(FILES[FONT]), 109, layout_engine=ImageFont.Layout.RAQM)
    listed = emoji.read_list(FILES[LIST])
    chosen = listed[:: len(listed) // 60]
    assert len({len(e.codes) for e in chosen}) > 3
    for listing in chosen:
        picture = font.picture(font.glyph(listing.codes))
        page = Image.new("RGBA", picture.size, "white")
        text = "".join(map(chr, listing.codes))
        left, top, *_ = ImageDraw.Draw(page).textbbox((0, 0), text, drawn, embedded_color=True)
        ImageDraw.Draw(page).text((-left, -top), text, font=drawn, embedded_color=True)
        white = Image.new("RGBA", picture.size, "white")
        ours = np.asarray(Image.alpha_composite(white, picture), int)[..., :3]
        np.testing.assert_allclose(ours, np.asarray(page, int)[..., :3], atol=2)


@installed
@pytest.mark.slow
def test_all_emoji_are_prepared_once(tmp_path, monkeypatch):
    train, test = (data.load("emoji", split, tmp_path) for split in ("train", "test"))
    everything = np.concatenate([train.images, test.images])
    assert everything.shape[0] > 3000
    assert everything.shape[1:] == (32, 32, 3)
    assert 0.07 < len(test) / len(everything) < 0.13
    assert set(train.labels) == set(test.labels) == set(range(9))
    assert len(set(train.labels[:30])) > 4  # mixed
    monkeypatch.setattr(Emoji, "read", None)
    assert data.load("emoji", "train", tmp_path).fingerprint == train.fingerprint


def test_shrinking_centres_over_white():
    wide = Image.new("RGBA", (8, 4), (0, 0, 255, 255))
    found = emoji.shrunk(wide, 4).astype(int)
    assert found.shape == (4, 4, 3)
    assert (found[0] > 200).all()  # white above, blue in the middle
    assert found[1, 1, 2] > 200 > found[1, 1, 0] + 100
    np.testing.assert_array_equal(found, found[::-1])


@pytest.mark.parametrize("name", ["vp", "ddpmpp"])
def test_configs_describe_emoji(name):
    config = importlib.import_module(f"configs.emoji.{name}").get_config()
    assert experiment.build(config).image_shape == Emoji.IMAGE_SHAPE
    assert config.classifier.num_classes == Emoji.NUM_CLASSES
    assert not config.data.random_flip  # flags and letters would be others
