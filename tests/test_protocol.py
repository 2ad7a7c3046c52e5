"""Open Inference Protocol messages: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ebjr import ProtocolError
from ebjr.protocol import (
    DATATYPES,
    MOST_JSON_BYTES,
    MOST_JSON_VALUES,
    MOST_TEXTS,
    InferRequest,
    InferResponse,
    RequestedOutput,
    best_classes,
    datatype_of,
    is_number,
    read_metadata,
    read_object,
    read_request,
    read_response,
    request_of,
    write_request,
    write_response,
)

LARGE_BYTES, PIECE = 2**17, 2**12

NUMBERS = [name for name in DATATYPES if name != "BYTES"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
PARAMETERS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda key: key != "binary_data_output"),
    st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    max_size=3,
)


def tensor(name="x", shape=(1, 2), datatype="FP32", **more):
    return {"name": name, "shape": list(shape), "datatype": datatype, **more}


def body(**message) -> bytes:
    return json.dumps(message).encode()


@st.composite
def arrays(draw):
    datatype = draw(st.sampled_from(list(DATATYPES)))
    if datatype == "BYTES":
        shape = draw(SHAPES)
        count = int(np.prod(shape))
        texts = draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))
        array = np.empty(count, object)
        array[:] = [text.encode() for text in texts]
        return array.reshape(shape)
    dtype = DATATYPES[datatype]
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    return draw(hnp.arrays(dtype, SHAPES, elements=hnp.from_dtype(dtype, **elements)))


@pytest.fixture(scope="module")
def tritonclient():
    return pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")


TENSORS = st.dictionaries(st.text(min_size=1, max_size=6), arrays(), min_size=1, max_size=3)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@given(TENSORS, PARAMETERS, st.booleans())
def test_a_request_comes_out_as_it_went_in(tensors, parameters, binary):
    asked = (
        RequestedOutput("score", True),
        RequestedOutput("prediction"),
        RequestedOutput("output", binary, 3),
    )
    sent = InferRequest(tensors, asked, id="7", parameters=parameters)
    found = read_request(*write_request(sent, binary=binary))
    assert_same(found.inputs, tensors)
    assert (found.outputs, found.id, found.parameters) == (asked, "7", parameters)


@given(TENSORS, st.lists(st.booleans(), min_size=3, max_size=3))
def test_an_answer_comes_out_as_it_went_in_with_json_and_bytes_mixed(tensors, kinds):
    wishes = tuple(RequestedOutput(name, kind) for name, kind in zip(tensors, kinds, strict=False))
    sent = InferResponse(tensors, "joint", "1", "7", {"threshold": 0.5})
    found = read_response(*write_response(sent, InferRequest({}, wishes)))
    assert_same(found.outputs, tensors)
    assert (found.model_name, found.model_version, found.id) == ("joint", "1", "7")
    assert found.parameters == {"threshold": 0.5}


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 6)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.integers(1, 8),
    st.lists(st.text(max_size=4), max_size=6),
)
def test_the_best_classes_are_named_with_their_values_best_first(values, count, names):
    names = names[: values.shape[1]]
    found = best_classes(values, count, names)
    assert found.shape == (len(values), min(count, values.shape[1]))
    for row, said in zip(values, found.tolist(), strict=True):
        pieces = [text.decode().split(":", 2) for text in said]
        classes = [int(piece[1]) for piece in pieces]
        np.testing.assert_array_equal(np.float32([piece[0] for piece in pieces]), row[classes])
        assert classes == sorted(range(len(row)), key=lambda k: (-row[k], k))[:count]
        for piece in pieces:
            k = int(piece[1])
            assert piece[2:] == ([names[k]] if k < len(names) else [])


def test_only_the_outputs_asked_for_are_sent_and_as_asked():
    answer = InferResponse({"score": np.ones(2), "deferred": np.zeros(2, bool)}, "joint")
    request = InferRequest({}, (RequestedOutput("deferred", True),))
    raw, length = write_response(answer, request)
    assert raw[length:] == b"\0\0"
    assert list(read_response(raw, length).outputs) == ["deferred"]


def test_all_outputs_come_as_bytes_where_the_request_says_so_as_a_whole():
    request = read_request(
        body(
            inputs=[tensor(data=[1, 2])],
            parameters={"binary_data_output": True, "threshold": 0.5},
        )
    )
    assert request.parameters == {"threshold": 0.5}
    _, length = write_response(InferResponse({"score": np.ones(2)}, "joint"), request)
    assert length is not None


@pytest.mark.parametrize("binary", [True, False])
def test_requests_with_the_same_json_share_nothing_that_can_be_changed(binary):
    array = np.array([[0.5, 2.0]], np.float32)
    asked = InferRequest({"x": array}, parameters={"threshold": 0.5})
    first, second = (read_request(*write_request(asked, binary=binary)) for _ in range(2))
    first.parameters["threshold"] = 7.0
    first.inputs["y"] = array
    assert dict(second.parameters) == {"threshold": 0.5}
    assert list(second.inputs) == ["x"]
    assert not np.shares_memory(first.inputs["x"], second.inputs["x"])
    other = write_request(InferRequest({"x": 3 * array}, parameters={"threshold": 0.5}))
    np.testing.assert_array_equal(read_request(*other).inputs["x"], 3 * array)


def test_nested_and_flat_data_are_alike():
    nested = tensor(shape=(2, 2), data=[[1, 2], [3, 4]])
    flat = tensor(name="y", shape=(2, 2), data=[1, 2, 3, 4])
    found = read_request(body(inputs=[nested, flat])).inputs
    np.testing.assert_array_equal(found["x"], found["y"])


def test_infinities_and_nan_survive_as_bytes_and_become_numbers_and_null_in_json():
    values = np.array([np.inf, -np.inf, np.nan, 1.0], np.float32)
    answer = InferResponse({"score": values}, "joint")
    raw = write_response(answer, InferRequest({}, binary=True))
    np.testing.assert_array_equal(read_response(*raw).outputs["score"], values)
    text, _ = write_response(answer)
    largest = float(np.finfo(np.float32).max)
    assert json.loads(text)["outputs"][0]["data"] == [largest, -largest, None, 1.0]


def test_the_largest_whole_numbers_keep_every_digit():
    values = [2**64 - 1, 0, 2**53 + 1]
    found = read_request(body(inputs=[tensor(shape=(3,), datatype="UINT64", data=values)]))
    assert found.inputs["x"].tolist() == values


def test_any_byte_but_zero_is_a_true_boolean():
    raw = body(inputs=[tensor(shape=(3,), datatype="BOOL", parameters={"binary_data_size": 3})])
    found = read_request(raw + b"\0\1\7", len(raw)).inputs["x"]
    assert found.tolist() == [False, True, True]
    assert found.view(np.uint8).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "must be JSON, but is not: it is empty"),
        (b'{"inputs": [', "must be JSON, but is not: it ends too early"),
        (b"\xff\xfe", "must be JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"inputs": NaN}', "JSON has no NaN"),
        (b"[]", "must be a JSON object, not a list"),
        (body(), "'inputs' must be a list of JSON objects, not nothing"),
        (body(inputs=[]), "at least one tensor"),
        (body(inputs=[1]), "'inputs' must be a list of JSON objects, not a list with a number"),
        (body(inputs=[{}]), "needs a 'name'"),
        (body(inputs=[tensor(data=[1, 2])] * 2), "must have distinct names, but has two 'x'"),
        (body(inputs=[tensor(datatype="FP8", data=[1, 2])]), "must be one of BOOL"),
        (body(inputs=[tensor(shape=(-1, 2), data=[])]), "0 or more, not"),
        (body(inputs=[tensor(shape=(1.0, 2), data=[])]), "0 or more, not"),
        (body(inputs=[tensor(shape=(True, 2), data=[1, 2])]), "0 or more, not"),
        (body(inputs=[tensor(shape=(10**30,), data=[1, 2])]), "0 or more, not"),
        (body(inputs=[tensor(shape=(2**58, 2), data=[1])]), "has 1"),
        (body(inputs=[tensor(shape=(1, 3), data=[1, 2])]), "needs 3 elements, but has 2"),
        (body(inputs=[tensor()]), "needs 'data', or 'binary_data_size'"),
        (body(inputs=[tensor(data=1)]), "must be a list, not a number"),
        (body(inputs=[tensor(data=[[1], [1, 2]])]), "lists of equal lengths"),
        (body(inputs=[tensor(data=[1, "2"])]), "must hold only FP32 numbers"),
        (body(inputs=[tensor(data=[1, None])]), "must hold only FP32 numbers"),
        (body(inputs=[tensor(data=[1, 1e300])]), "exceeds FP32"),
        (body(inputs=[tensor(datatype="INT8", data=[1, 128])]), "exceeds INT8, -128 to 127"),
        (body(inputs=[tensor(datatype="UINT8", data=[1, -1])]), "exceeds UINT8, 0 to 255"),
        (
            body(inputs=[tensor(datatype="INT64", data=[1, 2**70])]),
            "exceeds INT64, -9223372036854775808",
        ),
        (body(inputs=[tensor(datatype="INT32", data=[1, 2.5])]), "must hold only INT32"),
        (body(inputs=[tensor(datatype="INT32", data=[1, True])]), "must hold only INT32"),
        (body(inputs=[tensor(data=[1.5, True])]), "must hold only FP32"),
        (body(inputs=[tensor(data=[1, 10**400])]), "exceeds FP32"),
        (body(inputs=[tensor(datatype="FP64", data=[1, -(10**309)])]), "exceeds FP64"),
        (body(inputs=[tensor(datatype="FP16", data=[1, 70_000])]), "exceeds FP16"),
        (body(inputs=[tensor(datatype="UINT64", data=[1, 10**400])]), "exceeds UINT64"),
        (body(inputs=[tensor(datatype="BOOL", data=[1, 0])]), "must hold only BOOL"),
        (body(inputs=[tensor(datatype="BYTES", data=["a", 1])]), "must hold only strings"),
        (body(inputs=[tensor(datatype="BYTES", data=["a", "\ud800"])]), "not valid Unicode"),
        (body(inputs=[tensor(data=[1, 2])], id=7), "'id' must be a string, not a number"),
        (body(inputs=[tensor(data=[1, 2])], parameters=[]), "must be a JSON object"),
        (body(inputs=[tensor(data=[1, 2])], parameters={"a": None}), "not nothing"),
        (
            body(inputs=[tensor(data=[1, 2])], parameters={"a": 10**400}),
            "beyond the range of floats",
        ),
        (
            body(inputs=[tensor(data=[1, 2], parameters={"a": 10**400})]),
            "beyond the range of floats",
        ),
        (
            body(
                inputs=[tensor(data=[1, 2])],
                outputs=[{"name": "a", "parameters": {"b": -(10**400)}}],
            ),
            "beyond the range of floats",
        ),
        (body(inputs=[tensor(data=[1, 2])], parameters={"binary_data_output": 1}), "true or false"),
        (
            body(inputs=[tensor(data=[1, 2])], outputs=[{"name": "a"}] * 2),
            "must have distinct names, but has two 'a'",
        ),
        (
            body(
                inputs=[tensor(data=[1, 2])],
                outputs=[{"name": "a", "parameters": {"classification": 0}}],
            ),
            "'classification' of the output 'a' must be the number of classes to return",
        ),
        (
            body(
                inputs=[tensor(data=[1, 2])],
                outputs=[{"name": "a", "parameters": {"classification": True}}],
            ),
            "above 0, not True",
        ),
    ],
)
def test_what_is_no_request_is_refused_in_one_sentence(message, says):
    with pytest.raises(ProtocolError) as caught:
        read_request(message)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "rest", "says"),
    [
        (8, b"\0" * 9, "1 bytes after the JSON belong to no tensor"),
        (9, b"\0" * 8, "at most the 8 left in the body, not 9"),
        (-1, b"", "not -1"),
        (10**300, b"", "at most the 0 left in the body, not 1000"),
        (10**400, b"", "beyond the range of floats"),
        (True, b"\0", "not True"),
        (7, b"\0" * 7, "not a multiple of the 4 of FP32"),
        (4, b"\0" * 4, "needs 2 elements, but has 1"),
    ],
)
def test_bytes_that_do_not_fit_their_tensor_are_refused(size, rest, says):
    raw = body(inputs=[tensor(parameters={"binary_data_size": size})])
    with pytest.raises(ProtocolError, match=says):
        read_request(raw + rest, len(raw))


FAR = [(0, 2**62, 2**62), (2**62, 0, 2**62), (2**62, 2**62, 0), (2**63,), (0, 2**60), (0,) * 33]


@pytest.mark.parametrize("shape", FAR, ids=str)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_shape_that_no_array_has_is_refused_however_empty_it_is(shape, datatype):
    about = {"shape": shape, "datatype": datatype}
    table = {"inputs": [tensor(**about, data=[])], "outputs": [], "name": "far"}
    plain, binary = (
        body(**table),
        body(inputs=[tensor(**about, parameters={"binary_data_size": 0})]),
    )
    answer = body(outputs=[tensor(**about, data=[])], model_name="far")
    for read in (
        lambda: read_request(plain),
        lambda: read_request(binary, len(binary)),
        lambda: request_of(json.loads(binary), memoryview(b"")),
        lambda: read_response(answer),
        lambda: read_metadata(json.loads(plain)),
    ):
        with pytest.raises(ProtocolError, match="numbers that an array can have"):
            read()


@pytest.mark.parametrize("datatype", DATATYPES)
def test_an_empty_tensor_keeps_its_shape(datatype):
    about = tensor(shape=(2**29, 0, 2**30), datatype=datatype, data=[])
    found = read_request(body(inputs=[about])).inputs["x"]
    assert (found.shape, found.dtype) == ((2**29, 0, 2**30), DATATYPES[datatype])


def test_a_long_text_among_numbers_takes_no_memory_of_its_length_for_each():
    data = ["a" * 2**24, *([1] * 2**16)]  # as one array of texts: 4 TiB
    with pytest.raises(ProtocolError, match="must hold only FP32 numbers"):
        read_request(body(inputs=[tensor(shape=(len(data),), data=data)]))


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((value, True) for value in (0, 1.5, math.inf, math.nan, 2**1023)),
        *((value, False) for value in (True, 10**309, -(10**400), "1", None, [1])),
    ],
    ids=lambda value: f"{value!r:.12}",
)
def test_a_number_is_what_a_float_holds(value, number):
    assert is_number(value) == number


@pytest.mark.parametrize("rest", [b"\1", b"\5\0\0\0ab", b"\1\0\0\0a\xff\xff\xff\xffb"])
def test_byte_strings_that_end_too_early_are_refused(rest):
    raw = body(inputs=[tensor(datatype="BYTES", parameters={"binary_data_size": len(rest)})])
    with pytest.raises(ProtocolError, match="ends within its element"):
        read_request(raw + rest, len(raw))


@pytest.mark.parametrize("length", ["", "-1", "1.5", "9" * 40, "١", 10_000])
def test_a_length_of_the_json_that_cannot_be_is_refused(length):
    with pytest.raises(ProtocolError, match="Inference-Header-Content-Length must be"):
        read_request(body(inputs=[tensor(data=[1, 2])]), length)


def test_an_output_that_there_is_not_is_refused_and_named():
    with pytest.raises(ProtocolError, match="no output 'logits'; the model has score"):
        write_response(
            InferResponse({"score": np.ones(1)}, "joint"),
            InferRequest({}, (RequestedOutput("logits"),)),
        )


def test_types_without_a_name_are_refused():
    with pytest.raises(ProtocolError, match="no datatype for arrays of complex128"):
        datatype_of(np.complex128)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**1024, 2**62])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "datatype", "data", "parameters", "binary_data_size", "id"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)
LIKE_A_TENSOR = st.fixed_dictionaries(
    {
        "name": st.just("x") | JSON,
        "shape": st.lists(st.integers(-1, 3) | st.sampled_from([0, 2**62]), max_size=3) | JSON,
        "datatype": st.sampled_from(list(DATATYPES)) | JSON,
    },
    optional={
        "data": st.lists(st.integers(-5, 300) | st.booleans() | st.text(max_size=2)) | JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 12) | JSON}),
    },
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(LIKE_A_TENSOR, max_size=3) | JSON},
        optional={"outputs": JSON, "parameters": JSON, "id": JSON},
    ),
    st.binary(max_size=12),
    st.sampled_from(["exact", "none"]) | st.integers(-3, 400),
)
def test_whatever_comes_in_is_a_request_or_a_protocol_error(message, rest, length):
    raw = json.dumps(message).encode()
    sent = {"exact": len(raw), "none": None}.get(length, length)
    for read in (read_request, read_response):
        said = "a message"
        try:
            read(raw + rest, sent)
        except ProtocolError as error:
            said = str(error)
        assert "\n" not in said
        assert len(said) < 600


@given(
    st.fixed_dictionaries(
        {
            "name": st.text(max_size=8) | JSON,
            "inputs": st.lists(LIKE_A_TENSOR, max_size=3) | JSON,
            "outputs": st.lists(LIKE_A_TENSOR, max_size=3) | JSON,
        },
        optional={"versions": st.lists(st.text(max_size=3), max_size=3) | JSON, "platform": JSON},
    )
)
def test_whatever_a_server_says_of_a_model_is_metadata_or_a_protocol_error(message):
    said = "metadata"
    try:
        found = read_metadata(message)
    except ProtocolError as error:
        said = str(error)
    else:
        assert read_metadata(json.loads(json.dumps(found.as_dict()))) == found
    assert "\n" not in said
    assert len(said) < 600


@given(TENSORS, st.booleans())
def test_tritonclient_understands_our_answers(tritonclient, tensors, binary):
    raw, length = write_response(InferResponse(tensors, "joint"), InferRequest({}, binary=binary))
    found = tritonclient.InferenceServerClient.parse_response_body(raw, header_length=length)
    for name, array in tensors.items():
        seen = found.as_numpy(name)
        assert seen.shape == array.shape
        if array.dtype == object and not binary:  # it leaves text in JSON as text
            seen = np.array([text.encode() for text in seen.ravel()], object).reshape(array.shape)
        np.testing.assert_array_equal(seen, array)


@given(TENSORS, st.booleans(), st.booleans())
def test_we_understand_what_tritonclient_asks(tritonclient, tensors, binary, wanted):
    binary = binary or any(array.dtype == np.float16 for array in tensors.values())
    inputs = []
    for name, array in tensors.items():
        inputs.append(tritonclient.InferInput(name, list(array.shape), datatype_of(array.dtype)))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    outputs = [tritonclient.InferRequestedOutput("score", binary_data=wanted)]
    raw, length = tritonclient.InferenceServerClient.generate_request_body(
        inputs, outputs=outputs, request_id="7", parameters={"threshold": 0.5}
    )
    found = read_request(raw, length)
    assert_same(found.inputs, tensors)
    assert found.outputs == (RequestedOutput("score", wanted),)
    assert (found.id, found.parameters) == ("7", {"threshold": 0.5})


@pytest.mark.parametrize(
    "shape", [(70_001,), (3, 40_000), (50_000, 2), (1, 2, 40_000), (7, 99, 101)]
)
@pytest.mark.parametrize("datatype", ["FP32", "INT64"])
def test_a_large_message_is_read_as_a_small_one(shape, datatype):
    wanted = np.random.default_rng(0).normal(0, 1e4, shape).astype(DATATYPES[datatype])
    raw = body(inputs=[tensor(shape=shape, datatype=datatype, data=wanted.tolist())])
    assert len(raw) > LARGE_BYTES
    np.testing.assert_array_equal(read_request(raw).inputs["x"], wanted)


@pytest.mark.parametrize("count", [0, 1, PIECE, PIECE + 1, 3 * PIECE])
def test_an_answer_of_any_size_is_written_as_python_writes_json(count):
    numbers = np.random.default_rng(0).normal(size=count)
    outputs = {
        'odd "data":[] name': numbers,
        "whole": np.arange(count),
        "text": np.array([b"x"], object),
    }
    body, length = write_response(InferResponse(outputs, "joint", parameters={"a": '"data":[]'}))
    assert length is None
    found = json.loads(body)
    assert body.decode() == json.dumps(found, separators=(",", ":"))
    assert [tensor["data"] for tensor in found["outputs"]] == [
        numbers.tolist(),
        list(range(count)),
        ["x"],
    ]


@pytest.mark.parametrize(
    "data",
    [
        [*([[0.5] * 40_000] * 3), [0.5] * 39_999],
        [[0.5] * 40_000, 0.5],
        [*([[0.5, 1.0]] * 60_000), [0.5]],
        [*([0.5] * 120_000), "0.5"],
    ],
)
def test_a_large_message_of_unequal_lists_is_refused_in_one_sentence(data):
    raw = body(inputs=[tensor(shape=(len(data),), data=data)])
    assert len(raw) > LARGE_BYTES
    with pytest.raises(ProtocolError) as caught:
        read_request(raw)
    assert "\n" not in str(caught.value)


def test_a_large_message_has_no_infinity_either():
    raw = body(inputs=[tensor(shape=(1,), data=[0.5])], pad=["a" * LARGE_BYTES])
    assert read_request(raw).inputs["x"].tolist() == [0.5]
    with pytest.raises(ProtocolError, match="JSON has no Infinity"):
        read_request(raw.replace(b"0.5", b"Infinity"))


def test_more_values_than_are_read_at_once_are_refused():
    some = MOST_JSON_VALUES - 10
    assert read_object(b'{"a":[' + b"1," * some + b"1]}")["a"][0] == 1
    with pytest.raises(ProtocolError, match="4,194,304 values, but has 4,194,305"):
        read_object(b'{"a":[' + b"[]," * MOST_JSON_VALUES + b"1]}")


@pytest.mark.parametrize("declared", [1, MOST_TEXTS, MOST_TEXTS + 1])
def test_more_texts_than_are_read_at_once_are_refused(declared):
    rest = bytes(4 * (MOST_TEXTS + 1))
    about = tensor(shape=(declared,), datatype="BYTES", parameters={"binary_data_size": len(rest)})
    raw = body(inputs=[about])
    with pytest.raises(ProtocolError, match="may have at most 262,144 elements of BYTES"):
        read_request(raw + rest, len(raw))


def test_an_answer_that_was_written_leaves_no_id_in_memory():
    tracemalloc.start()
    try:
        for number in range(5):
            answer = InferResponse({"x": np.ones(1)}, "m", id=f"{number}" + "a" * 1_000_000)
            body, _ = write_response(answer)
            assert read_response(body).id == answer.id
        del answer, body
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


def test_more_json_than_is_read_at_once_is_refused():
    pad = b" " * (MOST_JSON_BYTES - 2)
    with pytest.raises(ProtocolError, match="'inputs' must be"):
        read_request(b"{" + pad + b"}")
    with pytest.raises(ProtocolError, match="67,108,865: send its tensors as binary data"):
        read_request(b"{ " + pad + b"}")
    raw = body(inputs=[tensor(parameters={"binary_data_size": 8})])
    with pytest.raises(ProtocolError, match="bytes after the JSON belong to no tensor"):
        read_request(raw + bytes(MOST_JSON_BYTES), len(raw))  # what is binary has no such limit


@pytest.mark.parametrize("number", ["1e400", "-1e999", "1" * 5000])
def test_a_number_that_no_float_holds_is_refused(number):
    raw = body(inputs=[tensor(shape=(1,), datatype="FP64", data=[0.5])])
    with pytest.raises(ProtocolError, match="out of range"):
        read_request(raw.replace(b"0.5", number.encode()))


def test_the_last_of_two_equal_keys_counts():
    raw = body(inputs=[tensor(shape=(1,), data=[0.5])])
    twice = raw.replace(b'"data": [0.5]', b'"data": [0.5], "data": [2.5]')
    assert read_request(twice).inputs["x"].tolist() == [2.5]


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1))
def test_every_number_is_read_and_written_to_the_last_digit(number):
    datatype = "FP64" if isinstance(number, float) else "INT64"
    array = read_request(
        body(inputs=[tensor(shape=(1,), datatype=datatype, data=[number])])
    ).inputs["x"]
    assert array.tolist() == [number]
    text, _ = write_response(InferResponse({"x": array}, "joint"))
    assert json.loads(text)["outputs"][0]["data"] == [number]
    assert read_response(text).outputs["x"].tobytes() == array.tobytes()


def test_a_parameter_that_is_no_number_is_refused_when_written():
    with pytest.raises(ValueError, match="JSON has no nan"):
        write_response(InferResponse({}, "joint", parameters={"threshold": float("nan")}))
