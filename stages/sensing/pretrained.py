"""The files of weights that libraries publish, from their caches or the network."""

import re
from pathlib import Path

import torch

from stages.errors import DataNotFoundError, InputError
from stages.sensing.checkpoint import Checkpoint, read_checkpoint
from stages.sensing.hf_networks import WEIGHTS, hf_checkpoint, hf_file
from stages.sensing.hub import file_on_hub
from stages.sensing.timm_networks import timm_checkpoint, timm_config
from stages.sensing.torchvision_networks import torchvision_url
from stages.sensing.trust import HF, TIMM, TORCHVISION
from store.errors import first_line


def pretrained_file(network: str) -> str:
    """The file of weights that a library publishes for one of its networks.

    It is downloaded if it is not in the cache of the library: torch's hub folder (``TORCH_HOME``),
    or that of Hugging Face (``HF_HOME``).

    Raises:
        DataNotFoundError: it is not in the cache, and cannot be downloaded.
        InputError: no weights are published for this network.
    """
    try:
        if network.startswith(TORCHVISION):
            return _from_url(torchvision_url(network))
        if network.startswith(HF):
            return str(hf_file(network, *WEIGHTS))
        if network.startswith(TIMM):
            config = timm_config(network)
            if config.get("hf_hub_id"):
                name = config.get("hf_hub_filename")
                return file_on_hub(config["hf_hub_id"], [name] if name else WEIGHTS)
            if config.get("url"):
                return _from_url(config["url"])
    except InputError:
        raise
    except Exception as error:  # each library has errors of its own
        raise DataNotFoundError(
            f"network {network}: its pretrained weights are not in the cache and cannot be "
            f"downloaded ({type(error).__name__}: {first_line(error)}); connect to the internet, "
            "copy the cache from another machine, or give --weights FILE"
        ) from error
    raise InputError(
        f"network {network}: no pretrained weights are published for it; give --weights FILE"
    )


def checkpoint_in(
    file: str, key: str | None, network: str, *, is_pretrained: bool = False
) -> Checkpoint:
    """The weights in a file, under the names of the network if its library converts them.

    Args:
        file: what `read_checkpoint` accepts.
        key: entry of the checkpoint, as for `read_checkpoint`.
        network: name of the network.
        is_pretrained: whether the file is the `pretrained_file` of the network.

    Raises:
        DataNotFoundError, InputError: as `read_checkpoint`, `timm_checkpoint`, `hf_checkpoint`.
    """
    found = read_checkpoint(file, key)
    if is_pretrained and network.startswith(TIMM):
        return timm_checkpoint(network, found)
    if is_pretrained and network.startswith(HF):
        return hf_checkpoint(network, found)
    return found


def _from_url(url: str) -> str:
    """As in ``torch.hub``: the end of the name is the start of the SHA-256 of the file."""
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", name)
        torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None, False)
    return str(path)
