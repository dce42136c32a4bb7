"""Networks that return more than a tensor of logits."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stages.sensing.build import build_network
from stages.sensing.outputs import returning_logits

LOGITS, FEATURES = torch.zeros(2, 3), torch.zeros(2, 5)


class Returning(nn.Module):
    """Returns what it is given."""

    def forward(self, output):
        return output


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, FEATURES),
        (FEATURES, LOGITS),
        [None, FEATURES[:, None], LOGITS],
        {"features": FEATURES, "logits": LOGITS},
        {"features": FEATURES, "out": LOGITS},
        SimpleNamespace(logits=LOGITS, loss=FEATURES),
    ],
)
def test_the_logits_are_taken_out_of_the_output(output):
    assert returning_logits(Returning().eval(), 3)(output) is LOGITS


def test_the_first_matrix_is_taken_if_the_number_of_classes_is_unknown():
    assert returning_logits(Returning().eval(), None)((FEATURES, LOGITS)) is FEATURES


@pytest.mark.parametrize("output", ["logits", 3.0, (FEATURES,), {"other": FEATURES}])
def test_an_output_without_logits_stays_as_it_is(output):
    assert returning_logits(Returning().eval(), 3)(output) is output


def test_auxiliary_outputs_of_training_are_not_dropped():
    network = returning_logits(Returning().train(), 3)
    assert network((LOGITS, FEATURES)) == (LOGITS, FEATURES)
    assert network({"logits": LOGITS}) is LOGITS


def test_a_users_network_may_return_its_features_too(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return x.flatten(1), super().forward(x.flatten(1))\n"
        "def net(n_classes): return Net(12, n_classes)\n"
    )
    network = build_network(f"{tmp_path / 'mine.py'}:net", 4).eval()
    assert network(torch.zeros(2, 3, 2, 2)).shape == (2, 4)
