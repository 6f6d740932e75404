"""What README.md and docs/*.md say that can be checked: programs, commands, links, names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT
from markdown_it import MarkdownIt
from markdown_it.token import Token

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {
    *("apt", "apt-get", "bash", "cd", "chmod", "conda", "cp", "curl", "docker", "dvc", "export", "git"),
    *("glann", "hf", "make", "mkdir", "mv", "pip", "pytest", "python", "python3", "rm", "sbatch", "sh"),
    *("source", "srun", "tar", "tensorboard", "torchrun", "unzip", "uv", "wget"),
}
SHELLS = ("bash", "sh", "console", "shell")


@dataclass(frozen=True)
class Command:
    """What a page tells to run: a line, or a whole script."""

    page: str
    text: str

    @property
    def program(self) -> str:
        return "bash" if self.text.startswith("#!") else self.text.split()[0]


def tokens(page: Path) -> Iterator[Token]:
    """Yield the tokens of a page, those within paragraphs included."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        yield token
        yield from token.children or []


def code_spans(page: Path) -> set[str]:
    return {token.content for token in tokens(page) if token.type == "code_inline"}


def fences(page: Path, *languages: str) -> list[str]:
    return [token.content for token in tokens(page) if token.type == "fence" and token.info in languages]


def commands(page: Path) -> list[Command]:
    """List what a page tells to run, in its order: code blocks first, then what stands in the text."""
    found = []
    for token in tokens(page):
        if token.type == "code_block":
            found += [without_comment(line) for line in token.content.splitlines()]
        elif token.type == "fence" and token.info in SHELLS:
            if token.content.startswith("#!"):
                found.append(token.content)
            else:
                found += [
                    without_comment(line.removeprefix("$ "))
                    for line in token.content.splitlines()
                    if token.info != "console" or line.startswith("$ ")
                ]
    for token in tokens(page):
        words = token.content.split() if token.type == "code_inline" else []
        if len(words) > 1 and words[0] in PROGRAMS:  # the name alone is that of the program
            found.append(token.content)
    return [Command(page.name, text) for text in dict.fromkeys(filter(None, found))]


def without_comment(line: str) -> str:
    return re.sub(r"(^|\s+)#.*", "", line).strip()


def program(page: Path) -> str:
    """Join a page's Python blocks into one program that also checks the comments beside its lines."""
    return CHECKS + "\n".join(with_checks(block) for block in fences(page, "python"))


CHECKS = """\
import re

def check_array(array, dtype, shape):
    assert str(array.dtype).removeprefix("torch.") == dtype, array.dtype
    dims = shape.split(", ")
    assert len(dims) == array.ndim, array.shape
    assert all(d.isalpha() or int(d) == n for d, n in zip(dims, array.shape)), array.shape

def check_print(value, pattern):
    assert re.fullmatch(pattern, str(value)), value

"""


def with_checks(block: str) -> str:
    """Check what stands behind a line: `x = ...  # uint8 [16, h, w, 3]`, `print(x)  # {'epoch': 5, ...}`."""
    lines = []
    for line in block.splitlines():
        lines.append(line)
        if array := re.match(r"(\s*)(\w+) = .*  # (u?int\d+|float\d+) \[([^\]]+)\]", line):
            indent, name, dtype, shape = array.groups()
            lines.append(f"{indent}check_array({name}, {dtype!r}, {shape!r})")
        elif printed := re.match(r"(\s*)print\((.+)\)  # (torch\.Size\(.*?\)|\{.*\})", line):
            indent, value, expected = printed.groups()
            pattern = re.escape(expected).replace(r"\.\.\.", ".+")
            lines.append(f"{indent}check_print({value}, {pattern!r})")
    return "\n".join(lines) + "\n"
