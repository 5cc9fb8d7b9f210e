"""What the torch at work has: the newest of its number types are not in the oldest version that is supported."""

import pytest
import torch

from torchfault.names.word_names import NATIVE


def skip_without(*names: str) -> None:
    """Skip the test where this torch lacks the type of a word or storage format among *names*."""
    for name in names:
        needed = "float8_e8m0fnu" if name.startswith("mx") else name
        if needed in NATIVE and not hasattr(torch, needed):
            pytest.skip(f"torch {torch.__version__} has no {needed}")
