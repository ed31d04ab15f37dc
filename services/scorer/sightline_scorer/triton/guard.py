"""Run a command and make sure that none of its processes outlives the process that started it.

    python -I -S guard.py GRACE_SECONDS SHM_PREFIX TEMPORARY COMMAND...

The caller holds the other end of our stdin. When it closes it, or dies in any way (kill -9 too), the command is
stopped: SIGTERM, then SIGKILL after the grace period, for the whole process group. Then the shared memory that Triton's
Python backend left under /dev/shm/SHM_PREFIX* is removed. If the caller died, the directory TEMPORARY (unless "") is
removed too; a living caller writes a word before it closes the pipe ("now": without grace), and removes the directory
itself. If this guard is killed, the kernel kills the command (PR_SET_PDEATHSIG), and the caller kills the rest of the
group.

Writes the command's process id, and after its end the exit code, as lines to stdout. Standard library only.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

PR_SET_PDEATHSIG = 1


def main() -> None:
    """See the module."""
    grace, prefix, temporary, command = float(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
    asker_died = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # our own group gets the signal when we stop the command
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    guard = os.getpid()

    def die_with_guard() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # the guard died before prctl
            os._exit(1)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=die_with_guard)  # noqa: S603
    print(child.pid, flush=True)

    def stop_when_asker_is_gone() -> None:
        word = sys.stdin.buffer.read()
        if not word:
            asker_died.set()
        child.terminate()
        try:
            child.wait(0 if word == b"now" else grace)
        except subprocess.TimeoutExpired:
            child.kill()

    threading.Thread(target=stop_when_asker_is_gone, daemon=True).start()
    code = child.wait()
    for leftover in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108
        leftover.unlink(missing_ok=True)
    if temporary and asker_died.is_set():
        shutil.rmtree(temporary, ignore_errors=True)
    with contextlib.suppress(BrokenPipeError):
        print(code, flush=True)
    os.killpg(0, signal.SIGKILL)  # hanging stubs, and this guard, which leads the group


if __name__ == "__main__":
    main()
