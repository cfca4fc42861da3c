"""Being asked to stop: Ctrl-C, and the signals by which a cluster warns a job before it ends it."""
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
CTRL_C, AGAIN = 130, 75                                    # exit codes; 75 is EX_TEMPFAIL of sysexits.h: try again


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop. No library takes it for an error of its own, as it would an Exception."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = CTRL_C if number == signal.SIGINT else AGAIN


class _Listener:
    """What the handler and the blocks that it must not cut know of each other."""
    asked: int | None = None                               # the signal that came
    raised = False                                         # whether it has been raised as Stopped
    held = 0                                               # blocks around the present line that must end first


def _handle(number: int, _frame) -> None:
    if _Listener.asked is not None:
        os._exit(CTRL_C if number == signal.SIGINT else AGAIN)                               # whoever asks twice means at once
    _Listener.asked = number
    os.write(2, f"\n{signal.Signals(number).name}: finishing what is being done; a second signal ends at once\n".encode())
    _raise_if_free()


def _raise_if_free() -> None:
    if _Listener.asked is not None and not _Listener.held and not _Listener.raised:
        _Listener.raised = True
        raise Stopped(_Listener.asked)


@contextmanager
def listening() -> Iterator[None]:
    """A block in which the first of SIGNALS raises Stopped, wherever the program is but in a `held` block, and the second exits at once."""
    if threading.current_thread() is not threading.main_thread():                            # only there Python runs handlers
        yield
        return
    _Listener.asked, _Listener.raised, _Listener.held = None, False, 0
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """A block that a signal does not cut: Stopped is raised behind it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Listener.held += 1
    try:
        yield
    finally:
        _Listener.held -= 1
    _raise_if_free()


def leave_signals_to_parent(_worker: int = 0) -> None:
    """For processes that read or simulate, where a signal to the whole group is the parent's business, which still saves.

    SIGTERM, by which a parent ends them too, they obey, but as if they had come to their end: torch would tell the parent of a failure,
    in the middle of its step.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number != signal.SIGTERM else lambda *_: os._exit(0))


@contextmanager
def abandoned_on_error(pool: Executor) -> Iterator[Executor]:
    """A pool of workers whose waiting tasks are given up when the block ends with an error, instead of being done first."""
    with pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
