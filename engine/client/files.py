"""Video files through a server: decoded and encoded here, stabilized there."""

from __future__ import annotations

from pathlib import Path

from vs3r.config import Config
from vs3r.engine.client.connection import Access
from vs3r.engine.client.sync import Client
from vs3r.engine.client.unfinished import Refused
from vs3r.engine.files import PathLike, RunReport
from vs3r.engine.media import VideoReader, VideoWriter, find_inset
from vs3r.engine.progress import Meter, ProgressCallback
from vs3r.errors import InputError


def stabilize_file_at(
    server: str,
    access: Access,
    in_path: PathLike,
    out_path: PathLike,
    config: Config,
    *,
    progress: ProgressCallback | None = None,
) -> RunReport:
    """As vs3r.engine.files.stabilize_file, and with the same bytes, at a server.

    Raises:
        ServerError: the server cannot be reached, or refuses.
        InputError: it refuses a frame.
    """
    meter = Meter(progress)
    own, valid = [], []
    with Client(server, access) as client, VideoReader(in_path) as reader:
        meter.total = reader.info.frames_estimate
        # A server that cannot be reached is told before an output file is begun.
        client.capabilities()
        inset = find_inset(reader.info, config.source)
        with VideoWriter(out_path, like=reader, config=config.encode) as writer:
            for result in client.stabilize(map(inset.take, reader), config):
                if isinstance(result, Refused):
                    raise InputError(f"the server refused frame {result.sequence}: {result.message}")
                writer.write(inset.put(result.frame))
                own.append(result.own_share)
                valid.append(result.valid_share)
                meter.tick()
        count = max(meter.frames, 1)
        return RunReport(
            output=Path(out_path),
            frames=meter.frames,
            seconds=meter.elapsed_s,
            first_frame_s=meter.first_frame_s,
            own_share=sum(own) / count,
            valid_share=sum(valid) / count,
            worst_valid_share=min(valid, default=1.0),
            readout_s=None,
            distortion=None,
            notes=reader.notes + inset.notes + writer.notes,
        )
