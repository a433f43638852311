"""Which packages a change affects, as the matrix of CI's jobs.

A package is affected if one of its files changed, or a package that it needs is affected. A change
to what all share (the lock, the root's configuration, tools, CI) affects all, and so does one whose
base is gone, as after a forced push; one to prose at the root affects none.

    python3 tools/affected.py main        # {"package": ["itg-model", "itg-train", "itg-eval"]}
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import workspace

_PROSE = (".md", "LICENSE", ".gitignore")


def affected(files: Iterable[str], members: dict[str, workspace.Member]) -> list[str]:
    """Returns the names of the affected packages, in the workspace's order.

    Args:
        files: Changed files, as git names them: relative to the root, with slashes.
        members: The workspace's packages by name.
    """
    by_folder = {member.directory.name: member.name for member in members.values()}
    touched: set[str] = set()
    for file in map(PurePosixPath, files):
        if file.parts[0] == "packages" and file.parts[1] in by_folder:
            touched.add(by_folder[file.parts[1]])
        elif len(file.parts) > 1 or not file.name.endswith(_PROSE):
            return list(members)
    reached = workspace.dependents(touched, members)
    return [name for name in members if name in reached]


def _is_lost(base: str) -> bool:
    """Whether a commit is not in this clone, as what main was before a forced push; says so."""
    if not re.fullmatch("[0-9a-f]{40}", base):
        return False  # a branch that is unknown is a mistake
    command = ["git", "cat-file", "-e", f"{base}^{{commit}}"]
    done = subprocess.run(command, cwd=workspace.ROOT, capture_output=True, check=False)
    if done.returncode:
        print(f"affected.py: {base} is not in this clone: all packages", file=sys.stderr)
    return done.returncode != 0


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the matrix as one line of JSON; 2 if git cannot compare."""
    parser = argparse.ArgumentParser(prog="affected.py", description="Packages a change affects.")
    parser.add_argument("base", help="the branch or commit that the change will be merged into")
    args = parser.parse_args(argv)
    members = workspace.members()
    if not args.base.strip("0") or _is_lost(args.base):  # zeros: the branch has only just begun
        print(json.dumps({"package": list(members)}))
        return 0
    # Three dots: what this branch changed, not what base did meanwhile.
    command = ["git", "diff", "--name-only", "--no-renames", "-z", f"{args.base}...HEAD"]
    done = subprocess.run(command, cwd=workspace.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"affected.py: {' '.join(command)}: {done.stderr.strip()}", file=sys.stderr)
        return 2
    files = [file for file in done.stdout.split("\0") if file]
    print(json.dumps({"package": affected(files, members)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
