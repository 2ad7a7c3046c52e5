"""What all services of a server share: limits, bytes, the audit log, traces, and the event loop."""

import math
import os
from typing import TYPE_CHECKING

from ebjr.serving.admission import Admission
from ebjr.serving.doors import Doors
from ebjr.serving.journal import Journal
from ebjr.serving.limits import Limits
from ebjr.serving.loop import Bell

if TYPE_CHECKING:  # an extra
    from ebjr.serving.tracing import Tracing


class Shared:
    """What there is once in a server, however many models it has.

    `admission` holds requests until it is known which model they ask; its bytes are those of all.
    OSError: `audit_log` cannot be written.
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
        self.bell = Bell()
        self.admission = Admission(bytes=self.limits.held_bytes, rows=math.inf, seconds=math.inf)

    def close(self) -> None:
        """End the log and the traces."""
        if self.journal is not None:
            self.journal.close()
        if self.tracing is not None:
            self.tracing.close()
