"""Word formats: how one number is kept as bits, by torch's own types and by formats that torch has no type for."""

from torchfault.words.emulated import word
from torchfault.words.native import (
    WORDS,
    WordFormat,
    decode,
    edit,
    encode,
    held_in,
    masks_to_words,
    rounded,
    word_of,
)

__all__ = [
    "WORDS",
    "WordFormat",
    "decode",
    "edit",
    "encode",
    "held_in",
    "masks_to_words",
    "rounded",
    "word",
    "word_of",
]
