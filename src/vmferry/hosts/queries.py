"""Which methods of a host only look."""

from __future__ import annotations

# fmt: off
LOOKING = frozenset({
    "vms", "vm", "power", "active_image", "chains", "folder", "probe", "volume", "allocated", "exists", "entry",
    "users", "file_users", "leftovers", "unchanged_since", "mirrored", "mirroring", "saved", "spent",
    "definition", "definition_now", "mark_of", "misses", "lacks", "lacks_to_load", "lacks_to_start", "refusal",
    "content_of", "defined", "announced", "standing_s", "platform", "needs", "cpu", "cpu_fit", "cpu_baseline",
    "load", "arrived",
})
# fmt: on
"""The methods that change nothing. All others act: they carry a token, and an agent takes them one after another."""
