"""What can go wrong in running a stage."""


class PipelineError(Exception):
    """A run cannot start or go on; the message is one line that says why and what to do."""


class ResourceError(PipelineError, ValueError):
    """More workers, GPUs or memory were asked for than there are."""


class RunFailedError(PipelineError):
    """Some shards failed for good; the others are in the store, and the message says what next."""


class JournalError(PipelineError, LookupError):
    """There is no run to resume."""


class RecipeError(PipelineError, ValueError):
    """A recipe says what cannot be; the message begins with the file and the line."""
