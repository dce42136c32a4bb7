"""Signals that stop a run: SIGTERM and SIGHUP unwind it as Ctrl-C does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals sent by Ctrl-C, by schedulers and ``timeout``, and when a terminal closes."""


@dataclass
class Stop:
    """The signal that stopped this process; 0 before any arrives."""

    signum: int = 0

    @property
    def name(self) -> str:
        """The name of the signal, as in "SIGTERM"."""
        return signal.Signals(self.signum).name

    def handle(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the protocol
        """Raise ``KeyboardInterrupt`` for the first signal, and for every Ctrl-C.

        Later ones are ignored: schedulers repeat signals, which must not interrupt the shutdown.
        """
        if self.signum and signum != signal.SIGINT:
            return
        self.signum = self.signum or signum
        raise KeyboardInterrupt(signal.Signals(signum).name)


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """Unwind the block when a stop signal arrives; an ignored signal (``nohup``) stays ignored.

    Handlers can only be set in the main thread; in other threads this does nothing.
    """
    stop = Stop()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for signum in [getattr(signal, name) for name in NAMES if hasattr(signal, name)]:
            if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                before[signum] = signal.signal(signum, stop.handle)
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def kept_sigterm_handler(exit_codes: tuple[int, ...]) -> Iterator[None]:
    """Restore the handler of SIGTERM if a library replaces it in the block.

    Args:
        exit_codes: exit codes of the library's own handler, which count as the signal while the
            block runs. The default action is not restored: the library's handler is better.
    """
    handler = signal.getsignal(signal.SIGTERM)
    is_ours = callable(handler) or handler is signal.SIG_IGN
    is_ours = is_ours and threading.current_thread() is threading.main_thread()
    try:
        yield
    except SystemExit as ended:
        if is_ours and callable(handler) and ended.code in exit_codes:
            handler(signal.SIGTERM, None)
        raise
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, handler)
