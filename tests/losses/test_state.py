"""State over steps and ranks: two processes hold the state that one process has on the joined batch."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist

from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY, REGULARIZER_REGISTRY, LogitStatistics, add_regularizer
from eql_d2.losses.state import RandomLoss, StatefulLoss, accumulated_ratio, random_rank, sum_over_ranks
from tests.losses.helpers import make_loss, random_labels, random_logits, step

STATEFUL = sorted(name for name, cls in CLASSIFIER_LOSS_REGISTRY if issubclass(cls, StatefulLoss))
REGULARIZERS = sorted(name for name, _ in REGULARIZER_REGISTRY)
RANDOM = sorted(name for name, cls in CLASSIFIER_LOSS_REGISTRY if issubclass(cls, RandomLoss))
#: Regions of rank 0 and rank 1 in each step: unequal, and none on one of them.
REGIONS = [(5, 9), (0, 6), (7, 0), (4, 4)]
#: The losses whose normaliser is shared by the ranks: the mean of their losses is the loss of the joined batch.
SHARED_NORMALIZER = ["EFL", "FOCAL"]


def built(name: str):
    """The loss ``name``, or softmax with the regulariser ``name``."""
    loss = make_loss("SOFTMAX" if name in REGULARIZERS else name)
    add_regularizer(loss, name if name in REGULARIZERS else "", {})
    return loss


def part(loss, number: int, rank=None):
    """Logits and labels of a step: of one rank, or of both joined."""
    sizes = REGIONS[number]
    logits = random_logits(sum(sizes), loss.num_logits, seed=number, dtype=torch.float32)
    labels = random_labels(sum(sizes), loss.num_classes, seed=number)
    if rank is None:
        return logits, labels
    return logits.split(sizes)[rank], labels.split(sizes)[rank]


def train_on_rank(rank: int, port: int, folder: str) -> None:
    """Run all losses in one of two processes and save what the test compares."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results = {}
    for name in sorted({*STATEFUL, *SHARED_NORMALIZER, *REGULARIZERS}):
        loss = built(name)
        values = [step(loss, *part(loss, number, rank))[0] for number in range(len(REGIONS))]
        results[name] = {"state": {k: v.clone() for k, v in loss.state_dict().items()}, "values": values}
        # A step that is not finite on rank 1 only.
        logits, labels = part(loss, 0, rank)
        if rank == 1:
            logits = torch.full_like(logits, float("nan"))
        loss(logits, labels)
        results[name]["after_bad_step"] = loss.state_dict()
    for name in RANDOM:
        loss = make_loss(name, **({"gamma": 0.5} if name == "SEQL" else {}))
        generator = loss.next_generator(torch.device("cpu"))
        results[name] = torch.rand(4, generator=generator)
    statistics = LogitStatistics(3)
    statistics.update(torch.randn(10 + 30 * rank, 3, generator=torch.Generator().manual_seed(rank)) + 100)
    statistics.reduce_over_ranks()
    results["statistics"] = (statistics.count, statistics.mean, statistics.std)
    torch.save(results, os.path.join(folder, f"{rank}.pth"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What both processes saved."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train_on_rank, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.mark.parametrize("name", STATEFUL + REGULARIZERS)
def test_ranks_hold_the_state_of_the_joined_batch(two_ranks, name):
    joined = built(name)
    for number in range(len(REGIONS)):
        step(joined, *part(joined, number))
    for key, expected in joined.state_dict().items():
        first, second = (results[name]["state"][key] for results in two_ranks)
        assert torch.equal(first, second), key
        torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-7)
        assert expected.abs().sum() > 0, key


@pytest.mark.parametrize("name", SHARED_NORMALIZER)
def test_mean_of_the_ranks_losses_is_that_of_the_joined_batch(two_ranks, name):
    joined = make_loss(name)
    for number in range(len(REGIONS)):
        expected, _ = step(joined, *part(joined, number))
        mean = sum(results[name]["values"][number] for results in two_ranks) / 2
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in [*STATEFUL, "PCB"] if name != "SEESAW"])
def test_a_bad_step_of_one_rank_is_left_out_on_both(two_ranks, name):
    for results in two_ranks:
        for key, value in results[name]["state"].items():
            # Steps are counted whatever they hold.
            assert key.endswith("num_steps") or torch.equal(results[name]["after_bad_step"][key], value), key


@pytest.mark.parametrize("name", RANDOM)
def test_ranks_draw_differently(two_ranks, name):
    assert not torch.equal(two_ranks[0][name], two_ranks[1][name])
    # Rank 0 draws what a single process draws.
    loss = make_loss(name, **({"gamma": 0.5} if name == "SEQL" else {}))
    assert torch.equal(two_ranks[0][name], torch.rand(4, generator=loss.next_generator(torch.device("cpu"))))


def test_statistics_of_logits_over_ranks(two_ranks):
    parts = [torch.randn(10 + 30 * r, 3, generator=torch.Generator().manual_seed(r)) + 100 for r in range(2)]
    joined = torch.cat(parts).double()
    for results in two_ranks:
        count, mean, std = results["statistics"]
        assert count == 50
        torch.testing.assert_close(mean, joined.mean(0))
        torch.testing.assert_close(std, joined.std(0, unbiased=False))


def test_no_process_group_is_no_op():
    values = torch.arange(3.0)
    assert sum_over_ranks(values) is values


def test_sums_do_not_stop_growing():
    """In float32 a sum of 2^24 no longer takes in steps of 1."""
    loss = make_loss("EQL_V2")
    loss.pos_grad.fill_(2.0**24)
    loss.accumulate(pos_grad=torch.ones(9), neg_grad=torch.ones(9))
    assert (loss.pos_grad == 2.0**24 + 1).all()


def test_gradient_ratio():
    zero, some = torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)
    assert accumulated_ratio(zero, zero, 100.0).tolist() == [100.0, 100.0]
    assert accumulated_ratio(some, some + 1, 100.0).tolist() == pytest.approx([0.0, 0.75])


def test_random_rank_orders_the_candidates_first():
    generator = torch.Generator().manual_seed(0)
    candidates = torch.tensor([[True, False, True, True], [False, False, False, True]])
    for _ in range(20):
        rank = random_rank(candidates, generator)
        assert sorted(rank[0].tolist()) == [0, 1, 2, 3]
        assert rank[0, 1] == 3
        assert rank[1, 3] == 0
    orders = {tuple(random_rank(candidates, generator)[0].tolist()) for _ in range(200)}
    assert len(orders) == 6


def test_step_of_random_draws_is_in_the_checkpoint():
    loss = make_loss("ACSL")
    first = [torch.rand(3, generator=loss.next_generator(torch.device("cpu"))) for _ in range(3)]
    assert not torch.equal(first[0], first[1])
    other = make_loss("ACSL")
    other.load_state_dict({**other.state_dict(), "random_step": torch.tensor(2)})
    assert torch.equal(torch.rand(3, generator=other.next_generator(torch.device("cpu"))), first[2])
    assert other.state_dict()["random_step"] == 3


def test_draws_stand_still_outside_of_training():
    loss = make_loss("ACSL").eval()
    first, second = (torch.rand(3, generator=loss.next_generator(torch.device("cpu"))) for _ in range(2))
    assert torch.equal(first, second)
