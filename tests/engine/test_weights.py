"""Fetching and verifying checkpoints, from servers on this machine that break off, lie, and know no ranges."""

from __future__ import annotations

import errno
import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vs3r import weights
from vs3r.engine import cli
from vs3r.engine.weights import fetch, is_here, stored, verify
from vs3r.errors import BackendError, InputError, OutputError
from vs3r.weights import WEIGHTS, find_weights, load_checkpoint, weights_folder

NAME = "raft-large"
HUB_NAME = "vggt-1b"
CONTENT = torch.randint(0, 256, (300_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
DATA = CONTENT.tobytes()
SHA256 = hashlib.sha256(DATA).hexdigest()
REVISION = "0123456789abcdef0123456789abcdef01234567"


class Publisher(ThreadingHTTPServer):
    """A web server of one file, and the part of the hub's protocol that fetching uses."""

    daemon_threads = True
    data = DATA
    stated = SHA256
    knows_ranges = True
    breaks_after: int | None = None
    gated = False
    files_gated = False
    mirror = ""
    length = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str, str]] = []
        """Method, path and Range header of every request."""
        self.told: list[str | None] = []
        """Authorization header of every request."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Publisher

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        publisher, range_header = self.server, self.headers.get("Range", "")
        publisher.asked.append((self.command, self.path, range_header))
        publisher.told.append(self.headers.get("Authorization"))
        if publisher.gated or (publisher.files_gated and "/resolve/" in self.path):
            self._send(403, {"X-Error-Code": "GatedRepo"}, b"")
        elif self.path.startswith("/api/models/"):
            lfs = {"sha256": publisher.stated, "size": len(publisher.data), "pointerSize": 134}
            files = [
                {"rfilename": "model.safetensors", "size": len(publisher.data), "blobId": "b", "lfs": lfs},
                {"rfilename": "README.md", "size": 3, "blobId": "c"},
            ]
            answer = {"id": "some/model", "modelId": "some/model", "sha": REVISION, "siblings": files, "tags": []}
            self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())
        elif publisher.mirror and "/resolve/" in self.path:
            self._send(302, {"Location": publisher.mirror + "/elsewhere"}, b"")
        elif self.path.endswith("missing.pth"):
            self._send(404, {}, b"")
        else:
            self._send_file(range_header, body)

    def _send_file(self, range_header: str, body: bool) -> None:
        data = self.server.data
        begin = int(range_header.removeprefix("bytes=").split("-")[0]) if range_header else 0
        if begin >= len(data):
            return self._send(416, {}, b"")
        known = bool(range_header) and self.server.knows_ranges
        rest = data[begin:] if known else data
        head = {
            "Content-Length": self.server.length or str(len(rest)),
            "ETag": f'"{self.server.stated}"',
            "X-Repo-Commit": REVISION,
            "Accept-Ranges": "bytes",
        }
        if known:
            head["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        cut, self.server.breaks_after = self.server.breaks_after if body else None, None
        self._send(206 if known else 200, head, rest[:cut] if body else b"")
        return None

    def _send(self, status: int, head: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **head}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Publisher]:
    """A publisher of the weights NAME; the cache is a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Publisher() as server:
        entry = replace(WEIGHTS[NAME], url=f"{server.address}/raft.pth", sha256_prefix=SHA256[:8])
        monkeypatch.setitem(weights.WEIGHTS, NAME, entry)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_fetch_and_verify(publisher: Publisher) -> None:
    seen: list[tuple[str, int, int | None]] = []
    (file,) = fetch(NAME, lambda *now: seen.append(now))
    assert (file.path, file.size, file.sha256, file.stated) == ("raft.pth", len(DATA), SHA256, True)
    assert (find_weights(NAME) / "raft.pth").read_bytes() == DATA
    assert seen[-1] == ("raft.pth", len(DATA), len(DATA))
    assert stored(NAME) == [file]
    assert verify(NAME) == [file]
    fetch(NAME)
    assert len(publisher.asked) == 1, "what is there was fetched again"


@pytest.mark.usefixtures("publisher")
def test_two_at_a_time_do_not_write_one_file() -> None:
    refused: list[str] = []

    def meanwhile(*_: object) -> None:
        if not refused:
            with pytest.raises(BackendError, match=f"^{NAME} is being fetched by another vs3r; wait") as caught:
                fetch(NAME)
            refused.append(str(caught.value))

    fetch(NAME, meanwhile)
    assert refused and (weights_folder(NAME) / "raft.pth").read_bytes() == DATA
    fetch(NAME)


def test_a_broken_off_transfer_is_continued(publisher: Publisher) -> None:
    publisher.breaks_after = 100_000
    with pytest.raises(BackendError, match=r"broke off after 100000 of 300000 bytes.*what has come is kept"):
        fetch(NAME)
    assert stored(NAME) is None
    (weights_folder(NAME) / "other.pth").touch()  # of several files some may have come
    with pytest.raises(
        InputError, match=r"not fetched to the end, raft.pth is missing; go on with: vs3r weights fetch "
    ):
        find_weights(NAME)
    fetch(NAME)
    assert is_here(NAME)
    assert publisher.asked[-1] == ("GET", "/raft.pth", "bytes=100000-")
    assert (weights_folder(NAME) / "raft.pth").read_bytes() == DATA


@pytest.mark.usefixtures("publisher")
@pytest.mark.parametrize(
    "error",
    [ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), OSError(errno.EHOSTUNREACH, "No route to host")],
)
def test_a_connection_that_breaks_is_not_the_disks_fault(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def read(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(HTTPResponse, "read", read)
    with pytest.raises(BackendError, match=rf"cannot reach .*{error.strerror}.*what has come is kept"):
        fetch(NAME)


@pytest.mark.usefixtures("publisher")
def test_a_full_disk_is_not_the_networks_fault() -> None:
    folder = weights_folder(NAME)
    folder.mkdir(parents=True)
    (folder / "raft.pth.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot write the weights to .*: No space left on device"):
        fetch(NAME)


def test_a_server_that_tells_no_length(publisher: Publisher) -> None:
    publisher.length = "abc"
    with pytest.raises(BackendError, match=r"cannot reach .*'abc'"):
        fetch(NAME)


def test_a_server_without_ranges_begins_anew(publisher: Publisher) -> None:
    publisher.breaks_after, publisher.knows_ranges = 100_000, False
    with pytest.raises(BackendError, match="broke off"):
        fetch(NAME)
    fetch(NAME)
    assert (weights_folder(NAME) / "raft.pth").read_bytes() == DATA


def test_a_wrong_checksum_is_thrown_away(publisher: Publisher) -> None:
    publisher.data = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(InputError, match=f"begins with {SHA256[:8]}.*thrown away"):
        fetch(NAME)
    assert [path.name for path in weights_folder(NAME).iterdir()] == ["unfinished"]
    publisher.data = DATA
    fetch(NAME)


@pytest.mark.usefixtures("publisher")
def test_a_part_that_is_longer_than_the_file() -> None:
    folder = weights_folder(NAME)
    folder.mkdir(parents=True)
    (folder / "raft.pth.part").write_bytes(DATA + b"x")
    with pytest.raises(InputError, match="thrown away"):
        fetch(NAME)
    assert [path.name for path in folder.iterdir()] == ["unfinished"]


@pytest.mark.usefixtures("publisher")
def test_damage_is_found() -> None:
    fetch(NAME)
    path = weights_folder(NAME) / "raft.pth"
    path.write_bytes(DATA[:-1])
    for work in (verify, fetch):
        with pytest.raises(InputError, match=r"delete it and fetch"):
            work(NAME)
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        verify(NAME)
    (weights_folder(NAME) / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        verify(NAME)


def test_no_network_and_no_file_are_one_line(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = weights.WEIGHTS[NAME]
    monkeypatch.setitem(weights.WEIGHTS, NAME, replace(entry, url=f"{publisher.address}/missing.pth"))
    with pytest.raises(BackendError, match="404"):
        fetch(NAME)
    monkeypatch.setitem(weights.WEIGHTS, NAME, replace(entry, url="http://127.0.0.1:9/raft.pth"))
    assert cli.run(["weights", "fetch", NAME]) == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("vs3r: error")]
    assert "cannot reach http://127.0.0.1:9/raft.pth" in line


@pytest.fixture
def hub(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """The same as the hub that huggingface_hub asks."""
    from huggingface_hub import constants

    address = publisher.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", publisher.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    return publisher


def test_fetch_from_the_hub(hub: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, int, int | None]] = []
    (file,) = fetch(HUB_NAME, lambda *now: seen.append(now))
    assert (file.path, file.sha256, file.stated) == ("model.safetensors", SHA256, True)
    assert seen.count(("model.safetensors", len(DATA), len(DATA))) == 2, "of fetching and of checking"
    assert capsys.readouterr() == ("", "")
    assert {path for _, path, _ in hub.asked if "resolve" in path} == {
        f"/facebook/VGGT-1B/resolve/{REVISION}/model.safetensors"
    }
    assert verify(HUB_NAME) == [file]


def test_a_transfer_from_the_hub_is_continued(hub: Publisher) -> None:
    hub.breaks_after = 100_000
    with pytest.raises(BackendError, match=r"broke off after 100000 of 300000 bytes.*what has come is kept"):
        fetch(HUB_NAME)
    fetch(HUB_NAME)
    assert [ranges for _, path, ranges in hub.asked if "resolve" in path] == ["", "bytes=100000-"]
    assert (weights_folder(HUB_NAME) / "model.safetensors").read_bytes() == DATA
    fetch(HUB_NAME)
    assert sum("resolve" in path for _, path, _ in hub.asked) == 2, "what is there was fetched again"


@pytest.mark.parametrize(
    "error",
    [
        ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        type("InvalidURL", (Exception,), {})("Invalid port: 'abc'"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_keeps_from_reaching_the_hub_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A proxy, certificates that are not there, an address that is none."""

    def ask(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", ask)
    with pytest.raises(BackendError, match=r"cannot reach huggingface.co/facebook/VGGT-1B .*check the network") as told:
        fetch(HUB_NAME)
    assert str(error) in str(told.value)


@pytest.mark.usefixtures("hub")
def test_a_token_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_gehe\xefm")
    with pytest.raises(BackendError, match=r"cannot reach huggingface.co/facebook/VGGT-1B .*codec can't encode"):
        fetch(HUB_NAME)


def test_what_did_not_come_may_be_put_there_by_hand(hub: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the message says, whether nothing came or a part of it."""
    from huggingface_hub import constants

    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(BackendError, match=r"or put the files into .* by hand"):
            fetch(HUB_NAME)
    path = weights_folder(HUB_NAME) / "model.safetensors"
    path.write_bytes(DATA)
    assert is_here(HUB_NAME)
    path.unlink()
    hub.breaks_after = 100_000
    with pytest.raises(BackendError, match=r"or put the files into .* by hand"):
        fetch(HUB_NAME)
    path.write_bytes(DATA)
    assert is_here(HUB_NAME)


def test_small_files_come_anew(hub: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files without a stated checksum nothing tells of which revision they are."""
    monkeypatch.setitem(weights.WEIGHTS, HUB_NAME, replace(WEIGHTS[HUB_NAME], patterns=("*",)))
    folder = weights_folder(HUB_NAME)
    folder.mkdir(parents=True)
    for name in ("README.md", "README.md.part"):
        (folder / name).write_bytes(b"old")
    found = fetch(HUB_NAME)
    assert [(file.path, file.stated) for file in found] == [("README.md", False), ("model.safetensors", True)]
    assert (folder / "README.md").read_bytes() == hub.data


def test_the_password_is_for_the_hub_alone(hub: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files lie on other servers, to which the hub sends one on."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.mirror = hub.address
    fetch(HUB_NAME)
    resolved, elsewhere = ([told for (_, path, _), told in zip(hub.asked, hub.told, strict=True) if part in path]
                           for part in ("/resolve/", "/elsewhere"))  # fmt: skip
    assert resolved == ["Bearer hf_secret"] and elsewhere == [None]


def test_the_hub_states_another_checksum(hub: Publisher) -> None:
    hub.stated = "0" * 64
    with pytest.raises(InputError, match=r"expected model\.safetensors with a SHA-256 that begins with 0000"):
        fetch(HUB_NAME)
    assert stored(HUB_NAME) is None


def test_gated_and_unreachable_hub(hub: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    with pytest.raises(BackendError, match=r"on request.*hf auth login"):
        fetch("vggt-1b-commercial")
    hub.gated, hub.files_gated = False, True
    with pytest.raises(BackendError, match=r"on request.*hf auth login"):
        fetch(HUB_NAME)
    from huggingface_hub import constants

    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(BackendError, match=r"cannot reach huggingface.co/facebook/VGGT-1B .*offline"):
            fetch(HUB_NAME)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BackendError, match=r"cannot reach huggingface.co/facebook/VGGT-1B .*check the network"):
        fetch(HUB_NAME)


@pytest.mark.usefixtures("publisher")
def test_the_command_shows_the_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["weights", "fetch", NAME]) == 0
    told = capsys.readouterr()
    assert "BSD-3-Clause" in told.err
    assert str(weights_folder(NAME)) in told.out
    assert cli.run(["weights", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(entry.name in listed and entry.licence in listed for entry in weights.WEIGHTS.values())
    assert cli.run(["weights", "verify", NAME]) == 0
    assert cli.run(["weights", "verify", "nothing"]) == 1
    assert "expected weights named raft-large" in capsys.readouterr().err


def test_checkpoints_of_either_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = weights_folder(NAME)
    folder.mkdir(parents=True)
    state = {"a": torch.arange(3.0)}
    torch.save(state, folder / "model.pth")
    assert torch.equal(load_checkpoint(NAME)["a"], state["a"])
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match="expected one checkpoint"):
        load_checkpoint(NAME)
    (folder / "model.pth").unlink()
    assert torch.equal(load_checkpoint(NAME)["a"], state["a"])
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(NAME)
    (folder / "model.safetensors").unlink()
    (folder / "model.pt").touch()
    with pytest.raises(InputError, match=r"cannot be read \(EOFError\)"):
        load_checkpoint(NAME)
    torch.save([1], folder / "model.pt")
    with pytest.raises(InputError, match="expected named tensors"):
        load_checkpoint(NAME)


def test_every_entry_names_licence_and_source() -> None:
    for name, entry in WEIGHTS.items():
        assert name == entry.name
        assert entry.licence and entry.licence_url.startswith("https://") and entry.used_for
        assert bool(entry.repository) != bool(entry.url)
        assert entry.url.startswith("https://") or not entry.url
