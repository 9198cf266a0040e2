"""The pages of the documentation, and the code blocks in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def all_code_blocks() -> list[CodeBlock]:
    """Those of all pages, in order."""
    fence = re.compile(r"^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [
        CodeBlock(page, text[: found.start()].count("\n") + 1, found[1], found[2])
        for page, text in PAGES.items()
        for found in fence.finditer(text)
    ]


def code_blocks(language: str, *, page: str = "") -> list[CodeBlock]:
    """Those of a language, of all pages or one; what stands in several pages comes once."""
    blocks: dict[str, CodeBlock] = {}
    for block in all_code_blocks():
        if block.language == language and page in ("", block.page):
            blocks.setdefault(block.text, block)
    return list(blocks.values())


def commands(blocks: list[CodeBlock]) -> list[str]:
    """The commands in blocks of bash, each on one line, each once."""
    lines = "".join(block.text.replace("\\\n", "") for block in blocks).splitlines()
    parts = [part for line in lines for part in line.partition("  #")[0].split(" && ")]
    return list(dict.fromkeys(" ".join(part.split()) for part in parts))
