"""The version of this vmferry."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("vmferry")
except PackageNotFoundError:  # run from a tree that was never installed
    VERSION = "0+unknown"
