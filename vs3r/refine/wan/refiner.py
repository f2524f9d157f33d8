"""Wan2.2 on a stream: rendered frames go in, refined ones come out a window later.

A scene is cut into windows of wan_window_frames, every wan_stride_frames. Where two overlap, the second gets the
latents that the first ended with, as known; pictures that were decoded are never encoded again. The first frame of a
later window, which the autoencoder sees without any past, is not used, and the rest of the overlap is feathered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vs3r.config import WanConfig
from vs3r.refine.wan.denoise import Condition, Velocity, denoise
from vs3r.refine.wan.model import memory_errors
from vs3r.refine.wan.pictures import Prefilled, composite, known_pixels, prefill
from vs3r.refine.wan.schedule import low_noise_part, sigma_table
from vs3r.refine.wan.windows import (
    FRAMES,
    PIXELS,
    SIZE_STEP,
    fold_mask,
    latent_count,
    padded_length,
    window_noise,
    working_size,
)
from vs3r.types import FloatArray, Frame, RenderedFrame


class Codec(Protocol):
    """Pictures to latents and back; see vs3r.refine.wan.model.VideoCodec."""

    def encode(self, video: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...


class WanRefiner:
    """Holds the frames of one window, and of the overlap what the window before made of it."""

    def __init__(self, config: WanConfig, experts: Velocity, codec: Codec, *, check: Callable[[], None]) -> None:
        """
        Args:
            config: settings.
            experts: predict the velocity.
            codec: the autoencoder.
            check: called before every step; what it raises ends the work.
        """
        self._config = config
        self._experts = experts
        self._codec = codec
        self._check = check
        sigmas = sigma_table(config.wan_steps)
        self._sigmas = low_noise_part(sigmas) if config.wan_experts == "low" else sigmas
        self.reset()

    def reset(self) -> None:
        """See ClipRefiner."""
        self._segment = 0
        self._first_frame = 0  # number in the scene of the first frame held
        self._held: list[Prefilled] = []
        self._decoded: list[FloatArray] = []  # of the first ones held: what the window before made of them
        self._settled: Tensor | None = None  # latents of the window before, without its first

    def push(self, rendered: RenderedFrame, *, segment: int) -> list[Frame]:
        """See ClipRefiner."""
        done = self.flush() if segment != self._segment else []
        self._segment = segment
        fmt = rendered.frame.format
        self._held.append(prefill(rendered, working_size(fmt.width, fmt.height, self._config.wan_pixels)))
        if len(self._held) == self._config.wan_window_frames:
            done += self._window()
        return done

    def flush(self) -> list[Frame]:
        """See ClipRefiner."""
        done = []
        if len(self._held) > len(self._decoded):
            done = self._window()
        done += [composite(given, rgb) for given, rgb in zip(self._held, self._decoded, strict=True)]
        self.reset()
        return done

    def _window(self) -> list[Frame]:
        """Refine what is held; what the next window does not share is finished."""
        video = self._feathered(self._refine())
        stride = min(self._config.wan_stride_frames, len(self._held))
        done = [composite(given, rgb) for given, rgb in zip(self._held[:stride], video[:stride], strict=True)]
        self._held, self._decoded = self._held[stride:], video[stride:]
        self._first_frame += stride
        return done

    def _feathered(self, video: list[FloatArray]) -> list[FloatArray]:
        """From the window before to this one, linearly; nothing of this one's first frame."""
        count = len(self._decoded)
        mixed = [
            before + np.float32(i / count) * (now - before)
            for i, (before, now) in enumerate(zip(self._decoded, video, strict=False))
        ]
        return mixed + video[count:]

    def _refine(self) -> list[FloatArray]:
        """What the model makes of the frames held, (h, w, 3) each."""
        if all(given.complete for given in self._held):
            self._settled = None
            return [given.rgb for given in self._held]
        height, width = self._held[0].rgb.shape[:2]
        with memory_errors(self._config), torch.no_grad():
            render = self._codec.encode(self._video())
            condition = Condition(
                render=render, mask=self._mask().to(render.device), before=self._shared(len(self._held))
            )
            noise = window_noise(
                tuple(render.shape[1:]),
                seed=self._config.wan_seed,
                scene=self._segment,
                first_latent=self._first_frame // FRAMES,
            ).to(render.device)
            latents = denoise(self._experts, condition, noise, sigmas=self._sigmas, check=self._check)
            video = (self._codec.decode(latents)[0] / 2 + 0.5).clamp(0, 1)
        self._settled = latents[:, :, 1:]
        pictures = video[:, : len(self._held), :height, :width].permute(1, 2, 3, 0).cpu().numpy()
        return list(np.ascontiguousarray(pictures, np.float32))

    def _shared(self, frames: int) -> Tensor | None:
        """Latents of the window before that lie in this one, from its second latent frame on."""
        if self._settled is None:
            return None
        shared = self._settled[:, :, self._config.wan_stride_frames // FRAMES :]
        return shared[:, :, : latent_count(frames) - 1]

    def _video(self) -> Tensor:
        """(1, 3, 4k + 1, H, W) in [-1, 1]; what is missing of the sizes repeats the last frame, row and column."""
        width, height = self._padded()
        frames = np.stack([given.rgb for given in self._held])
        count, rows, columns = frames.shape[:3]
        more = (0, padded_length(count) - count), (0, height - rows), (0, width - columns), (0, 0)
        video = np.pad(frames, more, mode="edge")
        return torch.from_numpy(video).permute(3, 0, 1, 2)[None] * 2.0 - 1.0

    def _mask(self) -> Tensor:
        width, height = self._padded()
        count = len(self._held)
        if self._config.wan_condition == "authors":
            return torch.ones(1, FRAMES, latent_count(count), height // PIXELS, width // PIXELS)
        rows, columns = self._held[0].rgb.shape[:2]
        known = [known_pixels(given.known, (columns, rows), (width, height)) for given in self._held]
        known += known[-1:] * (padded_length(count) - count)
        return fold_mask(np.stack(known))

    def _padded(self) -> tuple[int, int]:
        """Width and height that the model takes."""
        rows, columns = self._held[0].rgb.shape[:2]
        return -(-columns // SIZE_STEP) * SIZE_STEP, -(-rows // SIZE_STEP) * SIZE_STEP
