"""The models of a server by name and version: loaded, reloaded, unloaded, and reported together."""

import asyncio
import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import ref

from ebjr.errors import EbjrError, ProtocolError, UnknownModel, needs
from ebjr.protocol import wrong_name
from ebjr.serving.limits import Refused
from ebjr.serving.memory import return_freed
from ebjr.serving.served import Served
from ebjr.serving.service import Service, told_of
from ebjr.serving.shared import Shared
from ebjr.serving.sources import Files, Folder, Found
from ebjr.serving.warmup import check_labels, warm_up

with needs("serve", "serving"):
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
    from prometheus_client.core import GaugeMetricFamily

EXTENSIONS = (
    *("binary_tensor_data", "classification"),
    *("model_repository", "model_configuration", "statistics"),
)
NONE: Mapping[str, Any] = MappingProxyType({})
DRAIN_SECONDS = 300.0  # that an unloaded model waits for its requests
LOOK_SECONDS = 0.02  # between checks whether they are answered
FORGETS = 10  # attempts to free an unloaded model's memory
UNLOADED = "unloaded"

Models = Served | Sequence[Served] | Files | Folder

log = logging.getLogger("ebjr.serving")


class Slot:
    """One version of a model: its service, or the reason why there is none."""

    def __init__(self, name: str, found: Found | None = None) -> None:
        self.name, self.found = name, found
        self.version = "1" if found is None else found.version
        self.service: Service | None = None
        self.loading = False
        self.reason: str | None = None  # also set while a broken new file leaves the old model

    def about(self) -> dict[str, str]:
        """Return the index entry."""
        state = "READY" if self.service else "LOADING" if self.loading else "UNAVAILABLE"
        known = {"name": self.name, "version": self.version, "state": state}
        return known if self.reason is None else {**known, "reason": self.reason}


class Repository:
    """Joint models by name and version, each with its own engine, admission and knob.

    `models` are loaded at once; `start` starts them. With `warm_up` each answers a first batch
    before it is served. `limits`, `audit_log`, `tracing` and `doors` are those of the server. The
    monitors keep their state in the folder `state`, by default that of the audit log. `taken`
    returns an address that a model of some name would share, if there is one. `options` go to each
    `Service`. Later changes run in the event loop. Broken models of a `Folder` are skipped.

    Raises
    ------
    ValueError
        Two models have one name, no model of a `Folder` can be served, or an option is out of
        range.
    OSError
        `audit_log` or a model's file cannot be opened.
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
        taken: Callable[[str], str | None] = lambda name: None,
        **options: Any,
    ) -> None:
        self._taken = taken
        self.shared = Shared(limits, audit_log, tracing, doors)
        sizes = options.get("student_batch", 32), options.get("teacher_batch", 64)
        self._first_rows = max(sizes) if warm_up else 0
        self.limits, self.admission = self.shared.limits, self.shared.admission
        self._state = Path(audit_log).parent if state is None and audit_log is not None else state
        self._options = options
        self._told: list[Callable[[], None]] = []
        self._named: Mapping[str, Mapping[str, Service]] = {}  # by name, newest version first
        self._turn = asyncio.Lock()  # one change at a time
        self._unloaded: set[str] = set()  # names that only a new load brings back
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
        """Load the models of a source at the start."""
        for found in source.find():
            if isinstance(source, Files):
                config = found.read()
                slot = self._new(config.name, found)
                slot.service = self._service(slot, source.load(config))
                continue
            slot = self._new(str(found.called), found)
            with suppress(Refused):  # logged, and in the index
                slot.service = self._read(slot, found)
        if not any(slot.service for slot in self._slots):
            reasons = "; ".join(f"{slot.name}: {slot.reason}" for slot in self._slots)
            raise ValueError(f"none of the models can be served: {reasons}")

    def _new(self, name: str, found: Found | None) -> Slot:
        in_folder = found is not None and found.called is not None  # it may be broken, see `_read`
        if not in_folder and (wrong := self._wrong(name)) is not None:
            raise ValueError(wrong if found is None else f"{found.file}: {wrong}")
        slot = Slot(name, found)
        if any((one.name, one.version) == (name, slot.version) for one in self._slots):
            raise ValueError(f"two models are called {name!r}: give each its own name")
        self._slots.append(slot)
        return slot

    def _wrong(self, name: Any) -> str | None:
        """Return why a model cannot be called `name`; None if it can."""
        if (wrong := wrong_name(name)) is None and (address := self._taken(name)) is not None:
            return f"a model cannot be called {name!r}: {address} is another address of the server"
        return wrong

    def _service(self, slot: Slot, served: Served) -> Service:
        """Make the service of a slot, which continues the slot's present one."""
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
        """Make a service of a file; None if the slot's own service adopts the file.

        Refused if the file cannot be served; the slot is then unchanged.
        """
        slot.loading = slot.service is None
        try:
            if (wrong := self._wrong(slot.name)) is not None:
                raise ValueError(wrong)
            config = found.read()
            if config.name != slot.name:
                raise ValueError(
                    f"{found.file} now calls its model {config.name!r}: restart the server"
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
            reason = " ".join(f"{kind}{error}".split())
            slot.reason = found.shown(reason)
            what = f"{slot.name} cannot be loaded"
            if slot.service is not None:
                what = f"{slot.name} stays as it was"
            log.error("%s: %s", what, reason, exc_info=not known)
            raise Refused(400, f"{what}: {slot.reason}") from error
        finally:
            slot.loading = False
        slot.reason = None
        return service

    def _set(self) -> None:
        """Route requests to the services in the slots."""
        named: dict[str, dict[str, Service]] = {}
        ready = [slot.service for slot in self._slots if slot.service is not None]
        for service in sorted(ready, key=lambda one: int(one.version), reverse=True):
            named.setdefault(service.served.name, {})[service.version] = service
        self._named = dict(sorted(named.items()))  # swapped whole: readers take no lock
        for tell in self._told:
            tell()

    async def load(self, name: str, parameters: Mapping[str, Any] = NONE) -> None:
        """Load a model, or reload it from its files.

        UnknownModel if there is no model called `name`; Refused if it cannot be loaded, and what
        was served stays.
        """
        if parameters:
            raise Refused(
                400, "a model is loaded as its joint.toml says: edit that, and send no parameters"
            )
        async with self._turn:
            known = [slot for slot in self._slots if slot.name == name]
            if self._source is None and known:
                raise Refused(
                    400, f"{name!r:.60} came from no joint.toml, so it cannot be reloaded"
                )
            if isinstance(self._source, Folder) or self._source is None or not known:
                source = self._source or Files()
                found = await asyncio.to_thread(source.find_one, name)
            else:
                found = [slot.found for slot in known if slot.found is not None]
            await self._take(found, known, again=True)

    async def look(self) -> None:
        """Reload all files; what cannot be served is logged, and the old model stays."""
        if self._source is None:
            return
        async with self._turn:
            found = await asyncio.to_thread(self._source.find)
            with suppress(Refused):
                await self._take(found, list(self._slots))

    async def _take(
        self, found: Sequence[Found], known: Sequence[Slot], again: bool = False
    ) -> None:
        """Serve what was found, in the slots that are `known` or in new ones; unload the rest."""
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
            old, slot.service = slot.service, service or slot.service
            self._set()
            if service is not None:
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
        """Stop new requests to a model, answer those in progress, and free it.

        The only parameter is ``unload_dependents``, which has no effect: models do not depend on
        each other.
        """
        own = parameters.get("unload_dependents", False)
        if parameters.keys() - {"unload_dependents"} or not isinstance(own, bool):
            raise Refused(400, "unloading takes no parameter but unload_dependents, true or false")
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
            log.info("%s was unloaded, version %s", slot.name, slot.version)
            self._let_go(service)

    def _let_go(self, service: Service, replaced: bool = False) -> None:
        """Drain and free a service that gets no new requests."""
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
        for _ in range(FORGETS):  # a finished thread may hold a reference for a moment
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(_give_memory_back)
            if gone() is None:
                return
        log.warning("an unloaded model is still referenced and keeps its memory")

    def watch(self, tell: Callable[[], None]) -> None:
        """Call `tell` now, and at each change of the services."""
        self._told.append(tell)
        tell()

    @property
    def services(self) -> list[Service]:
        """All services, by name, newest version first."""
        return [service for versions in self._named.values() for service in versions.values()]

    @property
    def alone(self) -> Service | None:
        """The newest version of the only model; None if there are several."""
        if len(self._named) != 1:
            return None
        (versions,) = self._named.values()
        return next(iter(versions.values()))

    def of(self, name: str, version: str = "") -> Service:
        """Return the service of a model, by default its newest version; UnknownModel if none."""
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
        """Return the service as `of` does; without a name, that of the only model."""
        if name is not None:
            return self.of(name, version)
        if (alone := self.alone) is None:
            raise ProtocolError(f"name the model with ?model=NAME: {self._names()}")
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
        """Answer the queued requests, and stop."""
        for service in (*self.services, *self._leaving):
            service.stop()
        self.shared.close()

    @property
    def not_ready(self) -> str | None:
        """Why the server is not ready; None if it is."""
        return next((why for one in self.services if (why := one.not_ready) is not None), None)

    def server_metadata(self) -> dict[str, Any]:
        """Return the server's name, version and extensions."""
        from ebjr import __version__

        return {"name": "ebjr", "version": __version__, "extensions": [*EXTENSIONS]}

    def index(self, ready: bool = False) -> list[dict[str, str]]:
        """Return an entry for each model; with `ready`, only for those that answer."""
        slots = sorted(self._slots, key=lambda slot: (slot.name, int(slot.version)))
        return [slot.about() for slot in slots if slot.service or not ready]

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """Return a model's metadata; UnknownModel if there is none."""
        return self.of(name, version).model_metadata(sorted(self._named[name], key=int))

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """Return inputs and outputs as Triton's clients read them."""
        return self.of(name, version).model_config()

    def model_statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Return statistics of one model or all, in one version or each."""
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
        """Count an error as `Service.refuse` does, for a request whose model is not known."""
        status, sentence = told_of(error)
        self.refused(status)
        return status, sentence

    def refused(self, status: int) -> None:
        """Count an error answer to a request whose model is not known."""
        if (alone := self.alone) is not None and not self.many:
            alone.refused(status)
        else:
            self._unnamed.labels("", str(status)).inc()

    def prometheus(self) -> tuple[bytes, str]:
        """Return all metrics in Prometheus' text format, and its content type."""
        for service in self.services:
            service.engine.tell()
        return generate_latest(self), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Any]:
        """Yield each metric family once, for prometheus-client.

        Samples of numbered versions carry the version as a label.
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
        name, text = (
            "ebjr_certificate_expiry_timestamp_seconds",
            "When the TLS certificate expires.",
        )
        tls = self.shared.tls
        yield GaugeMetricFamily(name, text, value=None if tls is None else tls.expires)


def _give_memory_back() -> None:
    """Free services, which are reference cycles, and return their memory to the system."""
    gc.collect()
    return_freed()


def _add(known: dict[str, Any], family: Any) -> None:
    if family.name in known:
        known[family.name].samples += family.samples
    else:
        known[family.name] = family
