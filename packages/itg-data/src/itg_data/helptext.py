"""What commands say of themselves: the docstrings under their fields, made ready for `--help`.

tyro joins the lines of a help text before it takes their indentation away, and so takes every
indented line for one that is meant to stand alone: help would break where the source does.
"""

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")


def says_version(arguments: Sequence[str], command: str, distribution: str) -> bool:
    """Prints the release a command is of, where `--version` is all that is asked.

    Returns:
        Whether it was: then there is nothing else to do.
    """
    if list(arguments) != ["--version"]:
        return False
    sys.stdout.write(f"{command} {version(distribution)}\n")
    return True


def join_help(command: type[T]) -> type[T]:
    """Lists what stands under the fields of a dataclass in its own docstring, each in one line.

    tyro, and `help()` as well, looks there first. Dataclasses among the fields are done too.

    Returns:
        The class itself, as an argument for `tyro.cli`.
    """
    for cls in set(_dataclasses_in(command)):
        fields = dict(_field_docs(cls))
        if fields and "Attributes:" not in (cls.__doc__ or ""):
            listed = "".join(f"\n    {name}: {text}" for name, text in fields.items())
            cls.__doc__ = f"{inspect.getdoc(cls)}\n\nAttributes:{listed}\n"
    return command


def _dataclasses_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
        within = get_type_hints(hint).values()
    else:
        within = get_args(hint)
    for inner in within:
        yield from _dataclasses_in(inner)


def _field_docs(cls: type) -> Iterator[tuple[str, str]]:
    try:
        source = inspect.getsource(cls)
    except OSError:  # installed without its source: help says less
        return
    (definition,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    for field, doc in itertools.pairwise(definition.body):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                yield name, " ".join(text.split())
            case _:
                pass
