"""The examples that the documents mark with ``<!-- test -->`` run as they stand, in the order of reading."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"^<!-- test -->[ \t]*\n\s*^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"^<!-- test -->[ \t]*$", re.MULTILINE)
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def blocks(text: str) -> list[str]:
    """Return the marked Python blocks of a document, each moved down to its own line for readable tracebacks."""
    return ["\n" * text.count("\n", 0, found.start(1)) + found[1] for found in MARKED.finditer(text)]


def test_only_marked_blocks_are_taken():
    text = "```python\na\n```\n\n<!-- test -->\n\n```python\nb = 1\n```\n<!-- test -->\n```python\nc = 2\n```\n"
    assert [block.strip() for block in blocks(text)] == ["b = 1", "c = 2"]
    assert blocks(text)[0].index("b") == 7


def test_the_readme_has_an_example():
    assert blocks((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_marked_examples_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = document.read_text(encoding="utf-8")
    found = blocks(text)
    assert len(found) == len(MARKER.findall(text)), f"a marker in {document.name} is not followed by a ```python block"
    names: dict[str, object] = {"__name__": "__main__"}
    for block in found:
        exec(compile(block, str(document), "exec"), names)
