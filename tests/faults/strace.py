"""strace: lists the system calls of a process, or does something to one of them."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.faults.child import MAGIC

# Calls that say nothing about files: memory, threads, clocks, signals, the harness's own marker.
_OTHERS = {
    *("brk", "munmap", "mprotect", "madvise", "mremap", "futex", "clone", "clone3", "set_robust_list", "rseq"),
    *("getpid", "gettid", "getppid", "getrandom", "exit", "exit_group", "clock_nanosleep", "clock_gettime"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_yield", "sched_getaffinity", "prlimit64", "sysinfo"),
    *("restart_syscall", "membarrier", "getuid", "geteuid", "getgid", "getegid", "wait4", "kill"),
}
_LINE = re.compile(r"^(\d+) +([a-z_0-9]+)\((.*)\) += (-?\d+|\?|0x[0-9a-f]+)(.*)$")


class Call(NamedTuple):
    """One system call: its name, the how many-th of that name it is (from 1), the step it belongs to, its line."""

    name: str
    number: int
    step: int
    arguments: str
    result: str

    @property
    def is_memory(self) -> bool:
        """Whether it only asks for memory."""
        return self.name == "mmap" and "MAP_ANONYMOUS" in self.arguments


@functools.cache
def works() -> bool:
    """Whether strace is here and may trace a process and change its calls."""
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-qq", "-o", os.devnull, "-e", "inject=getppid:retval=1", "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def attach(pid: int, log: Path, *options: str) -> subprocess.Popen[bytes]:
    """strace on a process that waits for it."""
    marker = ["-e", f"inject=getppid:retval={MAGIC}"]
    return subprocess.Popen(
        ["strace", "-f", "-qq", "-o", str(log), "-p", str(pid), *marker, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def attach_listing(pid: int, log: Path) -> subprocess.Popen[bytes]:
    """strace that lists every call with its data in hexadecimal digits and the names of its files."""
    return attach(pid, log, "-xx", "-y", "-s", "1000000000")


def attach_injecting(pid: int, log: Path, name: str, what: str, when: str) -> subprocess.Popen[bytes]:
    """strace that does something (``error=EIO``, ``signal=SIGKILL``) to a call of a name (its ``when``-th, from 1)."""
    return attach(pid, log, "-e", f"trace={name},getppid", "-e", f"inject={name}:{what}:when={when}")


def was_injected(log: Path) -> bool:
    """Whether strace has done to a call what it was to do; the marker, which it answers each time, aside."""
    lines = log.read_text("latin-1").splitlines()
    return any("(INJECTED)" in line and " getppid(" not in line for line in lines)


def calls(log: Path) -> list[Call]:
    """The calls of the steps, in order, from a list that ``attach_listing`` has made.

    Raises:
        ValueError: strace wrote a line that is not understood.
    """
    found: list[Call] = []
    counts: dict[str, int] = {}
    step = -1
    for name, arguments, result in _lines(log):
        if name == "getppid":
            step += result == str(MAGIC)  # the first answer ends the waiting
        elif step >= 0 and name not in _OTHERS:
            counts[name] = counts.get(name, 0) + 1
            found.append(Call(name, counts[name], step, arguments, result))
    return found


def _lines(log: Path) -> Iterator[tuple[str, str, str]]:
    """Name, arguments and result of each finished call; those that another thread interrupted are put together."""
    unfinished: dict[tuple[str, str], str] = {}
    for line in log.read_text("latin-1").splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if rest.startswith(("+++", "---")):
            continue
        if rest.endswith("<unfinished ...>"):
            name = rest.partition("(")[0]
            unfinished[pid, name] = rest.removesuffix("<unfinished ...>").rstrip()
            continue
        if resumed := re.match(r"<\.\.\. (\w+) resumed>(.*)", rest):
            rest = unfinished.pop((pid, resumed[1])) + resumed[2]
        match = _LINE.match(f"{pid} {rest}")
        if match is None:
            raise ValueError(f"strace wrote {line[:200]!r}")
        yield match[2], match[3], match[4]
