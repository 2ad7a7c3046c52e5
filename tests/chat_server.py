"""A server that speaks OpenAI's API, with a small language model of its own: real logits.

The model is a table of logits by the last word of what it is asked, over a vocabulary of a few
tokens; `full` gives the log-probabilities of the whole vocabulary, which nobody cuts.
"""

import asyncio
import json
import threading
from contextlib import contextmanager

import numpy as np
import tomli_w
from aiohttp import web

VOCABULARY = (
    "yes",
    " yes",
    "Yes",
    "no",
    " no",
    "NO",
    "may",
    "be",
    " maybe",
    "\n",
    "The",
    "It",
    ".",
)


def full(text, seed=0):
    """(vocabulary,): log-probabilities of the first token of an answer to a text."""
    rng = np.random.default_rng([seed, *text.encode()])
    logits = 3 * rng.normal(size=len(VOCABULARY))
    return logits - np.log(np.exp(logits).sum())


class ChatServer:
    """What is asked is kept in `asked`; `answer`, if given, makes each answer, or None its own."""

    def __init__(self, answer=None, name="tiny-1"):
        self.answer, self.name, self.asked, self.headers = answer, name, [], []

    async def handle(self, request):
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        found = None if self.answer is None else self.answer(body, len(self.asked))
        if asyncio.iscoroutine(found):
            found = await found
        if isinstance(found, web.Response):
            return found
        if found is None:
            found = self.reply(body)
        return web.json_response(found)

    def reply(self, body, text=None):
        """The model's own reply, or one that says a text."""
        asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        top, chat = body.get("top_logprobs", body.get("logprobs")), "messages" in body
        places = []
        while text is None and len(places) < body["max_tokens"]:
            known = full(asked + "".join(one["token"] for one in places))
            order = np.argsort(-known)
            written = int(order[0])
            listed = [_token(i, known[i]) for i in order[: int(top or 0)]]
            places.append(_token(written, known[written]) | {"top_logprobs": listed})
        said = "".join(one["token"] for one in places) if text is None else text
        choice = {"index": 0, "finish_reason": "length" if text is None else "stop"}
        choice |= {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
        if places and top:
            choice["logprobs"] = {"content": places}
        usage = {"prompt_tokens": len(asked.split()), "completion_tokens": max(1, len(places))}
        return {"model": self.name, "choices": [choice], "usage": usage}


def _token(place, logprob):
    token = VOCABULARY[place]
    return {"token": token, "bytes": list(token.encode()), "logprob": float(logprob)}


@contextmanager
def chat_server(answer=None, name="tiny-1"):
    """A `ChatServer` on a free port of this machine, with its `url`."""
    server, ready, ended = ChatServer(answer, name), threading.Event(), None

    async def serve():
        nonlocal ended
        ended = asyncio.Event()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", server.handle)
        app.router.add_post("/v1/completions", server.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        server.url, server.loop = f"http://127.0.0.1:{port}/v1", asyncio.get_running_loop()
        ready.set()
        await ended.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield server
    finally:
        server.loop.call_soon_threadsafe(ended.set)
        thread.join(10)


def described(url, path, **more):
    """A TOML file of a chat model at an address."""
    table = {"chat": url, "model": "tiny-1", "prompt": "{text}", "labels": ["no", "yes"], **more}
    path.write_text(tomli_w.dumps(table))
    return path


def refusal(status, message="no", **headers):
    """An answer with an error."""
    return web.Response(
        status=status, text=json.dumps({"error": {"message": message}}), headers=headers
    )
