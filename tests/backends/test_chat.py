import asyncio
import json
import pickle
import re
import time

import numpy as np
import pytest
import tomli_w

pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")
from chat_server import VOCABULARY, ChatServer, chat_server, described, full, refusal

import ebjr
from ebjr.backends.chat import ChatModel
from ebjr.backends.entry import entry_from_table, entry_of
from ebjr.data.open import open_data
from ebjr.errors import ModelError, OutputWarning, RecordingNote, TeacherUnavailable
from ebjr.joint_file import JointConfig
from ebjr.journal import Journal
from ebjr.model import facts
from ebjr.predict import predict
from ebjr.scores import as_score

TEXTS = [f"is it {number}?" for number in range(40)]
ABOUT = {"model": "tiny-1", "prompt": "{text}", "labels": ["no", "yes"]}


def made(url, **more):
    return ChatModel(url, **{"retries": 0, **ABOUT, **more})


def real(text):
    """The log-probabilities of the labels from all logits of the first token."""
    known = full(text)
    each = [
        [known[i] for i, token in enumerate(VOCABULARY) if token.strip().lower() == name]
        for name in ("no", "yes")
    ]
    return [np.log(np.exp(one).sum()) for one in each]


def first_is_a_label(text):
    return VOCABULARY[int(np.argmax(full(text)))].strip().lower() in ("no", "yes")


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_log_probabilities_of_labels_are_those_of_all_logits(api):
    texts = [text for text in TEXTS if first_is_a_label(text)]
    with chat_server() as server:
        answer = made(server.url, api=api)(texts)
    assert len(texts) > 10
    np.testing.assert_allclose(answer.output, [real(text) for text in texts], atol=1e-9)
    mass = np.exp(answer.output).sum(axis=1)
    np.testing.assert_allclose(as_score("label_mass")(answer.output), mass)
    np.testing.assert_allclose(as_score("energy")(answer.output), np.log(mass))


def test_tokens_and_dollars_of_each_row_are_counted():
    with chat_server() as server:
        answer = made(server.url, price={"input": 2.0, "output": 10.0})(["yes? a b", "no"])
    tokens = answer.spent[:, :2]
    assert (tokens[:, 0] >= [3, 1]).all()
    np.testing.assert_allclose(answer.spent[:, 2], tokens @ [2e-6, 10e-6])


def test_a_reply_of_the_old_form_of_completions_is_read():
    def old(body, number):
        top = [{" yes": -0.2, " no": -2.0}]
        logprobs = {"tokens": [" yes"], "token_logprobs": [-0.2], "top_logprobs": top}
        return {"choices": [{"text": " yes", "logprobs": logprobs}], "model": "tiny-1"}

    with chat_server(old) as server:
        answer = made(server.url, api="completions")(["x"])
    np.testing.assert_allclose(answer.output, [[-2.0, -0.2]])
    assert np.isnan(answer.spent).all()  # the server does not say


def test_labels_of_several_tokens_are_asked_for_as_many_as_they_take():
    labels = {"maybe": "maybe", "no": "no"}
    with chat_server() as server:
        model = made(server.url, labels=labels)
        said = model(TEXTS)
        asked = [body["max_tokens"] for body in server.asked]
        server.asked.clear()
        model(TEXTS)
        again = {body["max_tokens"] for body in server.asked}
    assert asked.count(1) >= 16
    assert {*asked} == {1, len("maybe") + 2}  # rows that one token does not tell apart
    assert again == {len("maybe") + 2}  # they were many
    assert said.answered is None or said.answered.any()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda body, n: refusal(500), "status 500"),
        (lambda body, n: refusal(429), "status 429"),
        (lambda body, n: {"choices": [], "model": "tiny-1"}, "choices is empty"),
        (lambda body, n: {"error": "?"}, "gave an invalid answer"),
        (lambda body, n: ["garbage"], "gave an invalid answer"),
    ],
)
def test_a_server_that_fails_is_away(answer, why):
    with chat_server(answer) as server, pytest.raises(TeacherUnavailable, match=why):
        made(server.url)(["x", "y"])


def _says(text, **choice):
    def answer(body, number):
        found = ChatServer().reply(body, text)
        found["choices"][0] |= choice
        return found

    return answer


def _listed(*tokens):
    places = [{"token": t, "logprob": -1.0 - i, "bytes": None} for i, t in enumerate(tokens)]
    return {"content": [{**places[0], "top_logprobs": places}]}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (_says("yes"), "the answer has no log-probabilities"),
        (_says("yes", logprobs={"content": []}), "cut before|no label|log-probabilities"),
        (_says("I think", logprobs=_listed("I", "We")), "no label is among"),
        (lambda body, n: refusal(400, "content filter"), "status 400: content filter"),
        (lambda body, n: ChatServer(name="other-7").reply(body), "answered as 'other-7'"),
    ],
)
def test_a_row_without_a_usable_answer_is_not_answered_and_the_others_are(answer, why):
    def some(body, number):
        own = body["messages"][-1]["content"] == "odd"
        return answer(body, number) if own else _says("yes", logprobs=_listed("yes", "no"))(body, 0)

    with chat_server(some) as server:
        found = made(server.url)(["even", "odd", "even"])
        alone = made(server.url)(["odd"])  # it is there, and nobody should leave it alone
    assert found.answered.tolist() == [True, False, True]
    assert found.output.shape == (2, 2)
    assert alone.answered.tolist() == [False]
    assert re.search(why, found.why)


def test_a_busy_server_is_asked_again_when_it_says():
    def busy(body, number):
        return refusal(429, **{"Retry-After": "0.3"}) if number == 1 else None

    with chat_server(busy) as server:
        began = time.monotonic()
        answer = made(server.url, retries=2)(["is it 1?"])
        took = time.monotonic() - began
    assert answer.output.shape[1] == 2
    assert len(server.asked) >= 2
    assert took >= 0.3


def test_a_server_that_does_not_answer_has_a_deadline():
    async def slow():
        await asyncio.sleep(5)

    with chat_server(lambda body, n: slow()) as server:
        began = time.monotonic()
        with pytest.raises(TeacherUnavailable, match=r"within 0.4 s"):
            made(server.url, timeout_seconds=0.4, retries=5)(["x"])
        assert time.monotonic() - began < 2


def test_the_model_that_answers_is_the_one_that_was_asked():
    dated = "tiny-1-2026-01-01"
    with chat_server(name=dated) as server:
        with pytest.warns(RecordingNote, match="served_as = 'tiny-1-2026-01-01'"):
            made(server.url)(TEXTS[:3])
        assert len(made(server.url, served_as=dated)(TEXTS[:3]).spent) == 3
        said = made(server.url, served_as="tiny-1")(TEXTS[:3])
    assert not said.answered.any()


def test_shares_of_samples_are_the_raw_output_where_there_are_no_log_probabilities():
    answers = iter(["yes", "Yes.", "no", "yes", "hm"])
    with chat_server(lambda body, n: ChatServer().reply(body, next(answers))) as server:
        found = made(server.url, confidence="sampling", samples=5, concurrent=1)(["x"])
    assert {body["temperature"] for body in server.asked} == {1}
    assert "logprobs" not in server.asked[0]
    np.testing.assert_allclose(np.exp(found.output), [[1.5 / 6, 3.5 / 6]])
    assert found.spent[0, 1] == 5


@pytest.mark.parametrize(
    ("text", "sure"), [("yes, 80%", 0.8), ("Yes 0.7", 0.7), ("yes: 100 %", 0.999), ("yes 1", 0.999)]
)
def test_what_an_answer_says_of_how_sure_it_is(text, sure):
    with chat_server(_says(text)) as server:
        found = made(server.url, confidence="verbalized")(["x"])
    np.testing.assert_allclose(np.exp(found.output), [[1 - sure, sure]])


@pytest.mark.parametrize(
    "text",
    [
        *("yes", "80%", "yes, 800%", "", "yes, -5%", "yes (8/10)", "yes, 0,8", "yes, 1e-3"),
        *("yes, between 60 and 70%", "80% yes"),
    ],
)
def test_an_answer_that_does_not_say_it_is_none(text):
    with chat_server(_says(text)) as server:
        assert not made(server.url, confidence="verbalized")(["x"]).answered.any()


def test_a_prompt_is_filled_from_columns_and_shows_examples():
    prompt = [
        {"role": "system", "content": "Answer yes or no."},
        {"role": "user", "content": "{title}\n{body}"},
    ]
    examples = [{"title": "a", "body": "b", "label": "yes"}]
    labels = {"no": "no", "yes": ["Yes", "yes"]}
    rows = np.array([["{body}", "two {braces}"]], object)
    with chat_server() as server:
        model = made(server.url, prompt=prompt, examples=examples, labels=labels)
        model(rows)
    assert facts(model).columns == ("title", "body")
    said = [(one["role"], one["content"]) for one in server.asked[0]["messages"]]
    assert said == [
        ("system", "Answer yes or no."),
        ("user", "a\nb"),
        ("assistant", "Yes"),
        ("user", "{body}\ntwo {braces}"),
    ]


def test_examples_of_a_file_are_texts_as_they_stand_there(tmp_path):
    (tmp_path / "seen.csv").write_text("text,label\n007,no\n1.50,yes\n")
    with chat_server() as server:
        path = described(server.url, tmp_path / "m.toml", examples="seen.csv")
        ChatModel.of_file(path)(["2"])
    shown = [message["content"] for message in server.asked[0]["messages"]]
    assert shown == ["007", "no", "1.50", "yes", "2"]


def test_a_completion_goes_on_after_the_examples():
    examples = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}]
    with chat_server() as server:
        made(server.url, prompt="T: {text}\nA:", examples=examples, api="completions")(["fine"])
    assert server.asked[0]["prompt"] == "T: good\nA: yes\n\nT: bad\nA: no\n\nT: fine\nA:"


def test_messages_go_on_as_they_came():
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "is it?"}]
    with chat_server() as server:
        model = made(server.url, prompt="{messages}")
        model([json.dumps(talk)])
        assert server.asked[0]["messages"] == talk
        assert not model(["no JSON"]).answered.any()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompt": "no column"}, "must contain {column}"),
        ({"prompt": "{a} {b}", "columns": ["a"]}, r"names {b}, but the columns are a"),
        ({"prompt": [{"role": "user"}]}, "a list of messages"),
        ({"prompt": [{"role": "user", "content": "{a}"}], "api": "completions"}, "must be a text"),
        ({"labels": ["yes"]}, "at least two"),
        ({"labels": ["yes", "yes"]}, "labels must be distinct"),
        ({"labels": "yes"}, "labels must be a list of names"),
        ({"examples": [{"text": "a"}]}, "example 1 has no 'label'"),
        ({"examples": [{"text": "a", "label": "x"}]}, "the label 'x', not one of no, yes"),
        ({"price": {"input": 1.0}}, "dollars per million tokens"),
        ({"price": {"input": 1.0, "output": -1.0}}, "dollars per million tokens"),
        ({"key_variable": "AWS_SECRET_ACCESS_KEY"}, "must begin with EBJR_"),
        ({"confidence": "gut"}, "confidence must be one of"),
        ({"api": "tea"}, "api must be one of"),
        ({"concurrent": 0}, "concurrent must be at least 1"),
        ({"timeout_seconds": 0}, "timeout_seconds must be above 0"),
    ],
)
def test_a_bad_argument_is_one_sentence(more, message):
    with pytest.raises(ValueError, match=message):
        made("http://127.0.0.1:1/v1", **more)


@pytest.mark.parametrize("url", ["ftp://x/v1", "127.0.0.1/v1", "http://", "http://a b/v1"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="a chat model's address must be http"):
        made(url)


def test_a_key_that_is_missing_is_said_to_be():
    wrong = pytest.raises(TeacherUnavailable, match="read from EBJR_CHAT_KEY, which is not set")
    with chat_server(lambda body, n: refusal(401, "who are you?")) as server, wrong:
        made(server.url, retries=3)(["x"])
    assert len(server.asked) == 1


@pytest.mark.parametrize("batch", [["a", 3], np.array([["a", "b"]], object), [None]])
def test_rows_that_are_no_texts_are_refused(batch):
    with pytest.raises(ValueError, match=r"takes rows of 1 texts \(text\)"):
        made("http://127.0.0.1:1/v1")(batch)


def test_the_key_comes_from_the_environment_and_stands_in_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("EBJR_OTHER_KEY", "s3cret")
    with chat_server() as server:
        file = described(server.url, tmp_path / "m.toml", key_variable="EBJR_OTHER_KEY")
        model = ebjr.load_model(file)
        model(["x"])
        assert server.headers[0]["Authorization"] == "Bearer s3cret"
        assert "s3cret" not in repr(model) + str(entry_of(model).as_table(None))


def test_a_model_travels_to_another_process_without_its_connections():
    with chat_server() as server:
        model = made(server.url)
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again(TEXTS[:4]).spent, model(TEXTS[:4]).spent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"color": "red"}, "a chat model has no 'color'"),
        ({"model": None}, "model is missing"),
        ({"examples": "none.jsonl"}, "none.jsonl"),
        ({"labels": 7}, "labels must be"),
    ],
)
def test_a_file_that_describes_no_model_is_one_sentence(tmp_path, change, message):
    about = {"chat": "http://127.0.0.1:1/v1", **ABOUT, **change}
    table = {key: value for key, value in about.items() if value is not None}
    file = tmp_path / "m.toml"
    file.write_text(tomli_w.dumps(table))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ebjr.load_model(file)


def test_examples_of_a_table_are_read_once_and_kept(tmp_path):
    (tmp_path / "shots.csv").write_text("text,label\nfine,yes\nbad,no\n")
    with chat_server() as server:
        model = ebjr.load_model(described(server.url, tmp_path / "m.toml", examples="shots.csv"))
        model(["x"])
    assert len(server.asked[0]["messages"]) == 5
    kept = entry_of(model).as_table(None)["examples"]
    assert kept == [{"text": "fine", "label": "yes"}, {"text": "bad", "label": "no"}]


@pytest.fixture
def recorded(tmp_path):
    """A TF-IDF-like student, a chat teacher, and a joint.toml of both."""
    with chat_server() as server:
        texts = [text for text in TEXTS if first_is_a_label(text)]
        teacher = made(server.url, price={"input": 1.0, "output": 2.0})
        student = made(server.url, served_as="tiny-1")
        labels = [int(np.argmax(real(text))) for text in texts]
        outcomes = ebjr.record(student, teacher, texts, labels, folder=tmp_path)
        yield server, outcomes, texts


def test_recording_measures_dollars_and_names_the_models(recorded):
    _, outcomes, _ = recorded
    assert outcomes.quality("teacher") == 1
    assert outcomes.teacher_cost.dollars > 0
    assert outcomes.student_cost.dollars is None
    assert outcomes.labels == ("no", "yes")
    table = outcomes.models["teacher"]
    assert table["prompt"] == "{text}"
    assert len(table["sha256"]) == 64


def test_a_changed_prompt_is_noticed(recorded, tmp_path):
    _, outcomes, texts = recorded
    entries = [entry_from_table(outcomes.models[r], tmp_path, r) for r in outcomes.roles]
    file = tmp_path / "joint.toml"
    JointConfig(*entries, score="softmax", threshold=0.8, labels=outcomes.labels).save(file)
    answer = ebjr.load_joint(file)(texts)
    assert answer.deferred.any()
    assert not answer.deferred.all()
    asked_once = answer.spent[~answer.deferred, 0].max()
    assert (answer.spent[answer.deferred, 0] > asked_once).all()
    file.write_text(file.read_text().replace('prompt = "{text}"', 'prompt = "Well: {text}"', 1))
    with pytest.raises(ModelError, match="has changed since the threshold was calibrated"):
        ebjr.load_joint(file)


def _filtering(*odd):
    """Answers yes, and refuses some texts."""

    def answer(body, number):
        if body["messages"][-1]["content"] in odd:
            return refusal(400, "filtered")
        return _says("yes", logprobs=_listed("yes", "no"))(body, 0)

    return answer


def test_examples_without_an_answer_are_left_out_of_a_recording_and_said(tmp_path):
    texts = [f"text {number}" for number in range(60)]
    with chat_server(_filtering(texts[7])) as server:
        both = made(server.url), made(server.url, prompt="Well: {text}")
        with pytest.warns(RecordingNote, match="1 of 60 .* example 7: student, .*filtered"):
            outcomes = ebjr.record(*both, texts, np.ones(60, int), batch_size=20)
    assert len(outcomes) == 59


def test_models_that_leave_many_examples_unanswered_are_refused():
    texts = [f"text {number}" for number in range(40)]
    with chat_server(_filtering(*texts[:3])) as server, pytest.raises(ModelError, match="3 of 40"):
        ebjr.record(made(server.url), made(server.url), texts, np.ones(40, int))


def test_a_recording_that_was_stopped_asks_for_what_is_missing(tmp_path):
    texts = [f"text {number}" for number in range(60)]
    usual, down = _filtering(texts[7]), []

    def answer(body, number):
        return refusal(503) if down and len(server.asked) > 60 else usual(body, number)

    def record(server):
        journal = Journal(tmp_path / "o.npz")
        with journal:
            found = ebjr.record(
                made(server.url),
                made(server.url),
                texts,
                np.ones(60, int),
                batch_size=20,
                keep=journal,
            )
            journal.remove()
        return found

    with chat_server(answer) as server:
        down.append(True)
        with pytest.raises(TeacherUnavailable):
            record(server)
        down.clear()
        server.asked.clear()
        again = pytest.warns(RecordingNote, match="resuming after 20 examples")
        with again, pytest.warns(RecordingNote, match="1 of 60 examples have no answer"):
            assert len(record(server)) == 59
    assert len(server.asked) == 2 * (20 + 40)  # the first batch, to compare, and what is missing


def test_a_file_of_another_kind_is_told_apart(tmp_path):
    file = described("http://127.0.0.1:1/v1", tmp_path / "m.toml")
    with pytest.raises(ValueError, match="it describes one chat model"):
        ebjr.load_joint(file)
    file.write_text("[router]\nscore = 'softmax'")
    with pytest.raises(ValueError, match="describes a joint model"):
        ebjr.load_model(file)


def test_a_row_that_no_model_answers_is_named_and_the_others_are_answered(tmp_path):
    texts = [f"text {number}" for number in range(30)]
    (tmp_path / "d.csv").write_text("text\n" + "\n".join(texts) + "\n")
    with chat_server(_filtering(texts[3])) as server:
        joint = ebjr.JointClassifier(
            made(server.url), made(server.url), ebjr.Router("softmax", 0.5)
        )
        data = open_data(tmp_path / "d.csv", input_columns="text")
        with pytest.warns(OutputWarning):
            done = predict(joint, data, tmp_path / "a.jsonl", labels=("no", "yes"), batch_size=10)
    assert done.unreadable == [("d.csv:3", "no model has answered it")]
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [f"d.csv:{n}" for n in range(30) if n != 3]
    assert all(row["answered_by"] == "student" for row in rows)


def test_a_promise_is_kept_with_a_student_that_is_silent_now_and_then():
    texts = [f"text {number}" for number in range(60)]

    def teacher(batch):
        return np.tile([0.0, 5.0], (len(batch), 1))

    with chat_server(_filtering(texts[3])) as server, pytest.warns(OutputWarning):
        found = ebjr.answer_within(
            made(server.url), teacher, texts, at_least=0.8, delta=0.1, score="softmax"
        )
    assert found.prediction.tolist() == [1] * 60
    assert found.deferred[3]


def test_the_number_after_a_label_is_how_sure_it_is_and_not_the_labels_own():
    labels = [str(grade) for grade in range(1, 11)]
    for said, place in (("3, 80%", 2), ("10: 95%", 9)):
        with chat_server(_says(said)) as server:
            found = made(server.url, confidence="verbalized", labels=labels)(["x"]).output
        assert np.argmax(found) == place
        assert np.exp(found[0, place]) >= 0.8
    with chat_server(_says("\u662f\uff0c80%")) as server:
        found = made(server.url, confidence="verbalized", labels=["\u662f", "\u5426"])(["x"]).output
    np.testing.assert_allclose(np.exp(found), [[0.8, 0.2]])


@pytest.mark.parametrize("name", ["tiny-1-mini", "tiny-10", "tiny", "tiny-1-turbo-2026", ""])
def test_another_model_of_the_family_is_another_model(name):
    with chat_server(name=name) as server:
        assert not made(server.url)(TEXTS[:2]).answered.any()


@pytest.mark.parametrize(
    "usage",
    [
        *("many", {}, None, {"prompt_tokens": -5, "completion_tokens": 1}),
        *({"prompt_tokens": 10**30, "completion_tokens": 1}, {"prompt_tokens": "9"}),
    ],
)
def test_odd_usage_costs_no_answer_and_is_not_known(usage):
    def odd(body, number):
        return ChatServer().reply(body) | {"usage": usage}

    with chat_server(odd) as server:
        found = made(server.url, price={"input": 1.0, "output": 1.0})(["is it 1?"])
    assert len(found.output) == 1
    assert np.isnan(found.spent[0, 2])


def test_a_reply_that_cannot_be_used_may_have_been_charged():
    usage = {"prompt_tokens": 7, "completion_tokens": 1}
    replies = {"none": {"choices": [], "usage": usage, "model": "tiny-1"}, "odd": ["?"]}

    def answer(body, number):
        return replies.get(body["messages"][-1]["content"])

    with chat_server(answer) as server:
        model = made(server.url, price={"input": 1e6, "output": 0.0}, retries=1)
        found = model(["none", "is it 1?", "odd"])
    assert found.answered.tolist() == [False, True, False]
    assert found.spent[0, 2] == 14
    assert np.isnan(found.spent[2, 2])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"retries": 0.5}, "retries must be a whole number, not 0.5"),
        ({"samples": 2.5}, "samples must be a whole number"),
        ({"max_tokens": True}, "max_tokens must be a whole number"),
        ({"model": ""}, "model must be a non-empty text"),
        ({"served_as": 5}, "served_as must be a non-empty text"),
        ({"labels": ["a", 1, "1"]}, "labels must be texts, in quotes"),
        ({"columns": ["text", "text"]}, "columns must be distinct names"),
        ({"request": {"messages": []}}, "request cannot have 'messages'"),
        ({"top_logprobs": 1}, "top_logprobs must be at least 2"),
    ],
)
def test_a_value_of_another_type_is_one_sentence(more, message):
    with pytest.raises(ValueError, match=message):
        made("http://127.0.0.1:1/v1", **more)


def test_an_address_holds_no_password():
    with pytest.raises(ValueError, match="set keys in the environment"):
        made("http://me:secret@127.0.0.1:1/v1")


def test_samples_of_many_rows_wait_for_their_turn_and_not_for_the_deadline():
    async def slow():
        await asyncio.sleep(0.05)
        return ChatServer().reply({"messages": [{"content": "x"}], "max_tokens": 1}, "yes")

    with chat_server(lambda body, number: slow()) as server:
        how = {"confidence": "sampling", "samples": 5, "concurrent": 4, "timeout_seconds": 0.5}
        found = made(server.url, **how)(["x"] * 12)
    assert found.answered is None


def test_what_was_charged_for_nothing_is_in_the_bill():
    def empty(body, number):
        usage = {"prompt_tokens": 5, "completion_tokens": 1}
        return {"choices": [], "usage": usage, "model": "tiny-1"}

    with chat_server(empty) as server, chat_server(_filtering()) as good:
        price = {"input": 1e6, "output": 0.0}
        silent, sound = made(server.url, price=price), made(good.url, price=price)
        sure = ebjr.Router("softmax", 1.0)
        with pytest.warns(OutputWarning):
            taught = ebjr.JointClassifier(silent, sound, sure)(["a"])
        kept = ebjr.JointClassifier(sound, silent, sure)(["a"])
    assert taught.spent[0, 2] == kept.spent[0, 2] > 5
    assert kept.degraded.tolist() == [True]
