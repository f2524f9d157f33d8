"""Cues of motion against a literal implementation, and the second pass against one that really leaves keys out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.reconstruct.vggt.common import SMALL, pictures, small
from vs3r.reconstruct.vggt.cues import Cues, normalised, sources_of
from vs3r.reconstruct.vggt.layers import Attending, Block
from vs3r.reconstruct.vggt.model import FirstPass, SecondPass, Vggt, depth_frames, lower_precision

# Worst difference seen from the literal one in float64: 2.4e-6.
CUES = 1e-4


def recorded(network: Vggt, window: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The network's own cues, and queries and keys (heads, S, n, head) of every global block, in float64."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(block: Block) -> Callable[[Tensor, Attending], Tensor]:
        inner = block.forward

        def forward(x: Tensor, how: Attending) -> Tensor:
            def tap(q: Tensor, k: Tensor) -> None:
                patches = [
                    x[0].view(SMALL.heads, len(window), -1, x.shape[-1])[:, :, SMALL.special :].double() for x in (q, k)
                ]
                seen.append((patches[0], patches[1]))
                if how.tap is not None:
                    how.tap(q, k)

            return inner(x, Attending(rope=how.rope, bias=how.bias, tap=tap))

        return forward

    for block in network.aggregator.global_blocks:
        assert isinstance(block, Block)
        block.forward = watch(block)  # type: ignore[assignment,method-assign]
    with torch.no_grad():
        _, _, _, dynamic, _ = FirstPass(network, *window.shape[-2:], cues=True)(window)
    return dynamic, seen


def literal(seen: list[tuple[Tensor, Tensor]], frames: int) -> Tensor:
    """The definition, product by product: every layer, head, source and patch."""
    layers = SMALL.cues

    def products(r: int, which: tuple[int, ...], left: int, right: int) -> Tensor:
        """(layers * heads * sources, n, n)."""
        found = [
            seen[layer][left][head, r] @ seen[layer][right][head, s].T
            for layer in which
            for head in range(SMALL.heads)
            for s in sources_of(r, frames)
        ]
        return torch.stack(found)

    def unit(x: Tensor) -> Tensor:
        return (x - x.min()) / (x.max() - x.min() + 1e-6)

    maps = []
    q, k = 0, 1
    for r in range(frames):
        if not sources_of(r, frames):
            maps.append(torch.zeros(seen[0][0].shape[2]).double())
            continue
        middle = unit(products(r, layers.middle, q, q).mean((0, 2)))
        deep_spread = unit(products(r, layers.deep_spread, q, q).mean(0).std(-1))
        deep = unit(products(r, layers.deep, q, q).mean((0, 2)))
        shallow = unit(products(r, layers.shallow, k, k).mean((0, 2)))
        spread = unit(products(r, layers.shallow, q, k).mean(0).std(-1))
        maps.append(unit((1 - middle) * (1 - deep_spread) * deep * (1 - shallow) * spread))
    return torch.stack(maps)


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
def test_the_sums_are_the_products(frames: int) -> None:
    dynamic, seen = recorded(small(), pictures(frames, 56, 84))
    assert len(seen) == SMALL.pairs
    want = literal(seen, frames)
    torch.testing.assert_close(dynamic.double(), want, atol=CUES, rtol=0)
    assert (frames == 1) == bool((dynamic == 0).all())
    if frames > 1:
        assert float(dynamic.std()) > 0.05
        assert float((literal([(k, q) for q, k in seen], frames) - want).abs().max()) > 10 * CUES


def test_sources() -> None:
    assert sources_of(0, 1) == []
    assert (sources_of(0, 2), sources_of(1, 2)) == ([1], [0])
    assert (sources_of(0, 3), sources_of(1, 3), sources_of(2, 3)) == ([2], [0, 2], [0])
    assert sources_of(6, 32) == [0, 2, 4, 8, 10, 12]
    assert sources_of(31, 32) == [25, 27, 29]


def test_equal_patches_say_nothing() -> None:
    assert not normalised(torch.full((2, 5), 3.0)).any()
    cues = Cues(SMALL.cues, 2, 4, torch.device("cpu"))
    for pair in range(SMALL.pairs):
        same = torch.ones(1, SMALL.heads, 2 * 6, 16)
        assert cues.wants(pair)
        cues.show(pair, same, same)
    assert not cues.dynamic().any()


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_second_pass_leaves_keys_out(frames: int) -> None:
    """As with the dropped patches' keys and values taken out of the tensors, in the first pairs alone."""
    network, window = small(), pictures(frames, 56, 84)
    keep = torch.rand(frames, 24, generator=torch.Generator().manual_seed(0)) > 0.4
    with torch.no_grad():
        features = FirstPass(network, 56, 84)(window)[4]
        second = SecondPass(network, 56, 84)
        pose, depth = second(features, keep.float())
        want = taken_out(network, features, keep)
        everything, all_depth = second(features, torch.ones(frames, 24))
    # The worst of several processors: 2.9e-5.
    torch.testing.assert_close(pose, want, atol=1e-4, rtol=0)
    assert float((pose - everything).abs().max()) > 10 * 1e-4
    plain = network(window)
    assert depth.shape[0] == len(depth_frames(frames))
    torch.testing.assert_close(everything, plain.pose)
    torch.testing.assert_close(all_depth, plain.depth[depth_frames(frames)])
    assert float((pose - everything).abs().max()) > 1e-2


def taken_out(network: Vggt, features: Tensor, keep: Tensor) -> Tensor:
    """The poses of the second pass, by attention of one frame or window at a time over fewer keys."""
    aggregator, rope = network.aggregator, SecondPass(network, 56, 84).tables.rope
    special = torch.cat([aggregator.camera_token, aggregator.register_token], 2)[0]
    x = torch.cat([special[(torch.arange(len(features)) > 0).long()], features], 1)
    keep = torch.cat([torch.ones(len(keep), SMALL.special, dtype=torch.bool), keep], 1)

    def attended(block: Block, tokens: Tensor, kept: Tensor) -> Tensor:
        normed = block.norm1(tokens)[None]
        q, k, v = block.attn.qkv(normed).view(1, len(tokens), 3, SMALL.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rope(block.attn.q_norm(q)), rope(block.attn.k_norm(k))
        logits = q @ k[:, :, kept].transpose(-2, -1) * q.shape[-1] ** -0.5
        mixed = (logits.softmax(-1) @ v[:, :, kept])[0].transpose(0, 1).flatten(1)
        tokens = tokens + block.ls1(block.attn.proj(mixed))
        return tokens + block.ls2(block.mlp(block.norm2(tokens)))  # type: ignore[no-any-return]

    for pair, blocks in enumerate(zip(aggregator.frame_blocks, aggregator.global_blocks, strict=True)):
        alone, together = blocks
        assert isinstance(alone, Block) and isinstance(together, Block)
        kept = keep if pair < SMALL.dropping else torch.ones_like(keep)
        own = torch.stack([attended(alone, frame, k) for frame, k in zip(x, kept, strict=True)])
        x = attended(together, own.flatten(0, 1), kept.flatten()).view_as(own)
    return network.camera_head(torch.cat([own, x], -1)[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_of_matrices_alone(dtype: torch.dtype) -> None:
    network, window = small(), pictures(3, 56, 84)
    with torch.no_grad():
        want = network(window)
        lower_precision(network, dtype)
        found = network(window)
    dtypes = {key: value.dtype for key, value in network.state_dict().items()}
    low = {key for key, value in dtypes.items() if value == dtype}
    assert all(key.startswith("aggregator.") and dtypes[key] in (dtype, torch.float32) for key in low)
    assert {"aggregator.global_blocks.0.attn.qkv.weight", "aggregator.patch_embed.patch_embed.proj.weight"} <= low
    assert not any("norm" in key or "gamma" in key or "token" in key or "pos_embed" in key for key in low)
    assert found.pose.dtype == found.depth.dtype == torch.float32
    error = float((found.depth - want.depth).norm() / want.depth.norm())
    assert 1e-6 < error < 0.1
