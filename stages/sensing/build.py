"""Build networks by name: those of this package, of libraries, and the user's own."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from modulefinder import ModuleFinder
from pathlib import Path
from types import ModuleType

from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from pipeline.namesakes import OURS, namesakes_in
from stages.errors import DataNotFoundError, InputError
from stages.sensing.grey import accepting_rgb
from stages.sensing.hf_networks import CONFIG, hf_file, hf_network
from stages.sensing.hidden_layers import add_hidden_layers, plain_name, widths_in, with_widths
from stages.sensing.network_settings import unknown
from stages.sensing.networks import network_factories
from stages.sensing.outputs import returning_logits
from stages.sensing.timm_networks import canonical_timm, timm_network
from stages.sensing.torchvision_networks import canonical, torchvision_network
from stages.sensing.torchvision_ops import define_missing_operators
from stages.sensing.trust import HF, TIMM, TORCHVISION, is_code
from store.disk import spelled_out

DEFAULT_N_CLASSES = 10


def build_network(network: str, n_classes: int | None = None) -> nn.Module:
    """Build a network with untrained weights.

    Args:
        network: a built-in name (``resnet18``), ``torchvision:NAME`` with settings after commas
            (``torchvision:inception_v3,transform_input=true``), ``timm:NAME`` likewise,
            ``hf:FOLDER`` or ``hf:ID``, ``file.py:factory`` or ``package.module:factory``. A
            factory is called with ``n_classes=`` or ``num_classes=`` if it has such a parameter,
            else without arguments. ``NETWORK+128`` adds hidden layers to the classifier.
        n_classes: number of logits; ``None`` leaves it to the network (10 for built-in ones).

    Raises:
        DataNotFoundError: the user's file or module does not exist.
        InputError: no such network or factory, or the factory fails or returns something else.
    """
    module = _plain_network(plain_name(network), n_classes)
    if widths := widths_in(network):
        add_hidden_layers(module, network, widths)
    return module


def _plain_network(network: str, n_classes: int | None) -> nn.Module:
    """A network without hidden layers in its classifier."""
    if network.startswith(TORCHVISION):
        return torchvision_network(network, n_classes)
    if network.startswith(TIMM):
        return accepting_rgb(timm_network(network, n_classes))
    if network.startswith(HF):
        return returning_logits(accepting_rgb(hf_network(network, n_classes)), n_classes)
    if is_code(network):
        return _user_network(network, n_classes)
    factories = network_factories()
    if network not in factories:
        raise InputError(unknown("network", network, list(factories)) + _OTHER_FORMS)
    return factories[network](DEFAULT_N_CLASSES if n_classes is None else n_classes)


def located(network: str) -> str:
    """The same network in a form that is valid in any working directory: files get full paths.

    Settings of networks of a library are sorted; torchvision's defaults are omitted.
    """
    if widths := widths_in(network):
        return with_widths(located(plain_name(network)), widths)
    if network.startswith(TORCHVISION):
        return canonical(network)
    if network.startswith(TIMM):
        return canonical_timm(network)
    if network.startswith(HF):
        folder = spelled_out(network.removeprefix(HF))
        return f"{HF}{folder.resolve()}" if folder.is_dir() else network
    target, _, factory = network.rpartition(":")
    return f"{spelled_out(target).resolve()}:{factory}" if _is_file(network) else network


def source_hash(network: str) -> str | None:
    """SHA-256 of what determines a network outside the libraries; ``None`` for other networks.

    That is the source file of a user's network, or the configuration of one of transformers.
    """
    network = plain_name(network)
    if network.startswith(HF):
        return hashlib.sha256(hf_file(network, CONFIG).read_bytes()).hexdigest()
    if not is_code(network):
        return None
    if _is_file(network):
        path = spelled_out(network.rpartition(":")[0])
    else:
        path = Path(inspect.getsourcefile(_imported(network)) or "")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


_OTHER_FORMS = (
    "; or give torchvision:NAME, timm:NAME, hf:FOLDER, file.py:factory or package.module:factory"
)


def _user_network(network: str, n_classes: int | None) -> nn.Module:
    module = _imported(network)
    name = network.rpartition(":")[2]
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if _is_factory(module, value)]
        raise InputError(unknown("factory", name, known or ["nothing"]) + f" (network {network!r})")
    try:
        built = factory(**_class_argument(factory, n_classes))
    except Exception as error:
        raise InputError(
            f"network {network!r}: the factory failed with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(built, nn.Module):
        raise InputError(
            f"network {network!r}: expected the factory to return a torch.nn.Module, "
            f"found {type(built).__name__}"
        )
    _check_sizes(network, built)
    return returning_logits(accepting_rgb(built), n_classes)


def _check_sizes(network: str, built: nn.Module) -> None:
    """Refuse lazy layers: their weights are only created with the first image."""
    for name, value in (*built.named_parameters(), *built.named_buffers()):
        if isinstance(value, UninitializedParameter | UninitializedBuffer):
            layer = name.rpartition(".")[0]
            kind = type(built.get_submodule(layer)).__name__
            raise InputError(
                f"network {network!r}: the size of {layer!r} ({kind}) is not known before the "
                "first image; set its input size, or run the network once in the factory"
            )


def _is_factory(module: ModuleType, value: object) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _class_argument(factory: Callable[..., object], n_classes: int | None) -> dict[str, int]:
    if n_classes is None:
        return {}
    parameters = inspect.signature(factory).parameters
    for name in ("n_classes", "num_classes"):
        if name in parameters:
            return {name: n_classes}
    return {}


def _is_file(network: str) -> bool:
    return is_code(network) and network.rpartition(":")[0].endswith(".py")


def _imported(network: str) -> ModuleType:
    target = network.rpartition(":")[0]
    folder = spelled_out(target).resolve().parent if _is_file(network) else Path.cwd()
    define_missing_operators()  # the user's code may import torchvision, or timm, which does
    try:
        _refuse_clash(network, folder)
        if not _is_file(network):
            with _search_path(folder):
                return importlib.import_module(target)
        path = spelled_out(target).resolve()
        if not path.is_file():
            raise DataNotFoundError(
                f"network {network!r}: no file {path}; expected file.py:factory"
            )
        with _search_path(folder):
            return _module_from(path)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        if (top := str(error.name).partition(".")[0]) in OURS:
            raise _clash(network, top, folder) from error
        raise DataNotFoundError(
            f"network {network!r}: no module {error.name!r} is importable here; "
            "install it, or give file.py:factory"
        ) from error
    except Exception as error:
        raise InputError(
            f"network {network!r}: importing {target} failed with {type(error).__name__}: {error}"
        ) from error


def _refuse_clash(network: str, folder: Path) -> None:
    """Raise ``InputError`` if the code imports a user module with the name of one of our packages.

    Python would return our package, which is imported already.
    """
    if not namesakes_in(folder):
        return
    finder = ModuleFinder([str(folder)])  # reads the imports, runs nothing
    target = network.rpartition(":")[0]
    try:
        if _is_file(network):
            finder.run_script(str(spelled_out(target)))
        else:
            finder.import_hook(target)
    except Exception:  # the import that follows reports what is wrong
        return
    if found := sorted(OURS & finder.modules.keys()):
        raise _clash(network, found[0], folder)


def _clash(network: str, name: str, folder: Path) -> InputError:
    return InputError(
        f"network {network!r} imports a module {name!r} of {folder}, expected another name: "
        f"intro-pipe itself has a package {name!r}; rename your module and its imports"
    )


def _module_from(path: Path) -> ModuleType:
    # Named by content, so that an edited file is read again and two files never share a module.
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    name = f"user_network_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _search_path(folder: Path) -> Iterator[None]:
    """Let a user's module import what lies beside it, as ``python file.py`` would."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
