"""Emoji, from the font Noto Color Emoji and Unicode's list of them."""

from __future__ import annotations

import io
import pathlib
import re
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image

from configs.names import lookup
from data.builder import Files, ImageBuilder, default_folder, digest

FONT, LIST = "NotoColorEmoji.ttf", "emoji-test.txt"
GROUPS = (  # Unicode's, of which "Component" (skin tones and hair alone) is left out
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
TEST_SHARE = 0.1
_PERSONS = frozenset(
    ["man", "woman", "men", "women", "person", "people", "boy", "girl", "child", "and"]
)
_TEXT_OR_PICTURE = 0xFE0F  # the variation selector, which fonts of pictures do not need
_LINE = re.compile(r"([0-9A-F ]+?) +; fully-qualified +# \S+ E[0-9.]+ (.+)")


class Emoji(ImageBuilder):
    """3,647 colour pictures of 32x32 pixels over white, in Unicode's nine groups.

    They show the fully qualified emoji of Unicode 15.0 in version 2.042 of the font; another
    version of the list or the font gives as many as both have. A picture that several flags share
    is there once. About a tenth are test images: `unit` says which stay together. The pictures are
    the bitmaps in the font itself, so they are the same on every machine.
    """

    IMAGE_SHAPE = (32, 32, 3)
    NUM_CLASSES = len(GROUPS)
    NAMES: ClassVar[tuple[str, ...]] = GROUPS
    PLACES: ClassVar[dict[str, str]] = {  # where Debian's packages put the files
        FONT: "/usr/share/fonts/truetype/noto",
        LIST: "/usr/share/unicode/emoji",
    }

    @classmethod
    def find(cls, folder: pathlib.Path) -> Files | None:
        """Both files if one is in `folder`; the other may be where its package puts it."""
        named = any((folder / name).is_file() for name in cls.PLACES)
        return cls.located(folder) if named else None

    @classmethod
    def located(cls, folder: pathlib.Path) -> Files:
        """Both files, from `folder` or from where their packages put them.

        Raises:
          FileNotFoundError: one of them is in neither place; says what to do.
        """
        files = {}
        for name, place in cls.PLACES.items():
            paths = [path for path in (folder / name, pathlib.Path(place) / name) if path.is_file()]
            if not paths:
                raise FileNotFoundError(
                    f"{cls.name} needs {name}, which is neither in {place} nor in {folder}: "
                    "install Debian's fonts-noto-color-emoji and unicode-data, or name the folder "
                    f"that holds {FONT} and {LIST} with --config.data.data_dir"
                )
            files[name] = paths[0]
        return files

    @classmethod
    def read(cls, files: Files, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Pictures in the order of a hash of their code points, so that groups are mixed."""
        font, listed = PictureFont(files[FONT]), read_list(files[LIST])
        glyphs: dict[str, Listed] = {}
        for emoji in sorted(listed, key=Listed.order):
            glyphs.setdefault(font.glyph(emoji.codes), emoji)
        glyphs.pop("", None)
        pictures = {g: emoji for g, emoji in glyphs.items() if is_test(emoji) == (split == "test")}
        if not pictures:
            raise ValueError(f"{files[FONT]} shows too few of the emoji in {files[LIST]}")
        images = [shrunk(font.picture(glyph), cls.IMAGE_SHAPE[0]) for glyph in pictures]
        labels = [cls.label(emoji, listed) for emoji in pictures.values()]
        return np.stack(images), np.array(labels, np.int32)

    @classmethod
    def label(cls, emoji: Listed, listed: Sequence[Listed]) -> int:
        """The class of an emoji of the list: its group's."""
        del listed
        return GROUPS.index(emoji.group)


class EmojiNames(Emoji):
    """`Emoji`, of which each has a class of its own, that of its name: captions for a CLIP.

    A class is a line of Unicode's list, so it says the same in both splits, and most classes have
    one picture. Lists to come may have more lines; `NUM_CLASSES` leaves room for them.
    """

    NUM_CLASSES = 4096
    NAMES = ()

    @classmethod
    def names(cls, data_dir: str) -> tuple[str, ...]:
        """The names of all emoji in Unicode's list, in its order."""
        folder = cls.root(data_dir) if data_dir else default_folder() / cls.name
        return tuple(emoji.name for emoji in read_list(cls.located(folder)[LIST]))

    @classmethod
    def label(cls, emoji: Listed, listed: Sequence[Listed]) -> int:
        """The line of the emoji in the list, counted from 0."""
        return listed.index(emoji)


class Listed(NamedTuple):
    """A line of Unicode's list: code points, group and name."""

    codes: tuple[int, ...]
    group: str
    name: str

    def order(self) -> bytes:
        """A key that sorts emoji into an order in which groups are mixed."""
        return digest(" ".join(map(str, self.codes)))


def read_list(path: pathlib.Path) -> list[Listed]:
    """The fully qualified emoji of `emoji-test.txt` (Unicode Technical Standard 51), in its order.

    Raises:
      ValueError: no such list, or a group that is not among `GROUPS`.
    """
    group, emoji = "", []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        parsed = _LINE.match(line)
        if parsed and group in GROUPS:
            codes = tuple(int(code, 16) for code in parsed[1].split())
            emoji.append(Listed(codes, group, parsed[2].strip()))
        elif parsed and group != "Component":
            lookup(dict.fromkeys(GROUPS), group, f"group in {path}")
    if not emoji:
        raise ValueError(f"{path} is not Unicode's list of emoji: it has no fully-qualified ones")
    return emoji


def unit(emoji: Listed) -> str:
    """The name that the variants of one emoji share: all of them are in the same split.

    People come in skin tones, genders and hair colours, alone or together, and look much alike:
    of their names counts what is before the colon, without words such as man and woman. "woman
    farmer: dark skin tone" is a "farmer".
    """
    if emoji.group != "People & Body":
        return emoji.name
    return " ".join(word for word in emoji.name.split(":")[0].split() if word not in _PERSONS)


def is_test(emoji: Listed) -> bool:
    """True if the emoji is in the test split: by a hash of its unit, a tenth of the units are."""
    return int.from_bytes(digest(unit(emoji))[:8], "big") < TEST_SHARE * 2**64


class PictureFont:
    """The bitmaps of a colour font (its table CBDT) by sequences of code points.

    A sequence is one picture if it is one character of the font, or if the font joins all of its
    characters in one ligature (table GSUB): flags, skin tones, families.

    Raises:
      ValueError: a file that is no such font.
    """

    def __init__(self, path: pathlib.Path):
        from fontTools import ttLib  # takes a while, and is needed for preparation only

        try:
            font = ttLib.TTFont(path, lazy=True)
            self._characters = font.getBestCmap()
            self._pictures = font["CBDT"].strikeData[0]
            lookups = font["GSUB"].table.LookupList.Lookup
        except (ttLib.TTLibError, KeyError, AssertionError) as error:
            raise ValueError(f"{path} is not a font of colour bitmaps (no table CBDT)") from error
        tables = [table for lookup in lookups for table in lookup.SubTable]
        self._ligatures = {
            (first, *ligature.Component): ligature.LigGlyph
            for table in reversed(tables)  # the font's first rule is the one that counts
            for first, ligatures in getattr(table, "ligatures", {}).items()
            for ligature in reversed(ligatures)
        }

    def glyph(self, codes: tuple[int, ...]) -> str:
        """The name of the one glyph that shows these code points; "" if there is none."""
        names = tuple(self._characters.get(code, "") for code in codes if code != _TEXT_OR_PICTURE)
        name = names[0] if len(names) == 1 else self._ligatures.get(names, "")
        return name if name in self._pictures else ""

    def picture(self, glyph: str) -> Image.Image:
        """The bitmap of a glyph, RGBA."""
        return Image.open(io.BytesIO(self._pictures[glyph].imageData)).convert("RGBA")


def shrunk(picture: Image.Image, size: int) -> np.ndarray:
    """A picture in the middle of a white square, resampled (Lanczos) to uint8 [size, size, 3]."""
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    corner = ((side - picture.width) // 2, (side - picture.height) // 2)
    square.alpha_composite(picture, corner)
    small = square.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(small)
