"""What can go wrong in a stage."""


class StageError(Exception):
    """A stage could not do its work."""


class InputError(StageError, ValueError):
    """What the user gave does not fit; one line says what, expected, found and the way out."""


class DataNotFoundError(InputError, FileNotFoundError):
    """A data set, a file or a network is not where it was looked for."""
