"""A container: the command of its pod in its own mount namespace, as the pod's user, on a read-only root."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images import ROOT

Spec = dict[str, Any]


@dataclass(frozen=True)
class Mount:
    """A directory of the node at a place in the container."""

    source: Path
    target: str
    read_only: bool


@dataclass
class Running:
    """A process of a container, and the file of its output."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, grace: float) -> int | None:
        """SIGTERM, and SIGKILL after `grace` seconds; its exit status, None if it had to be killed."""
        self.process.terminate()
        try:
            return self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


def start(
    container: Spec,
    pod: Spec,
    *,
    pause: int,
    command: Sequence[str],
    environment: Mapping[str, str],
    mounts: Sequence[Mount],
    scratch: Path,
) -> Running:
    """Start a container.

    Args:
        container: of the pod's spec.
        pod: the pod's spec.
        pause: the process that holds the pod's network namespace.
        command: what it runs, with its arguments.
        environment: its whole environment.
        mounts: its volumes.
        scratch: a directory of the node for this container only.
    """
    security = {**pod["securityContext"], **container["securityContext"]}
    root, upper = scratch / "root", scratch / "upper"
    for path in (root, upper, scratch / "work"):
        path.mkdir(parents=True, exist_ok=True)
    (upper / "root").mkdir(mode=0o711, exist_ok=True)  # the interpreter may lie there
    (scratch / "resolv.conf").write_text(
        f"nameserver 10.42.0.1\nsearch {pod['namespace']}.svc.cluster.local svc.cluster.local cluster.local\n"
        "options ndots:5\n"
    )
    (scratch / "hosts").write_text(f"127.0.0.1 localhost\n{pod['address']} {pod['hostname']}\n")
    quoted = shlex.quote
    lines = [
        "set -e",
        f"mount -t tmpfs none {quoted(str(scratch / 'work'))}",
        f"mkdir {quoted(str(scratch / 'work'))}/w {quoted(str(scratch / 'work'))}/u",
        f"cp -a {quoted(str(upper))}/. {quoted(str(scratch / 'work'))}/u",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={scratch}/work/u,workdir={scratch}/work/w "
        + quoted(str(root)),
        f"mount --rbind /proc {quoted(str(root))}/proc",
        f"mount --rbind /sys {quoted(str(root))}/sys",
        f"mount --rbind /dev {quoted(str(root))}/dev",
    ]
    for name in ("resolv.conf", "hosts"):
        lines.append(f"mount --bind {quoted(str(scratch / name))} {quoted(str(root))}/etc/{name}")
    hidden = [  # what the image contains, mounted again if a volume such as /tmp hides it
        Mount(place, str(place), True)
        for place in (ROOT, Path(sys.prefix))
        if any(place.is_relative_to(Path(mount.target).resolve()) for mount in mounts)
    ]
    for mount in [*sorted(mounts, key=lambda mount: mount.target), *hidden]:
        # /var/run is a link to /run, which would lead out of the container's root.
        target = quoted(f"{root}{Path(mount.target).resolve()}")
        lines += [f"mkdir -p {target}", f"mount --bind {quoted(str(mount.source))} {target}"]
        if mount.read_only:
            lines.append(f"mount -o remount,bind,ro {target}")
    if security.get("readOnlyRootFilesystem"):
        lines.append(f"mount -o remount,ro {quoted(str(root))}")
    user, group = security["runAsUser"], security["runAsGroup"]
    drop = ["setpriv", f"--reuid={user}", f"--regid={group}", f"--groups={security['fsGroup']}", "--no-new-privs"]
    drop += ["--bounding-set=-all", "--inh-caps=-all", "env", "-i"]
    drop += [f"{name}={value}" for name, value in environment.items()]
    drop += ["sh", "-c", 'cd /tmp; exec "$@"', "sh", *command]
    lines.append(f"exec chroot {quoted(str(root))} {shlex.join(drop)}")
    log = scratch / "log"
    enter = ["nsenter", "-t", str(pause), "-n", "unshare", "-m", "--propagation", "private", "sh", "-c"]
    with log.open("ab") as file:
        process = subprocess.Popen([*enter, "\n".join(lines)], stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    return Running(container["name"], process, log)


def tail(log: Path, lines: int = 15) -> str:
    """The end of a container's log."""
    return os.linesep.join(log.read_text(errors="replace").splitlines()[-lines:])
