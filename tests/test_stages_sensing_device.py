"""Devices that torch cannot use."""

import pytest

from stages.errors import InputError
from stages.sensing.device import require_device


@pytest.mark.parametrize("device", ["cuda:99", "meta:cpu"])
def test_a_device_that_torch_cannot_use_is_refused_in_one_line(device: str) -> None:
    with pytest.raises(InputError, match=rf"^device {device}: torch \S+ cannot use it \(.+\); ins"):
        require_device(device)


def test_the_cpu_can_be_used() -> None:
    require_device("cpu")
