"""How long recording waits for a server that is away.

A pipeline outlives a server's restart, so its tasks wait: three minutes in all for each process,
or `B4M_TRACKING_WAIT` seconds. Elsewhere somebody sits and waits, and the work goes on at once.
"""

import os
import socket
import time

_PAUSE_S = 2.0
_waited_s = 0.0


def unreachable(error: Exception) -> bool:
    """Whether a server did not answer, rather than refuse."""
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return True
    if type(error).__module__.startswith(("requests.", "urllib3.")):
        return True
    return type(error).__name__ == "MlflowException" and "API request to" in str(error)


def try_again(error: Exception) -> bool:
    """Wait a moment for a server that did not answer; False when it is time to give up."""
    global _waited_s
    given = os.environ.get("B4M_TRACKING_WAIT", "")
    most = float(given or (180 if os.environ.get("B4M_KFP_RUN_ID") else 0))
    if not unreachable(error) or _waited_s + _PAUSE_S > most:
        return False
    time.sleep(_PAUSE_S)
    _waited_s += _PAUSE_S
    return True
