"""The frame of every command: settings from its command line, its log, its signals, and one message with an
exit code if it ends early."""
import traceback
from collections.abc import Callable

from runtime.failures import explain
from runtime.logs import LOG, logging_run
from runtime.signals import acknowledge_stop, handle_signals


def exit_code(work: Callable[[], int | None]) -> int:
    """Do the work and return an exit code: what the work returns, 0 for None, or that of the error that ended
    it (docs/running.md).

    A fault of the program is raised with its traceback.
    """
    with logging_run(), handle_signals():
        try:
            return work() or 0
        except BaseException as error:
            acknowledge_stop()                             # a signal that comes now must not cost the message
            LOG.debug("%s", traceback.format_exc())
            known = explain(error)
            if known is None:
                raise
            code, message = known
            LOG.error("%s", message)
            return code
