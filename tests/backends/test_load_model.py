"""load_model: what becomes a model, and what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from ebjr.backends import load_model
from ebjr.backends.onnx import OnnxModel
from ebjr.backends.pytorch import TorchModel
from ebjr.errors import ModelError
from ebjr.model import Model, model_name


@pytest.fixture
def relu(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:]
    )
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.mark.parametrize("kind", [str, Path])
def test_an_onnx_path_becomes_an_onnx_model(relu, kind):
    model = load_model(kind(relu), batch_size=8, threads=1)
    assert isinstance(model, OnnxModel)
    assert isinstance(model, Model)
    assert model_name(model) == "relu"
    assert model.batch_size == 8
    np.testing.assert_array_equal(model(np.array([[-1.0, 2.0]])), [[0, 2]])


def test_a_torch_module_becomes_a_torch_model():
    model = load_model(torch.nn.ReLU(), batch_size=2)
    assert isinstance(model, TorchModel)
    assert model_name(model) == "ReLU"


def test_a_callable_is_a_model_as_it_is(relu):
    def double(batch):
        return 2 * batch

    assert load_model(double) is double
    model = load_model(relu)
    assert load_model(model) is model


def test_a_callable_takes_no_options():
    with pytest.raises(TypeError, match="takes no options, but got threads"):
        load_model(abs, threads=2)


def test_an_option_that_does_not_exist_is_refused(relu):
    with pytest.raises(TypeError, match="thread"):
        load_model(relu, thread=2)


@pytest.mark.parametrize("name", ["gone.onnx", "gone.pt2"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"model file .*{name} does not exist"):
        load_model(tmp_path / name)


def test_a_folder_is_no_model_file(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model file .* does not exist"):
        load_model(tmp_path / "folder.onnx")


@pytest.mark.parametrize("name", ["net.pth", "net.h5", "net"])
def test_another_kind_of_file_lists_what_is_read(name):
    with pytest.raises(ModelError, match=r"\.onnx file, a \.pt2 program.*not the path net"):
        load_model(name)


@pytest.mark.parametrize("source", [3, None, np.zeros(3)])
def test_what_cannot_be_a_model_lists_what_can(source):
    with pytest.raises(TypeError, match=r"a model must be an \.onnx file"):
        load_model(source)


def test_a_class_is_not_yet_a_model():
    with pytest.raises(TypeError, match="the class ReLU: make an instance"):
        load_model(torch.nn.ReLU)


def test_an_estimator_is_told_to_give_its_method():
    class Estimator:
        def predict(self, batch):
            return batch

    with pytest.raises(TypeError, match="give its method instead, such as predict_proba"):
        load_model(Estimator())


def test_a_backend_is_imported_only_when_it_is_needed(relu):
    code = (
        "import sys; from ebjr.backends import load_model; load_model(abs)\n"
        "heavy = {'torch', 'onnx', 'onnxruntime'}\n"
        "assert not heavy & set(sys.modules)\n"
        "load_model(sys.argv[1])\n"
        "assert heavy & set(sys.modules) == {'onnxruntime'}\n"
    )
    subprocess.run([sys.executable, "-c", code, str(relu)], check=True)


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [("onnxruntime", "net.onnx", "onnx"), ("torch", "net.pt2", "torch")],
)
def test_a_missing_package_names_its_install_line(tmp_path, package, name, extra):
    (tmp_path / name).touch()
    code = (
        f"import sys, ebjr; sys.modules[{package!r}] = None\n"
        "from ebjr.backends import load_model\n"
        "from ebjr.errors import MissingExtra\n"
        "try:\n    load_model(sys.argv[1])\n"
        "except MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert f"pip install 'ebjr[{extra}]'" in done.stdout
