"""The rivals' networks and rules of `experiments/rivals`, on networks of a few channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ebjr import Outcomes, Router, as_score
from experiments.cifar10_pair.export import to_onnx
from experiments.cifar10_pair.nets import WhitenedNet, flops
from experiments.cifar10_pair.train import accuracy
from experiments.pairs import shipped_pair
from experiments.rivals import exits
from experiments.rivals.nets import EarlyExits, MultiExit, MultiScale, Slimmable, unfold, widen
from experiments.rivals.record import Answers, read, recorded
from experiments.rivals.routers import by_vote, voted
from experiments.rivals_cifar10 import equal_cost, leave_early

SCORE = "softmax"


def small(widths: tuple[int, ...], depths: tuple[int, ...] = (1, 1, 1)) -> WhitenedNet:
    """A net whose norms do something."""
    net = WhitenedNet(widths, depths, strides=(2, 1, 1))
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
    return net.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["early exits", "multi-scale"])
def net(request: pytest.FixtureRequest) -> MultiExit:
    torch.manual_seed(0)
    if request.param == "early exits":
        return EarlyExits(small((4, 6, 6), (1, 2, 2)), width=4).eval()
    return MultiScale((4, 6, 8), (2, 4, 4), (1, 1, 1)).eval()


@torch.no_grad()
def test_a_multi_exit_network_is_joint_models_of_its_exits(net: MultiExit, images: Tensor) -> None:
    answers = Answers(net(images).numpy(), np.array(net.costs(), float))
    blends = [0.5, 0.3]
    scores = [as_score(SCORE)] * 2
    rule = exits.Rule(scores, blends, common=False)
    values = [score(answers.logits[:, :, k]) for k, score in enumerate(scores)]
    thresholds = tuple(float(np.quantile(each, 0.6)) for each in values)
    joint = net.as_joint([Router(SCORE, each) for each in thresholds], blends)(images)
    found = rule.on(answers, joint.prediction.numpy())
    place = found.leaving(thresholds)
    assert set(place) == {0, 1, 2}
    np.testing.assert_array_equal(joint.deferred.numpy(), place > 0)
    assert found.at(thresholds).accuracy == 1


@torch.no_grad()
@pytest.mark.parametrize(("threshold", "exit_"), [(0.0, 0), (np.inf, -1)])
def test_who_never_or_always_goes_on_gets_the_first_or_the_last_exit(
    net: MultiExit, images: Tensor, threshold: float, exit_: int
) -> None:
    found = net.as_joint([Router(SCORE, threshold)] * 2)(images).output
    torch.testing.assert_close(found, net(images)[:, :, exit_])


def test_an_exit_costs_all_that_comes_before_it(net: MultiExit) -> None:
    costs = net.costs()
    assert costs == sorted(set(costs))
    assert costs[-1] == flops(net)


def test_in_training_the_chain_of_early_exits_stays_as_it_is(images: Tensor) -> None:
    net = EarlyExits(small((4, 6, 6), (1, 2, 2)), width=4).train()
    before = {name: value.clone() for name, value in net.chain.state_dict().items()}
    learning = [value for value in net.parameters() if value.requires_grad]
    step = torch.optim.SGD(learning, 0.1)
    said = net(images)
    assert said.shape == (24, 10, 2)
    said.square().sum().backward()
    step.step()
    for name, value in net.chain.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_narrow_width_is_a_network_of_its_own_with_filters_of_the_wide_one(
    images: Tensor,
) -> None:
    net = Slimmable((2, 4, 4), (4, 6, 8)).eval()
    with torch.no_grad():
        answers = net(images)
        torch.testing.assert_close(net.at(0)(images), answers[:, :, 0])
        torch.testing.assert_close(net.at(1)(images), answers[:, :, 1])
    net(images)[:, :, 0].square().sum().backward()
    shared = net.nets[1].blocks[0].conv.weight
    assert shared.grad[:2].abs().sum() > 0
    assert shared.grad[2:].abs().sum() == 0
    narrow, wide = net.costs()
    assert narrow < wide


@torch.no_grad()
def test_a_widened_network_answers_as_the_narrow_one(images: Tensor) -> None:
    narrow, wide = small((4, 4, 6)), small((5, 7, 9))
    widen(wide, narrow, images)
    torch.testing.assert_close(wide(images), narrow(images))


@torch.no_grad()
def test_an_exported_network_read_back_answers_as_before(
    images: Tensor, tmp_path: pytest.TempPathFactory
) -> None:
    net, again = small((4, 4, 6)), small((4, 4, 6))
    for layer in (net.whiten, *(block.conv for block in net.blocks), net.head):
        layer.weight.copy_(layer.weight.half())
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(net, "test").SerializeToString())
    unfold(again, path, images)
    torch.testing.assert_close(again(images), net(images), rtol=0.01, atol=0.01)


def test_accuracy_is_of_each_answer() -> None:
    logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    assert accuracy(logits, np.array([0, 0])).tolist() == [1.0, 0.5]
    assert accuracy(logits[:, :, 1], np.array([0, 0])) == 0.5


def test_thresholds_are_the_cheapest_that_are_as_good_or_the_best_that_are_cheap() -> None:
    options = {
        (0, (1.0,)): exits.Half(0.8, 10.0),
        (1, (2.0,)): exits.Half(0.9, 20.0),
        (0, (3.0,)): exits.Half(0.9, 30.0),
    }
    assert exits.as_good_as(0.9, options) == (1, (2.0,))
    assert exits.best_within(25.0, options) == (1, (2.0,))
    assert exits.best_within(5.0, options) == (0, (1.0,))


def test_a_rule_with_one_threshold_leaves_at_the_first_exit_that_is_sure() -> None:
    logits = np.array([[[9.0, 0, 0], [0, 0, 0]], [[0, 9.0, 0], [0, 0, 9.0]]])
    answers = Answers(logits, np.array([1e6, 2e6, 4e6]))
    targets = np.array([0, 1])
    (own,) = exits.own_rule("softmax", answers, targets)
    rule = own.on(answers, targets)
    assert rule.leaving((0.9, 0.9)).tolist() == [0, 1]
    assert rule.at((0.9, 0.9)) == exits.Half(0.5, 1.5)


@pytest.fixture(scope="module")
def some() -> tuple[Outcomes, dict[str, Answers]]:
    """The shipped pair and its recorded rivals on a few images."""
    rows = np.arange(400)
    kept = recorded()
    short = {name: Answers(each.logits[rows], each.flops) for name, each in kept.items()}
    return shipped_pair().take(rows), short


def test_ebjr_on_top_of_recorded_exits_costs_from_the_first_to_the_last(
    some: tuple[Outcomes, dict[str, Answers]],
) -> None:
    pair, kept = some
    answers = kept["early_exits"]
    for rule in leave_early(answers, pair.targets, splits=1).values():
        cost = [point["mflops"] for point in rule["curve"]]
        assert min(cost) >= round(answers.flops[0] / 1e6, 2)
        assert max(cost) <= round(answers.flops[-1] / 1e6, 2)


def test_a_network_stands_beside_a_joint_model_that_costs_no_more_on_the_chosen_half(
    some: tuple[Outcomes, dict[str, Answers]],
) -> None:
    pair, kept = some
    found = equal_cost(pair, {**kept}, splits=1)
    assert "joint_over_it_points" not in found["teacher"]
    entry = found["single network"]
    low, high = entry["joint_held_out"][1:]
    assert low < entry["joint_held_out"][0] < high
    assert entry["joint_mflops"] < 1.3 * entry["mflops"]


def test_the_last_of_the_early_exits_is_the_shipped_teacher() -> None:
    np.testing.assert_allclose(
        read("early_exits").logits[:, :, -1], shipped_pair().teacher, atol=0.1
    )


def test_a_vote_defers_where_two_students_disagree(
    some: tuple[Outcomes, dict[str, Answers]],
) -> None:
    pair, kept = some
    other = kept["pooled"].logits[:, :, 0]
    point = by_vote(voted(pair, other, 1.0), seed=0)
    disagree = pair.student.argmax(axis=1) != other.argmax(axis=1)
    assert point.deferral_rate == pytest.approx(disagree[pair.split_rows(0.5, 0)[0]].mean())
