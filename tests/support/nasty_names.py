"""Names that somebody may give a layer or a campaign, to see that they are shown and do nothing else."""

NAMES = {
    "markup": "[bold]x[/bold]",
    "a closing tag": "[/x]",
    "a link": "[link=https://example.org]x[/link]",
    "a picture": ":skull: :warning:",
    "an escape sequence": "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "C1 controls": "\x9b31m\x90q\x9c",
    "bells and nulls": "a\x07b\x00c\x08d\x7f",
    "line ends": "a\nb\rc\u2028d\x85e\x0bf",
    "a table": "a | b | c",
    "Markdown": "`code` *star* <b>html</b> [x](y) ~~gone~~ \\",
    "a turn of direction": "\u202eabc\u2066def\u200f",
    "nothing to see": "a\u200b\u00ad\ufeffb",
    "a lone surrogate": "a\ud800b\udfff",
    "a formula": "$\\frac{1}{$",
    "another script": "層1.重み.Ω",
    "quotes": "'\"`,;\t",
    "much": "x" * 5000,
}


def printable(text: str) -> bool:
    """Tell whether a terminal shows *text* and does nothing else; line ends are torchfault's own."""
    return all(part.isprintable() for part in text.split("\n"))
