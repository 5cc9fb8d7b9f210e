"""Word formats: how one number is kept as bits, by torch's own types and by formats that torch has no type for."""

from torchfault.words.deltas import flip_changes, flip_deltas
from torchfault.words.edits import Edits, edit
from torchfault.words.emulated import word, word_of
from torchfault.words.native import (
    WORDS,
    Coding,
    WordFormat,
    bits_of,
    converted,
    decode,
    encode,
    held_in,
    lying_in,
    masks_to_words,
    picked,
    rounded,
)

__all__ = [
    "WORDS",
    "Coding",
    "Edits",
    "WordFormat",
    "bits_of",
    "converted",
    "decode",
    "edit",
    "encode",
    "flip_changes",
    "flip_deltas",
    "held_in",
    "lying_in",
    "masks_to_words",
    "picked",
    "rounded",
    "word",
    "word_of",
]
