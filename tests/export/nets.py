"""Small networks, and formats that misbehave, for tests of the engines."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vs3r.export.build import Task
from vs3r.networks import Network, part


class Tiny(nn.Module):
    """Two inputs, one output; `gain` is a setting that is no weight."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.gain = gain

    def forward(self, picture: Tensor, shift: Tensor) -> Tensor:
        found: Tensor = part(Tiny.mixed)(self, picture) * self.gain + shift
        return found

    def mixed(self, picture: Tensor) -> Tensor:
        """Of the first input."""
        return torch.tanh(self.conv(picture.to(self.conv.weight.dtype))).float()


def tiny_task(height: int = 8, width: int = 12, *, gain: float = 1.0, dtype: torch.dtype = torch.float32) -> Task:
    """Tiny with inputs of a size."""
    network = Tiny(gain).eval().to(dtype)
    return Task(model="tiny", network=network, example=(torch.zeros(1, 3, height, width), torch.zeros(1, 4, 1, 1)))


class EagerFormat:
    """A format whose file holds a factor by which its engine is wrong; builds are counted."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.version = "1"
        self.builds = 0
        self.network: nn.Module | None = None

    def obstacle(self, _device: torch.device, /) -> str | None:
        return None

    def toolchain(self) -> str:
        return f"eager {self.version}"

    def build(self, network: nn.Module, example: tuple[Tensor, ...], folder: Path) -> str:
        assert example
        self.builds += 1
        self.network = network
        (folder / "engine.txt").write_text(str(self.factor))
        return "engine.txt"

    def load(self, path: Path, device: torch.device) -> Network:
        assert device.type == "cpu"
        factor, network = float(path.read_text()), self.network
        assert network is not None
        return lambda *inputs: factor * network(*inputs)
