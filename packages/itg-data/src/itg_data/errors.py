"""The errors a caller can act on. Everything else is a bug and stays a built-in exception."""

import os


class ItgError(Exception):
    """Something outside the program is wrong: a file, a record, a checkpoint, a request."""


class InputError(ItgError):
    """What a command was told to work on, or how, cannot be; the message names the option."""


class RecordError(ItgError):
    """A record or a line of JSONL breaks its schema; the message names file, line and field."""


class VideoError(ItgError):
    """A video file cannot be read; the message names the path and the reason.

    Attributes:
        path: The file as the caller named it.
        reason: One line, without the path.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def in_one_line(error: ItgError | OSError | ValueError) -> str:
    """Says for a terminal what went wrong: of a file, its name and the reason, in one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        text = f"{where}{error.strerror}"
    return to_one_line(text)


def to_one_line(text: str) -> str:
    """Names and questions of others may hold anything; a line of output is one line."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
