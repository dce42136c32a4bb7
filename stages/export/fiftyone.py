"""Samples of FiftyOne: each row as a sample whose label and predictions are classifications.

The format is that of ``write_json`` and ``Dataset.from_json`` of FiftyOne (checked with 1.22).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from stages.errors import InputError
from stages.export.exported_rows import Exported
from stages.scores.asked_scores import column_of

Row = Mapping[str, Any]  # Any: JSON
RESERVED = ("id", "filepath", "tags", "metadata", "media_type", "created_at", "last_modified_at")
"""Fields that every sample of FiftyOne has, or may not have."""

_KINDS = {
    pa.int64(): "IntField",
    pa.float64(): "FloatField",
    pa.string(): "StringField",
    pa.bool_(): "BooleanField",
}
_CLASSIFICATION = "EmbeddedDocumentField(fiftyone.core.labels.Classification)"
_TRUTH = "ground_truth"


def check_fields(exported: Exported) -> None:
    """Raise ``InputError`` if a column cannot be a field of a sample."""
    classified = [column_of(label, "prediction") for label in exported.predictors]
    fields = [_TRUTH, *RESERVED, *classified, *_plain_columns(exported)]
    for name, n in Counter(fields).items():
        if n > 1 or not re.fullmatch(r"[^_.$][^.$]*", name):
            raise InputError(
                f"{exported.feature_set.name}: FiftyOne cannot have a field {name!r} for a column: "
                "rename the column, or the head as LABEL=NAME, or choose --format csv"
            )


def dataset_of(schema: pa.Schema, exported: Exported) -> dict[str, Any]:  # Any: JSON
    """The data set, without its samples, for tables of this schema."""
    kinds = {column_of(label, "prediction"): _CLASSIFICATION for label in exported.predictors}
    kinds |= {name: _KINDS[schema.field(name).type] for name in _plain_columns(exported)}
    return {
        "name": exported.feature_set.name,
        "media_type": "image",
        "sample_fields": {
            name: f"fiftyone.core.fields.{kind}"
            for name, kind in {_TRUTH: _CLASSIFICATION, **kinds}.items()
        },
        "info": {"feature_set": exported.feature_set.name, "model": exported.model_name},
        "default_classes": list(exported.class_names),
    }


def samples_of(rows: Iterable[Row], exported: Exported) -> Iterator[dict[str, Any]]:  # Any: JSON
    """Yield the sample of each row.

    The label is the classification ``ground_truth``; those of the predictors, ``prediction`` and
    ``H_prediction``, have their confidence. All other columns are fields with their own names.
    """
    plain = _plain_columns(exported)
    for row in rows:
        yield {
            "filepath": row["image"],
            "tags": [],
            _TRUTH: _classification(row["label_name"]),
            **{column_of(p, "prediction"): _answer(row, p) for p in exported.predictors},
            **{name: row[name] for name in plain},
        }


def _plain_columns(exported: Exported) -> list[str]:
    """The columns that are not part of a classification."""
    parts = ("prediction", "prediction_name", "confidence")
    taken = {column_of(label, part) for label in exported.predictors for part in parts}
    return [c for c in exported.columns if c not in {"image", "label", "label_name", *taken}]


def _answer(row: Row, predictor: str) -> dict[str, Any] | None:
    name, confidence = (row[column_of(predictor, c)] for c in ("prediction_name", "confidence"))
    return _classification(name, confidence)


def _classification(name: str | None, confidence: float | None = None) -> dict[str, Any] | None:
    if name is None:
        return None
    certain = {} if confidence is None else {"confidence": confidence}
    return {"_cls": "Classification", "label": name, **certain}
