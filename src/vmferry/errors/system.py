"""What the operating system says, in words that a person can act on: a number in brackets helps nobody."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

_WORDS: Mapping[int, str] = {
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted, or not possible on that file system",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of its path is not a folder",
    errno.EISDIR: "it is a folder",
    errno.EEXIST: "it exists already",
    errno.ENOTEMPTY: "the folder is not empty",
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the quota there is used up",
    errno.EFBIG: "too large for that file system, or for this process's limit (ulimit -f)",
    errno.EROFS: "mounted read-only",
    errno.EIO: "the storage has failed (input/output error): look at the kernel's log",
    errno.ENAMETOOLONG: "the name is too long for that file system",
    errno.ELOOP: "too many symbolic links, or a link where none may be",
    errno.EMLINK: "the file has too many names already",
    errno.EXDEV: "on another file system",
    errno.EINVAL: "not possible on that file system",
    errno.EOPNOTSUPP: "not possible on that file system",
    errno.ENOSYS: "not possible with this kernel or file system",
    errno.ENOLCK: "no locks are left, or that file system has none",
    errno.EMFILE: "this process has too many files open (ulimit -n)",
    errno.ENFILE: "the machine has too many files open",
    errno.ESTALE: "the server no longer knows the file (stale handle): mount it anew",
    errno.EBUSY: "in use",
    errno.ETXTBSY: "in use as a program",
    errno.ENODEV: "no such device",
    errno.ENXIO: "no such device, or nobody at the other end",
    errno.ENOMEM: "no memory left",
    errno.ETIMEDOUT: "no answer in time",
    errno.EHOSTDOWN: "the host is down",
    errno.EHOSTUNREACH: "there is no way to that host",
    errno.ECONNREFUSED: "nobody listens there",
    errno.ECONNRESET: "the other end hung up",
    errno.EPIPE: "the other end hung up",
}


def said(error: OSError) -> str:
    """Return what the operating system means, without the file's name: "no space left"."""
    if error.errno is None:
        return str(error) or type(error).__name__
    return _WORDS.get(error.errno) or (error.strerror or os.strerror(error.errno)).lower()


def said_of_file(error: OSError) -> str:
    """Return what the operating system means, with the names of the files: "/san2/a.img: no space left"."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' and '.join(names)}: {said(error)}" if names else said(error)


def in_words(error: Exception) -> str:
    """Return what an error of any kind says, as a part of a sentence."""
    if isinstance(error, OSError):
        return said_of_file(error)
    return str(error) or repr(error)
