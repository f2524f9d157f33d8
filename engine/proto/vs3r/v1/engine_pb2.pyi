import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PixelFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PIXEL_FORMAT_UNSPECIFIED: _ClassVar[PixelFormat]
    PIXEL_FORMAT_RGBA8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_RGBA16: _ClassVar[PixelFormat]
    PIXEL_FORMAT_RGBA_F16: _ClassVar[PixelFormat]
    PIXEL_FORMAT_RGBA_F32: _ClassVar[PixelFormat]
    PIXEL_FORMAT_NV12: _ClassVar[PixelFormat]
    PIXEL_FORMAT_P010: _ClassVar[PixelFormat]
    PIXEL_FORMAT_I420: _ClassVar[PixelFormat]
    PIXEL_FORMAT_PLANAR: _ClassVar[PixelFormat]

class AlphaMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALPHA_MODE_UNSPECIFIED: _ClassVar[AlphaMode]
    ALPHA_MODE_STRAIGHT: _ClassVar[AlphaMode]
    ALPHA_MODE_PREMULTIPLIED: _ClassVar[AlphaMode]

class FieldOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIELD_ORDER_UNSPECIFIED: _ClassVar[FieldOrder]
    FIELD_ORDER_PROGRESSIVE: _ClassVar[FieldOrder]
    FIELD_ORDER_TOP_FIRST: _ClassVar[FieldOrder]
    FIELD_ORDER_BOTTOM_FIRST: _ClassVar[FieldOrder]
PIXEL_FORMAT_UNSPECIFIED: PixelFormat
PIXEL_FORMAT_RGBA8: PixelFormat
PIXEL_FORMAT_RGBA16: PixelFormat
PIXEL_FORMAT_RGBA_F16: PixelFormat
PIXEL_FORMAT_RGBA_F32: PixelFormat
PIXEL_FORMAT_NV12: PixelFormat
PIXEL_FORMAT_P010: PixelFormat
PIXEL_FORMAT_I420: PixelFormat
PIXEL_FORMAT_PLANAR: PixelFormat
ALPHA_MODE_UNSPECIFIED: AlphaMode
ALPHA_MODE_STRAIGHT: AlphaMode
ALPHA_MODE_PREMULTIPLIED: AlphaMode
FIELD_ORDER_UNSPECIFIED: FieldOrder
FIELD_ORDER_PROGRESSIVE: FieldOrder
FIELD_ORDER_TOP_FIRST: FieldOrder
FIELD_ORDER_BOTTOM_FIRST: FieldOrder

class Config(_message.Message):
    __slots__ = ("flow", "reconstruct", "smooth", "render", "refine", "network", "vggt")
    FLOW_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCT_FIELD_NUMBER: _ClassVar[int]
    SMOOTH_FIELD_NUMBER: _ClassVar[int]
    RENDER_FIELD_NUMBER: _ClassVar[int]
    REFINE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    VGGT_FIELD_NUMBER: _ClassVar[int]
    flow: FlowConfig
    reconstruct: ReconstructConfig
    smooth: SmoothConfig
    render: RenderConfig
    refine: RefineConfig
    network: NetworkConfig
    vggt: VggtConfig
    def __init__(self, flow: _Optional[_Union[FlowConfig, _Mapping]] = ..., reconstruct: _Optional[_Union[ReconstructConfig, _Mapping]] = ..., smooth: _Optional[_Union[SmoothConfig, _Mapping]] = ..., render: _Optional[_Union[RenderConfig, _Mapping]] = ..., refine: _Optional[_Union[RefineConfig, _Mapping]] = ..., network: _Optional[_Union[NetworkConfig, _Mapping]] = ..., vggt: _Optional[_Union[VggtConfig, _Mapping]] = ...) -> None: ...

class FlowConfig(_message.Message):
    __slots__ = ("backend", "analysis_pixels", "raft_iterations", "raft_precision")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ANALYSIS_PIXELS_FIELD_NUMBER: _ClassVar[int]
    RAFT_ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    RAFT_PRECISION_FIELD_NUMBER: _ClassVar[int]
    backend: str
    analysis_pixels: int
    raft_iterations: int
    raft_precision: str
    def __init__(self, backend: _Optional[str] = ..., analysis_pixels: _Optional[int] = ..., raft_iterations: _Optional[int] = ..., raft_precision: _Optional[str] = ...) -> None: ...

class ReconstructConfig(_message.Message):
    __slots__ = ("backend", "hfov_deg", "lens", "readout_ms", "adjust_device")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    HFOV_DEG_FIELD_NUMBER: _ClassVar[int]
    LENS_FIELD_NUMBER: _ClassVar[int]
    READOUT_MS_FIELD_NUMBER: _ClassVar[int]
    ADJUST_DEVICE_FIELD_NUMBER: _ClassVar[int]
    backend: str
    hfov_deg: float
    lens: str
    readout_ms: float
    adjust_device: str
    def __init__(self, backend: _Optional[str] = ..., hfov_deg: _Optional[float] = ..., lens: _Optional[str] = ..., readout_ms: _Optional[float] = ..., adjust_device: _Optional[str] = ...) -> None: ...

class VggtConfig(_message.Message):
    __slots__ = ("vggt_weights", "vggt_window_frames", "vggt_overlap_frames", "vggt_long_side", "vggt_precision", "vggt_device")
    VGGT_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    VGGT_WINDOW_FRAMES_FIELD_NUMBER: _ClassVar[int]
    VGGT_OVERLAP_FRAMES_FIELD_NUMBER: _ClassVar[int]
    VGGT_LONG_SIDE_FIELD_NUMBER: _ClassVar[int]
    VGGT_PRECISION_FIELD_NUMBER: _ClassVar[int]
    VGGT_DEVICE_FIELD_NUMBER: _ClassVar[int]
    vggt_weights: str
    vggt_window_frames: int
    vggt_overlap_frames: int
    vggt_long_side: int
    vggt_precision: str
    vggt_device: str
    def __init__(self, vggt_weights: _Optional[str] = ..., vggt_window_frames: _Optional[int] = ..., vggt_overlap_frames: _Optional[int] = ..., vggt_long_side: _Optional[int] = ..., vggt_precision: _Optional[str] = ..., vggt_device: _Optional[str] = ...) -> None: ...

class SmoothConfig(_message.Message):
    __slots__ = ("smoothness", "lookahead_frames", "min_own_share")
    SMOOTHNESS_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_FRAMES_FIELD_NUMBER: _ClassVar[int]
    MIN_OWN_SHARE_FIELD_NUMBER: _ClassVar[int]
    smoothness: float
    lookahead_frames: int
    min_own_share: float
    def __init__(self, smoothness: _Optional[float] = ..., lookahead_frames: _Optional[int] = ..., min_own_share: _Optional[float] = ...) -> None: ...

class RenderConfig(_message.Message):
    __slots__ = ("camera", "fill_window_frames", "renderer", "render_device")
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    FILL_WINDOW_FRAMES_FIELD_NUMBER: _ClassVar[int]
    RENDERER_FIELD_NUMBER: _ClassVar[int]
    RENDER_DEVICE_FIELD_NUMBER: _ClassVar[int]
    camera: str
    fill_window_frames: int
    renderer: str
    render_device: str
    def __init__(self, camera: _Optional[str] = ..., fill_window_frames: _Optional[int] = ..., renderer: _Optional[str] = ..., render_device: _Optional[str] = ...) -> None: ...

class RefineConfig(_message.Message):
    __slots__ = ("backend",)
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    backend: str
    def __init__(self, backend: _Optional[str] = ...) -> None: ...

class NetworkConfig(_message.Message):
    __slots__ = ("runtime", "cached_engines_only")
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    CACHED_ENGINES_ONLY_FIELD_NUMBER: _ClassVar[int]
    runtime: str
    cached_engines_only: bool
    def __init__(self, runtime: _Optional[str] = ..., cached_engines_only: _Optional[bool] = ...) -> None: ...

class Rational(_message.Message):
    __slots__ = ("numerator", "denominator")
    NUMERATOR_FIELD_NUMBER: _ClassVar[int]
    DENOMINATOR_FIELD_NUMBER: _ClassVar[int]
    numerator: int
    denominator: int
    def __init__(self, numerator: _Optional[int] = ..., denominator: _Optional[int] = ...) -> None: ...

class ColorSpace(_message.Message):
    __slots__ = ("full_range", "primaries", "transfer", "matrix")
    FULL_RANGE_FIELD_NUMBER: _ClassVar[int]
    PRIMARIES_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    full_range: bool
    primaries: int
    transfer: int
    matrix: int
    def __init__(self, full_range: _Optional[bool] = ..., primaries: _Optional[int] = ..., transfer: _Optional[int] = ..., matrix: _Optional[int] = ...) -> None: ...

class FrameFormat(_message.Message):
    __slots__ = ("pixel_format", "planar_name", "width", "height", "row_strides", "alpha_mode", "color_space", "pixel_aspect", "field_order")
    PIXEL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    PLANAR_NAME_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    ROW_STRIDES_FIELD_NUMBER: _ClassVar[int]
    ALPHA_MODE_FIELD_NUMBER: _ClassVar[int]
    COLOR_SPACE_FIELD_NUMBER: _ClassVar[int]
    PIXEL_ASPECT_FIELD_NUMBER: _ClassVar[int]
    FIELD_ORDER_FIELD_NUMBER: _ClassVar[int]
    pixel_format: PixelFormat
    planar_name: str
    width: int
    height: int
    row_strides: _containers.RepeatedScalarFieldContainer[int]
    alpha_mode: AlphaMode
    color_space: ColorSpace
    pixel_aspect: Rational
    field_order: FieldOrder
    def __init__(self, pixel_format: _Optional[_Union[PixelFormat, str]] = ..., planar_name: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., row_strides: _Optional[_Iterable[int]] = ..., alpha_mode: _Optional[_Union[AlphaMode, str]] = ..., color_space: _Optional[_Union[ColorSpace, _Mapping]] = ..., pixel_aspect: _Optional[_Union[Rational, _Mapping]] = ..., field_order: _Optional[_Union[FieldOrder, str]] = ...) -> None: ...

class SharedMemorySlot(_message.Message):
    __slots__ = ("region", "offset", "byte_size")
    REGION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BYTE_SIZE_FIELD_NUMBER: _ClassVar[int]
    region: str
    offset: int
    byte_size: int
    def __init__(self, region: _Optional[str] = ..., offset: _Optional[int] = ..., byte_size: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("sequence", "pts", "duration", "data", "slot", "output_slot")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PTS_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SLOT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    pts: int
    duration: int
    data: bytes
    slot: SharedMemorySlot
    output_slot: SharedMemorySlot
    def __init__(self, sequence: _Optional[int] = ..., pts: _Optional[int] = ..., duration: _Optional[int] = ..., data: _Optional[bytes] = ..., slot: _Optional[_Union[SharedMemorySlot, _Mapping]] = ..., output_slot: _Optional[_Union[SharedMemorySlot, _Mapping]] = ...) -> None: ...

class StabilizedFrame(_message.Message):
    __slots__ = ("sequence", "pts", "duration", "data", "slot", "own_share", "valid_share", "passed_through", "timings", "padding")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PTS_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    OWN_SHARE_FIELD_NUMBER: _ClassVar[int]
    VALID_SHARE_FIELD_NUMBER: _ClassVar[int]
    PASSED_THROUGH_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    pts: int
    duration: int
    data: bytes
    slot: SharedMemorySlot
    own_share: float
    valid_share: float
    passed_through: bool
    timings: FrameTimings
    padding: bytes
    def __init__(self, sequence: _Optional[int] = ..., pts: _Optional[int] = ..., duration: _Optional[int] = ..., data: _Optional[bytes] = ..., slot: _Optional[_Union[SharedMemorySlot, _Mapping]] = ..., own_share: _Optional[float] = ..., valid_share: _Optional[float] = ..., passed_through: _Optional[bool] = ..., timings: _Optional[_Union[FrameTimings, _Mapping]] = ..., padding: _Optional[bytes] = ...) -> None: ...

class FrameTimings(_message.Message):
    __slots__ = ("decode_us", "queue_us", "pipeline_us", "output_us", "encode_us")
    DECODE_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_US_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_US_FIELD_NUMBER: _ClassVar[int]
    ENCODE_US_FIELD_NUMBER: _ClassVar[int]
    decode_us: int
    queue_us: int
    pipeline_us: int
    output_us: int
    encode_us: int
    def __init__(self, decode_us: _Optional[int] = ..., queue_us: _Optional[int] = ..., pipeline_us: _Optional[int] = ..., output_us: _Optional[int] = ..., encode_us: _Optional[int] = ...) -> None: ...

class FrameError(_message.Message):
    __slots__ = ("sequence", "code", "reason", "message")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    code: int
    reason: str
    message: str
    def __init__(self, sequence: _Optional[int] = ..., code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("name", "media_key", "config", "track", "frame_count", "held_frames", "create_time", "expire_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEDIA_KEY_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    TRACK_FIELD_NUMBER: _ClassVar[int]
    FRAME_COUNT_FIELD_NUMBER: _ClassVar[int]
    HELD_FRAMES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    media_key: str
    config: Config
    track: str
    frame_count: int
    held_frames: int
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., media_key: _Optional[str] = ..., config: _Optional[_Union[Config, _Mapping]] = ..., track: _Optional[str] = ..., frame_count: _Optional[int] = ..., held_frames: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ("media_key", "config")
    MEDIA_KEY_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    media_key: str
    config: Config
    def __init__(self, media_key: _Optional[str] = ..., config: _Optional[_Union[Config, _Mapping]] = ...) -> None: ...

class CreateSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteSessionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("config", "frame", "end")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    config: StreamConfig
    frame: Frame
    end: EndOfClip
    def __init__(self, config: _Optional[_Union[StreamConfig, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., end: _Optional[_Union[EndOfClip, _Mapping]] = ...) -> None: ...

class EndOfClip(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamConfig(_message.Message):
    __slots__ = ("session", "config", "format", "time_base", "first_sequence", "output_from_sequence", "transient", "explicit_end")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    TIME_BASE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TRANSIENT_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_END_FIELD_NUMBER: _ClassVar[int]
    session: str
    config: Config
    format: FrameFormat
    time_base: Rational
    first_sequence: int
    output_from_sequence: int
    transient: bool
    explicit_end: bool
    def __init__(self, session: _Optional[str] = ..., config: _Optional[_Union[Config, _Mapping]] = ..., format: _Optional[_Union[FrameFormat, _Mapping]] = ..., time_base: _Optional[_Union[Rational, _Mapping]] = ..., first_sequence: _Optional[int] = ..., output_from_sequence: _Optional[int] = ..., transient: _Optional[bool] = ..., explicit_end: _Optional[bool] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("started", "credit", "frame", "frame_error")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    FRAME_ERROR_FIELD_NUMBER: _ClassVar[int]
    started: StreamStarted
    credit: Credit
    frame: StabilizedFrame
    frame_error: FrameError
    def __init__(self, started: _Optional[_Union[StreamStarted, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., frame: _Optional[_Union[StabilizedFrame, _Mapping]] = ..., frame_error: _Optional[_Union[FrameError, _Mapping]] = ...) -> None: ...

class StreamStarted(_message.Message):
    __slots__ = ("credits", "latency_frames")
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FRAMES_FIELD_NUMBER: _ClassVar[int]
    credits: int
    latency_frames: int
    def __init__(self, credits: _Optional[int] = ..., latency_frames: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("frames", "acknowledged_sequence", "returned")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    frames: int
    acknowledged_sequence: int
    returned: _containers.RepeatedCompositeFieldContainer[SharedMemorySlot]
    def __init__(self, frames: _Optional[int] = ..., acknowledged_sequence: _Optional[int] = ..., returned: _Optional[_Iterable[_Union[SharedMemorySlot, _Mapping]]] = ...) -> None: ...

class AnalyzeRequest(_message.Message):
    __slots__ = ("config", "frame", "end")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    config: AnalyzeConfig
    frame: Frame
    end: EndOfClip
    def __init__(self, config: _Optional[_Union[AnalyzeConfig, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., end: _Optional[_Union[EndOfClip, _Mapping]] = ...) -> None: ...

class AnalyzeConfig(_message.Message):
    __slots__ = ("session", "path", "frames", "explicit_end")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_END_FIELD_NUMBER: _ClassVar[int]
    session: str
    path: str
    frames: FrameSource
    explicit_end: bool
    def __init__(self, session: _Optional[str] = ..., path: _Optional[str] = ..., frames: _Optional[_Union[FrameSource, _Mapping]] = ..., explicit_end: _Optional[bool] = ...) -> None: ...

class FrameSource(_message.Message):
    __slots__ = ("format", "time_base")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    TIME_BASE_FIELD_NUMBER: _ClassVar[int]
    format: FrameFormat
    time_base: Rational
    def __init__(self, format: _Optional[_Union[FrameFormat, _Mapping]] = ..., time_base: _Optional[_Union[Rational, _Mapping]] = ...) -> None: ...

class AnalyzeResponse(_message.Message):
    __slots__ = ("credit", "progress", "frame_error", "analysis")
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FRAME_ERROR_FIELD_NUMBER: _ClassVar[int]
    ANALYSIS_FIELD_NUMBER: _ClassVar[int]
    credit: Credit
    progress: AnalyzeProgress
    frame_error: FrameError
    analysis: Analysis
    def __init__(self, credit: _Optional[_Union[Credit, _Mapping]] = ..., progress: _Optional[_Union[AnalyzeProgress, _Mapping]] = ..., frame_error: _Optional[_Union[FrameError, _Mapping]] = ..., analysis: _Optional[_Union[Analysis, _Mapping]] = ...) -> None: ...

class AnalyzeProgress(_message.Message):
    __slots__ = ("frames", "total_frames")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: int
    total_frames: int
    def __init__(self, frames: _Optional[int] = ..., total_frames: _Optional[int] = ...) -> None: ...

class Analysis(_message.Message):
    __slots__ = ("track", "frame_count", "scene_count", "reused", "stored", "failed_frames", "rotation_deg")
    TRACK_FIELD_NUMBER: _ClassVar[int]
    FRAME_COUNT_FIELD_NUMBER: _ClassVar[int]
    SCENE_COUNT_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    ROTATION_DEG_FIELD_NUMBER: _ClassVar[int]
    track: str
    frame_count: int
    scene_count: int
    reused: bool
    stored: bool
    failed_frames: int
    rotation_deg: int
    def __init__(self, track: _Optional[str] = ..., frame_count: _Optional[int] = ..., scene_count: _Optional[int] = ..., reused: _Optional[bool] = ..., stored: _Optional[bool] = ..., failed_frames: _Optional[int] = ..., rotation_deg: _Optional[int] = ...) -> None: ...

class DownloadTrackRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class DownloadTrackResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...

class UploadTrackRequest(_message.Message):
    __slots__ = ("config", "chunk")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    config: UploadTrackConfig
    chunk: bytes
    def __init__(self, config: _Optional[_Union[UploadTrackConfig, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UploadTrackConfig(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class UploadTrackResponse(_message.Message):
    __slots__ = ("analysis",)
    ANALYSIS_FIELD_NUMBER: _ClassVar[int]
    analysis: Analysis
    def __init__(self, analysis: _Optional[_Union[Analysis, _Mapping]] = ...) -> None: ...

class SetSmoothingRequest(_message.Message):
    __slots__ = ("session", "smooth")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SMOOTH_FIELD_NUMBER: _ClassVar[int]
    session: str
    smooth: SmoothConfig
    def __init__(self, session: _Optional[str] = ..., smooth: _Optional[_Union[SmoothConfig, _Mapping]] = ...) -> None: ...

class SetSmoothingResponse(_message.Message):
    __slots__ = ("session", "smoothing_time")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SMOOTHING_TIME_FIELD_NUMBER: _ClassVar[int]
    session: Session
    smoothing_time: _duration_pb2.Duration
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., smoothing_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class UploadFramesRequest(_message.Message):
    __slots__ = ("config", "frame")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    config: UploadConfig
    frame: Frame
    def __init__(self, config: _Optional[_Union[UploadConfig, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...

class UploadConfig(_message.Message):
    __slots__ = ("session", "frames")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    session: str
    frames: FrameSource
    def __init__(self, session: _Optional[str] = ..., frames: _Optional[_Union[FrameSource, _Mapping]] = ...) -> None: ...

class UploadFramesResponse(_message.Message):
    __slots__ = ("frames", "frame_errors")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    FRAME_ERRORS_FIELD_NUMBER: _ClassVar[int]
    frames: int
    frame_errors: _containers.RepeatedCompositeFieldContainer[FrameError]
    def __init__(self, frames: _Optional[int] = ..., frame_errors: _Optional[_Iterable[_Union[FrameError, _Mapping]]] = ...) -> None: ...

class GetFrameRequest(_message.Message):
    __slots__ = ("session", "index", "pts", "output_slot")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SLOT_FIELD_NUMBER: _ClassVar[int]
    session: str
    index: int
    pts: int
    output_slot: SharedMemorySlot
    def __init__(self, session: _Optional[str] = ..., index: _Optional[int] = ..., pts: _Optional[int] = ..., output_slot: _Optional[_Union[SharedMemorySlot, _Mapping]] = ...) -> None: ...

class GetFrameResponse(_message.Message):
    __slots__ = ("frame", "format", "time_base")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    TIME_BASE_FIELD_NUMBER: _ClassVar[int]
    frame: StabilizedFrame
    format: FrameFormat
    time_base: Rational
    def __init__(self, frame: _Optional[_Union[StabilizedFrame, _Mapping]] = ..., format: _Optional[_Union[FrameFormat, _Mapping]] = ..., time_base: _Optional[_Union[Rational, _Mapping]] = ...) -> None: ...

class MissingFrames(_message.Message):
    __slots__ = ("ranges",)
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ranges: _containers.RepeatedCompositeFieldContainer[FrameRange]
    def __init__(self, ranges: _Optional[_Iterable[_Union[FrameRange, _Mapping]]] = ...) -> None: ...

class FrameRange(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class GetWarpRequest(_message.Message):
    __slots__ = ("session", "index", "pts", "map_only")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PTS_FIELD_NUMBER: _ClassVar[int]
    MAP_ONLY_FIELD_NUMBER: _ClassVar[int]
    session: str
    index: int
    pts: int
    map_only: bool
    def __init__(self, session: _Optional[str] = ..., index: _Optional[int] = ..., pts: _Optional[int] = ..., map_only: _Optional[bool] = ...) -> None: ...

class GetWarpResponse(_message.Message):
    __slots__ = ("sequence", "grid", "patches", "patch_format", "own_share", "valid_share")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    PATCHES_FIELD_NUMBER: _ClassVar[int]
    PATCH_FORMAT_FIELD_NUMBER: _ClassVar[int]
    OWN_SHARE_FIELD_NUMBER: _ClassVar[int]
    VALID_SHARE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    grid: WarpGrid
    patches: _containers.RepeatedCompositeFieldContainer[Patch]
    patch_format: FrameFormat
    own_share: float
    valid_share: float
    def __init__(self, sequence: _Optional[int] = ..., grid: _Optional[_Union[WarpGrid, _Mapping]] = ..., patches: _Optional[_Iterable[_Union[Patch, _Mapping]]] = ..., patch_format: _Optional[_Union[FrameFormat, _Mapping]] = ..., own_share: _Optional[float] = ..., valid_share: _Optional[float] = ...) -> None: ...

class WarpGrid(_message.Message):
    __slots__ = ("rows", "columns", "origin_px", "step_px", "x", "y")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_PX_FIELD_NUMBER: _ClassVar[int]
    STEP_PX_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    origin_px: float
    step_px: float
    x: bytes
    y: bytes
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ..., origin_px: _Optional[float] = ..., step_px: _Optional[float] = ..., x: _Optional[bytes] = ..., y: _Optional[bytes] = ...) -> None: ...

class Patch(_message.Message):
    __slots__ = ("left", "top", "width", "height", "data")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    left: int
    top: int
    width: int
    height: int
    data: bytes
    def __init__(self, left: _Optional[int] = ..., top: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RegisterSharedMemoryRequest(_message.Message):
    __slots__ = ("session", "region", "key", "offset", "byte_size", "process", "file")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BYTE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    session: str
    region: str
    key: str
    offset: int
    byte_size: int
    process: int
    file: int
    def __init__(self, session: _Optional[str] = ..., region: _Optional[str] = ..., key: _Optional[str] = ..., offset: _Optional[int] = ..., byte_size: _Optional[int] = ..., process: _Optional[int] = ..., file: _Optional[int] = ...) -> None: ...

class RegisterSharedMemoryResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnregisterSharedMemoryRequest(_message.Message):
    __slots__ = ("session", "region")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    session: str
    region: str
    def __init__(self, session: _Optional[str] = ..., region: _Optional[str] = ...) -> None: ...

class UnregisterSharedMemoryResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCapabilitiesResponse(_message.Message):
    __slots__ = ("version", "pixel_formats", "shared_memory", "file_paths", "max_frame_pixels", "max_message_bytes", "max_sessions", "max_sessions_per_peer", "session_idle_time", "default_config")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PIXEL_FORMATS_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    FILE_PATHS_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_PER_PEER_FIELD_NUMBER: _ClassVar[int]
    SESSION_IDLE_TIME_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_CONFIG_FIELD_NUMBER: _ClassVar[int]
    version: str
    pixel_formats: _containers.RepeatedScalarFieldContainer[PixelFormat]
    shared_memory: bool
    file_paths: bool
    max_frame_pixels: int
    max_message_bytes: int
    max_sessions: int
    max_sessions_per_peer: int
    session_idle_time: _duration_pb2.Duration
    default_config: Config
    def __init__(self, version: _Optional[str] = ..., pixel_formats: _Optional[_Iterable[_Union[PixelFormat, str]]] = ..., shared_memory: _Optional[bool] = ..., file_paths: _Optional[bool] = ..., max_frame_pixels: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_sessions: _Optional[int] = ..., max_sessions_per_peer: _Optional[int] = ..., session_idle_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., default_config: _Optional[_Union[Config, _Mapping]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("uptime", "sessions", "streams", "shared_memory_regions", "held_frame_bytes", "reserved_bytes", "track_bytes", "frames_received", "frames_returned", "frames_refused", "frames_passed_through", "draining")
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_REGIONS_FIELD_NUMBER: _ClassVar[int]
    HELD_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRACK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_RETURNED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_REFUSED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_PASSED_THROUGH_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    uptime: _duration_pb2.Duration
    sessions: int
    streams: int
    shared_memory_regions: int
    held_frame_bytes: int
    reserved_bytes: int
    track_bytes: int
    frames_received: int
    frames_returned: int
    frames_refused: int
    frames_passed_through: int
    draining: bool
    def __init__(self, uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., sessions: _Optional[int] = ..., streams: _Optional[int] = ..., shared_memory_regions: _Optional[int] = ..., held_frame_bytes: _Optional[int] = ..., reserved_bytes: _Optional[int] = ..., track_bytes: _Optional[int] = ..., frames_received: _Optional[int] = ..., frames_returned: _Optional[int] = ..., frames_refused: _Optional[int] = ..., frames_passed_through: _Optional[int] = ..., draining: _Optional[bool] = ...) -> None: ...
