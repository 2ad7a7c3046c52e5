"""The models of a server by name and version: loaded, reloaded, let go, and asked together."""

import asyncio
import ctypes
import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import ref

from ebjr.errors import EbjrError, ProtocolError, UnknownModel, needs
from ebjr.serving.limits import Refused
from ebjr.serving.served import Served
from ebjr.serving.service import Service, told_of
from ebjr.serving.shared import Shared
from ebjr.serving.sources import Files, Folder, Found, wrong_name
from ebjr.serving.warmup import check_labels, warm_up

with needs("serve", "serving"):
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest

EXTENSIONS = (
    *("binary_tensor_data", "classification"),
    *("model_repository", "model_configuration", "statistics"),
)
NONE: Mapping[str, Any] = MappingProxyType({})
DRAIN_SECONDS = 300.0  # that a model which was let go waits for its requests
LOOK_SECONDS = 0.02  # how often it looks whether they are answered
FORGETS = 10  # how often it is tried to forget one
UNLOADED = "unloaded"

Models = Served | Sequence[Served] | Files | Folder

log = logging.getLogger("ebjr.serving")


class Slot:
    """A place for one version of a model: its service, or why there is none."""

    def __init__(self, name: str, found: Found | None = None) -> None:
        self.name, self.found = name, found
        self.version = "1" if found is None else found.version
        self.service: Service | None = None
        self.loading = False
        self.reason: str | None = None  # also of a file that is not served in place of another

    def about(self) -> dict[str, str]:
        """What the index says of it."""
        state = "READY" if self.service else "LOADING" if self.loading else "UNAVAILABLE"
        known = {"name": self.name, "version": self.version, "state": state}
        return known if self.reason is None else {**known, "reason": self.reason}


class Repository:
    """Joint models by name and version, each with an engine, an admission and a knob of its own.

    `models` are what is served, or say where it comes from; they are loaded at once, and started by
    `start`. With `warm_up` each answers a first batch before it is served. `limits`, `audit_log`,
    `tracing` and `doors` are those of the server; `state` is a folder for what the monitors know,
    that of the audit log unless another is named. `options` are of each `Service`. What is changed
    later is changed in the event loop.

    ValueError: two models have one name, or one of `options` is out of range. OSError: `audit_log`
    or a model's file cannot be opened. Of a `Folder` the models that are wrong are not served; that
    none can be is a ValueError.
    """

    def __init__(
        self,
        models: Models,
        *,
        limits: Any = None,
        audit_log: Any = None,
        state: Any = None,
        tracing: Any = None,
        doors: Any = None,
        warm_up: bool = False,
        **options: Any,
    ) -> None:
        self.shared = Shared(limits, audit_log, tracing, doors)
        sizes = options.get("student_batch", 32), options.get("teacher_batch", 64)
        self._first_rows = max(sizes) if warm_up else 0
        self.limits, self.admission = self.shared.limits, self.shared.admission
        self._state = Path(audit_log).parent if state is None and audit_log is not None else state
        self._options = options
        self._told: list[Callable[[], None]] = []
        self._named: Mapping[str, Mapping[str, Service]] = {}  # of each name, the newest first
        self._turn = asyncio.Lock()  # one change at a time
        self._unloaded: set[str] = set()  # names, until one of their versions is loaded
        self._leaving: set[Service] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        unnamed = CollectorRegistry()
        self._unnamed = Counter(
            "ebjr_requests", "Requests by status.", ["model", "status"], registry=unnamed
        )
        self._source = models if isinstance(models, Files | Folder) else None
        self._slots: list[Slot] = []
        try:
            if isinstance(models, Files | Folder):
                self.many = models.many
                self._fill(models)
            else:
                given = [models] if isinstance(models, Served) else list(models)
                self.many = len(given) > 1
                for served in given:
                    slot = self._new(served.name, None)
                    slot.service = self._service(slot, served)
        except BaseException:
            self.shared.close()
            raise
        self._set()

    def _fill(self, source: Files | Folder) -> None:
        """Load what there is at first."""
        for found in source.find():
            if isinstance(source, Files):
                config = found.read()
                slot = self._new(config.name, found)
                slot.service = self._service(slot, source.load(config))
                continue
            slot = self._new(str(found.called), found)
            with suppress(Refused):  # the log and the index say why
                slot.service = self._read(slot, found)
        if not any(slot.service for slot in self._slots):
            reasons = "; ".join(f"{slot.name}: {slot.reason}" for slot in self._slots)
            raise ValueError(f"none of the models can be served: {reasons}")

    def _new(self, name: str, found: Found | None) -> Slot:
        if (wrong := wrong_name(name)) is not None:
            raise ValueError(wrong if found is None else f"{found.file}: {wrong}")
        slot = Slot(name, found)
        if any((one.name, one.version) == (name, slot.version) for one in self._slots):
            raise ValueError(f"two models are called {name!r}: give each its own name")
        self._slots.append(slot)
        return slot

    def _service(self, slot: Slot, served: Served) -> Service:
        """A service of a slot, after the one that it has."""
        state = self._state
        if slot.found is not None and slot.found.numbered:
            served.version = slot.version
        if self.many and state is not None:
            state = Path(state) / slot.name / (served.version or "")
            state.mkdir(parents=True, exist_ok=True)
        check_labels(served)
        if self._first_rows:
            warm_up(served, self._first_rows)
        own: dict[str, Any] = {"version": slot.version, "after": slot.service}
        return Service(served, self.shared, state=state, **own, **self._options)

    def _read(self, slot: Slot, found: Found) -> Service | None:
        """A service of what a file says now; None where it is the slot's own, or that took it over.

        Refused: it cannot be served, and the slot is as it was.
        """
        slot.loading = slot.service is None
        try:
            config = found.read()
            if config.name != slot.name:
                raise ValueError(
                    f"{found.file} now calls its model {config.name!r}: start the server again"
                )
            old = slot.service
            if old is not None and not old.served.differs(config):
                config.student.check()
                config.teacher.check()
                old.reload(config)
                service = None
            else:
                assert self._source is not None
                service = self._service(slot, self._source.load(config))
        except Exception as error:
            known = isinstance(error, EbjrError | ValueError | TypeError | OSError)
            kind = "" if known else f"{type(error).__name__}: "
            slot.reason = " ".join(f"{kind}{error}".split())
            what = f"{slot.name} cannot be loaded"
            if slot.service is not None:
                what = f"{slot.name} stays as it is"
            log.error("%s: %s", what, slot.reason, exc_info=not known)
            raise Refused(400, f"{what}: {slot.reason}") from error
        finally:
            slot.loading = False
        slot.reason = None
        return service

    def _set(self) -> None:
        """Send requests to what the slots have from now on."""
        named: dict[str, dict[str, Service]] = {}
        ready = [slot.service for slot in self._slots if slot.service is not None]
        for service in sorted(ready, key=lambda one: int(one.version), reverse=True):
            named.setdefault(service.served.name, {})[service.version] = service
        self._named = dict(sorted(named.items()))
        for tell in self._told:
            tell()

    async def load(self, name: str, parameters: Mapping[str, Any] = NONE) -> None:
        """Load a model, or take over what its files say now, as far as that can be served.

        UnknownModel: there is none of this name. Refused: it cannot be, and what was served is.
        """
        if parameters:
            raise Refused(
                400, "a model is loaded as its joint.toml says: change that, and send no parameters"
            )
        async with self._turn:
            known = [slot for slot in self._slots if slot.name == name]
            if self._source is None and known:
                raise Refused(400, f"{name!r:.60} came from no joint.toml: there is none to load")
            if isinstance(self._source, Folder) or self._source is None or not known:
                source = self._source or Files()
                found = await asyncio.to_thread(source.find_one, name)
            else:
                found = [slot.found for slot in known if slot.found is not None]
            await self._take(found, known, again=True)

    async def look(self) -> None:
        """Take over what all files say now; the log says what cannot be, and all that stays."""
        if self._source is None:
            return
        async with self._turn:
            found = await asyncio.to_thread(self._source.find)
            with suppress(Refused):
                await self._take(found, list(self._slots))

    async def _take(
        self, found: Sequence[Found], known: Sequence[Slot], again: bool = False
    ) -> None:
        """Serve what was found of the slots that are `known`, and of new ones; let go of others."""
        wrong: Refused | None = None
        left = {slot.found and slot.found.key: slot for slot in known}
        for each in found:
            slot = left.pop(each.key, None)
            if slot is None:
                slot = self._new(str(each.called), each)
            if slot.name in self._unloaded and not again:
                slot.reason = slot.reason or UNLOADED
                continue
            try:
                service = await asyncio.to_thread(self._started, slot, each)
            except Refused as error:
                wrong = wrong or error
                continue
            self._unloaded.discard(slot.name)
            slot.found = each
            if service is not None:
                old, slot.service = slot.service, service
                self._set()
                log.info("%s is served, version %s", slot.name, slot.version)
                if old is not None:
                    self._let_go(old, replaced=True)
        for slot in left.values():
            self._slots.remove(slot)
            self._unload(slot)
        if wrong is not None:
            raise wrong

    def _started(self, slot: Slot, found: Found) -> Service | None:
        service = self._read(slot, found)
        if service is not None:
            service.start()
        return service

    async def unload(self, name: str, parameters: Mapping[str, Any] = NONE) -> None:
        """Take no more requests for a model; those at work are answered, and it is let go of.

        Of `parameters` there is ``unload_dependents``: no model depends on another.
        """
        own = parameters.get("unload_dependents", False)
        if parameters.keys() - {"unload_dependents"} or not isinstance(own, bool):
            raise Refused(400, "to unload a model takes no parameter but unload_dependents")
        async with self._turn:
            slots = [slot for slot in self._slots if slot.name == name]
            if not slots:
                raise UnknownModel(f"there is no model {name!r:.60} here; {self._names()}")
            self._unloaded.add(name)
            for slot in slots:
                slot.reason = UNLOADED
                self._unload(slot)

    def _unload(self, slot: Slot) -> None:
        service, slot.service = slot.service, None
        self._set()
        if service is not None:
            log.info("%s is served no more, version %s", slot.name, slot.version)
            self._let_go(service)

    def _let_go(self, service: Service, replaced: bool = False) -> None:
        """Answer what a service has at work, and forget it; nobody asks it any more."""
        if replaced:
            service.monitor.yield_state()
        self._leaving.add(service)
        task = asyncio.get_running_loop().create_task(self._drained(service))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drained(self, service: Service) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + DRAIN_SECONDS
        await asyncio.to_thread(service.rest)
        while service.admission.open and clock() < end:
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.to_thread(service.stop)
        self._leaving.discard(service)
        gone = ref(service)
        del service
        for _ in range(FORGETS):  # a thread that has done with it may know it for a moment
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(_give_memory_back)
            if gone() is None:
                return
        log.warning("a model that is served no more is still known, and takes memory")

    def watch(self, tell: Callable[[], None]) -> None:
        """Call this now, and whenever other services are there."""
        self._told.append(tell)
        tell()

    @property
    def services(self) -> list[Service]:
        """All that is served now."""
        return [service for versions in self._named.values() for service in versions.values()]

    @property
    def alone(self) -> Service | None:
        """The newest version of the one model, which requests need not name; None of several."""
        if len(self._named) != 1:
            return None
        (versions,) = self._named.values()
        return next(iter(versions.values()))

    def of(self, name: str, version: str = "") -> Service:
        """The service of a model, of its newest version unless one is named; else UnknownModel."""
        versions = self._named.get(name, {})
        if version in versions:
            return versions[version]
        if versions and not version:
            return next(iter(versions.values()))
        slots = [slot for slot in self._slots if slot.name == name]
        if reasons := [slot.reason for slot in slots if slot.version == version or not version]:
            raise UnknownModel(f"{name!r} is not served now: {reasons[-1] or 'it is being loaded'}")
        if slots:
            has = ", ".join(repr(slot.version) for slot in slots)
            raise UnknownModel(f"there is no version {version!r:.60} of {name!r}; it has {has}")
        raise UnknownModel(f"there is no model {name!r:.60} here; {self._names()}")

    def meant(self, name: str | None, version: str = "") -> Service:
        """As `of`; where a request names no model, the one that there is."""
        if name is not None:
            return self.of(name, version)
        if (alone := self.alone) is None:
            raise ProtocolError(f"say which model is meant, with ?model=NAME: {self._names()}")
        return self.of(alone.served.name, version)

    def _names(self) -> str:
        names = ", ".join(map(repr, self._named))
        if not names:
            return "no model is served now"
        return f"the model{'s are' if len(self._named) > 1 else ' is'} called {names}"

    def start(self) -> None:
        """Start to answer."""
        for service in self.services:
            service.start()

    def stop(self) -> None:
        """Answer what waits, and end."""
        for service in (*self.services, *self._leaving):
            service.stop()
        self.shared.close()

    @property
    def not_ready(self) -> str | None:
        """Why the server is not ready for all that is asked; None where it is."""
        return next((why for one in self.services if (why := one.not_ready) is not None), None)

    def server_metadata(self) -> dict[str, Any]:
        """What the server says of itself."""
        from ebjr import __version__

        return {"name": "ebjr", "version": __version__, "extensions": [*EXTENSIONS]}

    def index(self, ready: bool = False) -> list[dict[str, str]]:
        """Which models the server has; those alone that answer, if they are to be `ready`."""
        slots = sorted(self._slots, key=lambda slot: (slot.name, int(slot.version)))
        return [slot.about() for slot in slots if slot.service or not ready]

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """What the server says of a model; UnknownModel where there is none."""
        return self.of(name, version).model_metadata(sorted(self._named[name], key=int))

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """What a model takes and gives, as Triton's clients ask it."""
        return self.of(name, version).model_config()

    def model_statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """What a model, or each, has done so far, by version unless one is named."""
        if name:
            self.of(name, version)
        services = [
            one
            for versions in self._named.values()
            for one in reversed([*versions.values()])
            if name in ("", one.served.name) and version in ("", one.version)
        ]
        return {"model_stats": [service.model_statistics() for service in services]}

    def refuse(self, error: BaseException) -> tuple[int, str]:
        """As `Service.refuse`, of a request that has not named its model."""
        status, sentence = told_of(error)
        self.refused(status)
        return status, sentence

    def refused(self, status: int) -> None:
        """A request that has not named its model was answered with an error."""
        if (alone := self.alone) is not None and not self.many:
            alone.refused(status)
        else:
            self._unnamed.labels("", str(status)).inc()

    def prometheus(self) -> tuple[bytes, str]:
        """All metrics as Prometheus reads them, and the type of that text."""
        for service in self.services:
            service.engine.tell()
        return generate_latest(self), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Any]:
        """The families of all models, each once, for prometheus-client.

        Where versions are numbered, samples have them as a label, too.
        """
        known: dict[str, Any] = {}
        numbered = {slot.service: slot.found and slot.found.numbered for slot in self._slots}
        for service in self.services:
            own = {"version": service.version} if numbered[service] else {}
            for family in service.metrics.families():
                if own:
                    family.samples = [
                        sample._replace(labels={**sample.labels, **own})
                        for sample in family.samples
                    ]
                _add(known, family)
        if self.many:
            for family in self._unnamed.collect():
                _add(known, family)
        yield from known.values()


def _give_memory_back() -> None:
    """Forget services, which know themselves, and let the system have what their weights took."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc keeps what is free in pieces
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _add(known: dict[str, Any], family: Any) -> None:
    if family.name in known:
        known[family.name].samples += family.samples
    else:
        known[family.name] = family
