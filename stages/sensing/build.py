"""Networks by name: those that ship, torchvision's, and the user's own."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from stages.errors import DataNotFoundError, InputError
from stages.sensing.networks import network_factories
from stages.sensing.torchvision_ops import import_torchvision
from stages.sensing.trust import TORCHVISION
from store.disk import spelled_out

DEFAULT_N_CLASSES = 10


def build_network(network: str, n_classes: int | None = None) -> nn.Module:
    """A fresh network with untrained weights.

    Args:
        network: a name that ships (``resnet18``), ``torchvision:NAME``, ``file.py:factory`` or
            ``package.module:factory``. A factory is called with ``n_classes=`` (or
            ``num_classes=``) if it takes that, else with nothing.
        n_classes: how many logits; ``None`` leaves it to the network (10 for those that ship).

    Raises:
        DataNotFoundError: the user's file or module is not there.
        InputError: no such network or factory, or the factory fails or returns something else.
    """
    if network.startswith(TORCHVISION):
        return _torchvision_network(network.removeprefix(TORCHVISION), n_classes)
    if ":" in network:
        return _user_network(network, n_classes)
    factories = network_factories()
    if network not in factories:
        raise InputError(_unknown("network", network, list(factories)) + _OTHER_FORMS)
    return factories[network](DEFAULT_N_CLASSES if n_classes is None else n_classes)


def located(network: str) -> str:
    """The same network, findable from any working directory: a user's file gets its full path."""
    target, _, factory = network.rpartition(":")
    return f"{spelled_out(target).resolve()}:{factory}" if _is_file(network) else network


def source_hash(network: str) -> str | None:
    """sha256 of the source file of a user's network; ``None`` for the others."""
    if network.startswith(TORCHVISION) or ":" not in network:
        return None
    if _is_file(network):
        path = spelled_out(network.rpartition(":")[0])
    else:
        path = Path(inspect.getsourcefile(_imported(network)) or "")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


_OTHER_FORMS = "; or give torchvision:NAME, file.py:factory or package.module:factory"


def _unknown(what: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    shown = known if len(known) <= 20 else [*known[:20], f"and {len(known) - 20} more"]
    return f"unknown {what} {name!r}: {hint}known: {', '.join(shown)}"


def _torchvision_network(name: str, n_classes: int | None) -> nn.Module:
    try:
        import_torchvision()
    except ImportError as error:
        raise InputError(
            f"network 'torchvision:{name}' needs torchvision, which does not import ({error}); "
            "install the release that fits your torch"
        ) from error
    models = importlib.import_module("torchvision.models")
    known = models.list_models(module=models)
    if name not in known:
        raise InputError(_unknown("torchvision network", name, known))
    options: dict[str, Any] = {} if n_classes is None else {"num_classes": n_classes}
    if name in {"googlenet", "inception_v3"}:
        options["init_weights"] = True  # both warn unless it is said
    network: nn.Module = models.get_model(name, weights=None, **options)
    return network


def _user_network(network: str, n_classes: int | None) -> nn.Module:
    module = _imported(network)
    name = network.rpartition(":")[2]
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if _is_factory(module, value)]
        raise InputError(
            _unknown("factory", name, known or ["nothing"]) + f" (network {network!r})"
        )
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
    return built


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
    target = network.rpartition(":")[0]
    return not network.startswith(TORCHVISION) and target.endswith(".py")


def _imported(network: str) -> ModuleType:
    target = network.rpartition(":")[0]
    try:
        if not _is_file(network):
            with _search_path(Path.cwd()):
                return importlib.import_module(target)
        path = spelled_out(target).resolve()
        if not path.is_file():
            raise DataNotFoundError(
                f"network {network!r}: no file {path}; expected file.py:factory"
            )
        with _search_path(path.parent):
            return _module_from(path)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise DataNotFoundError(
            f"network {network!r}: no module {error.name!r} is importable here; "
            "install it, or give file.py:factory"
        ) from error
    except Exception as error:
        raise InputError(
            f"network {network!r}: importing {target} failed with {type(error).__name__}: {error}"
        ) from error


def _module_from(path: Path) -> ModuleType:
    # Named by content, so that an edited file is read anew and two files never share a module.
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    name = f"user_network_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
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
