"""The routes of chat completions, to whichever model a request names."""

import time
from typing import Any

from ebjr.errors import ProtocolError, UnknownModel, needs
from ebjr.protocol import read_object
from ebjr.serving.admission import Hold
from ebjr.serving.bodies import LARGE_BYTES, aside
from ebjr.serving.chat import COMPLETIONS, MODELS, Chat
from ebjr.serving.infer import Headers, answered
from ebjr.serving.repository import Repository
from ebjr.serving.service import Question, Service

with needs("serve", "serving"):
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route


class Chats:
    """Chat completions of every model that can be asked by them."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._of: dict[Service, Chat] = {}
        self._began = int(time.time())
        repository.watch(self._look)

    def _look(self) -> None:
        known = self._of
        self._of = {one: known.get(one) or Chat(one) for one in self._repository.services}

    @property
    def why_not(self) -> str | None:
        """Why the one model that there is cannot be asked; None where one of several may be."""
        alone = self._repository.alone
        return None if alone is None else self._of[alone].why_not

    def routes(self) -> list[Route]:
        """The routes of what there is; `why_not` says why there are none."""
        if self.why_not is not None:
            return []
        return [
            Route(COMPLETIONS, self.complete, methods=["POST"]),
            Route(MODELS, self.models),
            Route(f"{MODELS}/{{name}}", self.model),
        ]

    def has(self, path: str) -> bool:
        """Whether a path is one of these."""
        return path in (COMPLETIONS, MODELS) or path.startswith(f"{MODELS}/")

    def pick(self, body: bytes) -> tuple[Service, Chat]:
        """Whom a request asks; ProtocolError or UnknownModel where that is nobody."""
        service = self._repository.alone
        if service is None:
            name = read_object(body).get("model")
            if not isinstance(name, str):
                raise ProtocolError("'model' must be the name of the model, a string")
            service = self._repository.of(name)
        return service, self._of[service]

    async def complete(self, request: Request) -> Response:
        """Answer a request that came by a route."""

        async def read(raw: bytes, headers: Headers, hold: Hold) -> tuple[Service, Question]:
            if len(raw) > LARGE_BYTES:
                hold.add(bytes=len(raw))  # the text beside the body
            service, chat = await aside(len(raw), self.pick, raw)
            hold.move(service.admission)
            return service, await aside(len(raw), chat.read, raw, headers)

        return await answered(request, self._repository, read)

    async def models(self, _request: Request) -> Response:
        """The models that can be asked."""
        names = dict.fromkeys(
            one.served.name for one, chat in self._of.items() if chat.why_not is None
        )
        return JSONResponse({"object": "list", "data": [self._about(name) for name in names]})

    async def model(self, request: Request) -> Response:
        """The model of that name."""
        service = self._repository.of(request.path_params["name"])
        if (why_not := self._of[service].why_not) is not None:
            raise UnknownModel(why_not)
        return JSONResponse(self._about(service.served.name))

    def _about(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "ebjr"}

    def read(self, body: bytes, headers: Headers) -> Question:
        """What a request asks: see `pick`, who is asked first."""
        return self.pick(body)[1].read(body, headers)

    def error(self, status: int, sentence: str) -> bytes:
        """A request's error as OpenAI's clients read it."""
        return Chat.error(status, sentence)
