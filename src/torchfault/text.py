"""Text from elsewhere, such as names of layers: what a terminal would obey or hide becomes visible."""

__all__ = ["visible"]

_KEPT = frozenset("\xa0\u3000")  # wide spaces, which show as what they are


def visible(text: object) -> str:
    r"""Return *text* with everything in it that does not print written out, as Python writes it.

    That is control characters (escape sequences of terminals begin with one), line ends, marks that turn the direction
    of writing, invisible characters and lone surrogates. Text of torchfault's own holds none of them.

    >>> visible("conv1.weight"), visible("\x1b[2Jconv\u202e1\n"), visible("\ud800")
    ('conv1.weight', '\\x1b[2Jconv\\u202e1\\n', '\\ud800')
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() or c in _KEPT else c.encode("unicode_escape").decode() for c in plain)
