"""A signal unwinds a run once, as Ctrl-C does; ignored signals stay ignored."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from pipeline.signals import kept_sigterm_handler, stopped_by_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    """Default handlers, as in a process that a shell starts in the foreground."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in SIGNALS[1:]:
        signal.signal(signum, signal.SIG_DFL)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_raises_an_interrupt_and_is_recorded(signum: int) -> None:
    with stopped_by_signals() as stop:
        assert stop.signum == 0
        with pytest.raises(KeyboardInterrupt, match=signal.Signals(signum).name):
            send(signum)
        assert (stop.signum, stop.name) == (signum, signal.Signals(signum).name)


@pytest.mark.parametrize("first", SIGNALS)
def test_later_signals_do_not_break_the_shutdown(first: int) -> None:
    with stopped_by_signals() as stop:
        with pytest.raises(KeyboardInterrupt):
            send(first)
        send(signal.SIGTERM)
        send(signal.SIGHUP)
        assert stop.signum == first


def test_another_ctrl_c_interrupts_the_shutdown() -> None:
    with stopped_by_signals() as stop:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            with pytest.raises(KeyboardInterrupt):
                send(signum)
        assert stop.signum == signal.SIGTERM


def test_ignored_signals_stay_ignored_and_handlers_of_others_stay() -> None:
    got: list[int] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: got.append(signum))
    with stopped_by_signals() as stop:
        send(signal.SIGHUP)
        send(signal.SIGTERM)
        assert (stop.signum, got) == (0, [signal.SIGTERM])


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with stopped_by_signals():
        assert all(signal.getsignal(signum) not in before for signum in SIGNALS)
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_in_another_thread_nothing_is_changed() -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    found = []

    def enter() -> None:
        with stopped_by_signals():
            found.extend(signal.getsignal(signum) for signum in SIGNALS)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == before


def exiting(code: int) -> None:
    """A handler like Ray's, which exits the process during startup."""
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(code)))


def test_a_library_does_not_keep_the_handler_that_it_sets() -> None:
    with stopped_by_signals() as stop:
        with kept_sigterm_handler(exit_codes=(1,)):
            exiting(1)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            send(signal.SIGTERM)
        assert stop.signum == signal.SIGTERM


def test_an_exit_by_the_handler_of_a_library_counts_as_the_signal() -> None:
    def start() -> None:
        with kept_sigterm_handler(exit_codes=(1,)):
            exiting(1)
            send(signal.SIGTERM)

    with stopped_by_signals() as stop:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert stop.signum == signal.SIGTERM


def test_another_exit_stays_one() -> None:
    with stopped_by_signals() as stop:
        with pytest.raises(SystemExit), kept_sigterm_handler(exit_codes=(1, 15)):
            raise SystemExit(3)
        assert stop.signum == 0


def test_without_handlers_of_ours_the_library_keeps_its_own() -> None:
    with kept_sigterm_handler(exit_codes=(1,)):
        exiting(1)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
