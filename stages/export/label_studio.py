"""Tasks of Label Studio: each row as an image with predictions, for a project of image classes.

The format is Label Studio's basic JSON, a list of tasks with ``data`` and ``predictions``, as its
guides "Import data" and "Import pre-annotated data" describe it (versions 1.0 and later).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

from stages.export.exported_rows import Exported
from stages.metrics.definitions import REFERENCE
from stages.scores.asked_scores import column_of

Row = Mapping[str, Any]  # Any: JSON

CHOICES = "label"
"""Name of the choices: the column of labels in the CSV that Label Studio exports."""


def tasks_of(rows: Iterable[Row], exported: Exported) -> Iterator[dict[str, Any]]:  # Any: JSON
    """Yield the task of each row: its columns as data, and the predictions that it has.

    The score of a prediction is its confidence. The number of the label is left out: in the CSV
    that Label Studio exports, the column ``label`` is the choice of the annotator.
    """
    models = {each: each for each in exported.predictors} | {REFERENCE: exported.model_name}
    for row in rows:
        answers = [_prediction(row, label, model) for label, model in models.items()]
        yield {
            "data": {name: value for name, value in row.items() if name != CHOICES},
            "predictions": [each for each in answers if each],
        }


def labeling_interface(class_names: Iterable[str]) -> str:
    """The labeling interface, an XML text, of a project for these tasks.

    >>> print(labeling_interface(["cat", "dog"]))
    <View>
      <Image name="image" value="$image"/>
      <Choices name="label" toName="image" choice="single">
        <Choice value="cat"/>
        <Choice value="dog"/>
      </Choices>
    </View>
    """
    choices = [f"    <Choice value={quoteattr(name)}/>" for name in class_names]
    return "\n".join(
        [
            "<View>",
            '  <Image name="image" value="$image"/>',
            f'  <Choices name="{CHOICES}" toName="image" choice="single">',
            *choices,
            "  </Choices>",
            "</View>",
        ]
    )


def _prediction(row: Row, label: str, model: str) -> dict[str, Any] | None:  # Any: JSON
    name = row[column_of(label, "prediction_name")]
    if name is None:
        return None
    choice = {"type": "choices", "from_name": CHOICES, "to_name": "image"}
    return {
        "model_version": model,
        "score": row[column_of(label, "confidence")],
        "result": [{**choice, "value": {"choices": [name]}}],
    }
