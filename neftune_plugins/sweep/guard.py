"""Runs a command that ends when its caller ends.

python -m neftune_plugins.sweep.guard COMMAND...

Runs the command until it ends, or until standard input is closed, on purpose or because the process at the other end
died. Then the command and its children get SIGTERM, and later SIGKILL. Start it as the leader of a session.
"""

import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL


def main(command: list[str]) -> None:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    stopping = threading.Event()

    def stop() -> None:
        os.read(0, 1)
        stopping.set()
        signal_group(signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while child.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        signal_group(signal.SIGKILL)  # which includes this process

    def signal_group(number: int) -> None:
        os.killpg(0, number)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=stop, daemon=True).start()
    status = child.wait()
    if stopping.is_set():
        signal.pause()
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main(sys.argv[1:])
