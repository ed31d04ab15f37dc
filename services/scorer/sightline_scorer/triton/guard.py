"""Runs a command and sees to it that nothing of it outlives the process that asked for it.

    python -I -S guard.py GRACE_SECONDS SHM_PREFIX COMMAND...

The asker holds the other end of our stdin and never writes: when it closes it, or dies in any way (kill -9 too), the
command is stopped: SIGTERM, after the grace SIGKILL, for the whole process group. Then the shared memory that Triton's
Python backend left under /dev/shm/SHM_PREFIX* is removed. If this guard itself is killed, the kernel kills the command
(PR_SET_PDEATHSIG), and Triton's stubs end themselves when their server is gone.

Writes the command's process id, and when it has ended its exit code, as lines to stdout. Standard library only.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

PR_SET_PDEATHSIG = 1


def main() -> None:
    """See the module."""
    grace, prefix, command = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # our own group gets it when we stop the command
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    guard = os.getpid()

    def die_with_guard() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it died before prctl
            os._exit(1)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=die_with_guard)  # noqa: S603
    print(child.pid, flush=True)

    def stop_when_asker_is_gone() -> None:
        sys.stdin.buffer.read()
        child.terminate()
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            child.kill()

    threading.Thread(target=stop_when_asker_is_gone, daemon=True).start()
    code = child.wait()
    for leftover in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108
        leftover.unlink(missing_ok=True)
    with contextlib.suppress(BrokenPipeError):
        print(code, flush=True)
    os.killpg(0, signal.SIGKILL)  # stubs that hang, and this guard, which leads the group


if __name__ == "__main__":
    main()
