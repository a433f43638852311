"""What installing one package alone drags in: each wheel, outside the workspace, against its rule.

In the workspace everything is installed, so a dependency that slipped into the wrong package goes
unnoticed until a user pays for it. Here each package is built as the wheel that users get and then

- resolved from its metadata alone, seconds per package (the default), or
- with `--install`, installed into a bare virtual environment, every module of it imported, and each
  of its commands asked for `--help`: some gigabytes per package, torch being one of them; with a
  warm cache of uv they are links, and a package takes seconds.

    uv run python tools/check_light.py [--install] [itg-model ...]

The package and its siblings are the wheels just built, whatever versions the index has of them;
everything else comes from the index that uv is set to use.
"""

import argparse
import configparser
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What may not come along with a package."""

    forbidden: frozenset[str]
    """Names of distributions that must not be installed."""

    same_as: str | None = None
    """The one dependency allowed: nothing may come along that it does not bring itself."""


_TRAINING = frozenset({"deepspeed", "itg-train", "wandb", "datasets", "ray"})
_EVALUATION = frozenset({"lmms-eval", "itg-eval"})
RULES = {
    "itg-data": Rule(forbidden=_TRAINING | _EVALUATION | {"torch", "transformers", "triton"}),
    "itg-kernels": Rule(forbidden=_TRAINING | _EVALUATION | {"transformers"}, same_as="torch"),
    "itg-model": Rule(forbidden=_TRAINING | _EVALUATION),
    "itg-train": Rule(forbidden=_EVALUATION),
    "itg-eval": Rule(forbidden=_TRAINING - {"wandb", "datasets"}),
}

_PIN = re.compile("==| @ ")
"""What stands between a distribution's name and its version, or the file that it is."""

# Runs in the bare environment. A module may stop at a package of an extra, at no other.
_IMPORT_ALL = """
import importlib, pkgutil, sys
name, *of_extras = sys.argv[1:]
package = importlib.import_module(name)
num_imported = 1
for module in pkgutil.walk_packages(getattr(package, "__path__", ()), name + "."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
        num_imported += 1
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0].lower() not in of_extras:
            raise
print(num_imported)
"""


class CheckError(Exception):
    """A package breaks its rule, or a command about it failed; the message says which."""


def violations(rule: Rule, closure: set[str], allowed: set[str]) -> list[str]:
    """Returns a sentence for each way in which a set of distributions breaks a rule.

    Args:
        rule: The package's.
        closure: All that its installation brings, itself included.
        allowed: What `rule.same_as` brings, and the package itself; unused without that rule.
    """
    sentences = [f"brings {name}" for name in sorted(rule.forbidden & closure)]
    if rule.same_as:
        extra = sorted(closure - allowed)
        sentences += [f"brings {name}, which {rule.same_as} does not" for name in extra]
    return sentences


def build_wheels(packages: Sequence[str], into: Path) -> None:
    """Builds the wheels as a release does: no workspace sources, so siblings are plain ranges.

    Raises:
        CheckError: If one cannot be built, or lacks a file that the package has in the workspace.
    """
    members = workspace.members()
    for package in packages:
        arguments = ["--wheel", "--no-sources", "--quiet", "--out-dir", str(into)]
        run(["uv", "build", "--package", package, *arguments], cwd=workspace.ROOT)
        check_complete(package, members[package].directory / "src", into)


def check_complete(package: str, source: Path, wheels: Path) -> None:
    """Checks that a wheel holds all files of its package, those that are no Python too.

    Raises:
        CheckError: If not; the message names them.
    """
    files = [path for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    with zipfile.ZipFile(_wheel_of(package, wheels)) as archive:
        lacking = {path.relative_to(source).as_posix() for path in files} - {*archive.namelist()}
    if lacking:
        raise CheckError(f"the wheel of {package} lacks {', '.join(sorted(lacking))}")


def _wheel_of(package: str, wheels: Path) -> Path:
    (wheel,) = wheels.glob(f"{package.replace('-', '_')}-*.whl")
    return wheel


def resolve(package: str, wheels: Path) -> list[str]:
    """Returns the pins that installing `package` means, in an environment that has nothing.

    What has a wheel in `wheels` is that file, whatever the index has; the rest are versions.
    """
    # A mere folder of wheels would stand beside the index, and the newest of both would be taken.
    files = wheels / "built.txt"
    files.write_text("".join(f"{_as_pin(wheel)}\n" for wheel in sorted(wheels.glob("*.whl"))))
    arguments = ["--quiet", "--no-header", "--no-annotate", "--constraints", str(files)]
    # Standing among the wheels and not in the workspace, uv sees no sources and no constraints.
    python = ["--python", sys.executable]
    pins = run(["uv", "pip", "compile", *python, *arguments, "-"], cwd=wheels, stdin=package)
    return [line.strip() for line in pins.splitlines() if _PIN.search(line)]


def _as_pin(wheel: Path) -> str:
    return f"{wheel.name.split('-')[0].replace('_', '-')} @ {wheel.resolve().as_uri()}"


def _names_in(pins: Sequence[str]) -> set[str]:
    return {_PIN.split(pin)[0] for pin in pins}


def install(package: str, pins: Sequence[str], wheels: Path, into: Path) -> str:
    """Installs the pins in a bare environment and tries the package there.

    Returns:
        What was tried, for people: the modules that were imported, and the commands.
    """
    run(["uv", "venv", "--quiet", "--python", sys.executable, str(into)], cwd=wheels)
    python = str(into / "bin" / "python")
    requirements = wheels / f"{package}.txt"
    requirements.write_text("\n".join(pins))
    arguments = ["--quiet", "--no-deps", "-r", str(requirements)]
    run(["uv", "pip", "install", "--python", python, *arguments], cwd=wheels)
    names = [package.replace("-", "_"), *sorted(modules_of_extras(package, wheels))]
    started_s = time.monotonic()
    num_imported = run([python, "-I", "-c", _IMPORT_ALL, *names], cwd=wheels).split()[-1]
    tried = [f"imports {num_imported} modules in {time.monotonic() - started_s:.0f} s"]
    for command in commands_of(package, wheels):
        run([str(into / "bin" / command), "--help"], cwd=wheels)
        tried.append(f"{command} --help")
    return ", ".join(tried)


def modules_of_extras(package: str, wheels: Path) -> set[str]:
    """Returns the likely module names, in lower case, of what only the wheel's extras ask for."""
    with zipfile.ZipFile(_wheel_of(package, wheels)) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    optional = (line for line in lines if line.startswith("Requires-Dist:") and "extra ==" in line)
    found = (re.match(r"Requires-Dist: *([A-Za-z0-9._-]+)", line) for line in optional)
    return {match[1].lower().replace("-", "_") for match in found if match}


def commands_of(package: str, wheels: Path) -> list[str]:
    """Returns the names of the commands that a built wheel installs."""
    with zipfile.ZipFile(_wheel_of(package, wheels)) as archive:
        named = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        entry_points = configparser.ConfigParser(delimiters="=")
        for name in named:
            entry_points.read_string(archive.read(name).decode())
    return list(entry_points["console_scripts"]) if "console_scripts" in entry_points else []


def check(package: str, wheels: Path, *, install_it: bool) -> str:
    """Checks one package whose wheel, like those of its siblings, lies in `wheels`.

    Raises:
        CheckError: If it breaks its rule, cannot be resolved or, installed, does not work.
    """
    rule = RULES[package]
    pins = resolve(package, wheels)
    if (built := _as_pin(_wheel_of(package, wheels))) not in pins:
        raise CheckError(f"{built} was built, but what would be tried is {', '.join(pins)}")
    closure = _names_in(pins)
    allowed = {package}
    if rule.same_as:
        allowed |= _names_in(resolve(rule.same_as, wheels))
    if found := violations(rule, closure, allowed):
        raise CheckError("; ".join(found))
    absent = f"no {', '.join(sorted(rule.forbidden))}"
    verdict = f"{len(closure)} distributions, "
    verdict += f"all from {rule.same_as}" if rule.same_as else absent
    if install_it:
        with tempfile.TemporaryDirectory() as environment:
            verdict += "; " + install(package, pins, wheels, Path(environment) / "venv")
    return verdict


def run(command: Sequence[str], *, cwd: Path, stdin: str = "") -> str:
    """Returns what a command prints, run as if there were no workspace's environment around it.

    Raises:
        CheckError: If it exits with another status than 0; with what it wrote to stderr.
    """
    # A variable that points at the workspace's environment would let it answer for the bare one.
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        command, cwd=cwd, input=stdin, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CheckError(f"{' '.join(command)} exits {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one verdict per package; 0 if all keep their rules, else 1."""
    parser = argparse.ArgumentParser(prog="check_light.py", description="What a wheel drags in.")
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help="default: all")
    parser.add_argument("--install", action="store_true", help="into a bare environment, and try")
    args = parser.parse_args(argv)
    packages = args.packages or list(RULES)
    if unknown := sorted(set(packages) - RULES.keys()):
        parser.error(f"PACKAGE must be among {', '.join(RULES)}, got {', '.join(unknown)}")
    num_failed = 0
    with tempfile.TemporaryDirectory() as directory:
        wheels = Path(directory)
        try:
            build_wheels(list(RULES), wheels)
        except CheckError as error:
            print(f"FAIL  {error}")
            return 1
        for package in packages:
            try:
                print(f"ok    {package}: {check(package, wheels, install_it=args.install)}")
            except CheckError as error:
                num_failed += 1
                print(f"FAIL  {package}: {error}")
    return 1 if num_failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
