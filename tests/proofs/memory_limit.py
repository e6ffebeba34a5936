"""Runs a command under a limit of memory that the system enforces, for proofs; says what that limit counts."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup/memory")  # control groups of version 1
MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Limit:
    """A limit: what it counts, what to put before a command so that it runs under it, and the group, if it is one."""

    n_bytes: int
    counts: str
    prefix: Sequence[str]
    group: Path | None = None

    def run(self, command: Sequence[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command under the limit; its output is captured, and its failure is the caller's to judge."""
        if self.group is not None:
            (self.group / "memory.max_usage_in_bytes").write_text("0")
        return subprocess.run([*self.prefix, *command], capture_output=True, text=True, check=False, cwd=folder)

    def peak(self) -> int | None:
        """The most that the last command had under the limit, where the system tells."""
        return None if self.group is None else int((self.group / "memory.max_usage_in_bytes").read_text())


WHOLE = "all memory: the process's own and the pages of files that it reads"
PRIVATE = "private memory alone (RLIMIT_DATA): pages of files, mapped or read ahead, are not counted"


@contextmanager
def limited(n_bytes: int) -> Iterator[Limit]:
    """The strictest limit that can be had here: a control group below this process's own, else one by systemd, else
    the resource limit of private memory."""
    group = new_group(n_bytes)
    try:
        enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"']
        scope = ["systemd-run", "--user", "--scope", "--quiet", "-p", f"MemoryMax={n_bytes}", "-p", "MemorySwapMax=0"]
        if group is not None and works([*enter, str(group)]):
            yield Limit(n_bytes, WHOLE, [*enter, str(group)], group)
        elif works(scope):
            yield Limit(n_bytes, WHOLE, scope)
        else:
            yield Limit(n_bytes, PRIVATE, ["sh", "-c", 'ulimit -d "$0" && exec "$@"', str(n_bytes // 1024)])
    finally:
        if group is not None:
            remove(group)


def works(prefix: Sequence[str]) -> bool:
    """Whether a command can be started so."""
    if shutil.which(prefix[0]) is None:
        return False
    return subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0


def new_group(n_bytes: int) -> Path | None:
    """A control group of version 1 below this process's own, so that the limits above hold on; None if not allowed."""
    with suppress(OSError):
        lines = [line.split(":", 2) for line in MEMBERSHIP.read_text().splitlines()]
        own = next((path for _, controllers, path in lines if "memory" in controllers.split(",")), None)
        if own is None:
            return None
        group = GROUPS / own.lstrip("/") / f"attncache-proof-{os.getpid()}"
        group.mkdir()
        try:
            (group / "memory.limit_in_bytes").write_text(str(n_bytes))
            with suppress(OSError):  # there may be no swap to limit
                (group / "memory.memsw.limit_in_bytes").write_text(str(n_bytes))
        except OSError:
            remove(group)
            raise
        return group
    return None


def remove(group: Path) -> None:
    """Remove a group; its last process may take a moment to end."""
    for _ in range(50):
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)
