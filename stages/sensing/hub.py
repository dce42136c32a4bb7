"""Files on the hub of Hugging Face, from its cache or the network."""

from collections.abc import Sequence
from contextlib import suppress


def file_on_hub(repository: str, names: Sequence[str]) -> str:
    """Path in the cache of the first of these files that a repository has.

    Args:
        repository: ``owner/name``, and ``@revision`` if it is not the main branch.
        names: names of files; those in the cache are preferred.

    Raises:
        OSError: the repository has none of them.
        Exception: none is in the cache, and the hub cannot be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    repository, _, given = repository.partition("@")
    revision = given or None
    for name in names:
        with suppress(LocalEntryNotFoundError):
            return hf_hub_download(repository, name, revision=revision, local_files_only=True)
    for name in names:
        with suppress(RemoteEntryNotFoundError):
            # Fails at once without a connection, where a download repeats it for half a minute.
            get_hf_file_metadata(hf_hub_url(repository, name, revision=revision))
            return hf_hub_download(repository, name, revision=revision)
    raise FileNotFoundError(f"{repository} has no {' or '.join(names)}")
