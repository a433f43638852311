"""The error of this package that a caller can act on."""

from itg_data.errors import ItgError


class CheckpointError(ItgError):
    """A checkpoint cannot be used; the message names the file, tensor or field and what to do."""
