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
from vs3r.errors import BackendError
from vs3r.networks import compile_errors
from vs3r.refine.wan.denoise import Condition, Velocity, denoise
from vs3r.refine.wan.model import memory_errors
from vs3r.refine.wan.pictures import Prefilled, composite, model_mask, model_video, prefill
from vs3r.refine.wan.schedule import low_noise_part, sigma_table
from vs3r.refine.wan.windows import (
    A14B,
    FRAMES,
    Layout,
    bucket_length,
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

    def __init__(
        self,
        config: WanConfig,
        experts: Velocity,
        codec: Codec,
        *,
        check: Callable[[], None],
        layout: Layout = A14B,
    ) -> None:
        """
        Args:
            config: settings.
            experts: predict the velocity.
            codec: the autoencoder.
            check: called before every step; what it raises ends the work.
            layout: of the latents.
        """
        self._config = config
        self._experts = experts
        self._codec = codec
        self._layout = layout
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
        size = working_size(fmt.width, fmt.height, self._config.wan_pixels, self._layout)
        self._held.append(prefill(rendered, size))
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
        frames = padded_length(len(self._held))
        if self._config.wan_compile:
            frames = bucket_length(frames, self._config.wan_window_frames)
        compiling = compile_errors("--wan-compile", "leave it out")
        with memory_errors(self._config, self._layout), compiling, torch.no_grad():
            render = self._codec.encode(model_video([given.rgb for given in self._held], frames, self._layout))
            mask = model_mask(self._held, frames, self._layout).to(render.device)
            if self._config.wan_condition == "authors":
                mask = torch.ones_like(mask)
            condition = Condition(render=render, mask=mask, before=self._shared(frames))
            noise = window_noise(
                tuple(render.shape[1:]),
                seed=self._config.wan_seed,
                scene=self._segment,
                first_latent=self._first_frame // FRAMES,
            ).to(render.device)
            latents = denoise(self._experts, condition, noise, sigmas=self._sigmas, check=self._check)
            video = self._codec.decode(latents)[0] / 2 + 0.5
        # The autoencoder itself makes black or white of what is infinite.
        if not all(bool(values.isfinite().all()) for values in (latents, video)):
            raise BackendError(
                f"wan gave numbers that are not finite with --wan-precision {self._config.wan_precision}; use "
                "--wan-precision bf16 and --wan-attention sdpa, and another LoRA if there is one"
            )
        self._settled = latents[:, :, 1:]
        pictures = video[:, : len(self._held), :height, :width].clamp(0, 1).permute(1, 2, 3, 0).cpu().numpy()
        return list(np.ascontiguousarray(pictures, np.float32))

    def _shared(self, frames: int) -> Tensor | None:
        """Latents of the window before that lie in this one, from its second latent frame on."""
        if self._settled is None:
            return None
        shared = self._settled[:, :, self._config.wan_stride_frames // FRAMES :]
        return shared[:, :, : latent_count(frames) - 1]
