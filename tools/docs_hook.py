"""What the site shows: the repository's own Markdown, each page at the place where it lies.

So a link from one page to another is the same on the site as in the repository, and nothing is
written twice. Links to what the site does not show (code, data, directories without a README)
become plain text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SHOWN = (
    "*.md",
    "docs/**/*",
    "examples/*",
    "packages/*/README.md",
    "packages/*/CHANGELOG.md",
    "packages/itg-model/src/itg_model/tiny/README.md",
    "packages/itg-model/src/itg_model/tiny/*.png",
    "packages/*/benchmarks/*.md",
    "packages/*/benchmarks/*.svg",
    "packages/*/benchmarks/*.png",
)
_LINK = re.compile(r"(?<!!)\[([^\]\[]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Puts the repository's pages in place of the bare `docs` directory."""
    docs = config["docs_dir"]
    theme = [file for file in files if not (file.abs_src_path or "").startswith(docs)]
    shown = sorted({path for pattern in SHOWN for path in ROOT.glob(pattern) if path.is_file()})
    places = [path.relative_to(ROOT).as_posix() for path in shown]
    pages = (File.generated(config, place, abs_src_path=str(ROOT / place)) for place in places)
    return Files([*theme, *pages])


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lets links to a directory lead to its README, and unties those that lead off the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def replace(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if re.match(r"[a-z]+:", target):
            return link[0]
        place = posixpath.normpath(posixpath.join(folder, target))
        for candidate, suffix in ((place, ""), (f"{place}/README.md", "/README.md")):
            if files.get_file_from_path(candidate) is not None:
                return f"[{text}]({target.rstrip('/')}{suffix}{anchor})"
        # a link to nothing stays as it is, and the strict build reports it
        return text if (ROOT / place).exists() else link[0]

    return _LINK.sub(replace, markdown)
