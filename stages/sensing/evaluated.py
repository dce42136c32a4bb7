"""What a network computes for the images that it was trained on, while it is trained."""

import torch
from torch import Tensor

from stages.errors import TrainingFailedError
from stages.metrics.finite import finite_rows
from stages.sensing.device import full_float32
from stages.sensing.labelled import LabelledImages
from stages.sensing.model import Sensing

EVALUATION_BATCH = 256


def all_of(data: LabelledImages) -> Tensor:
    """The indexes of all images."""
    return torch.arange(len(data.labels), device=data.labels.device)


@full_float32()
def features_of(frozen: Sensing, data: LabelledImages) -> Tensor:
    """Input of the last layer for all images, ``[n, d]`` float32."""
    batches = torch.split(all_of(data), EVALUATION_BATCH)
    return torch.cat([frozen(data.take(batch))[0] for batch in batches])


@full_float32()
def evaluated(sensing: Sensing, data: LabelledImages, rows: Tensor) -> tuple[float, float, int]:
    """Accuracy and mean of the largest logit on some rows of ``data``, and how many are left out.

    Rows whose features or logits are not finite are left out. Raises ``TrainingFailedError`` if no
    row remains.
    """
    n_right, n_counted, sum_max = 0, 0, 0.0
    for batch in torch.split(rows, EVALUATION_BATCH):
        features, logits = sensing(data.take(batch))
        is_finite = finite_rows(features, logits)
        kept, logits = batch[is_finite], logits[is_finite]
        if len(kept):
            largest = logits.max(dim=1)
            n_right += int((largest.indices == data.labels[kept]).sum())
            sum_max += float(largest.values.double().sum())
            n_counted += len(kept)
    if not n_counted:
        raise TrainingFailedError(
            f"model {sensing.card.name}: after training its logits are not finite for any of "
            f"{len(rows):,} images: use a lower learning rate, or another network"
        )
    return n_right / n_counted, sum_max / n_counted, len(rows) - n_counted
