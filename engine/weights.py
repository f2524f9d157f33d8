"""Fetching checkpoints, resumable, and verifying them: `vs3r weights`.

A set is complete when its manifest is there, which is written last: path, size and SHA-256 of every file.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any

from vs3r.errors import BackendError, InputError, OutputError
from vs3r.weights import UNFINISHED, WEIGHTS, WeightSet, find_weights, weights_folder

MANIFEST = "manifest.json"
_CHUNK = 1 << 20
_TIMEOUT_S = 30.0

ByteProgress = Callable[[str, int, int | None], object]
"""Called with the file's name, the bytes that are there, and how many there will be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a set, as its manifest has it."""

    path: str
    """Below the set's folder, with slashes."""
    size: int
    """Bytes."""
    sha256: str
    """64 hexadecimal digits, taken of the file when it had come."""
    stated: bool
    """The publisher states the same SHA-256, or its beginning; else it only tells that the file is as it came."""


def known(name: str) -> WeightSet:
    """The entry of a name. Raises InputError when there is none."""
    weights_folder(name)
    return WEIGHTS[name]


def stored(name: str) -> list[StoredFile] | None:
    """What the manifest of a set lists; None when it was not fetched to the end."""
    try:
        data = json.loads((weights_folder(name) / MANIFEST).read_text())
        return [StoredFile(**entry) for entry in data["files"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(
            f"the manifest of {name} cannot be read; make it anew with: vs3r weights fetch {name}"
        ) from None


def is_here(name: str) -> bool:
    """Whether the weights can be used: fetched to the end, or put there by hand."""
    try:
        find_weights(name)
    except InputError:
        return False
    return True


def fetch(name: str, progress: ByteProgress | None = None) -> list[StoredFile]:
    """Fetch a set of weights; what is already there is checked and kept, a broken-off file is continued.

    Raises:
        InputError: there is no such set; or what came is not what the publisher states.
        BackendError: no network, no access, or a package is missing.
        OutputError: the disk is full or may not be written.
    """
    entry = known(name)
    folder = weights_folder(name)
    show = progress or (lambda *_: None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            (folder / UNFINISHED).touch()
        files = _from_hub(entry, folder, show) if entry.repository else [_from_url(entry, folder, show)]
        unfinished = folder / (MANIFEST + ".part")
        unfinished.write_text(json.dumps({"source": entry.source, "files": [asdict(f) for f in files]}, indent=1))
        os.replace(unfinished, folder / MANIFEST)
        (folder / UNFINISHED).unlink(missing_ok=True)
    except OSError as error:  # the network's own are BackendErrors by now
        raise OutputError(f"cannot write the weights to {folder}: {error.strerror or error}") from None
    return files


def verify(name: str, progress: ByteProgress | None = None) -> list[StoredFile]:
    """Read every file of a set again and compare it with its manifest.

    Raises:
        InputError: the set was not fetched to the end, or a file is missing or differs.
    """
    files = stored(name)
    if files is None:
        raise InputError(f"{name} was not fetched to the end; do so with: vs3r weights fetch {name}")
    for file in files:
        path = weights_folder(name) / file.path
        if not path.is_file():
            raise InputError(f"{path} is missing; fetch it again: vs3r weights fetch {name}")
        found = sha256_of(path, progress)
        if found != file.sha256:
            raise InputError(
                f"{path} is damaged: expected SHA-256 {file.sha256[:16]}..., got {found[:16]}...; "
                f"delete it and fetch it again: vs3r weights fetch {name}"
            )
    return files


def sha256_of(path: Path, progress: ByteProgress | None = None) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(path.name, done, size)
    return digest.hexdigest()


def _from_url(entry: WeightSet, folder: Path, show: ByteProgress) -> StoredFile:
    target = folder / PurePosixPath(entry.url).name
    if not target.exists():
        part = target.with_name(target.name + ".part")
        try:
            _download(entry.url, part, show)
        except urllib.error.HTTPError as error:
            raise BackendError(f"{entry.url} answered {error.code} {error.reason}; try again later") from None
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            raise BackendError(_broken(entry, getattr(error, "reason", None) or error)) from None
        found = sha256_of(part)
        if not found.startswith(entry.sha256_prefix):
            part.unlink()
            raise InputError(
                f"expected a file whose SHA-256 begins with {entry.sha256_prefix} from {entry.url}, got "
                f"{found[:16]}...; it was thrown away: try again, and behind a proxy check what it hands out"
            )
        os.replace(part, target)
    found = sha256_of(target)
    if not found.startswith(entry.sha256_prefix):
        raise InputError(
            f"{target} is not what {entry.url} is: expected SHA-256 {entry.sha256_prefix}..., got {found[:16]}...; "
            "delete it and fetch again"
        )
    return StoredFile(path=target.name, size=target.stat().st_size, sha256=found, stated=bool(entry.sha256_prefix))


def _download(url: str, part: Path, show: ByteProgress) -> None:
    """The rest of a file behind what `part` already holds."""
    begin = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing behind what is there: complete, or of another file; the checksum tells
            return
        raise
    with response:
        # A server that does not know ranges answers 200 and begins anew.
        begin = begin if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else begin + int(length)
        if total is not None and shutil.disk_usage(part.parent).free < total - begin:
            raise OutputError(f"{part.parent} has no room for the {(total - begin) / 2**30:.2f} GiB still to come")
        done = begin
        with part.open("ab" if begin else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                show(part.name.removesuffix(".part"), done, total)
    if total is not None and done != total:
        raise HTTPException(f"the connection broke off after {done} of {total} bytes")


def _from_hub(entry: WeightSet, folder: Path, show: ByteProgress) -> list[StoredFile]:
    """Through huggingface_hub, which resumes by itself; one revision for all files."""
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise BackendError(
            f"expected the package huggingface_hub to fetch {entry.name}; pip install 'vs3r[weights]'"
        ) from None
    with _hub(entry):
        info = HfApi().model_info(entry.repository, files_metadata=True, timeout=_TIMEOUT_S)
        listed = [f for f in info.siblings or [] if any(fnmatch.fnmatch(f.rfilename, p) for p in entry.patterns)]
    if not listed:
        raise InputError(f"{entry.source} has no file {' or '.join(entry.patterns)} any more; update vs3r")
    files = []
    for sibling in sorted(listed, key=lambda s: s.rfilename):
        name = sibling.rfilename
        with _hub(entry):
            bar = _bar(show, name, sibling.size)
            path = Path(hf_hub_download(entry.repository, name, revision=info.sha, local_dir=folder, tqdm_class=bar))
        expected = None if sibling.lfs is None else sibling.lfs.sha256
        found = sha256_of(path, show)
        if expected is not None and found != expected:
            path.unlink()
            raise InputError(
                f"expected {name} with SHA-256 {expected[:16]}..., got {found[:16]}...; it was thrown away: try again"
            )
        files.append(StoredFile(path=name, size=path.stat().st_size, sha256=found, stated=expected is not None))
    return files


def _bar(show: ByteProgress, name: str, size: int | None) -> Any:
    """What huggingface_hub tells its progress to, in place of its own bars."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self.done = options.get("initial", 0)

        def update(self, n: float | None = 1) -> None:
            self.done += n or 0
            show(name, int(self.done), size)

    return Bar


@contextmanager
def _hub(entry: WeightSet) -> Iterator[None]:
    """What huggingface_hub's errors mean for the user."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise BackendError(
            f"{entry.source} is handed out on request: read its licence there, ask for access, then: hf auth login"
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError):
        raise BackendError(f"{entry.source} does not exist or is closed to you; log in with: hf auth login") from None
    except (_http_error(), errors.LocalEntryNotFoundError, errors.FileMetadataError) as error:
        raise BackendError(_broken(entry, error.__cause__ or error)) from None


def _http_error() -> type[Exception]:
    """The base of the errors of the HTTP client that huggingface_hub brings along."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _broken(entry: WeightSet, reason: Any) -> str:
    text = str(reason).split("\n")[0].strip() or type(reason).__name__
    return (
        f"cannot reach {entry.source} ({text}); check the network and run it again, what has come is kept; or put the "
        f"files into {weights_folder(entry.name)} by hand"
    )
