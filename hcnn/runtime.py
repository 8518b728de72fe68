"""Seeds and the device to compute on."""

import torch


def rng(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own, so that no draw depends on the ones before."""
    return torch.Generator(device).manual_seed(seed)


def best_device() -> torch.device:
    """The first CUDA GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
