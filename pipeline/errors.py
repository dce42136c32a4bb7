"""Errors of the pipeline."""


class PipelineError(Exception):
    """A run cannot start or continue; the message is one line with the reason and a remedy."""


class ResourceError(PipelineError, ValueError):
    """More workers, GPUs or memory were requested than are available."""


class RunFailedError(PipelineError):
    """Some shards failed permanently; the others are stored. The message says how to continue."""


class LoopFailedError(PipelineError):
    """A loop cannot finish with its plan: running it again would fail again."""


class JournalError(PipelineError, LookupError):
    """There is no run to resume, or its journal has content that is not allowed."""


class RecipeError(PipelineError, ValueError):
    """A recipe is invalid; the message begins with the file and the line."""
