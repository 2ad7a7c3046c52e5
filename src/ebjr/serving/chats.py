"""The routes of chat completions, to whichever model a request names."""

from ebjr.errors import ProtocolError, needs
from ebjr.protocol import read_object
from ebjr.serving.admission import Hold
from ebjr.serving.bodies import LARGE_BYTES, aside
from ebjr.serving.chat import COMPLETIONS, MODELS, PREDICT, Chat
from ebjr.serving.infer import Headers, answered
from ebjr.serving.repository import Repository
from ebjr.serving.service import Question, Service

with needs("serve", "serving"):
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route


class Chats:
    """Chat completions of every model that can be asked by them."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._of: dict[Service, Chat] = {}
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
        return [Route(COMPLETIONS, self.complete, methods=["POST"])]

    @staticmethod
    def has(path: str) -> bool:
        """Whether OpenAI's clients ask at a path, and are to understand its errors."""
        own = path == MODELS or path.startswith(f"{MODELS}/")
        return path == COMPLETIONS or (own and not path.endswith(PREDICT))

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

    def read(self, body: bytes, headers: Headers) -> Question:
        """What a request asks: see `pick`, who is asked first."""
        return self.pick(body)[1].read(body, headers)

    def error(self, status: int, sentence: str) -> bytes:
        """A request's error as OpenAI's clients read it."""
        return Chat.error(status, sentence)
