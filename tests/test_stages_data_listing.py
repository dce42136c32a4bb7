"""Every entry of a folder of images is a row or is excluded with a reason."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from stages.data.folder import folder_source
from stages.data.listing import in_words, left_out_facts, listing, tally, walk
from stages.data.loose import loose_source, pool_source
from stages.data.registry import SourceSpec, open_source
from stages.data.resize import Resize
from stages.errors import InputError

SIZE = Resize((8, 8))
COMPANIONS = ("@eaDir", "__MACOSX", ".ipynb_checkpoints", "#recycle", "$RECYCLE.BIN", ".git")


def write_image(path: Path, value: int = 0, form: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path, form)
    return path


def write_classes(root: Path, *splits: str) -> Path:
    for split in splits or ("test",):
        for label, name in enumerate(("ant", "bee")):
            for index in range(2):
                write_image(root / split / name / f"{index}.png", 100 * label + index)
    return root


def counts(source) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {each.reason: (each.count, each.examples) for each in source.left_out}


def samples(source) -> list[str]:
    return source.read(0, source.n_rows).columns["sample_id"].tolist()


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.jfif", "JPEG"),
        ("a.jpe", "JPEG"),
        ("a.jp2", "JPEG2000"),
        ("a.J2K", "JPEG2000"),
        ("a.avif", "AVIF"),
        ("a.AVIF", "AVIF"),
        ("a.Jpg", "JPEG"),
        ("a.mpo", "JPEG"),
        ("a.tga", "TGA"),
        ("a.pnm", "PPM"),
    ],
)
def test_images_of_every_format_that_pillow_reads_are_rows(
    tmp_path: Path, name: str, form: str
) -> None:
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    root = write_classes(tmp_path / "insects")
    write_image(root / "test" / "ant" / name, 200, form)
    source = open_source(root)
    rows = source.read(0, source.n_rows)
    assert source.left_out == ()
    at = rows.columns["sample_id"].tolist().index(f"test/ant/{name}")
    assert rows.failed == {}
    assert rows.images[at, 0, 0, 0] == pytest.approx(200, abs=4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("notes.txt", "not images by name"),
        ("0.png.crdownload", "not images by name"),
        ("0.xml", "not images by name"),
        ("IMG_0001", "without a suffix such as .jpg"),
        ("README", "without a suffix such as .jpg"),
        ("a.heic", "in formats that are not read here"),
        ("a.SVG", "in formats that are not read here"),
        ("a.dng", "in formats that are not read here"),
        (".hidden.png", "hidden"),
        (".gitkeep", "hidden"),
        ("._0.png", "companions of other programs"),
        (".DS_Store", "companions of other programs"),
        ("Thumbs.db", "companions of other programs"),
        ("desktop.ini", "companions of other programs"),
    ],
)
def test_every_other_file_is_left_out_with_its_reason(
    tmp_path: Path, name: str, reason: str
) -> None:
    plain = open_source(write_classes(tmp_path / "plain"))
    root = write_classes(tmp_path / "insects")
    (root / "test" / "ant" / name).write_text("x")
    source = open_source(root)
    assert counts(source) == {reason: (1, (f"test/ant/{name}",))}
    assert source.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("name", COMPANIONS)
@pytest.mark.parametrize("place", ["test", "test/ant", "train"])
def test_folders_of_other_programs_are_no_classes(tmp_path: Path, name: str, place: str) -> None:
    plain = open_source(write_classes(tmp_path / "plain", "train", "test"))
    root = write_classes(tmp_path / "insects", "train", "test")
    write_image(root / place / name / "thumb.png")
    source = open_source(root)
    assert source.class_names == ("ant", "bee")
    assert source.fingerprint() == plain.fingerprint()
    here = {"companions of other programs": (1, (f"{place}/{name}/",))}
    assert counts(source) == ({} if place == "train" else here)


def test_entries_beside_the_splits_are_counted(tmp_path: Path) -> None:
    plain = open_source(write_classes(tmp_path / "plain", "train", "test"))
    root = write_classes(tmp_path / "insects", "train", "test", "val", "training")
    write_image(root / "cover.png")
    (root / "labels.csv").write_text("x")
    (root / ".DS_Store").write_text("x")
    (root / "more").symlink_to(root / "val")
    source = open_source(root)
    assert counts(source) == {
        "other folders": (3, ("more/", "training/", "val/")),
        "outside the class folders": (1, ("cover.png",)),
        "companions of other programs": (1, (".DS_Store",)),
        "not images by name": (1, ("labels.csv",)),
    }
    assert source.fingerprint() == plain.fingerprint()
    assert samples(source) == samples(plain)


def test_a_root_that_cannot_be_listed_can_still_be_read(insects: Path) -> None:
    insects.chmod(0o711)
    with another_user():
        source = open_source(insects)
    assert counts(source) == {"folders that cannot be listed": (1, ("insects/",))}
    assert source.n_rows == 4


def test_images_two_levels_down_are_counted(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "insects")
    for index in range(5):
        write_image(root / "test" / "ant" / "more" / "x" / f"{index}.png")
    (root / "test" / "ant" / "more" / "notes.txt").write_text("x")
    source = open_source(root)
    places = tuple(f"test/ant/more/x/{index}.png" for index in range(3))
    assert counts(source) == {
        "not images by name": (1, ("test/ant/more/notes.txt",)),
        "in subfolders": (5, places),
    }
    assert in_words(source.left_out).endswith(f"5 in subfolders ({', '.join(places)}, ...)")


def test_images_beside_the_class_folders_are_counted(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "insects")
    write_image(root / "test" / "loose.png")
    (root / "test" / "labels.csv").write_text("x")
    assert counts(open_source(root)) == {
        "outside the class folders": (1, ("test/loose.png",)),
        "not images by name": (1, ("test/labels.csv",)),
    }


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ((), "nothing"),
        (("deep/x.png",), "1 in subfolders (test/wasp/deep/x.png)"),
        (("a.txt", "b.txt"), "2 not images by name (test/wasp/a.txt, test/wasp/b.txt)"),
        (("a.heic",), "1 in formats that are not read here (test/wasp/a.heic)"),
        (("IMG_1",), "1 without a suffix such as .jpg (test/wasp/IMG_1)"),
    ],
)
def test_a_class_folder_without_images_is_refused(
    tmp_path: Path, there: tuple[str, ...], found: str
) -> None:
    root = write_classes(tmp_path / "insects")
    (root / "test" / "wasp").mkdir()
    for name in there:
        (root / "test" / "wasp" / name).parent.mkdir(exist_ok=True)
        (root / "test" / "wasp" / name).write_text("x")
    with pytest.raises(InputError) as caught:
        open_source(root)
    assert str(caught.value) == (
        f"{root}/test/wasp: the class folder has no images, expected <file> with a suffix such "
        f"as .jpg or .png, found {found}; put its images directly into it, or move it away "
        "if it is not a class"
    )


def test_an_empty_folder_is_a_class_whose_images_are_in_the_other_split(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "insects", "train", "test")
    write_image(root / "train" / "asp" / "0.png")
    (root / "test" / "asp").mkdir()
    (root / "test" / "asp" / ".gitkeep").write_text("")
    source = open_source(root)
    assert source.class_names == ("ant", "asp", "bee")
    assert source.read(0, 4).columns["label"].tolist() == [0, 0, 2, 2]
    (root / "test" / "asp" / "0.txt").write_text("")
    with pytest.raises(InputError, match="the class folder has no images"):
        open_source(root)


def test_a_broken_link_in_place_of_a_class_is_refused(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "insects")
    (root / "test" / "asp").symlink_to(tmp_path / "not-mounted")
    with pytest.raises(InputError, match="asp: expected a class folder, found a broken link"):
        open_source(root)
    (root / "test" / "asp").unlink()
    (root / "test" / "asp").symlink_to("asp")  # to itself
    with pytest.raises(InputError, match="asp: expected a class folder, found a broken link"):
        open_source(root)


def test_a_link_to_a_class_folder_is_followed_and_one_within_it_is_not(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "insects")
    write_image(tmp_path / "elsewhere" / "0.png")
    (root / "test" / "asp").symlink_to(tmp_path / "elsewhere")
    (root / "test" / "asp" / "up").symlink_to(root)
    source = open_source(root)
    assert source.class_names == ("ant", "asp", "bee")
    assert counts(source) == {"links to folders": (1, ("test/asp/up/",))}


def test_excluded_files_of_a_loose_folder_are_counted(tmp_path: Path) -> None:
    for name in ("0.png", "ant/1.png", "ant/deep/2.png", "@eaDir/3.png", "bee/notes.txt"):
        write_image(tmp_path / name, form="PNG")
    source = loose_source(tmp_path, "photos", SIZE)
    assert samples(source) == ["0.png", "ant/1.png"]
    assert counts(source) == {
        "companions of other programs": (1, ("@eaDir/",)),
        "in subfolders": (1, ("ant/deep/2.png",)),
        "not images by name": (1, ("bee/notes.txt",)),
    }


def test_excluded_files_of_a_pool_are_counted(tmp_path: Path) -> None:
    for name in ("a/deep/1.png", "0.png", ".b/2.png", "a/@eaDir/3.png", "a/deep/notes.txt"):
        write_image(tmp_path / name, form="PNG")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    source = pool_source(tmp_path, "photos", SIZE)
    assert samples(source) == ["0.png", "a/deep/1.png"]
    assert counts(source) == {
        "hidden": (1, (".b/",)),
        "companions of other programs": (1, ("a/@eaDir/",)),
        "links to folders": (1, ("a/up/",)),
        "not images by name": (1, ("a/deep/notes.txt",)),
    }


def test_the_facts_are_empty_where_nothing_is_left_out() -> None:
    assert left_out_facts(()) == {}
    facts = left_out_facts(tally([("hidden", ".a"), ("hidden", ".b")]))
    assert facts == {"left_out": {"hidden": {"count": 2, "examples": [".a", ".b"]}}}


def test_a_walk_names_every_folder_with_its_entries_sorted(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a/x/0.png"):
        write_image(tmp_path / name)
    found = [(place, each.images) for place, each in walk(tmp_path)]
    assert found == [("", ()), ("a/", ()), ("a/x/", ("0.png",)), ("b/", ("1.png", "2.png"))]


def special(kind: str, path: Path) -> None:
    """A file that is not a regular one, or cannot be reached."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path.parent)  # the path of a socket is short
            server.bind(path.name)
            os.chdir(here)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to({"itself": path.name, "nowhere": "gone", "device": "/dev/zero"}[kind])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pipe", "expected a regular file, found a named pipe"),
        ("socket", "expected a regular file, found a socket"),
        ("device", "expected a regular file, found a device"),
        ("itself", "Too many levels of symbolic links"),
        ("nowhere", "No such file or directory"),
    ],
)
@pytest.mark.parametrize("opened", [folder_source, loose_source, pool_source])
def test_an_unreadable_image_is_only_a_failed_row(
    tmp_path: Path, kind: str, reason: str, opened
) -> None:
    root = write_classes(tmp_path / "insects")
    special(kind, root / "test" / "ant" / "x.png")
    where = {folder_source: (root, "insects", "test"), loose_source: (root / "test", "insects")}
    source = opened(*where.get(opened, (root, "insects")), SIZE)
    rows = source.read(0, source.n_rows)
    assert list(rows.failed) == [2]
    assert reason in rows.failed[2]
    assert rows.images[1:, 0, 0, 0].tolist() == [1, 0, 100, 101]
    assert source.fingerprint() == opened(*where.get(opened, (root, "insects")), SIZE).fingerprint()


def test_a_folder_with_the_name_of_an_image_is_left_out(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "insects")
    write_image(root / "test" / "ant" / "x.png" / "0.png")
    assert counts(open_source(root)) == {"in subfolders": (1, ("test/ant/x.png/0.png",))}


def test_a_file_that_disappears_after_the_listing_is_a_failed_row(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "insects")
    source = open_source(root)
    (root / "test" / "ant" / "1.png").unlink()
    assert list(source.read(0, 4).failed) == [1]
    assert len(source.fingerprint()) == 64


LATIN = os.fsdecode("caf\xe9".encode("latin-1"))


@pytest.mark.parametrize(
    ("name", "found"),
    [(f"test/{LATIN}/0.png", r"'caf\xe9"), (f"test/ant/{LATIN}.png", r"'test/ant/caf\xe9.png")],
)
def test_a_name_that_is_not_utf8_is_refused_in_one_line(
    tmp_path: Path, name: str, found: str
) -> None:
    root = write_classes(tmp_path / "insects")
    write_image(root / name)
    with pytest.raises(InputError) as caught:
        open_source(root)
    assert str(caught.value).startswith(f"{root}: expected names of files and folders in UTF-8")
    assert str(caught.value).endswith(f"{found}': rename it")


@pytest.mark.parametrize("opened", [loose_source, pool_source])
def test_a_folder_that_is_not_utf8_is_refused_in_any_layout(tmp_path: Path, opened) -> None:
    write_image(tmp_path / LATIN / "0.png")
    with pytest.raises(InputError, match=r"found 'caf\\xe9/0.png': rename it"):
        opened(tmp_path, "photos", SIZE)


def test_a_name_that_is_not_utf8_is_no_matter_where_it_is_left_out(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "insects")
    (root / "test" / "ant" / f"{LATIN}\n.txt").write_text("x")
    assert counts(open_source(root)) == {"not images by name": (1, ("test/ant/caf\\xe9\\n.txt",))}


@pytest.mark.parametrize("name", ["a\nb.png", "a\tb.png", "\x1b[2Ja.png", " .png"])
def test_control_characters_in_a_name_make_no_other_line(tmp_path: Path, name: str) -> None:
    root = write_classes(tmp_path / "insects")
    (root / "test" / "ant" / name).write_text("x")
    source = open_source(root)
    rows = source.read(0, source.n_rows)
    (row,) = rows.failed
    assert rows.columns["sample_id"][row] == f"test/ant/{name}"
    assert rows.failed[row].isprintable()


@pytest.fixture
def insects() -> Iterator[Path]:
    """Images in a place that every user may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield write_classes(Path(folder) / "insects")


@contextmanager
def another_user() -> Iterator[None]:
    """Permissions do not apply to root."""
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_file_without_permission_is_a_failed_row(insects: Path) -> None:
    readable = open_source(insects).fingerprint()
    (insects / "test" / "ant" / "1.png").chmod(0)
    with another_user():
        source = open_source(insects)
        failed = source.read(0, source.n_rows).failed
        assert len(source.fingerprint()) == 64
    assert list(failed) == [1]
    assert failed[1].startswith("test/ant/1.png: [Errno 13] Permission denied:")
    assert open_source(insects).fingerprint() == readable


def test_a_class_folder_without_permission_is_refused_in_one_line(insects: Path) -> None:
    (insects / "test" / "ant").chmod(0)
    with another_user(), pytest.raises(InputError) as caught:
        open_source(insects)
    assert str(caught.value) == (
        f"{insects}/test/ant: cannot be listed (Permission denied); expected a folder with "
        "permission to read and enter it"
    )


def test_a_deeper_folder_without_permission_is_left_out(insects: Path) -> None:
    (insects / "test" / "ant" / "private").mkdir(mode=0)
    with another_user():
        found = counts(open_source(insects))
    assert found == {"folders that cannot be listed": (1, ("test/ant/private/",))}


@pytest.mark.parametrize("name", ["test", "."])
def test_a_data_set_without_permission_is_refused_in_one_line(insects: Path, name: str) -> None:
    (insects / name).chmod(0)
    with (
        another_user(),
        pytest.raises(InputError, match=r"cannot be .*Permission denied") as caught,
    ):
        open_source(insects)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_an_array_file_without_permission_is_refused_in_one_line(insects: Path, name: str) -> None:
    (insects / name).write_bytes(b"x")
    (insects / name).chmod(0)
    with another_user(), pytest.raises(InputError, match="Permission denied") as caught:
        open_source(insects / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_a_data_set_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "x.npy"
    special(kind, place)
    with pytest.raises(InputError, match=r"x.npy: cannot be read \(expected a regular file, found"):
        open_source(place)


def test_a_spec_opens_a_source_that_leaves_out_the_same(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "insects")
    (root / "test" / "notes.txt").write_text("x")
    opened = SourceSpec(str(root), "test", "", labels=False).open()
    assert opened.left_out == open_source(root).left_out != ()


def test_listing_the_entries_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be listed \(Not a directory\)"):
        listing(write_image(tmp_path / "0.png"))
