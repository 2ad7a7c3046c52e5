"""A joint model travels as a folder, to Hugging Face's hub and back, whole and unchanged or not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import write_joint

import ebjr
from ebjr.backends.entry import RemoteEntry, entry_of
from ebjr.hub import pack_joint

for name in ("onnxruntime", "uvicorn", "huggingface_hub"):
    pytest.importorskip(name, reason=f"{name} is not installed")

COLORS = np.random.default_rng(0).integers(0, 200, (40, 1, 1, 3))
IMAGES = np.broadcast_to(COLORS, (40, 8, 8, 3)).astype(np.uint8)
PACKED = ["README.md", "joint.toml", "student/student.onnx", "teacher/teacher.onnx"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return write_joint(tmp_path_factory.mktemp("made"), delta=0.1, tolerance=0.3).parent


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    """A folder of its own with the joint model in ``trained``."""
    shutil.copytree(made, tmp_path / "trained", ignore=shutil.ignore_patterns("images"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub():
    from hub_server import running

    with running() as found:
        yield found


@pytest.fixture
def asked(hub, folder):
    """Run a command against the hub: its exit status, what it printed, and what it said."""

    def ask(*words: str, token: str = hub.token, at: str = "") -> tuple[int, str, str]:
        known = {"HF_ENDPOINT": at or hub.url, "HF_TOKEN": token}
        done = subprocess.run(
            [sys.executable, *(words if words[0].endswith(".py") else ("-m", "ebjr", *words))],
            env=hub.environment(folder / "hf", **known),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, " ".join(done.stderr.split())

    return ask


def without_lists(names) -> list[str]:
    return sorted(name for name in names if not name.startswith("joint.lists-"))


def same_answers(one: Path, other: Path, **how) -> None:
    first, second = (ebjr.load_joint(path, **how)(IMAGES) for path in (one, other))
    assert np.array_equal(first.prediction, second.prediction)
    assert np.array_equal(first.score, second.score)
    assert 0 < first.deferred.sum() == second.deferred.sum()


def test_a_joint_model_goes_to_the_hub_and_comes_back(asked, hub, folder):
    code, printed, error = asked("push", "trained/joint.toml", "me/colors", "--json")
    assert code == 0, error
    told = json.loads(printed)
    assert told["url"].startswith(f"{hub.url}/me/colors/commit/")
    repo = hub.repos["me/colors"]
    assert without_lists(repo.commits[repo.head]) == [".gitattributes", *PACKED]
    card = repo.commits[repo.head]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: ebjr\ntags: [ebjr, cascade, classification]\n")
    assert "With probability at least 0.9" in card
    assert "ebjr pull me/colors -o joint" in card

    code, printed, error = asked("pull", "me/colors", "-o", "here")
    assert (code, error) == (0, "")
    assert "here/joint.toml: README.md, joint.lists-" in printed
    files = [p.relative_to("here").as_posix() for p in Path("here").rglob("*") if p.is_file()]
    assert without_lists(files) == PACKED
    shutil.move("trained", "moved")
    same_answers(folder / "moved/joint.toml", folder / "here/joint.toml")
    before, after = (ebjr.JointConfig.read(f"{name}/joint.toml") for name in ("moved", "here"))
    assert after.certificate == before.certificate
    assert after.calibration == before.calibration


def test_another_push_replaces_what_was_pushed_and_nothing_else(asked, hub, folder):
    assert asked("push", "trained/joint.toml", "me/colors")[0] == 0
    repo = hub.repos["me/colors"]
    first = repo.head
    repo.commit({**repo.commits[first], "LICENSE": b"mine", "student/old.onnx": b"old"})
    text = Path("trained/joint.toml").read_text().replace('name = "joint"', 'name = "colors"')
    Path("trained/joint.toml").write_text(text)
    assert asked("push", "trained/joint.toml", "me/colors")[0] == 0
    files = repo.commits[repo.head]
    assert without_lists(files) == [".gitattributes", "LICENSE", *PACKED]
    assert asked("pull", "me/colors", "-o", "new")[0] == 0
    assert asked("pull", "me/colors", "-o", "old", "--revision", first)[0] == 0
    names = [ebjr.JointConfig.read(f"{each}/joint.toml").name for each in ("old", "new")]
    assert names == ["joint", "colors"]


def test_a_private_repository_is_private_or_nothing_is_pushed(asked, hub):
    code, _, error = asked("push", "trained/joint.toml", "me/secret", "--private")
    assert code == 0, error
    assert hub.repos["me/secret"].private
    assert asked("push", "trained/joint.toml", "me/open")[0] == 0
    head = hub.repos["me/open"].head
    code, _, error = asked("push", "trained/joint.toml", "me/open", "--private")
    assert code == 2
    assert "me/open exists and is public" in error
    assert hub.repos["me/open"].head == head


def test_what_was_tampered_with_is_refused_and_leaves_nothing(asked, hub, folder):
    assert asked("push", "trained/joint.toml", "me/colors")[0] == 0
    repo = hub.repos["me/colors"]
    good = repo.commits[repo.head]
    lists = next(name for name in good if name.startswith("joint.lists-"))
    own = good["joint.toml"]
    outside = own.replace(b"student/student.onnx", b"../trained/student.onnx")
    listed = own.replace(lists.encode(), b"../trained/" + lists.encode())
    stage = b'[student]\npath = "../../trained/joint.toml"\nsha256 = "0"\n\n[teacher]'
    staged = own[: own.index(b"[student]")] + stage + own.partition(b"[teacher]")[2]
    teacher = good["teacher/teacher.onnx"]
    away = {name: data for name, data in good.items() if name != "student/student.onnx"}
    none = {name: data for name, data in good.items() if name != "joint.toml"}
    cases = [
        ({**good, "teacher/teacher.onnx": teacher[:-1] + b"x"}, "has changed"),
        ({**good, lists: good[lists] + b"\n"}, f"{lists}, has changed"),
        ({**good, "joint.toml": outside}, "trained/student.onnx, which is outs"),
        (
            {**good, "joint.toml": listed},
            "the file of its long lists must be beside it, not '../trained/",
        ),
        ({**good, "joint.toml": staged}, "trained/joint.toml, which is outside"),
        ({**good, "../../evil.py": b"x"}, "a file '../../evil.py', which is"),
        ({**good, "/tmp/evil.py": b"x"}, "a file '/tmp/evil.py', which is outs"),
        ({**good, "a\\..\\..\\evil.py": b"x"}, "which is outside"),
        (away, "joint.toml names the missing model file"),
        (none, "holds no joint.toml"),
    ]
    revisions = [repo.commit(files) for files, _ in cases]
    Path("pull.py").write_text(
        "import sys, ebjr\n"
        "for revision in sys.argv[1:]:\n"
        "    try: print(ebjr.pull_joint('me/colors', 'here', revision=revision))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    before = sorted(folder.rglob("*"))
    code, printed, error = asked("pull.py", *revisions)
    assert (code, error) == (0, "")
    for said, (_, words) in zip(printed.splitlines(), cases, strict=True):
        assert said.startswith("ModelError me/colors ")
        assert words in said
        assert str(folder) not in said
    assert sorted(folder.rglob("*")) == before


def test_a_hub_that_says_no_or_nothing_is_one_sentence(asked, hub):
    for words, said in (
        (("pull", "me/nothing", "-o", "here"), "failed for me/nothing: 404"),
        (("pull", "me/no thing", "-o", "here"), "Repo id must use"),
        (("pull", "me/nothing", "-o", "trained"), "trained exists"),
        (("push", "trained/joint.toml"), "give either OWNER/NAME"),
        (("push", "trained/student.onnx", "me/colors"), "give the joint.toml it was made from"),
    ):
        code, _, error = asked(*words)
        assert (code, said in error) == (2, True), error
        assert error.startswith("ebjr: ")
    code, _, error = asked("push", "trained/joint.toml", "me/colors", token="hf_wrong")
    assert (code, "Invalid username or password" in error) == (2, True), error
    assert asked("push", "trained/joint.toml", "me/colors")[0] == 0
    code, _, error = asked("pull", "me/colors", "-o", "here", "--revision", "v7")
    assert (code, "404" in error) == (2, True), error
    code, _, error = asked("pull", "me/colors", "-o", "here", at="http://127.0.0.1:9")
    assert (code, "failed for me/colors" in error) == (2, True), error
    assert not Path("here").exists()


# The folder


def test_a_folder_holds_weights_that_are_beside_a_graph(folder):
    import onnx

    graph = onnx.load("trained/student.onnx")
    Path("other/weights").mkdir(parents=True)
    where = {"location": "weights/student.data", "size_threshold": 0}
    onnx.save(graph, "other/model.onnx", save_as_external_data=True, **where)
    shutil.copy("trained/teacher.onnx", "model.onnx")  # two files of one name
    preprocess = ebjr.Preprocess(size=8)
    models = (
        ebjr.Preprocessed(ebjr.load_model(path), preprocess)
        for path in ("other/model.onnx", "model.onnx")
    )
    ebjr.save_joint("joint.toml", ebjr.JointClassifier(*models, ebjr.Router("softmax", 0.7)))
    found = pack_joint("joint.toml", "packed")
    weights = "student/weights/student.data"
    assert [*found.files[2:]] == ["student/model.onnx", weights, "teacher/model.onnx"]
    assert "No figures" in Path("packed/README.md").read_text()
    shutil.rmtree("other")
    same_answers(folder / "packed/joint.toml", folder / "packed/joint.toml")


def test_stages_with_files_of_their_own_become_one_file(folder):
    inner = ebjr.load_joint("trained/joint.toml")
    outer = ebjr.JointClassifier(inner, inner.teacher, ebjr.Router("margin", 0.4))
    ebjr.save_joint("chain.toml", outer)
    text = Path("chain.toml").read_text()
    table = text[text.index("[student]") : text.index("[teacher]")]
    named = f'[student]\npath = "trained/joint.toml"\nsha256 = "{sha256("trained/joint.toml")}"\n\n'
    Path("chain.toml").write_text(text.replace(table, named))
    found = pack_joint("chain.toml", "packed")
    assert without_lists(found.files) == [
        *("README.md", "joint.toml", "model-2/teacher.onnx"),
        *("student/student.onnx", "teacher/teacher.onnx"),
    ]
    shutil.copytree("packed", "elsewhere")
    same_answers(folder / "chain.toml", folder / "elsewhere/joint.toml")


def sha256(path: str) -> str:
    from ebjr.files import sha256_of

    return sha256_of(path)


def test_what_a_folder_needs_beside_its_files_is_said(folder):
    config = ebjr.JointConfig.read("trained/joint.toml")
    table = {"name": "t", "platform": "p", "versions": ["1"]}
    image = {"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}
    logits = {"name": "y", "datatype": "FP32", "shape": [-1, 3]}
    metadata = {**table, "inputs": [image], "outputs": [logits]}
    url = "http://teacher.example/v2/models/t"
    teacher = RemoteEntry(url, metadata)
    Path("mine.py").write_text("def net(batch):\n    return batch.mean(axis=(2, 3))\n")
    with pytest.warns(ebjr.RecordingNote, match="no weights were found"):
        student = entry_of(ebjr.load_model("mine.py:net"))
    how = {"score": "margin", "threshold": 0.1, "imports": (str(folder / "own/scores.py"), "pkg")}
    ebjr.JointConfig(student, teacher, **how).save("joint.toml")
    found = pack_joint("joint.toml", "packed")
    assert found.needs == (
        "The student is Python code, mine.py: read it, and give --trust.",
        f"The teacher is remote: inputs are sent to {url}.",
        "A score or metric is its author's own: give --import scores.py.",
        "A score or metric is its author's own: give --import pkg.",
    )
    assert found.files == ("README.md", "joint.toml", "student/mine.py")
    assert str(folder) not in Path("packed/joint.toml").read_text()
    assert all(words in Path("packed/README.md").read_text() for words in found.needs)
    with pytest.raises(ebjr.ModelError, match="give --trust"):
        ebjr.load_joint("packed/joint.toml")
    secret = RemoteEntry("http://me:secret@teacher.example/v2/models/t", metadata)
    ebjr.JointConfig(config.student, secret, "margin", 0.1).save("joint.toml")
    with pytest.raises(ValueError, match=r"the teacher at teacher.example has a password"):
        pack_joint("joint.toml", "again")


def test_certificates_and_keys_stay_where_they_are(folder, asked, hub):
    config = ebjr.JointConfig.read("trained/joint.toml")
    tensors = [{"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in "xy"]
    metadata = {"name": "t", "platform": "p", "versions": ["1"]}
    metadata |= {"inputs": tensors[:1], "outputs": tensors[1:]}
    files = {"ca_file": str(folder / "ca.pem"), "client_key": str(folder / "key.pem")}
    teacher = RemoteEntry("https://teacher.example/v2/models/t", metadata, options=files)
    ebjr.JointConfig(config.student, teacher, "margin", 0.1).save("joint.toml")
    assert "key.pem" in Path("joint.toml").read_text()
    Path("key.pem").write_text("secret")
    found = pack_joint("joint.toml", "packed")
    assert not [name for name in found.files if name.endswith(".pem")]
    assert ".pem" not in Path("packed/joint.toml").read_text()
    text = Path("packed/joint.toml").read_bytes()
    asking = text.replace(b"[teacher]", b'[teacher]\nclient_key = "../../key.pem"')
    Path("packed/joint.toml").write_bytes(asking)
    assert asked("push", "trained/joint.toml", "me/colors")[0] == 0
    files = {path: (Path("packed") / path).read_bytes() for path in found.files}
    hub.repos["me/colors"].commit(files)
    code, _, error = asked("pull", "me/colors", "-o", "here")
    assert (code, "key.pem, which is outside its folder" in error) == (2, True), error


def test_a_pickle_travels_and_is_read_only_where_it_is_trusted(folder):
    joblib = pytest.importorskip("joblib")
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(0).normal(size=(60, 4))
    for role, power in (("student", 0.01), ("teacher", 10.0)):
        fitted = LogisticRegression(C=power).fit(rows, (rows[:, 0] > 0).astype(int))
        joblib.dump(fitted, f"{role}.joblib")
    models = (ebjr.load_model(f"{role}.joblib", trust=True) for role in ("student", "teacher"))
    ebjr.save_joint("joint.toml", ebjr.JointClassifier(*models, ebjr.Router("margin", 1.0)))
    found = pack_joint("joint.toml", "packed")
    assert found.needs[0].startswith("The student is a pickle, which can run any code")
    with pytest.raises(ebjr.ModelError, match="give --trust"):
        ebjr.load_joint("packed/joint.toml")
    assert ebjr.load_joint("packed/joint.toml", trust=True)(rows).deferred.any()


def test_a_model_that_has_changed_is_not_packed(folder):
    with pytest.raises(FileExistsError, match="trained exists"):
        pack_joint("trained/joint.toml", "trained")
    shutil.copy("trained/teacher.onnx", "trained/student.onnx")
    with pytest.raises(ebjr.ModelError, match="has changed since the threshold was calibrated"):
        pack_joint("trained/joint.toml", "packed")
    assert not Path("packed").exists()


def test_a_promise_that_is_void_is_not_on_the_card(folder):
    text = Path("trained/joint.toml").read_text()
    old = ebjr.JointConfig.read("trained/joint.toml").threshold
    Path("trained/joint.toml").write_text(text.replace(f"threshold = {old}", "threshold = 0.01", 1))
    with pytest.warns(ebjr.PromiseWarning):
        pack_joint("trained/joint.toml", "packed")
    card = Path("packed/README.md").read_text()
    assert "With probability" not in card
    assert "No figures" in card
