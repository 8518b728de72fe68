"""Seeds and devices."""

import pytest
import torch

from hcnn.runtime import best_device, rng


def test_one_seed_gives_one_sequence():
    first, again = (torch.rand(5, generator=rng(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_two_seeds_give_two_sequences():
    one, two = (torch.rand(5, generator=rng(seed)) for seed in (3, 4))
    assert not torch.equal(one, two)


def test_a_generator_is_its_own():
    """Neither does it move torch's global state, nor is it moved by it."""
    state = torch.get_rng_state()
    ours = rng(3)
    torch.rand(2, generator=ours)
    assert torch.equal(torch.get_rng_state(), state)
    expected = torch.rand(7, generator=rng(3))[2:]
    with torch.random.fork_rng(devices=[]):
        torch.rand(100)
        assert torch.equal(torch.rand(5, generator=ours), expected)


def test_the_best_device_computes():
    device = best_device()
    assert device.type in ("cuda", "cpu")
    assert torch.ones(2, device=device).sum().item() == 2


def test_without_a_gpu_the_best_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_device() == torch.device("cpu")


@pytest.mark.gpu
def test_with_a_gpu_the_best_device_is_the_gpu():
    assert best_device().type == "cuda"
    assert torch.rand(2, generator=rng(0, "cuda"), device="cuda").is_cuda
