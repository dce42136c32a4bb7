"""Files that run code in an unsafe reader, and a way to detect whether one did."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

MARKER = Path("a-file-has-run-code")
"""What the code in these files writes, into the working directory."""


class Trap:
    """Unpickled, it writes the marker."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(MARKER),)


def object_array() -> np.ndarray:
    return np.array([Trap()], dtype=object)


def write_npy(path: Path) -> None:
    np.save(path, object_array(), allow_pickle=True)


def write_npz(path: Path) -> None:
    np.savez(path, images=object_array(), labels=object_array())


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


def write_checkpoint(path: Path) -> None:
    torch.save({"weight": torch.zeros(2), "epoch": Trap()}, path)


def write_old_checkpoint(path: Path) -> None:
    torch.save({"state_dict": Trap()}, path, _use_new_zipfile_serialization=False)


def write_bare_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
        archive.writestr("archive/version", "3\n")


def safetensors_of(header: bytes, body: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + body


def _tensor(**changes: Any) -> bytes:
    facts = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return safetensors_of(json.dumps({"weight": facts}).encode(), bytes(8))


SAFETENSORS: dict[str, bytes] = {
    "a pickle": pickle.dumps(Trap()),
    "a header longer than the file": safetensors_of(b"{}", size=2**63),
    "a header that is no JSON": safetensors_of(b"{{{{"),
    "a header nested deeply": safetensors_of(b"[" * 100_000),
    "offsets outside": _tensor(data_offsets=[0, 2**40]),
    "a shape that overflows": _tensor(shape=[2**62, 2**62]),
    "objects": _tensor(dtype="O"),
    "nothing": b"",
}


def pickled(value: object) -> bytes:
    stream = io.BytesIO()
    pickle.dump(value, stream)
    return stream.getvalue()
