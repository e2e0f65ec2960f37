"""A limit on the time that the user's own code may take."""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from slimbit.records.errors import InputError


class _ExpiredError(BaseException):
    """Passes through ``except Exception`` of the code that it ends."""


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """End the code inside after a time.

    In the main thread of a POSIX system a signal ends it, waiting included; elsewhere it ends at the next instruction
    of Python. A call into compiled code that never comes back is not ended.

    Args:
        seconds: Wall time; None: no limit.
        what: What runs, as the subject of the error.

    Raises:
        InputError: It did not end in time.

    >>> import time
    >>> with time_limit(0.01, "evaluate"):
    ...     time.sleep(60)
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: evaluate must end within 0.01 s, got no end
    """
    if seconds is None:
        yield
        return
    is_main = threading.current_thread() is threading.main_thread()
    try:
        with _by_signal(seconds) if is_main and hasattr(signal, "setitimer") else _by_thread(seconds):
            yield
    except _ExpiredError:
        raise InputError(f"{what} must end within {seconds:g} s, got no end") from None


@contextmanager
def _by_signal(seconds: float) -> Iterator[None]:
    def expire(*_: object) -> None:
        raise _ExpiredError

    before = signal.signal(signal.SIGALRM, expire)
    # again every second, for code that catches everything and goes on
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _by_thread(seconds: float) -> Iterator[None]:
    thread, lock, is_over = threading.get_ident(), threading.Lock(), False

    def expire() -> None:
        with lock:
            if not is_over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_ExpiredError))

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            is_over = True
        timer.cancel()
