"""The models of a server by name and version, and whatever is asked of all of them at once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ebjr.errors import ProtocolError, UnknownModel, needs
from ebjr.serving.served import Served
from ebjr.serving.service import Service, told_of
from ebjr.serving.shared import Shared

with needs("serve", "serving"):
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest

EXTENSIONS = ("binary_tensor_data",)


class Repository:
    """Joint models by name and version, each with an engine, an admission and a knob of its own.

    `limits`, `audit_log`, `tracing` and `doors` are those of the server; `state` is a folder for
    what the monitors know, that of the audit log unless another is named. `options` are of each
    `Service`.

    ValueError: two models have one name, or one of `options` is out of range. OSError: `audit_log`
    cannot be written.
    """

    def __init__(
        self,
        models: Served | Sequence[Served],
        *,
        limits: Any = None,
        audit_log: Any = None,
        state: Any = None,
        tracing: Any = None,
        doors: Any = None,
        **options: Any,
    ) -> None:
        given = [models] if isinstance(models, Served) else list(models)
        names = [served.name for served in given]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two models are called {min(twice)!r}: give each its own name")
        self.shared = Shared(limits, audit_log, tracing, doors)
        self.limits, self.admission = self.shared.limits, self.shared.admission
        folder = Path(audit_log).parent if state is None and audit_log is not None else state
        self._options = options
        self._told: list[Callable[[], None]] = []
        self._named: Mapping[str, Mapping[str, Service]] = {}  # of each name, the newest first
        unnamed = CollectorRegistry()
        self._unnamed = Counter(
            "ebjr_requests", "Requests by status.", ["model", "status"], registry=unnamed
        )
        self._set([self._service(served, folder, len(given) > 1) for served in given])

    def _service(self, served: Served, folder: Any, several: bool) -> Service:
        if several and folder is not None:
            folder = Path(folder) / served.name
            folder.mkdir(exist_ok=True)
        return Service(served, self.shared, state=folder, **self._options)

    def _set(self, services: Iterable[Service]) -> None:
        """Serve these from now on; in the event loop, once it runs."""
        named: dict[str, dict[str, Service]] = {}
        for service in sorted(services, key=lambda one: int(one.version), reverse=True):
            named.setdefault(service.served.name, {})[service.version] = service
        self._named = dict(sorted(named.items()))
        for tell in self._told:
            tell()

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
        """The one service, which requests need not name; None where there are several, or none."""
        services = self.services
        return services[0] if len(services) == 1 else None

    def of(self, name: str, version: str = "") -> Service:
        """The service of a model, of its newest version unless one is named; else UnknownModel."""
        versions = self._named.get(name)
        if versions is None:
            raise UnknownModel(f"there is no model {name!r:.60} here; {self._names()}")
        if not version:
            return next(iter(versions.values()))
        if version not in versions:
            has = ", ".join(map(repr, versions))
            raise UnknownModel(f"there is no version {version!r:.60} of {name!r}; it has {has}")
        return versions[version]

    def meant(self, name: str | None, version: str = "") -> Service:
        """As `of`; where a request names no model, the one that there is."""
        if name is not None:
            return self.of(name, version)
        if (alone := self.alone) is None:
            raise ProtocolError(f"say which model is meant, with ?model=NAME: {self._names()}")
        return alone

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
        for service in self.services:
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

    def index(self) -> list[dict[str, str]]:
        """Which models the server has."""
        return [
            {"name": one.served.name, "version": one.version, "state": "READY"}
            for one in self.services
        ]

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """What the server says of a model; UnknownModel where there is none."""
        return self.of(name, version).model_metadata(sorted(self._named[name], key=int))

    def refuse(self, error: BaseException) -> tuple[int, str]:
        """As `Service.refuse`, of a request that has not named its model."""
        status, sentence = told_of(error)
        self.refused(status)
        return status, sentence

    def refused(self, status: int) -> None:
        """A request that has not named its model was answered with an error."""
        if (alone := self.alone) is not None:
            alone.refused(status)
        else:
            self._unnamed.labels("", str(status)).inc()

    def prometheus(self) -> tuple[bytes, str]:
        """All metrics as Prometheus reads them, and the type of that text."""
        for service in self.services:
            service.engine.tell()
        return generate_latest(self), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Any]:
        """The families of all models, each once, for prometheus-client."""
        known: dict[str, Any] = {}
        for families in (
            *(service.metrics.families() for service in self.services),
            self._unnamed.collect() if self.alone is None else (),
        ):
            for family in families:
                if family.name in known:
                    known[family.name].samples += family.samples
                else:
                    known[family.name] = family
        yield from known.values()
