"""Deferred handling of SIGINT and SIGTERM, so that a run stops where it can be resumed."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def imports_end_at_once() -> Iterator[None]:
    """Context in which SIGINT during an import exits the process with code 130.

    As an exception it would be lost in some imports of C modules, and leave others incomplete, so
    that a later one fails. Outside imports it is the usual KeyboardInterrupt. Does nothing if
    SIGINT is ignored or already has a handler.
    """
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _end_import)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_import(number: int, frame: FrameType | None) -> None:
    caller = frame
    while caller:
        if caller.f_code.co_filename == "<frozen importlib._bootstrap>":
            print("interrupted", file=sys.stderr, flush=True)
            os._exit(130)
        caller = caller.f_back
    signal.default_int_handler(number, frame)


class Stopped(Exception):
    """A run was stopped by a signal, and its progress is saved.

    Attributes:
        exit_code: 128 plus the number of the signal, as in shells: 130 or 143.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Interrupts:
    """Context that records the first SIGINT or SIGTERM; a second one has its usual effect.

    Outside the main thread, where Python delivers no signals, it does nothing. Signals that the
    process ignores, as background processes of a shell do, stay ignored.

    Args:
        at_once: raise ``Stopped`` with this message on the first signal; "" only records it.

    Attributes:
        number: number of the recorded signal; 0 for none.
    """

    def __init__(self, at_once: str = "") -> None:
        self.number = 0
        self._at_once = at_once
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            handled = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
            self._before = {each: signal.signal(each, self._record) for each in handled}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        if self._at_once:
            raise Stopped(self._at_once, number)

    def _restore(self) -> None:
        for each, handler in self._before.items():
            # None is a handler that was not set from Python; Python cannot restore it.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        self._before = {}
