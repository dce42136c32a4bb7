"""Commands and options that solve errors of the store, which itself knows neither."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from store.verify import Problem

_UNSUITABLE_PLACES = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def our_errors() -> tuple[type[Exception], ...]:
    """The errors that are printed as one line; those of the operating system name the file too."""
    from pipeline.errors import PipelineError
    from stages.errors import StageError
    from store.errors import StoreError

    return StoreError, PipelineError, StageError, OSError


def with_remedy(error: Exception) -> str:
    """The message of an error, with a remedy that the store cannot name."""
    from pipeline.errors import RunFailedError

    raised: BaseException | None = error
    while isinstance(raised, RunFailedError):  # its message is that of the store's error
        raised = raised.__cause__
    remedy = _remedy(raised)
    return f"{error}: {remedy}" if remedy else str(error)


def _remedy(error: BaseException | None) -> str:
    from store import errors

    if isinstance(error, errors.WriteError):
        return "set --store, or --out for images" if error.errno in _UNSUITABLE_PLACES else ""
    if isinstance(error, errors.DamagedSetError):
        return f"see `intro-pipe repair {error.set_name}".rstrip() + "`"
    remedies: dict[type[errors.StoreError], str] = {
        errors.StoreNotFoundError: (
            "choose one with --store or INTRO_PIPE_STORE, or create one with `intro-pipe extract`"
        ),
        errors.FeatureSetNotFoundError: "create one with `intro-pipe extract`",
        errors.SetNotFoundError: "create maps with `intro-pipe explain`",
        errors.ArtifactNotFoundError: "`intro-pipe ls` lists what exists",
        errors.IncompleteError: "run the command that made it again, or `intro-pipe resume`",
        errors.RetryableRowsError: (
            "run the same command with --retry-failed, or with --accept-failed to continue without "
            "these rows"
        ),
        errors.ShardSizeError: "set --shard-rows",
    }
    return next((remedy for kind, remedy in remedies.items() if isinstance(error, kind)), "")


def detail_with_remedy(problem: Problem) -> str:
    """The detail of a problem that `verify` found, and the command that solves it."""
    from store.failures import ACCEPTED_KEY

    if problem.key == ACCEPTED_KEY:
        return f"{problem.detail}: `intro-pipe extract ... --accept-failed`"
    return problem.detail
