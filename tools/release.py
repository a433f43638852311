"""What a release of one package goes through before it is published: plan, build, smoke.

    uv run python tools/release.py itg-model --dry-run                  # before the tag
    uv run python tools/release.py itg-model --tag itg-model-v0.2.0     # what the tag starts
    uv run python tools/release.py itg-model --notes                    # its changelog section

    uv run python tools/release.py itg-model --stage build              # plan and build alone
    uv run python tools/release.py itg-model --stage smoke              # try what was built

**Plan**: the tag names the package and its version and lies on main, the changelog has a section
for it, and each sibling's version lies in the range that the package asks for. **Build**: sdist and
wheel, without workspace sources. **Smoke**: the wheel in a bare environment outside the workspace,
see `check_light.py`. A dry run lets changelog fragments stand for the section and takes siblings
from the workspace; the real one takes them from the index, where users will, so they must be
published first. Nothing here publishes, so all of it can be repeated. The stages can be run apart
because smoke runs the code of everything that the package brings: what is published is put away
before.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import check_light
import workspace
from packaging.specifiers import SpecifierSet


class ReleaseError(Exception):
    """The package cannot be released as it is; each line of the message is one reason."""


def notes(member: workspace.Member) -> str:
    """Returns the changelog's section for the package's version; empty if it has none."""
    changelog = (member.directory / "CHANGELOG.md").read_text()
    heading = rf"^## {re.escape(member.version)}(?: [^\n]*)?$"
    section = re.search(heading + r"(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return section[1].strip() if section else ""


def fragments(member: workspace.Member) -> list[Path]:
    """Returns the changelog fragments that wait for the next release."""
    return sorted((member.directory / "changes").glob("*.md"))


def plan(
    member: workspace.Member,
    members: dict[str, workspace.Member],
    *,
    tag: str | None,
    dry_run: bool,
) -> str:
    """Checks that names, versions and changelog agree.

    Returns:
        One line: what would be released, and with which siblings.

    Raises:
        ReleaseError: With every reason why not.
    """
    expected = f"{member.name}-v{member.version}"
    reasons: list[str] = []
    if tag is not None and tag != expected:
        reasons.append(f"tag must be {expected} ({member.directory.name}'s version), got {tag}")
    waiting = fragments(member)
    if not notes(member) and not (dry_run and waiting):
        reasons.append(f"{member.name}/CHANGELOG.md has no section for {member.version}")
    if waiting and not dry_run:
        names = ", ".join(path.name for path in waiting)
        reasons.append(f"changes are not in the changelog yet (towncrier build): {names}")
    for name, wanted in member.siblings.items():
        version = members[name].version
        if not SpecifierSet(wanted).contains(version, prereleases=True):
            reasons.append(f"{member.name} needs {name}{wanted}, the workspace has {version}")
    if reasons:
        raise ReleaseError("\n".join(reasons))
    needed = ", ".join(f"{name}{wanted}" for name, wanted in member.siblings.items())
    return f"{expected}, with {needed or 'no sibling'}"


def check_on_main(root: Path) -> None:
    """Checks that the commit to be released is one of `origin/main`'s, which reviews and CI saw.

    Raises:
        ReleaseError: If it is not, or the clone at `root` does not know `origin/main`.
    """
    command = ["git", "merge-base", "--is-ancestor", "HEAD", "origin/main"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode == 1:
        raise ReleaseError("HEAD is not on origin/main: merge it first, then tag what main has")
    if done.returncode:
        raise ReleaseError(f"{' '.join(command)}: {done.stderr.strip()}; git fetch origin main")


def build(member: workspace.Member, output: Path) -> None:
    """Builds sdist and wheel into `output`.

    Raises:
        check_light.CheckError: If that fails.
    """
    output.mkdir(parents=True, exist_ok=True)
    arguments = ["--no-sources", "--quiet", "--out-dir", str(output)]
    check_light.run(["uv", "build", "--package", member.name, *arguments], cwd=workspace.ROOT)


def smoke(member: workspace.Member, output: Path, *, dry_run: bool) -> str:
    """Tries the wheel in `output` in a bare environment; returns the verdict.

    Raises:
        check_light.CheckError: If there is none, it lacks a file, or does not install, import or
            answer `--help`.
    """
    with tempfile.TemporaryDirectory() as directory:
        wheels = Path(directory)
        if dry_run:
            siblings = workspace.needed_by(member.name, workspace.members())
            check_light.build_wheels(sorted(siblings), wheels)
        name = f"{member.name.replace('-', '_')}-{member.version}-py3-none-any.whl"
        if not (output / name).is_file():
            raise check_light.CheckError(f"{output / name}: no such file; run --stage build first")
        (wheels / name).write_bytes((output / name).read_bytes())
        check_light.check_complete(member.name, member.directory / "src", wheels)
        return check_light.check(member.name, wheels, install_it=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Goes through plan, build and smoke of one package; 1 at the first that fails."""
    members = workspace.members()
    parser = argparse.ArgumentParser(prog="release.py", description="Up to publishing, not beyond.")
    parser.add_argument("package", choices=list(members))
    parser.add_argument("--tag", help="what was pushed; must be PACKAGE-vVERSION")
    parser.add_argument("--dry-run", action="store_true", help="siblings from the workspace")
    parser.add_argument("--stage", choices=["all", "build", "smoke"], default="all")
    parser.add_argument("--notes", action="store_true", help="print the changelog section, no more")
    parser.add_argument("--out-dir", type=Path, default=workspace.ROOT / "dist")
    args = parser.parse_args(argv)
    member = members[args.package]
    if args.notes:
        print(notes(member))
        return 0 if notes(member) else 1
    output = args.out_dir.resolve()
    try:
        if args.stage != "smoke":
            if args.tag and not args.dry_run:
                check_on_main(workspace.ROOT)
            print(f"plan   {plan(member, members, tag=args.tag, dry_run=args.dry_run)}")
            build(member, output)
            print(f"build  {output}")
        if args.stage != "build":
            print(f"smoke  {smoke(member, output, dry_run=args.dry_run)}")
    except (ReleaseError, check_light.CheckError) as error:
        print(f"FAIL   {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
