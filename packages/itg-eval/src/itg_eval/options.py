"""Checks of options that commands share: an option that is not used is refused, not passed over."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from itg_data.errors import ItgError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def refuse_unused(command: "DataclassInstance", names: Iterable[str], source: str) -> None:
    """Lets no option pass that makes no difference to what was asked for.

    Args:
        command: A command's options.
        names: Fields that are not used.
        source: The option for which they are not.

    Raises:
        ItgError: One of them was given another value than the one it has by itself.
    """
    default = {field.name: field.default for field in dataclasses.fields(command)}
    for name in names:
        if getattr(command, name) != default[name]:
            raise ItgError(
                f"--{name.replace('_', '-')} makes no difference with {source}: leave it out"
            )


def check_folder(include_path: Path | None) -> None:
    """Finds out early whether there are task definitions to include.

    Raises:
        ItgError: There is no such folder.
    """
    if include_path is not None and not include_path.is_dir():
        raise ItgError(f"--include-path {include_path}: no such folder")


def check_place(device: str, dtype: str) -> None:
    """Finds out early whether a scorer can be where it is wanted, and of that type.

    Raises:
        ItgError: Device or type is unknown or not to be had here.
    """
    # imported here: --help and a typo should not wait for torch
    from itg_model.devices import resolve_device, resolve_dtype

    try:
        resolve_dtype(dtype, resolve_device(device))
    except ValueError as error:
        raise ItgError(str(error)) from None
