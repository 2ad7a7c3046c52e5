"""Forms: images as ``multipart/form-data``, as browsers and ``curl -F`` send them."""

import asyncio
import math
from collections.abc import AsyncGenerator

import numpy as np

from ebjr.errors import ProtocolError, needs
from ebjr.protocol import InferRequest, RequestedOutput
from ebjr.serving.service import REQUEST_PARAMETERS

with needs("serve", "serving"):
    from starlette.datastructures import Headers, UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

MOST_FILES = 256
MOST_FIELDS = 16
MOST_FIELD_BYTES = 4096
PIECE_BYTES = 64 * 2**10


async def read_form(body: bytes, headers: Headers, name: str) -> InferRequest:
    """Read a form: its files as a BYTES tensor (n,) of images, its outputs and parameters."""

    async def stream() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), PIECE_BYTES):
            yield body[start : start + PIECE_BYTES]
            if start + PIECE_BYTES < len(body):
                await asyncio.sleep(0)  # let other clients in while a large form is parsed

    limits = {"max_files": MOST_FILES, "max_fields": MOST_FIELDS, "max_part_size": MOST_FIELD_BYTES}
    try:
        form = await MultiPartParser(headers, stream(), **limits).parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        raise ProtocolError(f"the form cannot be read: {_reason(error)}") from error
    try:
        files, outputs, parameters = [], dict[str, RequestedOutput](), {}
        for field, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.append(await value.read())
            elif field == "outputs":
                names = map(str.strip, value.split(","))
                outputs |= {name: RequestedOutput(name) for name in names}
            elif field in parameters:
                raise ProtocolError(f"the form has two values of {field!r}: send one")
            else:
                parameters[field] = _parameter(field, value)
    finally:
        await form.close()
    if not files:
        raise ProtocolError("a form must have at least one image, as a file")
    wanted = tuple(outputs.values()) or None
    return InferRequest({name: np.array(files, object)}, wanted, parameters=parameters)


def _parameter(field: str, value: str) -> float | str:
    if field not in REQUEST_PARAMETERS:
        known = ", ".join(("outputs", *REQUEST_PARAMETERS))
        raise ProtocolError(f"a form may have files and the fields {known}, not {field!r}")
    if field == "operating_point":
        return value
    if field in ("timeout", "priority"):  # other text is refused later, quoted as sent
        return int(value) if value.isascii() and value.isdecimal() else value
    try:
        number = float(value)
    except ValueError as error:
        raise ProtocolError(f"the form's {field} must be a number, not {value!r}") from error
    if math.isinf(number) and not value.strip("+- ").isalpha():
        raise ProtocolError(f"the form's {field} is too large for a float: {value!r:.60}")
    return number


def _reason(error: Exception) -> str:
    if isinstance(error, MultiPartException):
        return error.message
    return "its boundary is missing" if isinstance(error, KeyError) else "its text is not Unicode"
