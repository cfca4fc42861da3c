"""What every command of the project does around its work: the log, signals, and one message with an exit code for what ends it early."""
import traceback
from collections.abc import Callable

from runtime.failures import explain
from runtime.logs import LOG, logging_run
from runtime.signals import handle_signals


def exit_code(work: Callable[[], int | None]) -> int:
    """Do the work. Returns the exit code: what it returns, 0 for None, or that of the error that ended it (docs/running.md)."""
    with logging_run():
        try:
            with handle_signals():
                return work() or 0
        except BaseException as error:
            LOG.debug("%s", traceback.format_exc())
            if (known := explain(error)) is None:
                raise
            code, message = known
            LOG.error("%s", message)
            return code
