import os

import pytest
import torch
from torch import nn

from stages.errors import DataNotFoundError, InputError
from stages.sensing.build import build_network, located, source_hash
from stages.sensing.torchvision_ops import import_torchvision

SOURCE = """
from torch import nn
from beside import WIDTH

class Net(nn.Sequential):
    def __init__(self, n_classes):
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, WIDTH), nn.Linear(WIDTH, n_classes))

def sized(n_classes=10):
    return Net(n_classes)

def torchlike(num_classes):
    return Net(num_classes)

def fixed():
    return Net(4)

def broken(n_classes):
    raise KeyError("layers")

def number():
    return 3
"""


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 6\n")
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return path


def n_logits(network):
    return network.eval()(torch.zeros(1, 3, 32, 32)).shape[1]


def test_shipped_networks_are_built_by_name():
    assert n_logits(build_network("resnet18", 7)) == 7
    assert n_logits(build_network("cnn2")) == 10


def test_unknown_name_is_answered_with_close_matches_and_the_list():
    with pytest.raises(InputError, match=r"did you mean .*resnet18.*known: .*vgg16") as caught:
        build_network("resnet-18", 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "expected"), [("sized", 5), ("torchlike", 5), ("fixed", 4), ("Net", 5)]
)
def test_a_factory_gets_the_number_of_classes_if_it_has_the_parameter(user_file, factory, expected):
    assert n_logits(build_network(f"{user_file}:{factory}", 5)) == expected


def test_factory_of_an_importable_module_is_called():
    linear = build_network("torch.nn:Identity", 5)
    assert isinstance(linear, nn.Identity)


def test_missing_factory_is_answered_with_those_in_the_file(user_file):
    with pytest.raises(InputError, match="'sizde': did you mean sized"):
        build_network(f"{user_file}:sizde", 5)


def test_missing_file_and_module_are_not_found(tmp_path):
    with pytest.raises(DataNotFoundError, match="no file"):
        build_network(f"{tmp_path}/none.py:net", 5)
    with pytest.raises(DataNotFoundError, match="no_such_package"):
        build_network("no_such_package.nets:net", 5)
    with pytest.raises(DataNotFoundError, match="no file"):
        build_network("~no-such-user/nets.py:net", 5)


def test_failing_factory_is_named_with_its_error(user_file):
    with pytest.raises(InputError, match="factory failed with KeyError: 'layers'"):
        build_network(f"{user_file}:broken", 5)


def test_factory_must_give_a_module(user_file):
    with pytest.raises(InputError, match="found int"):
        build_network(f"{user_file}:number", 5)


def test_file_that_does_not_import_is_named_with_its_error(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("1 / 0")
    with pytest.raises(InputError, match="ZeroDivisionError"):
        build_network(f"{path}:net", 5)


def test_an_edited_file_is_read_again(user_file):
    build_network(f"{user_file}:fixed")
    user_file.write_text(SOURCE.replace("Net(4)", "Net(8)"))
    assert n_logits(build_network(f"{user_file}:fixed")) == 8


def test_source_hash_follows_the_content_of_the_users_file(user_file):
    before = source_hash(f"{user_file}:fixed")
    user_file.write_text(SOURCE + "# changed\n")
    assert before != source_hash(f"{user_file}:fixed")
    assert source_hash("resnet18") is None


def test_located_gives_a_users_file_its_full_path(user_file, monkeypatch):
    monkeypatch.chdir(user_file.parent)
    assert located("net.py:fixed") == f"{user_file.resolve()}:fixed"
    assert located("torch.nn:Linear") == "torch.nn:Linear"
    assert located("resnet18") == "resnet18"


def test_torchvision_networks_are_built_by_name():
    network = build_network("torchvision:resnet18", 6)
    assert network.fc.out_features == 6


def test_unknown_torchvision_network_is_answered_with_close_matches():
    with pytest.raises(InputError, match=r"did you mean .*resnet18"):
        build_network("torchvision:resnet18x", 6)


def test_torchvision_imports_twice_on_any_build_of_torch():
    assert import_torchvision() is import_torchvision()
    assert hasattr(torch.ops.torchvision, "nms")


def test_search_path_is_left_as_it_was(user_file):
    import sys

    before = list(sys.path)
    build_network(f"{user_file}:fixed")
    assert sys.path == before
    assert os.fspath(user_file.parent) not in sys.path


LINEAR = "from torch import nn\ndef net(n_classes=10):\n    return nn.Linear(4, n_classes)\n"


def written(folder, **files):
    """Python files in a folder."""
    for name, content in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.mark.parametrize(
    ("files", "network", "clash"),
    [
        ({"mine": "import store\n" + LINEAR, "store": ""}, "mine.py:net", "store"),
        (
            {"mine": "from pipeline import memory\n" + LINEAR, "pipeline/__init__": ""},
            0,
            "pipeline",
        ),
        (
            {
                "mine": LINEAR + "def later():\n    import cli.app\n",
                "cli/__init__": "",
                "cli/app": "",
            },
            0,
            "cli",
        ),
        (
            {"mine": "import helper\n" + LINEAR, "helper": "import stages", "stages": ""},
            0,
            "stages",
        ),
        ({"mine": "from store.nets import a\n" + LINEAR, "store/nets": "a = 1"}, 0, "store"),
        ({"store/__init__": "", "store/mine": LINEAR}, "store.mine:net", "store"),
        ({"mine": "import store\n" + LINEAR, "store": ""}, "mine:net", "store"),
    ],
)
def test_a_module_of_the_users_that_is_named_as_ours_is_refused(
    tmp_path, monkeypatch, files, network, clash
):
    written(tmp_path, **files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        build_network(network or "mine.py:net", 5)
    assert str(refused.value) == (
        f"network {network or 'mine.py:net'!r} imports a module {clash!r} of {tmp_path}, expected "
        f"another name: intro-pipe itself has a package {clash!r}; rename your module and its "
        "imports"
    )


@pytest.mark.parametrize(
    "files",
    [
        {"mine": LINEAR, "store": "1 / 0", "pipeline/__init__": "1 / 0", "stages": "", "cli": ""},
        {"mine": "from store.plan import Plan\n" + LINEAR, "pipeline": "1 / 0"},
        {"mine": "from stages.sensing import networks\n" + LINEAR},
        {"mine": "import helper_of_mine\n" + LINEAR, "helper_of_mine": "", "store/data": ""},
    ],
)
def test_modules_named_as_ours_that_are_not_imported_do_no_harm(tmp_path, files):
    written(tmp_path, **files)
    assert build_network(f"{tmp_path}/mine.py:net", 5).out_features == 5


def test_a_network_file_may_be_named_as_one_of_our_packages(tmp_path):
    written(tmp_path, store=LINEAR)
    assert build_network(f"{tmp_path}/store.py:net", 5).out_features == 5
