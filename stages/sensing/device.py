"""What torch can do on a device, and how exactly it computes there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.errors import InputError
from store.errors import first_line


def require_device(device: str) -> None:
    """Check that torch can use a device; raises ``InputError``.

    A GPU may exist although this build of torch has no CUDA, or although its driver is too old.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {device}: torch {torch.__version__} cannot use it ({first_line(error)}); "
            "install a build of torch that fits the driver, or give --device cpu"
        ) from error


def gpus_in_use() -> range:
    """Indexes of the GPUs, if this process has used CUDA; otherwise none.

    Asking for the state of their generators would initialise CUDA, which takes seconds, and fails
    on a machine whose driver is too old although only the CPU is used.
    """
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no types
    return range(torch.cuda.device_count() if is_used else 0)


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolve in float32 on a GPU, where torch by default rounds the inputs to TF32.

    TF32 has 10 bits of mantissa: features and logits would differ from those of a CPU by a
    thousandth. The setting applies to all threads of the process.
    """
    enabled = torch.backends.cudnn.enabled
    with torch.backends.cudnn.flags(enabled=enabled, allow_tf32=False):
        yield
