"""Read this first: each technology as a literal list of steps.

The seed of 2009 numbers its steps; the same story stands here in the same order: snapshot the running VM,
copy the base while it runs, save its state, move the small rest and merge it, point the VM at the new place,
resume. What differs between technologies is the cut-over.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmferry.migration.saga import Strategy
from vmferry.migration.steps.clock import SetClock
from vmferry.migration.steps.copying import CompareBase, CopyBase, CopyFiles, Promote
from vmferry.migration.steps.definition import Point, PointOffline, Settle
from vmferry.migration.steps.freeze import Freeze
from vmferry.migration.steps.mirror import Mirror, Pivot
from vmferry.migration.steps.relocation import Announce, Arrive, Migrate, Relinquish, StillOff
from vmferry.migration.steps.reserve import KeepDefined, Reserve
from vmferry.migration.steps.retire import Retire
from vmferry.migration.steps.rounds import Rounds
from vmferry.migration.steps.saved_state import CopyLast, FoldLast, Restore, Resume, Save
from vmferry.model import Technology

STRATEGIES: Mapping[Technology, Strategy] = {
    Technology.LIVE: Strategy(
        steps=(
            Reserve(),
            KeepDefined(),
            Freeze(),
            CopyBase(),
            CompareBase(),
            Promote(),
            Rounds(Technology.LIVE),
            Mirror(),
            Pivot(),
            Settle(),
            Retire(),
        ),
        point_of_no_return="Pivot",
    ),
    Technology.QUICK: Strategy(
        steps=(
            Reserve(),
            KeepDefined(),
            Freeze(),
            CopyBase(),
            CompareBase(),
            Promote(),
            Rounds(Technology.QUICK),
            Save(),
            CopyLast(),
            FoldLast(),
            CopyFiles(),
            Point(),
            Restore(),
            Resume(),
            Settle(),
            SetClock(),
            Retire(),
        ),
        point_of_no_return="Resume",
    ),
    Technology.OFFLINE: Strategy(
        steps=(
            Reserve(),
            CopyBase(),
            CompareBase(),
            Promote(),
            CopyFiles(),
            PointOffline(),
            Settle(),
            Retire(),
        ),
        point_of_no_return="PointOffline",
    ),
    Technology.LIVE_RELOCATION: Strategy(
        steps=(
            Reserve(),
            KeepDefined(),
            Announce(),
            Freeze(),
            CopyBase(),
            CompareBase(),
            Promote(),
            Rounds(Technology.LIVE_RELOCATION),
            CopyFiles(),
            Relinquish(),
            Migrate(),
            Arrive(),
            Settle(),
            Retire(),
        ),
        point_of_no_return="Migrate",
    ),
    Technology.QUICK_RELOCATION: Strategy(
        steps=(
            Reserve(),
            KeepDefined(),
            Announce(),
            Freeze(),
            CopyBase(),
            CompareBase(),
            Promote(),
            Rounds(Technology.QUICK_RELOCATION),
            Save(),
            CopyLast(),
            FoldLast(),
            CopyFiles(),
            Relinquish(),
            Restore(),
            Resume(),
            Arrive(),
            Settle(),
            SetClock(),
            Retire(),
        ),
        point_of_no_return="Resume",
    ),
    Technology.LAN: Strategy(
        steps=(
            Reserve(),
            Announce(),
            CopyBase(),
            CompareBase(),
            Promote(),
            CopyFiles(),
            Relinquish(),
            StillOff(),
            Arrive(cold=True),
            Settle(),
            Retire(),
        ),
        point_of_no_return="Arrive",
    ),
}
