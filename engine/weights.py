"""Fetching checkpoints, resumable, and verifying them: `vs3r weights`.

A set is complete when its manifest is there, which is written last: path, size and SHA-256 of every file.
"""

from __future__ import annotations

import fcntl
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
        BackendError: no network, no access, a package is missing, or another process fetches them.
        OutputError: the disk is full or may not be written.
    """
    entry = known(name)
    folder = weights_folder(name)
    show = progress or (lambda *_: None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(name, folder):
            files = _from_hub(entry, folder, show) if entry.repository else [_from_url(entry, folder, show)]
            unfinished = folder / (MANIFEST + ".part")
            unfinished.write_text(json.dumps({"source": entry.source, "files": [asdict(f) for f in files]}, indent=1))
            os.replace(unfinished, folder / MANIFEST)
            (folder / UNFINISHED).unlink(missing_ok=True)
    except OSError as error:  # the network's own are BackendErrors by now, see _network and _hub
        raise OutputError(f"cannot write the weights to {folder}: {error.strerror or error}") from None
    return files


@contextmanager
def _alone(name: str, folder: Path) -> Iterator[None]:
    """One at a time: what two write into one file is neither's, and would be thrown away."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BackendError(f"{name} is being fetched by another vs3r; wait for it, or end it") from None
    except OSError:  # some network file systems lock no folders
        pass
    try:
        yield
    finally:
        os.close(descriptor)


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
    name = PurePosixPath(entry.url).name
    _announce(folder, [name])
    return _fetched(entry, folder, name=name, url=entry.url, sha256=entry.sha256_prefix, headers={}, show=show)


def _from_hub(entry: WeightSet, folder: Path, show: ByteProgress) -> list[StoredFile]:
    """One revision of all files. They come as those of any server: huggingface_hub throws away what has come of a file
    when its transfer breaks off."""
    try:
        from huggingface_hub import HfApi, get_token, hf_hub_url
    except ImportError:
        raise BackendError(
            f"expected the package huggingface_hub to fetch {entry.name}; pip install 'vs3r[weights]'"
        ) from None
    with _hub(entry):
        info = HfApi().model_info(entry.repository, files_metadata=True, timeout=_TIMEOUT_S)
        listed = [f for f in info.siblings or [] if any(fnmatch.fnmatch(f.rfilename, p) for p in entry.patterns)]
        token = get_token()
    if not listed:
        raise InputError(f"{entry.source} has no file {' or '.join(entry.patterns)} any more; update vs3r")
    _announce(folder, [file.rfilename for file in listed])
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return [
        _fetched(
            entry, folder, name=file.rfilename, url=hf_hub_url(entry.repository, file.rfilename, revision=info.sha),
            sha256="" if file.lfs is None else file.lfs.sha256, headers=headers, show=show,
        )
        for file in sorted(listed, key=lambda s: s.rfilename)
    ]  # fmt: skip


def _announce(folder: Path, names: list[str]) -> None:
    """Write down what is about to come: until it is there the set is not used, however the rest comes."""
    if not (folder / MANIFEST).exists():
        (folder / UNFINISHED).write_text("\n".join(names))


def _fetched(
    entry: WeightSet, folder: Path, *, name: str, url: str, sha256: str, headers: dict[str, str], show: ByteProgress
) -> StoredFile:
    """A file of a set: kept where it is there, else fetched or continued, and compared with what is stated.

    Args:
        entry: the set.
        folder: of the set.
        name: below the folder, with slashes.
        url: where it comes from.
        sha256: its SHA-256 as stated, or how that begins; empty for small files of which none is stated. They come anew
            each time, as those that are there may be of another revision.
        headers: for that server and no other.
        show: told of what has come and what was read again.
    """
    target = folder / name
    part = target.with_name(target.name + ".part")

    def shown(_: str, done: int, total: int | None) -> None:
        show(name, done, total)

    if sha256 and target.exists():
        found = sha256_of(target, shown)
        if not found.startswith(sha256):
            raise InputError(
                f"{target} is not what {entry.source} has: expected SHA-256 {sha256[:16]}..., got {found[:16]}...; "
                "delete it and fetch again"
            )
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not sha256:
            part.unlink(missing_ok=True)
        _download(entry, part, url=url, headers=headers, show=shown)
        found = sha256_of(part, shown)
        if not found.startswith(sha256):
            part.unlink()
            raise InputError(
                f"expected {name} with a SHA-256 that begins with {sha256[:16]} from {entry.source}, got "
                f"{found[:16]}...; it was thrown away: try again, and behind a proxy check what it hands out"
            )
        os.replace(part, target)
    return StoredFile(path=name, size=target.stat().st_size, sha256=found, stated=bool(sha256))


def _download(entry: WeightSet, part: Path, *, url: str, headers: dict[str, str], show: ByteProgress) -> None:
    """The rest of a file behind what `part` already holds."""
    begin = part.stat().st_size if part.exists() else 0
    with _network(entry):
        request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
        for name, value in headers.items():
            # Where the server sends us on to is no business of its password.
            request.add_unredirected_header(name, value)
        try:
            response: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing behind what is there: complete, or of another file; the checksum tells
                return
            raise
    with response:
        # A server that does not know ranges answers 200 and begins anew.
        begin = begin if response.status == 206 else 0
        with _network(entry):
            length = response.headers.get("Content-Length")
            total = None if length is None else begin + int(length)
        if total is not None and shutil.disk_usage(part.parent).free < total - begin:
            raise OutputError(f"{part.parent} has no room for the {(total - begin) / 2**30:.2f} GiB still to come")
        done = begin
        with part.open("ab" if begin else "wb") as file:
            for chunk in _chunks(entry, response):
                file.write(chunk)
                done += len(chunk)
                show(part.name, done, total)
    if total is not None and done != total:
        raise BackendError(_broken(entry, f"the connection broke off after {done} of {total} bytes"))


def _chunks(entry: WeightSet, response: HTTPResponse) -> Iterator[bytes]:
    """What comes. Errors of whoever takes it stay theirs: the disk's are no errors of the network."""
    with _network(entry):
        while chunk := response.read(_CHUNK):
            yield chunk


@contextmanager
def _network(entry: WeightSet) -> Iterator[None]:
    """What urllib's errors mean for the user; ValueErrors are of what a server or the environment has it read."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise BackendError(_refusal(entry, error)) from None
    except (OSError, HTTPException, ValueError) as error:
        raise BackendError(_broken(entry, getattr(error, "reason", None) or error)) from None


@contextmanager
def _hub(entry: WeightSet) -> Iterator[None]:
    """What huggingface_hub's errors mean for the user."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise BackendError(_on_request(entry)) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise BackendError(_closed(entry)) from None
    except Exception as error:  # which HTTP client it brings along differs, and so does what that raises
        raise BackendError(_broken(entry, error.__cause__ or error)) from None


def _refusal(entry: WeightSet, error: urllib.error.HTTPError) -> str:
    if entry.repository and error.code in (401, 403):
        return _on_request(entry) if error.headers.get("X-Error-Code") == "GatedRepo" else _closed(entry)
    return f"{entry.source} answered {error.code} {error.reason}; try again later"


def _on_request(entry: WeightSet) -> str:
    return f"{entry.source} is handed out on request: read its licence there, ask for access, then: hf auth login"


def _closed(entry: WeightSet) -> str:
    return f"{entry.source} does not exist or is closed to you; log in with: hf auth login"


def _broken(entry: WeightSet, reason: Any) -> str:
    text = str(reason).split("\n")[0].strip() or type(reason).__name__
    return (
        f"cannot reach {entry.source} ({text}); check the network and run it again, what has come is kept; or put the "
        f"files into {weights_folder(entry.name)} by hand"
    )
