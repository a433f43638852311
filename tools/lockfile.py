"""uv.lock without an index: the form that is committed, and the check of the form that uv uses.

uv writes into uv.lock where every file was downloaded from, so a lock made behind one mirror is
wrong behind the next. The committed lock is *neutral* instead: versions, dependency graph and
hashes, and no address. It differs from the *completed* file that uv writes in these ways:

| completed                                     | neutral                |
|-----------------------------------------------|------------------------|
| `url = "https://mirror.example/a/b-1.0.whl"`  | `filename = "b-1.0.whl"` |
| `registry = "https://mirror.example/simple"`  | `registry = "index"`   |
| `registry = "wheels"`, `path = "b-1.0.whl"`   | the same               |
| `[package.metadata]` and its sub-tables       | gone                   |

Without those tables uv finds the lock incomplete: it resolves once more, with the locked versions
as preferences, from the index it is configured to use, and completes the file in place. The cost
is the metadata of about a hundred packages, seconds with an empty cache. What uv 0.13.9 does:

- `uv sync`, `uv run`, `uv lock`, `uv export`, `uv tree` complete the file, then do their work.
- `--locked` and `uv lock --check` refuse a neutral lock ("needs to be updated").
- `--frozen` cannot install from one ("registry distribution without a valid path").
- `uv run --no-sync` does not look at the lock, so it leaves it as it is.

uv takes the *versions* from the neutral lock but fetches the *hashes* anew, so `check` is what
proves that an index serves the files that were locked. It must run after uv completed the file.

    python3 tools/lockfile.py setup                 # once per clone: tell git
    python3 tools/lockfile.py check                 # the completed uv.lock agrees with HEAD's
    python3 tools/lockfile.py neutral uv.lock       # completed -> neutral, in place
    python3 tools/lockfile.py neutral < uv.lock     # the same on stdin: git's clean filter

What `setup` tells git is one line, for the filter that `.gitattributes` names,

    git config filter.uv-lock.clean "python3 tools/lockfile.py neutral"

and, because that line alone is not enough, two hooks. With the filter every commit of uv.lock is
neutral and `git diff` is empty, yet `git status` would call a file that uv has completed modified
until the next `git add uv.lock`: where a file's size is not the one in the index, git looks no
further and runs no filter. So after each write of the index a hook makes git forget the size of
a uv.lock that is still neutral. Without `setup` a completed uv.lock shows as modified, no more.

The standard library is all it needs, so it runs before there is an environment.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

_REGISTRY = re.compile(rb'\bregistry = "[^"]*"')
# A wheel or an sdist; `source = { url = ... }` is a dependency that is an address, and stays.
_FILE_URL = re.compile(rb'(?<!source = )\{ url = "[^"?#]*/([^"/?#]+)(?:[?#][^"]*)?"')
# The same where the index is a folder of wheels (find-links).
_FILE_PATH = re.compile(rb'(?<!source = )\{ path = "(?:[^"]*/)?([^"/]+)"')
_NO_HASH = "without a hash"
_MARK = "# From `tools/lockfile.py setup`, which says why."
_HOOK = f"""\
#!/bin/sh
{_MARK} A second, temporary index is not its business, and
# neither is an index that git still holds locked: git forgets at the next write, then.
[ -z "$GIT_INDEX_FILE" ] && [ -f tools/lockfile.py ] || exit 0
grep -q "://" uv.lock || python3 tools/lockfile.py forget 2>/dev/null || true
"""
# A merge stashes first and fails ("stash failed") where a file only seems to have changed, so while
# one runs git may know the file's size; afterwards it forgets again.
_HOOKS = {
    "post-index-change": _HOOK.replace(
        "[ -z", 'case "$GIT_REFLOG_ACTION" in merge* | pull*) exit 0 ;; esac\n[ -z', 1
    ),
    "post-merge": _HOOK,
}
_METADATA_HEADER = re.compile(rb"\[+package\.metadata[].]")


def neutral(lock: bytes) -> bytes:
    """Returns the neutral form of a lock; a neutral lock comes back as it is.

    Works on lines and not on parsed TOML: uv's layout is kept, and so is a file that is no TOML
    at the moment because a merge left its conflict markers in it.
    """
    lines: list[bytes] = []
    in_metadata = False
    for line in lock.splitlines(keepends=True):
        if line.startswith((b"[", b"<<<<<<<", b"=======", b">>>>>>>")):
            in_metadata = _METADATA_HEADER.match(line) is not None
        if not in_metadata:
            line = _REGISTRY.sub(b'registry = "index"', line)
            lines.append(_FILE_PATH.sub(rb'{ filename = "\1"', _FILE_URL.sub(_as_filename, line)))
    # A metadata table at the end of the file leaves behind the blank line that stood before it.
    return re.sub(rb"\n{2,}\Z", b"\n", b"".join(lines))


def _as_filename(url: re.Match[bytes]) -> bytes:
    # An address writes the + of a local version as %2B, a file name does not.
    return b'{ filename = "' + unquote_to_bytes(url[1]) + b'"'


def addresses(lock: bytes) -> list[str]:
    """Returns, one per line of a lock that should be neutral, what names an index or an address."""
    found: list[str] = []
    for number, line in enumerate(lock.decode().splitlines(), start=1):
        if "://" in line or re.search(r'\bregistry = "(?!index")', line):
            found.append(f"line {number}: {line.strip()}")
    return found


def unhashed(lock: bytes) -> list[str]:
    """Returns the names of a neutral lock's files that have no hash: uv takes none from a folder.

    Raises:
        tomllib.TOMLDecodeError: If the lock is no TOML.
    """
    packages = tomllib.loads(lock.decode()).get("package", [])
    return sorted(
        name
        for package in packages
        for name, digest in _hashes(package).items()
        if digest == _NO_HASH
    )


def differences(committed: bytes, completed: bytes) -> list[str]:
    """Returns a sentence for each package in which two locks disagree; none if they agree.

    Compared are versions, files with their hashes, the dependency graph and what uv was asked
    for. Sizes and upload times are not: a mirror need not report them.

    Raises:
        tomllib.TOMLDecodeError: If either lock is no TOML.
    """
    ours, theirs = (tomllib.loads(neutral(lock).decode()) for lock in (committed, completed))
    sentences: list[str] = []
    our_packages, their_packages = _by_name(ours), _by_name(theirs)
    for name in sorted(our_packages.keys() | their_packages.keys()):
        old, new = our_packages.get(name, {}), their_packages.get(name, {})
        if old.keys() != new.keys():
            sentences.append(f"{name}: committed {_versions(old)}, completed {_versions(new)}")
            continue
        for version in old:
            sentences += _package_differences(f"{name} {version}", old[version], new[version])
    ignored = ("package", "revision")
    old, new = ({k: v for k, v in lock.items() if k not in ignored} for lock in (ours, theirs))
    return sentences + _value_differences("the lock's head", old, new)


def _by_name(lock: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    packages: dict[str, dict[str, dict[str, Any]]] = {}
    for package in lock.get("package", []):
        packages.setdefault(package["name"], {})[package.get("version", "dynamic")] = package
    return packages


def _versions(packages: Mapping[str, Any]) -> str:
    return " and ".join(sorted(packages)) or "absent"


def _package_differences(
    label: str, committed: Mapping[str, Any], completed: Mapping[str, Any]
) -> list[str]:
    sentences: list[str] = []
    old, new = _hashes(committed), _hashes(completed)
    for filename in sorted(old.keys() | new.keys()):
        if old.get(filename) != new.get(filename):
            sentences.append(
                f"{label}: {filename} is {old.get(filename, 'absent')} as committed, "
                f"{new.get(filename, 'absent')} as completed"
            )
    files = ("sdist", "wheels")
    old, new = (
        {k: v for k, v in lock.items() if k not in files} for lock in (committed, completed)
    )
    return sentences + _value_differences(label, old, new)


def _value_differences(label: str, committed: Any, completed: Any) -> list[str]:
    if committed == completed:
        return []
    if isinstance(committed, dict) and isinstance(completed, dict):
        sentences: list[str] = []
        for key in sorted(committed.keys() | completed.keys()):
            nested = (committed.get(key, "absent"), completed.get(key, "absent"))
            sentences += _value_differences(f"{label}: {key}", *nested)
        return sentences
    if isinstance(committed, list) and isinstance(completed, list):
        # Only what came and went: a list of dependencies is long.
        committed, completed = (
            [value for value in mine if value not in others] or "nothing"
            for mine, others in ((committed, completed), (completed, committed))
        )
    return [f"{label}: committed {committed}, completed {completed}"]


def _hashes(package: Mapping[str, Any]) -> dict[str, str]:
    files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
    return {file["filename"]: file.get("hash", _NO_HASH) for file in files}


def setup(root: Path) -> None:
    """Makes git treat a completed uv.lock as unchanged in the clone at `root`.

    Raises:
        OSError: If git fails or another hook of that name is there already.
    """
    _git(root, "config", "filter.uv-lock.clean", "python3 tools/lockfile.py neutral")
    hooks = root / _git(root, "rev-parse", "--git-path", "hooks").decode().strip()
    hooks.mkdir(exist_ok=True)
    for name, text in _HOOKS.items():
        hook = hooks / name
        if hook.exists() and _MARK not in hook.read_text():
            raise OSError(f"{hook} exists and is not ours: make it run `tools/lockfile.py forget`")
        hook.write_text(text)
        hook.chmod(0o755)
    forget(root)


def forget(root: Path) -> None:
    """Makes git forget size and time of uv.lock, so that it compares the content at next sight."""
    entry = _git(root, "ls-files", "--stage", "uv.lock").decode().split()
    if entry[2:3] != ["0"]:  # not in the index, or in conflict
        return
    mode, blob = entry[:2]
    # Replacing an entry by itself drops what lstat said of the file. No hook: it would call itself.
    no_hook = ("-c", "core.hooksPath=/dev/null")
    _git(root, *no_hook, "update-index", "--cacheinfo", f"{mode},{blob},uv.lock")


def _git(directory: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"git {' '.join(arguments)}: {done.stderr.decode().strip()}")
    return done.stdout


def _neutral_command(lock: Path | None) -> int:
    if lock is None:
        sys.stdout.buffer.write(neutral(sys.stdin.buffer.read()))
    else:
        lock.write_bytes(neutral(lock.read_bytes()))
    return 0


def _check_command(lock: Path, against: Path | None, revision: str) -> int:
    committed_name = str(against) if against else f"{revision}:{lock.name}"
    committed = (
        against.read_bytes() if against else _git(lock.parent, "show", f"{revision}:./{lock.name}")
    )
    completed = lock.read_bytes()
    if named := addresses(committed):
        print(f"{committed_name} names an index or an address:", *named[:5], sep="\n  ")
        print("Make it neutral: python3 tools/lockfile.py neutral uv.lock")
        return 1
    if found := unhashed(committed):
        print(f"{committed_name} has no hash for {', '.join(found[:5])}")
        print("Without find-links, run `uv lock` and commit the new lock: an index has hashes")
        return 1
    if found := differences(committed, completed):
        print(f"{lock} and {committed_name} disagree:", *found, sep="\n  ")
        print("If a pyproject.toml asks for it, commit the new lock; if not, distrust the index.")
        return 1
    if completed == committed:
        print(f"{lock} is as committed, not completed: nothing to compare until `uv lock` ran")
        return 0
    num_packages = len(tomllib.loads(completed.decode())["package"])
    print(f"{lock} agrees with {committed_name} in versions and hashes ({num_packages} packages)")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; 0 = well, 1 = the locks disagree, 2 = a file cannot be read."""
    parser = argparse.ArgumentParser(prog="lockfile.py", description="The index-neutral uv.lock.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="once per clone: git takes a completed lock as unchanged")
    commands.add_parser("forget", help="what setup's hook calls")
    to_neutral = commands.add_parser("neutral", help="take indexes and addresses out of a lock")
    to_neutral.add_argument("lock", type=Path, nargs="?", help="rewrite it (default: filter stdin)")
    check = commands.add_parser("check", help="compare a completed lock with the committed one")
    check.add_argument("lock", type=Path, nargs="?", default=Path("uv.lock"))
    check.add_argument("--against", type=Path, help="a neutral lock, instead of a revision's")
    check.add_argument("--revision", default="HEAD", help="where it was committed (default: HEAD)")
    args = parser.parse_args(argv)
    try:
        if args.command == "check":
            return _check_command(args.lock, args.against, args.revision)
        if args.command == "neutral":
            return _neutral_command(args.lock)
        setup(Path.cwd()) if args.command == "setup" else forget(Path.cwd())
        return 0
    except (OSError, ValueError) as error:
        print(f"lockfile.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
