"""Every setting, once: default, meaning, bounds. Command-line flags are derived from here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from vs3r.errors import InputError


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with its documentation and its bounds (both inclusive)."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices})


def check(config: Any) -> None:
    """Raise InputError naming the first field of a config dataclass that is out of its bounds."""
    for spec in fields(config):
        value, meta = getattr(config, spec.name), spec.metadata
        if value is None or "doc" not in meta:
            continue
        choices, low, high = meta["choices"], meta["low"], meta["high"]
        if choices is not None and value not in choices:
            raise InputError(f"{spec.name}: expected one of {', '.join(choices)}; got {value!r}")
        # `not (a <= b)` also refuses NaN.
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            raise InputError(f"{spec.name}: expected {_interval(low, high)}; got {value}")


def _interval(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"a value from {low:.10g} to {high:.10g}"
    return f"at least {low:.10g}" if low is not None else f"at most {high:.10g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """The file that is read."""

    bars: str = option(
        "auto",
        "black bars around the picture: auto finds them, leaves them where they are and stabilizes what lies between "
        "them; off takes them for a part of the picture",
        choices=("auto", "off"),
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowConfig:
    """Optical flow at analysis size."""

    backend: str = option(
        "dis",
        "optical flow method: dis runs everywhere; raft needs its weights (vs3r weights fetch raft-large) and, to be "
        "of use, a GPU",
        choices=("dis", "raft"),
    )
    analysis_pixels: int = option(
        480 * 270, "pixels of the small picture that analysis sees (480x270 for 16:9)", low=64 * 64, high=1920 * 1080
    )
    raft_iterations: int = option(12, "how often RAFT refines its flow", low=1, high=64)
    raft_precision: str = option("fp32", "number format that RAFT computes in", choices=("fp32", "fp16", "bf16"))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructConfig:
    """Camera path and depth."""

    backend: str = option(
        "flow-ba",
        "reconstruction method: flow-ba runs everywhere; turning, for live pictures, takes the camera only to turn, in "
        "a part of the time and without waiting; vggt4d begins with a network, which needs its weights (vs3r weights "
        "fetch vggt-1b) and a GPU",
        choices=("flow-ba", "turning", "vggt4d"),
    )
    hfov_deg: float | None = option(
        None,
        "horizontal field of view of the lens, in degrees, when it is known; otherwise estimated, or, by turning, "
        "a phone's is taken",
        low=5,
        high=160,
    )
    lens: str = option(
        "auto",
        "rectilinear keeps straight lines straight, as phones and most cameras do; fisheye bends them, as action "
        "cameras do unless they are set to a linear field of view; auto tells by the first frames",
        choices=("auto", "rectilinear", "fisheye"),
    )
    readout_ms: float | None = option(
        None,
        "rolling shutter: milliseconds from the first row of a frame (column, where it is higher than wide) to the "
        "last, negative where the last is read first, 0 for a global shutter, when it is known; otherwise estimated; "
        "no more than the time between frames counts",
        low=-100,
        high=100,
    )
    adjust_device: str = option(
        "auto",
        "what adjusts cameras and depth: cuda is an NVIDIA GPU; auto is that where there is one, else cpu",
        choices=("auto", "cpu", "cuda"),
    )

    def __post_init__(self) -> None:
        check(self)
        if self.backend == "turning" and self.readout_ms:
            raise InputError(
                f"readout_ms: turning knows no rolling shutter, expected none or 0, got {self.readout_ms:g}; leave it "
                "out, or reconstruct with flow-ba"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class VggtConfig:
    """The network VGGT, where it is chosen for reconstruction."""

    vggt_weights: str = option("vggt-1b", "name of fetched weights of VGGT", choices=("vggt-1b", "vggt-1b-commercial"))
    vggt_window_frames: int = option(
        32, "frames that VGGT sees together; more take more memory and let results come later", low=2, high=512
    )
    vggt_overlap_frames: int = option(
        8, "frames that two windows share, fewer than vggt_window_frames: by them they are joined", low=1, high=511
    )
    vggt_long_side: int = option(
        518, "longer side in pixels of the pictures that VGGT sees, made a multiple of 14", low=56, high=1036
    )
    vggt_precision: str = option(
        "bf16", "number format of VGGT's matrices and attention", choices=("fp32", "fp16", "bf16")
    )
    vggt_device: str = option(
        "auto", "auto is the GPU; cpu is for trials: a window takes minutes", choices=("auto", "cpu")
    )

    def __post_init__(self) -> None:
        check(self)
        if self.vggt_overlap_frames >= self.vggt_window_frames:
            raise InputError(
                "vggt_overlap_frames: expected fewer than vggt_window_frames "
                f"({self.vggt_window_frames}); got {self.vggt_overlap_frames}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothConfig:
    """The virtual camera path."""

    smoothness: float = option(
        0.5, "how steady the virtual camera is: 0 keeps the shake, 1 is nearly a tripod", low=0, high=1
    )
    lookahead_frames: int = option(
        40, "frames that are read ahead before a frame is output; 0 is fully causal", low=0, high=600
    )
    min_own_share: float = option(
        0.7,
        "the part of every output picture, as the pinhole camera sees it, that its own source frame must cover: the "
        "virtual camera is kept as near to the real one as this asks",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderConfig:
    """Rendering from the virtual camera."""

    camera: str = option(
        "pinhole",
        "output camera: pinhole keeps the lens; wide, ultra-wide and tele change its focal length (x0.75, x0.5, x1.5); "
        "fisheye (Kannala-Brandt), ucm (unified) and double-sphere bend it",
        choices=("pinhole", "wide", "ultra-wide", "tele", "fisheye", "ucm", "double-sphere"),
    )
    fill_window_frames: int = option(
        30, "how many frames to each side may fill what the frame itself does not see", low=0, high=300
    )
    renderer: str = option(
        "warp",
        "how pictures are drawn: warp samples the frame itself and fills from neighbours; splat draws points of many "
        "frames, as the paper does, and is for comparison: less sharp, and slow without a GPU",
        choices=("warp", "splat"),
    )
    render_device: str = option(
        "auto",
        "what draws the pictures: cuda is an NVIDIA GPU; auto is that where it can be used, else cpu",
        choices=("auto", "cpu", "cuda"),
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineConfig:
    """Repair of what no frame saw."""

    backend: str = option(
        "fill",
        "how unseen pixels are repaired: fill (inpainting), wan (the video model Wan2.2; needs its weights, "
        "vs3r weights fetch wan2.2-i2v-a14b, and a large GPU) or none",
        choices=("fill", "wan", "none"),
    )

    def __post_init__(self) -> None:
        check(self)


_PROMPT = "A steady, sharp video whose picture is whole up to its borders."


@dataclass(frozen=True, slots=True, kw_only=True)
class WanConfig:
    """The video model Wan2.2, where it is chosen for repair."""

    wan_weights: str = option(
        "wan2.2-i2v-a14b", "name of fetched weights (also wan2.2-fun-a14b-inp, wan2.2-ti2v-5b), or a folder with such"
    )
    wan_lora: str | None = option(
        None, "folder with the LoRAs of both experts, transformer/ and transformer_2/, as diffusers or peft saves them"
    )
    wan_condition: str = option(
        "validity",
        "what the model is told: validity says where pixels are right; authors says what LoRAs of the paper's authors "
        "were trained with (all right, prompt of 226 tokens)",
        choices=("validity", "authors"),
    )
    wan_prompt: str = option(
        _PROMPT,
        "text that the model is given; it is embedded once and kept",
    )
    wan_guidance: float = option(
        1.0,
        "how far the text leads; 1 is as the model was trained, above it every step asks the model twice",
        low=1.0,
        high=20.0,
    )
    wan_negative_prompt: str = option(
        "A blurred, flickering, distorted video with black borders, seams and ghosts.",
        "text that guidance leads away from; it is embedded once and kept",
    )
    wan_experts: str = option(
        "both",
        "both keeps the two experts on the GPU; swap keeps one at a time there; low uses the second alone, on the "
        "render with noise",
        choices=("both", "swap", "low"),
    )
    wan_precision: str = option(
        "bf16",
        "number format of the weights: fp8 also computes in it (GPUs from compute capability 8.9), fp8-weights and "
        "fp8-storage halve their memory and compute in bf16; auto is fp8 where that can run, else bf16",
        choices=("bf16", "auto", "fp8", "fp8-weights", "fp8-storage", "fp32"),
    )
    wan_attention: str = option(
        "auto",
        "how attention is computed: sdpa is PyTorch's own, flash3 and sage need their packages and a GPU that they are "
        "made for; auto takes what is there and gives the same numbers",
        choices=("auto", "sdpa", "flash3", "sage"),
    )
    wan_compile: bool = option(
        False, "compile the blocks of the experts at the start, which takes minutes and pays with long clips"
    )
    wan_device: str = option("auto", "auto is the GPU; cpu is for trials with small models", choices=("auto", "cpu"))
    wan_steps: int = option(40, "steps from noise to picture; 4 with a few-step LoRA", low=1, high=1000)
    wan_pixels: int = option(
        832 * 480,
        "pixels of the picture that the model works on; the repair is enlarged",
        low=32 * 32,
        high=1920 * 1088,
    )
    wan_window_frames: int = option(
        81, "frames that are refined together, one more than a multiple of 4", low=5, high=161
    )
    wan_stride_frames: int = option(
        64, "frames from one window to the next, a multiple of 4, fewer than wan_window_frames", low=4, high=160
    )
    wan_seed: int = option(0, "of the noise: the same seed gives the same pictures", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        check(self)
        if self.wan_window_frames % 4 != 1:
            raise InputError(
                f"wan_window_frames: expected one more than a multiple of 4, such as 81; got {self.wan_window_frames}"
            )
        if self.wan_stride_frames % 4 or self.wan_stride_frames >= self.wan_window_frames:
            raise InputError(
                "wan_stride_frames: expected a multiple of 4 below wan_window_frames "
                f"({self.wan_window_frames}); got {self.wan_stride_frames}"
            )
        if self.wan_compile and self.wan_precision == "fp8-storage":
            raise InputError(
                "wan_compile: expected a number format that PyTorch can compile; got wan_precision fp8-storage, whose "
                "weights change on the way; use fp8-weights, or leave wan_compile out"
            )
        if self.wan_experts == "low" and self.wan_steps < 2:
            raise InputError("wan_steps: expected at least 2 with wan_experts low, which leaves out the first; got 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsConfig:
    """Pairs to fine-tune Wan2.2 with, made of stable clips."""

    weights: str = option(
        "wan2.2-i2v-a14b", "name or folder of the weights whose autoencoder makes latents: those to be fine-tuned"
    )
    device: str = option("auto", "auto is the GPU; cpu is for trials with small models", choices=("auto", "cpu"))
    pixels: int = option(832 * 480, "pixels of the pictures, as --wan-pixels", low=32 * 32, high=1920 * 1088)
    frames: int = option(81, "frames of a pair, one more than a multiple of 4", low=5, high=161)
    variants: int = option(4, "pairs of every piece of a clip, each degraded in another way", low=1, high=1000)
    seed: int = option(0, "of how they are degraded", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        check(self)
        if self.frames % 4 != 1:
            raise InputError(f"frames: expected one more than a multiple of 4, such as 81; got {self.frames}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Fine-tuning of Wan2.2's experts."""

    weights: str = option("wan2.2-i2v-a14b", "name or folder of the weights that are fine-tuned, as --wan-weights")
    device: str = option("auto", "auto is the GPU; cpu is for trials with small models", choices=("auto", "cpu"))
    precision: str = option("bf16", "number format of the frozen weights and of products", choices=("bf16", "fp32"))
    prompt: str = option(_PROMPT, "text, as --wan-prompt")
    condition: str = option("validity", "what the model is told, as --wan-condition", choices=("validity", "authors"))
    experts: str = option(
        "one-by-one",
        "one-by-one trains the high-noise expert, then the low-noise one, with one in memory; together keeps both "
        "there; high and low train one alone",
        choices=("one-by-one", "together", "high", "low"),
    )
    steps: int = option(2000, "steps of the optimizer, of each expert", low=1, high=10_000_000)
    accumulation: int = option(8, "clips of a step, on every GPU", low=1, high=10_000)
    learning_rate: float = option(1e-4, "of AdamW", low=1e-8, high=1.0)
    warmup_steps: int = option(50, "steps in which the learning rate rises to that", low=0, high=1_000_000)
    weight_decay: float = option(0.01, "of AdamW", low=0.0, high=1.0)
    clip_norm: float = option(1.0, "longest gradient; longer ones are shortened", low=1e-6, high=1e6)
    known_weight: float = option(
        0.2, "weight in the loss of what is right in the render; what is to be made up weighs 1", low=1e-3, high=1.0
    )
    checkpoint_every: int = option(100, "steps from one checkpoint to the next", low=1, high=1_000_000)
    validate_every: int = option(250, "steps from one validation clip to the next; 0 for none", low=0, high=1_000_000)
    validation_steps: int = option(20, "denoising steps of a validation clip, both experts'", low=4, high=1000)
    seed: int = option(0, "of the order of the pairs and of the noise", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """How learned networks run; the default way has none."""

    runtime: str = option(
        "auto",
        "how networks run: auto takes an engine that vs3r export has built, else torch; torch-compile compiles at each "
        "start; tensorrt and aoti build an engine where there is none yet",
        choices=("auto", "torch", "torch-compile", "tensorrt", "aoti"),
    )
    cached_engines_only: bool = option(
        False, "fail instead of building an engine that is missing or was built for another GPU or version"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeConfig:
    """The output file."""

    codec: str = option("libx264", "video encoder", choices=("libx264", "libx265", "prores_ks", "dnxhd", "ffv1"))
    crf: int | None = option(
        None, "quality of libx264 and libx265, lower is better (18 when not given)", low=0, high=51
    )
    preset: str | None = option(None, "speed preset of libx264 and libx265 (medium when not given)")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of a run."""

    source: SourceConfig = SourceConfig()
    flow: FlowConfig = FlowConfig()
    reconstruct: ReconstructConfig = ReconstructConfig()
    vggt: VggtConfig = VggtConfig()
    smooth: SmoothConfig = SmoothConfig()
    render: RenderConfig = RenderConfig()
    refine: RefineConfig = RefineConfig()
    wan: WanConfig = WanConfig()
    network: NetworkConfig = NetworkConfig()
    encode: EncodeConfig = EncodeConfig()
