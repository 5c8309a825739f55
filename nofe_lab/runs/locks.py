"""Locks among all processes that share a folder, on one host or on many.

A lock has two halves, and its holder has both:

- **flock** on ``NAME.lock``, which the kernel gives back when a process ends in any way.  On
  network file systems it may hold within one host only (NFS with ``nolock``, SMB, FUSE, Lustre with
  ``localflock``), or be missing (Lustre as a rule); then it is left out.
- **A lease**, the file ``NAME.lease-7`` with the highest number.  To take the lock is to create the
  next number, which only one process can (O_EXCL).  The holder touches its file three times in each
  LEASE; a lease that was not touched for so long is free.

Both are taken everywhere, because no host can see what the others do: an NFS server finds its own
disk under the folder, and its flock does not know of those of its clients.  So nothing has to be
agreed on, and one process holds the lock wherever either half works.

Why exclusive creation is enough for the lease: the highest number never sinks, since only lower
ones are removed, and a number above it is created once.  A process that looked long ago may create
a number below the highest; it sees that, and withdraws.  (To take over a lease of filelock, two
names are swapped, which NFS, SMB and FUSE refuse: there it would never end.)

Clocks are not compared.  Who waits for a lease watches, by its own monotonic clock, whether the
file changes.  It need not wait if the holder had a flock in the same kernel and mount where it has
that flock now, and the file system refuses it to a second handle: then the holder is dead.

A process that was suspended for longer than LEASE may have lost its lock, and asks with `check`
before it writes.  If it is suspended again between the two, it still replaces whole files by whole
files.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from nofe_lab.config import InvalidInput, printable
from nofe_lab.files import UnreadableFile, check_no_link, read_text
from nofe_lab.log import log

LEASE = 60.0
"""Seconds after which a lease that its holder does not renew is free.  All versions that share a
folder need the same."""

POLL = 0.2
"""Seconds between two looks at a lock that is held."""

FREE = "free\n"
"""The beginning of a lease that was given back."""

_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Errors of file systems that have no flock."""


class Held(Exception):
    """Another process holds a lock; the text says which, as ``process 12 on some-host``."""


class LockLost(InvalidInput):
    """Another process has taken over a lock that this one held."""


class _Lease(NamedTuple):
    number: int  # 0: there is none
    content: str
    changed: tuple[int, int]

    @property
    def who(self) -> str:
        """The holder, as it is named in messages."""
        lines = self.content.splitlines()
        return printable(lines[0]) if lines and not self.is_free else "another process"

    @property
    def is_free(self) -> bool:
        """Whether it was given back, or there never was one."""
        return self.content.startswith(FREE)

    @property
    def domain(self) -> str:
        """Within what the holder's flock excludes others; "" if it has none."""
        return "".join(self.content.splitlines()[1:2])


class Lock:
    """A lock that this process holds; see `locked`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._number, self._content = 0, FREE
        self._flock: FileLock | None = self._new_flock()
        self._seen: tuple[_Lease, float] | None = None
        self._holder_lives = False
        self._released = threading.Event()

    def check(self) -> None:
        """Renew the lease.  Raises LockLost if another process has taken it over, or OSError."""
        is_gone = False
        try:
            self._touch()
        except OSError as error:
            is_gone = error.errno in (errno.ENOENT, errno.ESTALE)
            if not is_gone:
                raise
        newest = self._newest()
        if is_gone or (newest.number, newest.content) != (self._number, self._content):
            taken = newest.number > self._number
            raise LockLost(
                f"the lock of {self.path.name!r} is lost: "
                + (f"{newest.who} has taken it over" if taken else "its file was removed")
                + f", perhaps because this process stood still for more than {LEASE:.0f} s; "
                "nothing more is written here: run this again to go on from what is there then."
            )

    def acquire(self, wait: Callable[[str], object] | None, patient: bool) -> None:
        """Take the lock; see `locked`."""
        try:
            for look in count():
                if self._take():
                    break
                if wait is not None:
                    if look % round(1 / POLL) == 0:
                        wait(self._newest().who)
                elif self._holder_lives or not patient:
                    raise Held(self._newest().who)
                elif look == 0:
                    who = self._newest().who
                    log.info(f"waiting up to {LEASE:.0f} s for a sign of life of {who}")
                time.sleep(POLL)
            renew = threading.Thread(target=self._renew, name=f"lease {self.path}", daemon=True)
            renew.start()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the lock back."""
        self._released.set()
        if self._number:
            with suppress(OSError):  # it was taken over and removed
                self._write(self._number, FREE)  # in place: a full disk takes it too
        if self._flock is not None:
            self._flock.release()

    def _take(self) -> bool:
        if self._flock is not None and not self._flock.is_locked:
            try:
                self._flock.acquire(timeout=0)
            except Timeout:
                self._holder_lives = True  # or the kernel would have given its flock back
                return False
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
                self._flock = None
        newest = self._newest()
        if not self._is_free(newest):
            return False
        number = newest.number + 1
        domain = self._domain() if self._flock is not None else ""
        content = f"process {os.getpid()} on {printable(socket.gethostname())}\n{domain}\n"
        try:
            self._write(number, content, os.O_CREAT | os.O_EXCL)
        except FileExistsError:  # another process was faster
            return False
        except BaseException:  # a full disk, for example
            self._remove(number)
            raise
        numbers = self._numbers()
        is_highest = max(numbers, default=0) == number
        for each in numbers:
            if each < number if is_highest else each == number:
                self._remove(each)
        if is_highest:
            self._number, self._content = number, content
        return is_highest

    def _is_free(self, newest: _Lease) -> bool:
        """Whether a lease was given back, or its holder is dead or has been silent for LEASE."""
        if newest.is_free:
            return True
        if self._flock is not None and newest.domain == self._domain() and self._flock_excludes():
            return True
        now = time.monotonic()
        if self._seen is None or self._seen[0] != newest:
            self._holder_lives = self._seen is not None
            self._seen = newest, now
        return now - self._seen[1] >= LEASE

    def _flock_excludes(self) -> bool:
        """Try the file system: whether it refuses the flock that we have to a second handle."""
        second = self._new_flock()
        try:
            second.acquire(timeout=0)
        except Timeout:
            return True
        second.release()
        return False

    def _domain(self) -> str:
        """Name the kernel and the mount, within which flock excludes if it does anywhere."""
        try:
            kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:  # not Linux
            kernel = socket.gethostname()
        return f"{kernel} {self.path.parent.stat().st_dev}"

    def _newest(self) -> _Lease:
        number = max(self._numbers(), default=0)
        content, changed = FREE, (0, 0)
        if number:
            try:  # opened first: then NFS asks its server for the times
                content = read_text(self._file(number), 1000)
            except UnreadableFile:  # or removed just now, by who has created the next
                content = ""
            with suppress(FileNotFoundError):
                status = self._file(number).lstat()
                changed = status.st_mtime_ns, status.st_ino
        return _Lease(number, content, changed)

    def _numbers(self) -> list[int]:
        lease = re.compile(rf"{re.escape(self.path.name)}\.lease-(\d+)")
        names = (lease.fullmatch(name) for name in os.listdir(self.path.parent))
        return [int(found[1]) for found in names if found]

    def _write(self, number: int, content: str, flags: int = 0) -> None:
        flags |= os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(self._file(number), flags, 0o666), "wb") as file:
            file.write(content.encode())

    def _remove(self, number: int) -> None:
        with suppress(OSError):
            self._file(number).unlink()

    def _file(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.lease-{number}")

    def _new_flock(self) -> FileLock:
        return FileLock(
            self.path.with_name(f"{self.path.name}.lock"), mode=0o666, fallback_to_soft=False
        )

    def _touch(self) -> None:
        follow = os.utime not in os.supports_follow_symlinks
        os.utime(self._file(self._number), follow_symlinks=follow)

    def _renew(self) -> None:
        while not self._released.wait(LEASE / 3):
            with suppress(OSError):  # for the moment, or lost: `check` tells
                self._touch()


@contextmanager
def locked(
    path: Path, wait: Callable[[str], object] | None = None, *, patient: bool = True
) -> Iterator[Lock]:
    """Hold the lock `path`, of which its files in that folder are made; makes the folder.

    While another process holds it, calls `wait` with its name each second.  Without `wait`, raises
    Held: at the holder's first sign of life, for which it waits up to LEASE seconds, or at once if
    not `patient`.  The lock of a process that died is free at once on its own host, and after LEASE
    seconds on others.
    Raises OSError if the folder cannot be written, InvalidInput if it is a link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_no_link(path.parent)
    lock = Lock(path)
    lock.acquire(wait, patient)
    try:
        yield lock
    finally:
        lock.release()
