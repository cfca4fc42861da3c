"""Being asked to stop: Ctrl-C, and the signals by which a cluster warns a job before it ends it."""
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
CTRL_C, AGAIN = 130, 75                                    # exit codes; 75 is EX_TEMPFAIL of sysexits.h: try again


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop. No library takes it for an error of its own, as it would an Exception."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = exit_code(number)


def exit_code(number: int) -> int:
    """The exit code of a run that this signal ended."""
    return CTRL_C if number == signal.SIGINT else AGAIN


def exit_on_signal() -> None:
    """Until the run listens, a signal ends the program at once, with its exit code: there is nothing to save yet."""
    for number in SIGNALS:
        signal.signal(number, lambda number, _: os._exit(exit_code(number)))


class _Listener:
    """What the handler and the blocks that it must not cut know of each other."""
    process = 0                                            # whose signals they are; one that was forked has others to listen to
    asked: int | None = None                               # the signal that came
    answered = False                                       # whether the run is ending for it
    held = 0                                               # blocks around the present line that must end first


def _handle(number: int, _frame) -> None:
    if os.getpid() != _Listener.process:                   # a child that has not come to serve_parent yet
        os._exit(0)
    if _Listener.asked is not None:
        if "TORCHELASTIC_RUN_ID" in os.environ:            # torchrun passes on what came to all, and sees to the end itself
            return
        os._exit(exit_code(number))                        # whoever asks twice means at once
    _Listener.asked = number
    with suppress(OSError):                                # the screen may be gone
        os.write(2, f"\n{signal.Signals(number).name}: finishing what is being done; a second signal ends at once\n".encode())
    stop_if_requested()


def stop_if_requested() -> None:
    """Raise Stopped if a signal came, unless a held block is still to end or the run is ending already.

    For loops too: what the handler raised is lost if it came while Python was tidying up an object.
    """
    if _Listener.asked is not None and not _Listener.held and not _Listener.answered:
        raise Stopped(_Listener.asked)


def stop_requested() -> int:
    """The number of the signal that came, 0 for none."""
    return _Listener.asked or 0


def request_stop(number: int) -> None:
    """Note a signal that came to another process of this run; 0 for none."""
    _Listener.asked = _Listener.asked or number or None


def acknowledge_stop() -> None:
    """The run is ending: nothing more is stopped, such as what is still to be saved."""
    _Listener.answered = True


@contextmanager
def handle_signals() -> Iterator[None]:
    """A block in which the first of SIGNALS raises Stopped, wherever the program is but in a `held` block, and the second exits at once."""
    if threading.current_thread() is not threading.main_thread():                            # only there Python runs handlers
        yield
        return
    _Listener.process, _Listener.asked, _Listener.answered, _Listener.held = os.getpid(), None, False, 0
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        acknowledge_stop()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[None]:
    """A block that a signal does not cut: Stopped is raised behind it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Listener.held += 1
    try:
        yield
    finally:
        _Listener.held -= 1
    stop_if_requested()


def serve_parent(_worker: int = 0) -> None:
    """For processes that read or simulate: a signal to the whole group is the parent's business, which still saves; they end with it.

    SIGTERM, by which a parent ends them too, they obey, but as if they had come to their end: torch would tell the parent of a failure,
    in the middle of its step.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number != signal.SIGTERM else lambda *_: os._exit(0))
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent is no more, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


@contextmanager
def abandoned_on_error(pool: Executor) -> Iterator[Executor]:
    """A pool of workers whose waiting tasks are given up when the block ends with an error, instead of being done first."""
    with pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def leave(code: int) -> None:
    """End the program with this exit code, whatever has become of the screen."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:                                    # a pipe that nobody reads any more: Python would complain and change the code
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code == CTRL_C:                                     # by the signal itself, so that a loop of the shell ends too
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(code)
