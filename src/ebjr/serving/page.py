"""The page at ``/``: one HTML text, built once, that loads nothing else."""

import base64
import hashlib
from functools import cache, partial
from string import Template

from ebjr.files import packaged_text


@cache
def page_and_headers() -> tuple[str, int, dict[str, str]]:
    """Return the page, its status, and its headers.

    The page shares the report's style. Its policy allows only the script and style inside, by hash,
    and requests to its own server.
    """
    own = partial(packaged_text, "ebjr.serving")
    shared = partial(packaged_text, "ebjr.evaluation")
    style = "\n" + shared("report.css") + own("page.css")
    script = "\n" + shared("svg.js") + own("page.js")
    page = Template(own("page.html")).substitute(style=style, script=script)
    policy = {
        "default-src": "'none'",
        "script-src": _source(script),
        "style-src": _source(style),
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return page, 200, headers


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
