"""Labels that people gave in Label Studio, from its JSON export.

The format is the raw JSON of annotated tasks that Label Studio's guide "Export annotations"
describes (``JSON``, not ``JSON_MIN``; versions 1.0 and later).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from stages.errors import InputError


class _Value(BaseModel):
    choices: tuple[str, ...] = ()


class _Result(BaseModel):
    value: _Value = _Value()


class _Annotation(BaseModel):
    result: tuple[_Result, ...]
    was_cancelled: bool = False

    def choices(self) -> tuple[str, ...]:
        """What the annotator chose; nothing if the task was skipped."""
        if self.was_cancelled:
            return ()
        return tuple(name for each in self.result for name in each.value.choices)


class _Data(BaseModel):
    sample_id: str


class _Task(BaseModel):
    data: _Data
    annotations: tuple[_Annotation, ...]


_TASKS = TypeAdapter(tuple[_Task, ...])


def annotated_labels(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    """Yield the place in a file, the sample and the label of each annotation.

    The label of a task that was skipped or has no annotation is empty. Predictions are not labels.

    Args:
        path: the file, for messages.
        text: its content; the tasks must have a ``sample_id`` in their data, as `intro-pipe export`
            writes it.

    Raises:
        InputError: it is not such a file, or an annotation has several choices.
    """
    try:
        tasks = _TASKS.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: expected tasks of `intro-pipe export` in Label Studio's export format JSON, "
            f"found {where or 'the file'}: {first['msg']}"
        ) from error
    for number, task in enumerate(tasks, start=1):
        place = f"{path}: task {number}"
        chosen = [each.choices() for each in task.annotations]
        if several := [names for names in chosen if len(names) > 1]:
            raise InputError(f"{place}: expected one choice, found {', '.join(several[0])}")
        for names in chosen or [()]:
            yield place, task.data.sample_id, "".join(names)
