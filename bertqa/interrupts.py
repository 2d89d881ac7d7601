"""SIGINT and SIGTERM, noted until a run has come to a place where it can stop and go on later."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def imports_end_at_once() -> Iterator[None]:
    """While it is entered, SIGINT during an import ends the process, with exit code 130.

    As an exception it is lost in some imports of C modules, and leaves others half done, so that a
    later one fails. At other times it is the usual KeyboardInterrupt; where SIGINT is ignored or
    has a handler already, all stays as it is.
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
    at = frame
    while at:
        if at.f_code.co_filename == "<frozen importlib._bootstrap>":
            print("interrupted", file=sys.stderr, flush=True)
            os._exit(130)
        at = at.f_back
    signal.default_int_handler(number, frame)


class Stopped(Exception):
    """A run has ended because it was asked to; what it had done is saved.

    Attributes:
        exit_code: 128 and the number of the signal, as shells have it: 130 or 143.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Interrupts:
    """While it is entered, the first SIGINT or SIGTERM is noted; a second one acts at once.

    Outside the main thread, where Python gives nobody signals, it notes nothing; and a signal that
    the process was started to ignore, as a shell starts those in the background, stays ignored.

    Args:
        at_once: raise ``Stopped`` with this message as soon as the signal comes; "" only notes it.

    Attributes:
        number: of the signal that came; 0 before.
    """

    def __init__(self, at_once: str = "") -> None:
        self.number = 0
        self._at_once = at_once
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            heeded = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
            self._before = {each: signal.signal(each, self._note) for each in heeded}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        if self._at_once:
            raise Stopped(self._at_once, number)

    def _restore(self) -> None:
        for each, handler in self._before.items():
            # None: a handler that was not set by Python, and that Python cannot set again.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        self._before = {}
