"""Stopping on a signal: Ctrl-C, and the signals by which a cluster warns a job before it ends it."""
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
CTRL_C, AGAIN = 130, 75  # exit codes; 75 is EX_TEMPFAIL of sysexits.h: try again


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop. Not an Exception, so that no library handles it as an error of its
    own."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = exit_code(number)


def exit_code(number: int) -> int:
    """Exit code of a run that was stopped by this signal."""
    return CTRL_C if number == signal.SIGINT else AGAIN


def _exit_now(number: int, _frame) -> None:
    os._exit(exit_code(number))


def exit_on_signal() -> None:
    """Let a signal end the program at once, with its exit code: until handle_signals there is nothing to
    save."""
    for number in SIGNALS:
        signal.signal(number, _exit_now)


# ---------------------------------------------------------------- the main process of a run

class _State:
    """State shared by the signal handler and by the blocks that it must not interrupt."""
    process = 0  # ID of the process that handles signals; forked ones do not
    requested = None                                       # number of the signal that came
    acknowledged = False                                   # whether the run is ending because of it
    deferring = 0                                          # number of open defer_signals blocks


def _handle(number: int, _frame) -> None:
    if os.getpid() != _State.process:                      # a child that has not called serve_parent yet
        os._exit(0)
    if _State.requested is not None:
        if "TORCHELASTIC_RUN_ID" in os.environ:            # torchrun sends a second one itself, and waits
            return
        os._exit(exit_code(number))                        # a second signal means: at once
    _State.requested = number
    name = signal.Signals(number).name
    with suppress(OSError):                                # the screen may be gone
        os.write(2, f"\n{name}: finishing what is being done; a second signal ends at once\n".encode())
    stop_if_requested()


def stop_if_requested() -> None:
    """Raise Stopped if a signal came, unless a defer_signals block is open or the run is ending already.

    Loops call it too: an exception that the handler raises while Python finalizes an object is lost.
    """
    if _State.requested is not None and not _State.deferring and not _State.acknowledged:
        raise Stopped(_State.requested)


def stop_requested() -> int:
    """Number of the signal that came, 0 if none did."""
    return _State.requested or 0


def request_stop(number: int) -> None:
    """Note a signal that came to another process of this run; 0 for none."""
    _State.requested = _State.requested or number or None


def acknowledge_stop() -> None:
    """Note that the run is ending: what it still does, such as saving, is not stopped."""
    _State.acknowledged = True


def _is_main_thread() -> bool:
    """Whether this is the thread in which Python runs signal handlers."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def handle_signals() -> Iterator[None]:
    """A block in which the first of SIGNALS raises Stopped, or waits for the end of a defer_signals block,
    and the second exits."""
    if not _is_main_thread():
        yield
        return
    _State.process, _State.requested, _State.acknowledged, _State.deferring = os.getpid(), None, False, 0
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        acknowledge_stop()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[None]:
    """A block that a signal does not interrupt: Stopped is raised after it."""
    if not _is_main_thread():
        yield
        return
    _State.deferring += 1
    try:
        yield
    finally:
        _State.deferring -= 1
    stop_if_requested()


def leave(code: int) -> None:
    """End the program with this exit code, even if nobody reads its output any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a closed pipe: Python would complain and change the exit code
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code == CTRL_C:  # by the signal itself, so that a loop of the shell ends too
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(code)


# ---------------------------------------------------------------- worker processes

def _end_quietly(_number: int, _frame) -> None:
    os._exit(0)


def serve_parent(_worker: int = 0) -> None:
    """Set up a worker process: it leaves signals to its parent, which may still save, and ends when the
    parent ends.

    SIGTERM, by which parents end their workers, ends it with exit code 0: after any other, torch would report
    a failed worker in the middle of the parent's step.
    """
    for number in SIGNALS:
        signal.signal(number, _end_quietly if number == signal.SIGTERM else signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once its parent is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


@contextmanager
def abandoned_on_error(pool: Executor) -> Iterator[Executor]:
    """A pool of workers whose waiting tasks are cancelled when the block ends with an error, instead of being
    done first."""
    with pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
