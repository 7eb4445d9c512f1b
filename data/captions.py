"""Words for classes: captions of labelled images, and text as tokens.

Text is its UTF-8 bytes: no vocabulary to be learnt or carried about, and no unknown words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "an image of the {}",
    "this is a {}",
    "{}",
)
VOCABULARY = 256
PADDING = 0  # after the end
END = 255  # a byte that UTF-8 never uses; the text's embedding is read there


def normalised(text: str) -> str:
    """The text in lower case, with single spaces between words."""
    return " ".join(text.lower().split())


def tokens(text: str, length: int) -> np.ndarray:
    """The bytes of the normalised text, `END`, and padding: int32 [length].

    Raises:
      ValueError: no text, or more of it than fits.
    """
    content = normalised(text).encode()
    if not content or PADDING in content:
        raise ValueError(f"{text!r} is no text that could be shown to a text tower")
    if len(content) >= length:
        raise ValueError(
            f"the text {text!r} has {len(content)} bytes; the text tower reads {length - 1} at most"
        )
    row = np.full(length, PADDING, np.int32)
    row[: len(content)] = list(content)
    row[len(content)] = END
    return row


def table(names: Sequence[str], length: int) -> np.ndarray:
    """The tokens of every class's name in every template, int32 [classes, templates, length].

    Raises:
      ValueError: a caption that does not fit.
    """
    return np.stack(
        [
            np.stack([tokens(template.format(name), length) for template in TEMPLATES])
            for name in names
        ]
    )


def class_named(text: str, names: Sequence[str]) -> int:
    """The class whose name, or its plural, the text has; the longest name wins; -1: none."""
    matches = [
        (len(name), y)
        for y, name in enumerate(map(normalised, names))
        if re.search(rf"(?<![\w-]){re.escape(name)}(e?s)?(?![\w-])", normalised(text))
    ]
    return max(matches)[1] if matches else -1
