"""A call: one question of any protocol, from its admission to its answer."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ebjr.data.preprocess import ImageFile
from ebjr.errors import DeadlineExceeded, Overloaded
from ebjr.serving.admission import Hold
from ebjr.serving.engine import Ticket
from ebjr.serving.events import Expired
from ebjr.serving.images import Encoded, decoded_images, is_large, opened_images, resize
from ebjr.serving.lanes import LARGE_BYTES, LARGE_PIXELS, Lane

if TYPE_CHECKING:
    from ebjr.serving.service import Service


class Wishes(NamedTuple):
    """A request's parameters; `timeout` is in seconds.

    `threshold` is None if the knob decides, and `priority` is that of `Engine.submit`.
    """

    threshold: float | None
    timeout: float
    priority: int = 0


class Question(NamedTuple):
    """What a request of any protocol asks; `write` makes the answer from the ticket."""

    inputs: Any
    wishes: Wishes
    write: Callable[[Ticket], Any]


class Call:
    """One question in progress: admitted, decoded, answered within its timeout, and released.

    `done` is called once, in the event loop, with what `write` made of the answer in a thread, or
    with the error; it is not called after `cancel`.
    """

    __slots__ = (
        *("ticket", "_service", "_wishes", "_hold", "_write", "_done", "_found"),
        *("_open", "_timeout", "_wait", "_trace"),
    )

    def __init__(
        self,
        service: "Service",
        question: Question,
        hold: Hold,
        done: Callable[[Any], None],
        *,
        within: float | None = None,
    ) -> None:
        _, self._wishes, self._write = question
        self._service, self._hold, self._done = service, hold, done
        timeout = self._wishes.timeout
        self._timeout = timeout if within is None else min(timeout, within)
        self.ticket: Ticket | None = None
        self._found: Any = None
        self._wait: asyncio.TimerHandle | None = None
        self._open = True

    def start(self, inputs: Any, size: int = 0) -> None:
        """Begin, in the event loop, holding `size` more bytes; raises the request's errors."""
        service = self._service
        service.admit(self._hold, inputs, size)
        tracing = service.tracing
        self._trace = None if tracing is None else tracing.current()
        self._wait = asyncio.get_running_loop().call_later(self._timeout, self._expire)
        service.bell.mute()
        try:
            if isinstance(inputs, list):  # encoded images, whose headers may be as long as they
                long = sum(map(len, inputs)) > LARGE_BYTES
                lane = service.lanes.large if long else service.lanes.small
                self._put(lane, partial(self._open_images, lane), inputs)
            elif service.served.fits and is_large(inputs[0]):
                self._put(service.lanes.large, self._resize, [*map(ImageFile.of, inputs)])
            else:
                self._submit(inputs)
        except BaseException:
            self.cancel()
            raise
        finally:
            service.bell.read()

    def _put(self, lane: Lane, work: Callable[[Any], None], given: Any) -> None:
        """Let a lane do a part of the call, whose errors are the call's."""

        def guarded() -> None:
            try:
                if self._open:
                    work(given)
            except Exception as error:
                self._give(error)
            self._service.bell.ring()

        lane.put(self._hold.client, guarded)

    def _open_images(self, lane: Lane, files: list[bytes]) -> None:
        large, most = self._service.lanes.large, self._service.limits.image_pixels
        opened = opened_images(files, most, self._hold)
        if lane is not large and sum(one.pixels for one in opened) > LARGE_PIXELS:
            self._put(large, self._decode, opened)
        else:
            self._decode(opened)

    def _decode(self, opened: list[Encoded]) -> None:
        self._resize(decoded_images(opened, self._hold))

    def _resize(self, images: list[ImageFile]) -> None:
        resize(images, self._service.served.fits, self._hold)
        self._submit(images)

    def _submit(self, inputs: Any) -> None:
        service = self._service
        self.ticket = service.engine.submit(
            inputs,
            threshold=self._wishes.threshold,
            priority=self._wishes.priority,
            client=self._hold.client,
            reply=self._reply,
            trace=self._trace,
            here=service.admission.rows <= 1,  # answering in the loop keeps no other request back
        )
        if not self._open:  # the client left while its images were decoded
            self.ticket.cancel()

    def _reply(self, ticket: Ticket) -> None:
        self.ticket = ticket
        if not self._open:
            return
        try:
            found = self._write(ticket)
        except Exception as error:
            found = error
        self._give(found)

    def _give(self, found: Any) -> None:
        self._found = found
        self._service.bell.post(self._end)

    def _end(self) -> None:
        found, self._found = self._found, None  # an error's frames refer to this call
        if self._open:
            self.cancel()
            self._done(found)

    def _expire(self) -> None:
        """Answer a timeout: with what the student said, if the policy allows that."""
        if self._found is not None:  # the answer is queued for the loop
            return
        if self._service.served.joint.late is None:
            self._hurry()
        else:  # keeping rows writes to the disk, which must not block the loop
            asyncio.get_running_loop().run_in_executor(None, self._hurry)

    def _hurry(self) -> None:
        service, ticket = self._service, self.ticket
        if ticket is not None:
            policy = service.served.joint.when_unavailable
            if policy != "error" and service.engine.hurry(ticket):
                return
            service.observers.observe(Expired(ticket, self._timeout))
        self._give(too_late(self._timeout))
        service.bell.ring()

    def forsake(self) -> None:
        """Mark the call as the first to drop when there is no room: its client may be gone."""
        if self._open:
            self._service.forsaken[self] = None

    def give_way(self) -> None:
        """Drop the call to make room, and tell its client, who may still be there."""
        self.cancel()
        self._done(Overloaded("the server needed room, and this client seemed to be gone", 1.0))

    def cancel(self) -> None:
        """Release everything, and drop the answer."""
        if self._open:
            self._open = False
            if self.ticket is not None:
                self.ticket.cancel()
            if self._wait is not None:
                self._wait.cancel()
            self._service.forsaken.pop(self, None)
            self._hold.end()


def too_late(seconds: float) -> DeadlineExceeded:
    """Return the error of a request that was not answered within its timeout."""
    short = " (timeout is in microseconds, timeout_seconds in seconds)" if seconds < 0.01 else ""
    return DeadlineExceeded(f"no answer within {seconds:g} s{short}; retry, or raise the timeout")
