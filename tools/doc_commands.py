"""The commands and the Python of the documentation, so that tests can run what readers will type.

Each fenced block of a page names its language. `bash` is run as a script, `console` line by line
after its prompts, with the output compared, and all `python` of a page in one go. All of it runs
in a copy of the repository, which holds what pages take for granted (`video.mp4`, `CHECKPOINT`).
A comment before a block, unseen by readers, says where a test does something else:

    <!-- not run: needs the published weights -->
    <!-- run instead: itg-train --optim.num-steps 2 -->
    <!-- output varies -->

Of a block that is not run, or run in another form, every option must exist in the command's
`--help`. `uv run python tools/doc_commands.py` lists these blocks.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import workspace

OURS = re.compile(r"itg-(data|select|train|eval)|python3?")

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^`\n]*)$")
_MARK = re.compile(r"<!--\s*(not run|run instead|output varies):?\s*(.*?)\s*-->")


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: str
    """The page's file, relative to the root."""
    line: int
    """Where its fence opens, from 1."""
    language: str
    text: str
    mark: str = ""
    """`not run`, `run instead`, `output varies`, or nothing."""
    note: str = ""
    """What the mark says: a reason, or the command to run."""

    @property
    def name(self) -> str:
        """Where it is."""
        return f"{self.page}:{self.line}"


def pages(root: Path = workspace.ROOT) -> list[str]:
    """Returns the pages that readers follow, in the order in which they would."""
    patterns = ("README.md", "docs/**/*.md", "packages/*/README.md", "examples/README.md")
    found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    return [path.relative_to(root).as_posix() for path in [*found, root / "CONTRIBUTING.md"]]


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """Yields the fenced blocks of a page, top to bottom.

    Raises:
        ValueError: A block is not closed.
    """
    lines = text.splitlines()
    place = 0
    while place < len(lines):
        opening = _FENCE.match(lines[place])
        if opening is None:
            place += 1
            continue
        indent, fence = opening["indent"], opening["fence"]
        start, place = place, place + 1
        while place < len(lines) and lines[place].strip() != fence:
            place += 1
        if place == len(lines):
            raise ValueError(f"{page}:{start + 1}: the block is not closed")
        mark = _MARK.fullmatch(lines[start - 1].strip()) if start else None
        yield Block(
            page=page,
            line=start + 1,
            language=opening["language"].split(" ")[0],
            text="\n".join(line.removeprefix(indent) for line in lines[start + 1 : place]),
            mark=mark[1] if mark else "",
            note=mark[2] if mark else "",
        )
        place += 1


def all_blocks(root: Path = workspace.ROOT) -> list[Block]:
    """Returns the blocks of all pages."""
    return [block for page in pages(root) for block in blocks_of(page, (root / page).read_text())]


def steps_of(block: Block) -> list[tuple[str, str | None]]:
    """Splits a block into scripts for bash, each with the output that the page shows, if any."""
    if block.mark == "run instead":
        return [(block.note, None)]
    if block.language == "bash":
        return [(block.text, None)]
    steps: list[tuple[str, str | None]] = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = re.sub(r"\\\n> ?", "", part).partition("\n")
        steps.append((command, None if block.mark == "output varies" else output))
    return steps


def commands_in(block: Block) -> list[list[str]]:
    """Returns the commands of ours that a block names, as words, without `uv run` and the like."""
    text = block.text
    if block.language == "console":
        text = "\n".join(command for command, _ in steps_of(block))
    found: list[list[str]] = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        for part in re.split(r"&&|;|\|", line.split(" #")[0]):
            try:
                words = shlex.split(part)
            except ValueError:
                continue
            words = _without_launcher(words)
            if words and OURS.fullmatch(Path(words[0]).name):
                if words[0].startswith("python") and not "".join(words[1:2]).endswith(".py"):
                    continue
                found.append([Path(words[0]).name, *words[1:]])
    return found


def _without_launcher(words: list[str]) -> list[str]:
    """Drops what stands before the command: variables, and `uv run` with its options."""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if words[:2] == ["uv", "run"]:
        words = words[2:]
        while words and words[0].startswith("--"):
            words = words[2 if words[0] in ("--package", "--extra", "--group") else 1 :]
    return words


def unknown_options(words: list[str], ask_help: Callable[[list[str]], str]) -> list[str]:
    """Returns the options of a command that its `--help` does not list.

    Args:
        words: The command.
        ask_help: Gives the help of a command, by its first words.
    """
    first = next(i for i, word in enumerate(words) if word.startswith("itg-") or ".py" in word) + 1
    if words[0].startswith("itg-"):
        while first < len(words) and _is_subcommand(words[first], ask_help(words[:first])):
            first += 1
    text = ask_help(words[:first])
    options = (word.partition("=")[0] for word in words[first:] if word.startswith("--"))
    return [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)]


def _is_subcommand(word: str, help_text: str) -> bool:
    listed = re.findall(r"\{([\w,-]+)\}", help_text)
    return any(word in names.split(",") for names in listed)


def main() -> int:
    """Lists the blocks that are not run as they stand, with the reason."""
    for block in all_blocks():
        if block.mark in ("not run", "run instead"):
            print(f"{block.name}  {block.mark}: {block.note}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
