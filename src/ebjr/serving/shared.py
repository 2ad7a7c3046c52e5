"""What all services of a server share: limits, memory, the audit log, traces, the event loop."""

import math
import os
from typing import TYPE_CHECKING

from ebjr.serving.admission import Admission
from ebjr.serving.doors import Doors
from ebjr.serving.journal import Journal
from ebjr.serving.lanes import Lanes
from ebjr.serving.limits import Limits
from ebjr.serving.loop import Bell
from ebjr.serving.tls import Tls

if TYPE_CHECKING:  # an extra
    from ebjr.serving.tracing import Tracing


class Shared:
    """The parts that a server has once, for all its models.

    `admission` holds requests until their model is known; its bytes count for the whole server.
    OSError if `audit_log` cannot be written.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        audit_log: str | os.PathLike[str] | None = None,
        tracing: "Tracing | None" = None,
        doors: Doors | None = None,
    ) -> None:
        self.limits = Limits() if limits is None else limits
        self.journal = None if audit_log is None else Journal(audit_log)
        self.tracing, self.doors = tracing, Doors() if doors is None else doors
        self.bell, self.lanes = Bell(), Lanes()
        self.tls: Tls | None = None  # for the metrics
        self.admission = Admission(bytes=self.limits.held_bytes, rows=math.inf, seconds=math.inf)

    def close(self) -> None:
        """Stop the lanes, and close the audit log and the traces."""
        self.lanes.stop()
        if self.journal is not None:
            self.journal.close()
        if self.tracing is not None:
            self.tracing.close()
