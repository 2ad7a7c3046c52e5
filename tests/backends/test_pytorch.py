"""TorchModel and .pt2 programs on tiny modules."""

import copy
import pickle
import shutil
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ebjr.backends.pytorch import TorchModel, load_program
from ebjr.errors import ModelError


class Returning(nn.Module):
    """A module whose output is wrapped by a function."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.9), nn.BatchNorm1d(2))


@pytest.fixture
def batch():
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(1))


def save_program(module, path, dynamic=True):
    shapes = ({0: torch.export.Dim("n")},) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own deprecations while it writes
        program = torch.export.export(module.eval(), (torch.zeros(4, 3),), dynamic_shapes=shapes)
        torch.export.save(program, path)
    return path


def test_a_module_answers_in_evaluation_mode_without_gradients(module, batch):
    model = TorchModel(module.train())
    first, second = model(batch), model(batch)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not module.training


def test_the_kind_that_came_in_comes_out(module, batch):
    model = TorchModel(module)
    answers = model(batch.numpy())
    assert type(answers) is np.ndarray
    assert isinstance(model(batch), torch.Tensor)
    np.testing.assert_array_equal(answers, model(batch).numpy())


def test_global_state_stays_as_it_was(module, batch):
    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    TorchModel(module)(batch)
    after = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    assert before == after


def test_floating_inputs_are_cast_to_the_module(module, batch):
    model = TorchModel(module)
    assert model(batch.numpy().astype(np.float64)).dtype == np.float32
    assert model(batch.half()).dtype == torch.float32


def test_whole_numbers_are_left_as_they_are():
    model = TorchModel(nn.Embedding(5, 2), dtype=torch.float64)
    assert model(np.array([1, 4])).dtype == np.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_bfloat16_leaves_as_float32_for_numpy(module, batch, dtype):
    exact = TorchModel(copy.deepcopy(module))(batch)
    model = TorchModel(module, dtype=dtype)
    assert model(batch).dtype == torch.bfloat16
    assert model(batch.numpy()).dtype == np.float32
    torch.testing.assert_close(model(batch).float(), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.int64, "float31", 3])
def test_a_dtype_must_be_floating(module, dtype):
    with pytest.raises(TypeError, match="dtype must be a floating type"):
        TorchModel(module, dtype=dtype)


def test_read_only_and_reversed_arrays_are_taken(module, batch):
    model = TorchModel(module)
    frozen = batch.numpy().copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(model(frozen), model(batch.numpy()))
    np.testing.assert_array_equal(model(frozen[::-1])[::-1], model(frozen))


@pytest.mark.parametrize("n", [0, 1, 3, 7])
def test_chunks_change_nothing_in_torch(module, batch, n):
    chunked = TorchModel(module, batch_size=3)
    torch.testing.assert_close(chunked(batch[:n]), TorchModel(module)(batch[:n]))


def test_a_batch_size_below_one_is_refused(module):
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        TorchModel(module, batch_size=0)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: types.SimpleNamespace(features=x + 1, logits=x),
        lambda x: {"features": x + 1, "logits": x},
        lambda x: (x, x + 1),
        lambda x: [x, x + 1],
    ],
    ids=["object", "dictionary", "tuple", "list"],
)
def test_logits_are_found_in_what_a_module_returns(batch, wrap):
    assert torch.equal(TorchModel(Returning(wrap))(batch), batch)


def test_an_output_without_a_tensor_is_named(batch):
    with pytest.raises(ModelError, match="returned a dictionary of boxes, masks"):
        TorchModel(Returning(lambda x: {"boxes": x, "masks": x}))(batch)
    with pytest.raises(ModelError, match="returned a str"):
        TorchModel(Returning(lambda x: "cat"))(batch)


def test_a_failing_module_is_a_model_error(module):
    with pytest.raises(ModelError, match=r"Sequential failed on a batch of shape \(2, 9\)"):
        TorchModel(module)(np.zeros((2, 9)))


def test_a_list_is_no_batch_for_torch(module):
    with pytest.raises(TypeError, match="but is a list"):
        TorchModel(module)([[1.0, 2.0, 3.0]])


def test_words_are_no_batch_for_torch(module):
    with pytest.raises(TypeError, match="numbers of a type that PyTorch has"):
        TorchModel(module)(np.array(["cat"]))


def test_a_function_is_not_a_module():
    with pytest.raises(TypeError, match=r"nn\.Module, but is a function"):
        TorchModel(lambda x: x)


def test_a_program_answers_like_its_module(module, batch, tmp_path):
    path = save_program(module, tmp_path / "net.pt2")
    program = load_program(path, batch_size=4)
    assert (program.name, program.path) == ("net", path)
    assert (program.input_shape, program.input_dtype) == ((None, 3), np.float32)
    torch.testing.assert_close(program(batch), TorchModel(module)(batch))


def test_a_program_with_a_fixed_batch_says_so(module, batch, tmp_path):
    path = save_program(module, tmp_path / "net.pt2", dynamic=False)
    program = load_program(path)
    assert program.fixed_batch == 4
    with pytest.raises(ValueError, match="fixed batch of 4, but batch_size is 2"):
        load_program(path, batch_size=2)


@pytest.mark.parametrize("n", [0, 1, 4, 7])
def test_a_program_with_a_fixed_batch_takes_any_length(module, batch, tmp_path, n):
    path = save_program(module, tmp_path / "net.pt2", dynamic=False)
    for told in ({}, {"batch_size": 4}):
        answers = load_program(path, **told)(batch[:n])
        torch.testing.assert_close(answers, TorchModel(module)(batch[:n]))


@pytest.mark.parametrize("content", [b"", b"not a program"])
def test_a_corrupt_program_is_one_sentence(tmp_path, content):
    path = tmp_path / "corrupt.pt2"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"corrupt\.pt2 must be a program") as caught:
        load_program(path)
    assert "\n" not in str(caught.value)


def test_a_program_in_another_process_is_read_from_its_file(module, batch, tmp_path):
    program = load_program(save_program(module, tmp_path / "net.pt2"), batch_size=2)
    again = pickle.loads(pickle.dumps(program))
    assert (again.path, again.batch_size) == (program.path, 2)
    assert torch.equal(again(batch), program(batch))


def test_a_compiled_module_gives_the_same_answers_at_any_length():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    plain, compiled = TorchModel(module), TorchModel(module, compile="aot_eager")
    rng = np.random.default_rng(0)
    for rows in (4, 7, 1, 64):
        batch = rng.random((rows, 3), np.float32)
        np.testing.assert_allclose(compiled(batch), plain(batch), rtol=1e-5, atol=1e-6)
    again = pickle.loads(pickle.dumps(compiled))
    np.testing.assert_allclose(again(batch), plain(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler: g++")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of its own
def test_inductor_gives_the_same_answers_at_any_length():
    plain, compiled = (TorchModel(torch.nn.ReLU(), compile=how) for how in (False, True))
    rng = np.random.default_rng(0)
    for rows in (4, 7):
        batch = rng.normal(size=(rows, 3)).astype(np.float32)
        np.testing.assert_allclose(compiled(batch), plain(batch), rtol=1e-6)


def test_a_backend_that_torch_cannot_compile_with_is_refused():
    with pytest.raises(ValueError, match=r"compile must be True or one of .*inductor.*'fast'"):
        TorchModel(torch.nn.ReLU(), compile="fast")
