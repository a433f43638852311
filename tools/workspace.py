"""The workspace's packages as their pyproject.toml files declare them: names and needs.

Standard library only, so CI can ask before there is an environment.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One package."""

    name: str
    version: str
    directory: Path
    siblings: dict[str, str]
    """Packages of the workspace that it needs at run time, each with its range, `>=0.1,<0.2`."""


def members(root: Path = ROOT) -> dict[str, Member]:
    """Returns the workspace's packages by name."""
    projects: dict[Path, dict] = {}
    for file in sorted(root.glob("packages/*/pyproject.toml")):
        projects[file.parent] = tomllib.loads(file.read_text())["project"]
    names = {project["name"] for project in projects.values()}
    found: dict[str, Member] = {}
    for directory, project in projects.items():
        extras = project.get("optional-dependencies", {}).values()
        requirements = [*project.get("dependencies", []), *(r for extra in extras for r in extra)]
        split = (_split(requirement) for requirement in requirements)
        found[project["name"]] = Member(
            name=project["name"],
            version=project["version"],
            directory=directory,
            siblings={name: specifier for name, specifier in split if name in names},
        )
    return found


def dependents(names: set[str], all_members: dict[str, Member]) -> set[str]:
    """Returns the packages named, and all that need one of them, directly or through another."""
    reached = set(names)
    while more := {m.name for m in all_members.values() if m.siblings.keys() & reached} - reached:
        reached |= more
    return reached


def needed_by(name: str, all_members: dict[str, Member]) -> set[str]:
    """Returns the siblings that a package brings along, directly or through another."""
    direct = all_members[name].siblings.keys()
    return {n for sibling in direct for n in (sibling, *needed_by(sibling, all_members))}


def _split(requirement: str) -> tuple[str, str]:
    without_marker = requirement.split(";")[0]
    match = re.fullmatch(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*(.*?)\s*", without_marker)
    if match is None:
        raise ValueError(f"dependencies must be requirements such as 'a>=1', got {requirement!r}")
    return re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]
