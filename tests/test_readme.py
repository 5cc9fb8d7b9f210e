"""The examples that the documents mark with ``<!-- test -->`` run as they stand, in the order of reading."""

import re
import shlex
from pathlib import Path

import pytest

from torchfault.cli import main

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"^<!-- test -->[ \t]*\n\s*^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"^<!-- test -->[ \t]*$", re.MULTILINE)
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the marked blocks with their languages, each moved down to its own line for readable tracebacks."""
    return [(found[1], "\n" * text.count("\n", 0, found.start(2)) + found[2]) for found in MARKED.finditer(text)]


def test_only_marked_blocks_are_taken():
    text = "```python\na\n```\n\n<!-- test -->\n\n```python\nb = 1\n```\n<!-- test -->\n```sh\nc\n```\n"
    assert [(language, block.strip()) for language, block in blocks(text)] == [("python", "b = 1"), ("sh", "c")]
    assert blocks(text)[0][1].index("b") == 7


def test_the_readme_has_an_example():
    assert blocks((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_marked_examples_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = document.read_text(encoding="utf-8")
    found = blocks(text)
    assert len(found) == len(MARKER.findall(text)), f"a marker in {document.name} is not followed by a block"
    names: dict[str, object] = {"__name__": "__main__"}
    for language, block in found:
        if language == "python":
            exec(compile(block, str(document), "exec"), names)
        for line in block.splitlines() if language == "sh" else ():
            program, *arguments = shlex.split(line, comments=True) or ["torchfault", "--version"]
            assert program == "torchfault", f"{document.name} runs '{program}'; leave such a block unmarked"
            assert main(arguments) == 0, line
