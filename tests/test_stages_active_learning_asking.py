import csv
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_data import digits

from pipeline.journal import Journal, runs
from stages.active_learning.asking import (
    LIST,
    SHEET,
    THUMBNAIL,
    Asking,
    copy_question,
    question_job,
    sample_ids_of,
)
from stages.active_learning.labels import read_labels
from stages.active_learning.lesson import LessonParams
from stages.data.loose import pool_source
from stages.data.resize import Resize
from stages.errors import InputError

N = 40
NAMES = ("zero", "one", "two")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Digits without labels in two folders, one of them unreadable, and what people call them."""
    folder = tmp_path_factory.mktemp("photos")
    names = {}
    for row, (image, label) in enumerate(zip(*digits(N, 3), strict=True)):
        name = f"{'old' if row % 2 else 'new'}/{row:02d}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / name)
        names[name] = NAMES[label]
    (folder / "torn.png").write_bytes(b"torn")
    (folder / ".hidden").mkdir()
    return folder, names


def asking(folder, n, labels=(), strategy="badge"):
    source = pool_source(folder, "photos", Resize((8, 8)))
    known = {name: row for row, name in enumerate(sample_ids_of(source))}
    lesson = LessonParams(strategy=strategy, kind="h", network="cnn2", epochs=4, layers=(8,))
    return Asking(lesson, source, read_labels(labels, known), n)


def asked(store, question):
    job = question_job(store, question, "cpu", Path(f"{store.location}-ask-{question.n}"))
    return job.run(Journal.of(store.location, ["active-learn"])).output


def labelled(path, names):
    """Somebody fills the list in."""
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    lines = [f"{row['number']},{row['sample_id']},{names[row['sample_id']]}" for row in rows]
    path.write_text("\n".join(["number,sample_id,label", *lines]))
    return [row["sample_id"] for row in rows]


def test_labels_of_one_list_lead_to_the_next_list(photos, store, tmp_path):
    folder, names = photos
    first = copy_question(asked(store, asking(folder, 12)), tmp_path / "first")
    ids = labelled(first, names)
    question = asking(folder, 10, [first])
    result = asked(store, question)
    second = labelled(copy_question(result, tmp_path / "second"), names)

    assert len(set(ids) | set(second)) == 22
    assert set(question.class_names) == set(NAMES)
    assert "torn.png" not in {*ids, *second}
    assert result.card()["strategy"] == "badge"
    assert asked(store, question).card() == result.card()


def test_the_contact_sheet_has_a_picture_for_each(photos, store, tmp_path):
    result = asked(store, asking(photos[0], 23))
    copy_question(result, tmp_path)

    with Image.open(tmp_path / SHEET) as sheet:
        assert sheet.width == 20 * (THUMBNAIL + 4)
        assert 2 * THUMBNAIL < sheet.height < 3 * THUMBNAIL


def test_a_list_with_labels_is_not_overwritten(photos, store, tmp_path):
    result = asked(store, asking(photos[0], 3))
    labels = copy_question(result, tmp_path)
    labelled(labels, photos[1])
    before = labels.read_bytes()

    with pytest.raises(InputError, match="already exists and may contain labels"):
        copy_question(result, tmp_path)

    assert labels.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample_id,label\nnew/99.png,two\n", r":2: there is no sample 'new/99.png' in the pool"),
        ("name,class\n", "commas between, found name and class"),
        ("", "found nothing"),
        (
            "sample_id,label\nnew/00.png,one\nnew/00.png,two\n",
            ":3: sample 'new/00.png' is labelled 'two', and 'one' before",
        ),
        ("sample_id,label\nnew/00.png\n\n,\n", ":4: there is no sample ''"),
        ('sample_id,label\nnew/00.png,"one\nold/01.png,two\n', "unexpected end of data"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_their_line(photos, tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)

    with pytest.raises(InputError, match=message):
        asking(photos[0], 3, [tmp_path / "labels.csv"])


def test_unlabelled_samples_can_be_requested_again(photos, tmp_path):
    (tmp_path / "labels.csv").write_text("sample_id,label\nnew/00.png,zero\nold/01.png,\n")

    assert list(asking(photos[0], 3, [tmp_path / "labels.csv"]).labels.values()) == ["zero"]


def test_too_many_requested_images_are_refused_before_anything_is_written(photos, store):
    with pytest.raises(InputError, match="41 images without a label, 42 were requested"):
        asking(photos[0], 42)
    with pytest.raises(InputError, match="40 images without a label that can be read"):
        asked(store, asking(photos[0], 41))

    assert store.artifacts("result") == ()


def test_a_label_of_an_image_that_cannot_be_read_is_refused(photos, store, tmp_path):
    (tmp_path / "labels.csv").write_text("sample_id,label\ntorn.png,zero\nold/01.png,one\n")

    with pytest.raises(InputError, match=r"torn.png: has a label and cannot be read"):
        asked(store, asking(photos[0], 3, [tmp_path / "labels.csv"]))

    assert store.artifacts("result") == ()


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")

    with pytest.raises(InputError, match="has no images"):
        pool_source(tmp_path, "photos", Resize((8, 8)))


def test_the_list_is_a_csv_that_names_every_sample_in_order(photos, store):
    result = asked(store, asking(photos[0], 3))
    lines = result.read(LIST).decode().splitlines()

    assert lines[0] == "number,sample_id,label"
    assert [line.split(",")[1] for line in lines[1:]] == result.card()["asked"]


def test_a_killed_request_leaves_a_journal_entry(photos, store, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("stages.active_learning.asking._chosen", killed)
    with pytest.raises(KeyboardInterrupt):
        asked(store, asking(photos[0], 5))

    assert [run.command for run in runs(store.location)] == [("active-learn",)]
