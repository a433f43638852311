"""`itg-eval`: says what it will be, and that it is not there yet."""

import sys
from collections.abc import Sequence

HELP = """\
usage: itg-eval [-h]

Will measure what frame selection does to a Video LLM, through lmms-eval. Nothing of it is there
yet: this version has no commands. Ranking quality on annotated videos is measured by itg-train."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what the package is for; anything asked of it is refused with exit status 2."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments in (["-h"], ["--help"]):
        print(HELP)
        return 0
    print("itg-eval: this version has no commands; see itg-eval --help", file=sys.stderr)
    return 2
