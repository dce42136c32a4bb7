"""Errors of the stages."""

from pipeline.errors import LoopFailedError


class StageError(Exception):
    """A stage failed."""


class InputError(StageError, ValueError):
    """The user's input is invalid; the message is one line with expectation, finding and remedy."""


class DataNotFoundError(InputError, FileNotFoundError):
    """A data set, a file or a network was not found."""


class TrainingFailedError(StageError, LoopFailedError):
    """A training diverged or collapsed, and needs other parameters."""
