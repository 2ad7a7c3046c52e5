"""The routes of chat completions, for every model of a server."""

from ebjr.errors import ProtocolError, needs
from ebjr.protocol import read_object
from ebjr.serving.admission import Hold
from ebjr.serving.call import Question
from ebjr.serving.chat import COMPLETIONS, MODELS, PREDICT, Chat
from ebjr.serving.infer import Headers, answered, parsed
from ebjr.serving.lanes import aside
from ebjr.serving.repository import Repository
from ebjr.serving.service import Service

with needs("serve", "serving"):
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route


class Chats:
    """Chat completions of all models that support them."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._of: dict[Service, Chat] = {}
        repository.watch(self._look)

    def _look(self) -> None:
        known = self._of
        self._of = {one: known.get(one) or Chat(one) for one in self._repository.services}

    @property
    def why_not(self) -> str | None:
        """Why the only model does not support chat completions; None if one of several may."""
        alone = self._repository.alone
        return None if alone is None else self._of[alone].why_not

    def routes(self) -> list[Route]:
        """Return the routes; none if `why_not` gives a reason."""
        if self.why_not is not None:
            return []
        return [Route(COMPLETIONS, self.complete, methods=["POST"])]

    @staticmethod
    def has(path: str) -> bool:
        """Whether a path belongs to OpenAI's API, whose clients read errors in its form."""
        own = path == MODELS or path.startswith(f"{MODELS}/")
        return path == COMPLETIONS or (own and not path.endswith(PREDICT))

    def pick(self, body: bytes) -> tuple[Service, Chat]:
        """Return the service that a request names; ProtocolError or UnknownModel if none."""
        service = self._repository.alone
        if service is None:
            name = read_object(body).get("model")
            if not isinstance(name, str):
                raise ProtocolError("'model' must be the name of the model, a string")
            service = self._repository.of(name)
        return service, self._of[service]

    async def complete(self, request: Request) -> Response:
        """Answer a request that arrived by a route."""

        async def read(raw: bytes, headers: Headers, hold: Hold) -> tuple[Service, Question]:
            service, chat = await parsed(hold, len(raw), self.pick, raw)
            hold.move(service.admission)
            return service, await aside(len(raw), chat.read, raw, headers)

        return await answered(request, self._repository, read)

    def error(self, status: int, sentence: str) -> bytes:
        """Return an error's body in OpenAI's form."""
        return Chat.error(status, sentence)
