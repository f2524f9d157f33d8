"""RAFT-Large (Teed & Deng 2020): recurrent optical flow. Loads the public checkpoints of Princeton and torchvision.

Modules are named as in Princeton's checkpoint. Pictures are RGB in [-1, 1], their sides multiples of 8 and at least
128; `Raft` is the bare network, vs3r.flow.learned makes a FlowEstimator of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vs3r.networks import part
from vs3r.weights import check_state

PARAMETERS = 5_257_536
STRIDE = 8
MIN_SIDE = 128
LEVELS = 4
RADIUS = 4
# Rows of the on-demand lookup that are correlated at a time.
_QUERIES_AT_ONCE = 4096

# torchvision's name of a module -> Princeton's, tried in order.
_FROM_TORCHVISION = (
    (r"^feature_encoder\.", "fnet."),
    (r"^context_encoder\.", "cnet."),
    (r"^([fc]net)\.convnormrelu\.0\.", r"\1.conv1."),
    (r"^([fc]net)\.convnormrelu\.1\.", r"\1.norm1."),
    (r"^([fc]net)\.conv\.", r"\1.conv2."),
    (r"\.convnormrelu([12])\.0\.", r".conv\1."),
    (r"\.convnormrelu([12])\.1\.", r".norm\1."),
    (r"^update_block\.motion_encoder\.", "update_block.encoder."),
    (r"^(update_block\.encoder)\.convcorr([12])\.0\.", r"\1.convc\2."),
    (r"^(update_block\.encoder)\.convflow([12])\.0\.", r"\1.convf\2."),
    (r"^(update_block\.encoder)\.conv\.0\.", r"\1.conv."),
    (r"^update_block\.recurrent_block\.convgru([12])\.conv([zrq])\.", r"update_block.gru.conv\2\1."),
    (r"^mask_predictor\.convrelu\.0\.", "update_block.mask.0."),
    (r"^mask_predictor\.conv\.", "update_block.mask.2."),
)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, with ReLU before the sum too."""

    def __init__(self, inputs: int, outputs: int, norm: type[nn.Module], stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm1, self.norm2 = norm(outputs), norm(outputs)
        self.downsample = (
            nn.Identity() if stride == 1 else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride), norm(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.downsample(x) + y)


class Encoder(nn.Module):
    """(N, 3, H, W) to (N, outputs, H / 8, W / 8)."""

    def __init__(self, outputs: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.norm1 = norm(64)
        self.layer1 = nn.Sequential(ResidualBlock(64, 64, norm, 1), ResidualBlock(64, 64, norm, 1))
        self.layer2 = nn.Sequential(ResidualBlock(64, 96, norm, 2), ResidualBlock(96, 96, norm, 1))
        self.layer3 = nn.Sequential(ResidualBlock(96, 128, norm, 2), ResidualBlock(128, 128, norm, 1))
        self.conv2 = nn.Conv2d(128, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        found: Tensor = self.conv2(self.layer3(self.layer2(self.layer1(x))))
        return found


class MotionEncoder(nn.Module):
    """Correlation features and flow to 128 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(LEVELS * (2 * RADIUS + 1) ** 2, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(192 + 64, 126, 3, padding=1)

    def forward(self, flow: Tensor, correlation: Tensor) -> Tensor:
        c = F.relu(self.convc2(F.relu(self.convc1(correlation))))
        f = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat([F.relu(self.conv(torch.cat([c, f], 1))), flow], 1)


class SeparableGru(nn.Module):
    """A convolutional GRU along rows, then one along columns."""

    def __init__(self) -> None:
        super().__init__()
        for number, (kernel, padding) in enumerate((((1, 5), (0, 2)), ((5, 1), (2, 0))), 1):
            for gate in "zrq":
                self.add_module(f"conv{gate}{number}", nn.Conv2d(128 + 256, 128, kernel, padding=padding))

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        for number in (1, 2):
            z, r, q = (self.get_submodule(f"conv{gate}{number}") for gate in "zrq")
            both = torch.cat([hidden, x], 1)
            update = torch.sigmoid(z(both))
            candidate = torch.tanh(q(torch.cat([torch.sigmoid(r(both)) * hidden, x], 1)))
            hidden = (1 - update) * hidden + update * candidate
        return hidden


class FlowHead(nn.Module):
    """Hidden state to a step of the flow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(128, 256, 3, padding=1)
        self.conv2 = nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        step: Tensor = self.conv2(F.relu(self.conv1(hidden)))
        return step


class UpdateBlock(nn.Module):
    """One iteration's network, and the weights of the final upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MotionEncoder()
        self.gru = SeparableGru()
        self.flow_head = FlowHead()
        self.mask = nn.Sequential(nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 64 * 9, 1))


class Raft(nn.Module):
    """The network. Low-precision weights compute in that precision; coordinates and correlations stay in float32."""

    def __init__(self, *, iterations: int = 12, all_pairs_pixels: int = 1 << 20) -> None:
        """
        Args:
            iterations: refinements of the flow, >= 1.
            all_pairs_pixels: larger pictures are correlated at every lookup instead of keeping all pairs, which takes
                1.4 GB for a megapixel: memory O(HW), not O((HW)^2); slower.
        """
        super().__init__()
        self.fnet = Encoder(256, nn.InstanceNorm2d)
        self.cnet = Encoder(256, nn.BatchNorm2d)
        self.update_block = UpdateBlock()
        self.iterations = iterations
        self.all_pairs_pixels = all_pairs_pixels

    def forward(self, src: Tensor, dst: Tensor, start: Tensor) -> Tensor:
        """Flow from src to dst.

        Args:
            src, dst: (N, 3, H, W) RGB in [-1, 1]; H and W multiples of 8, at least 128.
            start: (N, 2, H / 8, W / 8) float32 flow to start from, in pixels of that size; zero where nothing is known.
        Returns:
            (N, 2, H, W) float32, x first, in pixels.
        """
        dtype = self.fnet.conv1.weight.dtype
        encode, refine = part(Encoder.forward), part(Raft._refined)
        features = encode(self.fnet, torch.cat([src, dst]).to(dtype)).float()
        keep_all = src.shape[2] * src.shape[3] <= self.all_pairs_pixels
        lookup = (AllPairs if keep_all else OnDemand)(*features.chunk(2))
        hidden, context = encode(self.cnet, src.to(dtype)).chunk(2, 1)
        hidden, context = torch.tanh(hidden), F.relu(context)
        here = _pixel_grid(start)
        flow = start.clone()  # `start` may be of another mode of autograd, for which all would be compiled again
        for _ in range(self.iterations):
            flow, hidden = refine(self, flow, hidden, context, lookup, here)
        return _upsample(flow, 0.25 * self.update_block.mask(hidden).float())

    def _refined(
        self, flow: Tensor, hidden: Tensor, context: Tensor, lookup: AllPairs | OnDemand, here: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Flow and hidden state after an iteration; `here` are the places of the pixels."""
        correlation = lookup((here + flow).permute(0, 2, 3, 1))
        motion = self.update_block.encoder(flow.to(hidden.dtype), correlation.to(hidden.dtype))
        hidden = self.update_block.gru(hidden, torch.cat([context, motion], 1))
        return flow + self.update_block.flow_head(hidden).float(), hidden


class AllPairs:
    """Correlation of every pair of pixels, pooled over the second picture; lookup around given positions."""

    def __init__(self, src: Tensor, dst: Tensor) -> None:
        N, C, h, w = src.shape
        volume = src.flatten(2).mT @ dst.flatten(2) / C**0.5
        self._levels = [volume.view(N * h * w, 1, h, w)]
        for _ in range(LEVELS - 1):
            self._levels.append(F.avg_pool2d(self._levels[-1], 2))
        self._window = _window(src.device)

    def __call__(self, at: Tensor) -> Tensor:
        """(N, h, w, 2) positions, x first, to (N, LEVELS * 81, h, w) features."""
        N, h, w, _ = at.shape
        found = []
        for level, volume in enumerate(self._levels):
            x, y = (at.reshape(N * h * w, 1, 1, 2) / 2**level + self._window).unbind(-1)
            places = torch.stack([2 * x / (volume.shape[3] - 1) - 1, 2 * y / (volume.shape[2] - 1) - 1], -1)
            sampled = F.grid_sample(volume, places, align_corners=True)
            found.append(sampled.view(N, h, w, -1))
        return torch.cat(found, -1).permute(0, 3, 1, 2)


class OnDemand:
    """The same numbers as AllPairs from pooled features: pooling a correlation is correlating with what is pooled."""

    def __init__(self, src: Tensor, dst: Tensor) -> None:
        self._src = src.flatten(2).mT / src.shape[1] ** 0.5
        self._levels = [dst]
        for _ in range(LEVELS - 1):
            self._levels.append(F.avg_pool2d(self._levels[-1], 2))

    def __call__(self, at: Tensor) -> Tensor:
        """See AllPairs."""
        N, h, w, _ = at.shape
        found = [self._level(at.view(N, h * w, 2) / 2**level, features) for level, features in enumerate(self._levels)]
        return torch.cat(found, -1).mT.reshape(N, -1, h, w)

    def _level(self, at: Tensor, features: Tensor) -> Tensor:
        """(N, Q, 81) correlations about (N, Q, 2) positions in (N, C, H, W) features."""
        N, C, H, W = features.shape
        # A margin of zeros answers for everything outside.
        padded = F.pad(features, (1, 1, 1, 1)).flatten(2).mT
        base = at.floor()
        side = torch.arange(2 * RADIUS + 2, device=at.device) - RADIUS
        rows = []
        for begin in range(0, at.shape[1], _QUERIES_AT_ONCE):
            cut = slice(begin, begin + _QUERIES_AT_ONCE)
            x, y = (base[:, cut, None].long() + side[:, None]).unbind(-1)
            x, y = x.clamp(-1, W) + 1, y.clamp(-1, H) + 1
            window = []
            for k in range(len(side)):
                index = (y[..., k, None] * (W + 2) + x).flatten(1)
                near = padded.gather(1, index[..., None].expand(-1, -1, C)).view(N, -1, len(side), C)
                window.append((near @ self._src[:, cut, :, None]).squeeze(-1))
            rows.append(torch.stack(window, -2))  # (N, Q, y, x)
        window_all = torch.cat(rows, 1)
        fx, fy = (at - base)[..., None, None].unbind(2)
        across = (1 - fx) * window_all[..., :-1] + fx * window_all[..., 1:]
        both = (1 - fy) * across[..., :-1, :] + fy * across[..., 1:, :]
        # The checkpoints expect x as the slower axis of the window.
        return both.mT.flatten(2)


def _window(device: torch.device) -> Tensor:
    """(1, 9, 9, 2) offsets, x first; the first axis of the window is x, as the checkpoints expect."""
    side = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)[None]


def _pixel_grid(like: Tensor) -> Tensor:
    """(1, 2, h, w) x and y of every pixel's number."""
    h, w = like.shape[2:]
    x = torch.arange(w, dtype=torch.float32, device=like.device).expand(h, w)
    y = torch.arange(h, dtype=torch.float32, device=like.device)[:, None].expand(h, w)
    return torch.stack([x, y])[None]


def _upsample(flow: Tensor, logits: Tensor) -> Tensor:
    """Each fine pixel a convex combination of the 9 coarse ones around it (RAFT, appendix B)."""
    N, _, h, w = flow.shape
    weight = logits.view(N, 1, 9, STRIDE, STRIDE, h, w).softmax(2)
    around = F.unfold(STRIDE * flow, 3, padding=1).view(N, 2, 9, 1, 1, h, w)
    fine = (weight * around).sum(2)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(N, 2, STRIDE * h, STRIDE * w)


def princeton_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of either publisher with the names that Raft has."""
    found = {}
    for given, value in state.items():
        name = given.removeprefix("module.")
        for pattern, replacement in _FROM_TORCHVISION:
            name = re.sub(pattern, replacement, name)
        # Princeton lists the norm after a strided shortcut under two names.
        if ".norm3." not in name:
            found[name] = value
    return found


def load_raft(network: Raft, state: Mapping[str, Tensor]) -> None:
    """Load a public checkpoint, Princeton's or torchvision's, into a network on any device.

    Raises:
        InputError: naming what is missing, unexpected or of another shape.
    """
    named = princeton_names(state)
    check_state("RAFT-Large", network.state_dict(), named, advice="fetch it with vs3r weights")
    network.load_state_dict(named)
