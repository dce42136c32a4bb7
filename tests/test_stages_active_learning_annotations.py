"""Labels from files in the form that Label Studio documents for its JSON export."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.active_learning.labels import read_labels
from stages.errors import InputError

KNOWN = {"new/1.png": 0, "new/2.png": 1, "new/3.png": 2}


def choice(*names: str) -> dict[str, Any]:
    return {
        "id": "Dx_aB91ISN",
        "from_name": "label",
        "to_name": "image",
        "type": "choices",
        "origin": "manual",
        "value": {"choices": list(names)},
    }


def annotation(*results: dict[str, Any], skipped: bool = False) -> dict[str, Any]:
    return {
        "id": 1001,
        "result": list(results),
        "was_cancelled": skipped,
        "ground_truth": False,
        "created_at": "2021-03-09T22:16:08.728353Z",
        "updated_at": "2021-03-09T22:16:08.728378Z",
        "lead_time": 4.288,
        "result_count": 1,
        "task": 1,
        "completed_by": 10,
    }


def task(sample_id: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": 1,
        "annotations": list(annotations),
        "drafts": [],
        "predictions": [{"model_version": "net", "score": 0.5, "result": [choice("predicted")]}],
        "data": {"image": f"/data/local-files/?d={sample_id}", "sample_id": sample_id},
        "meta": {},
        "created_at": "2021-03-09T21:52:49.513742Z",
        "project": 83,
    }


def labels(tmp_path: Path, content: object) -> dict[int, str]:
    path = tmp_path / "project.JSON"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return read_labels([path], KNOWN)


def test_the_choice_of_an_annotator_is_the_label(tmp_path: Path) -> None:
    comment = {"type": "textarea", "from_name": "why", "value": {"text": ["a dog"]}}
    relation = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
    tasks = [
        task("new/1.png", annotation(choice(' caf\u00e9, "x"'))),
        task("new/2.png", annotation(comment, relation, choice("dog")), annotation(choice("dog"))),
    ]

    assert labels(tmp_path, tasks) == {0: ' caf\u00e9, "x"', 1: "dog"}


def test_skipped_and_unfinished_tasks_have_no_label(tmp_path: Path) -> None:
    tasks = [
        task("new/1.png", annotation(choice("cat"), skipped=True)),
        task("new/2.png", annotation()),
        task("new/3.png"),
    ]

    assert labels(tmp_path, tasks) == {}


def test_lists_and_exported_tasks_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sample_id,label\nnew/1.png,cat\n")
    (tmp_path / "b.json").write_text(json.dumps([task("new/2.png", annotation(choice("dog")))]))

    assert read_labels([tmp_path / "a.csv", tmp_path / "b.json"], KNOWN) == {0: "cat", 1: "dog"}


def test_the_csv_that_label_studio_exports_is_a_list_of_labels(tmp_path: Path) -> None:
    (tmp_path / "project.csv").write_text(
        '"annotation_id","annotator","confidence","image","label","label_name","sample_id"\n'
        '1001,"1",0.99,"/data/local-files/?d=new/1.png","cat, ""big""","","new/1.png"\n'
        '"","",0.98,"/data/local-files/?d=new/2.png","","dog","new/2.png"\n'
    )

    assert read_labels([tmp_path / "project.csv"], KNOWN) == {0: 'cat, "big"'}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([task("old/1.png")], r"JSON: task 1: there is no sample 'old/1.png' in the pool"),
        (
            [task("new/1.png", annotation(choice("cat")), annotation(choice("dog")))],
            "task 1: sample 'new/1.png' is labelled 'dog', and 'cat' before",
        ),
        (
            [task("new/1.png", annotation(choice("cat", "dog")))],
            "task 1: expected one choice, found cat, dog",
        ),
        ([{"image": "x.png", "label": "cat"}], r"found 0\.data: Field required"),
        ([{"data": {"image": "x"}, "annotations": []}], r"found 0\.data\.sample_id: Field"),
        ({"data": {}}, "found the file: Input should be a valid array"),
        ("[" * 100_000, "found the file: Invalid JSON"),
        ("sample_id,label", "found the file: Invalid JSON"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: object, why: str) -> None:
    with pytest.raises(InputError, match=why):
        labels(tmp_path, content)
