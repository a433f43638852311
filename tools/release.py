"""What a release of one package goes through before it is published: plan, build, smoke.

    uv run python tools/release.py itg-model --dry-run                  # before the tag
    uv run python tools/release.py itg-model --tag itg-model-v0.2.0     # what the tag starts
    uv run python tools/release.py itg-model --notes                    # its changelog section

**Plan**: the tag names the package and its version, the changelog has a section for it, and each
sibling's version lies in the range that the package asks for. **Build**: sdist and wheel, without
workspace sources. **Smoke**: the wheel in a bare environment outside the workspace, see
`check_light.py`. A dry run lets changelog fragments stand for the section and takes siblings from
the workspace; the real one takes them from the index, where users will, so they must be published
first. Nothing here publishes, so all of it can be repeated.
"""

import argparse
import re
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


def build_and_smoke(member: workspace.Member, output: Path, *, dry_run: bool) -> str:
    """Builds into `output`, then tries the wheel in a bare environment; returns the verdict.

    Raises:
        check_light.CheckError: If the wheel does not build, lacks a file, or does not
            install, import or answer `--help`.
    """
    output.mkdir(parents=True, exist_ok=True)
    arguments = ["--no-sources", "--quiet", "--out-dir", str(output)]
    check_light.run(["uv", "build", "--package", member.name, *arguments], cwd=workspace.ROOT)
    with tempfile.TemporaryDirectory() as directory:
        wheels = Path(directory)
        if dry_run:
            siblings = workspace.needed_by(member.name, workspace.members())
            check_light.build_wheels(sorted(siblings), wheels)
        name = f"{member.name.replace('-', '_')}-{member.version}-py3-none-any.whl"
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
    parser.add_argument("--notes", action="store_true", help="print the changelog section, no more")
    parser.add_argument("--out-dir", type=Path, default=workspace.ROOT / "dist")
    args = parser.parse_args(argv)
    member = members[args.package]
    if args.notes:
        print(notes(member))
        return 0 if notes(member) else 1
    try:
        print(f"plan   {plan(member, members, tag=args.tag, dry_run=args.dry_run)}")
        output = args.out_dir.resolve()
        verdict = build_and_smoke(member, output, dry_run=args.dry_run)
    except (ReleaseError, check_light.CheckError) as error:
        print(f"FAIL   {error}")
        return 1
    print(f"build  {output}")
    print(f"smoke  {verdict}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
