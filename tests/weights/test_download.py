"""Downloads from a server on this machine: once, whole or not at all, and with the published checksum."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from workbench.errors import WorkbenchError
from workbench.weights import download as downloads
from workbench.weights.download import download, local_weights


class Server(ThreadingHTTPServer):
    """Serves ``files`` {path: bytes}; ``short`` says by how many bytes each answer ends too early."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.asked: list[str] = []
        self.short = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path in self.server.tags:  # as the Hugging Face Hub: the checksum comes with a redirection
            self.send_response(302)
            self.send_header("X-Linked-ETag", f'"{self.server.tags[self.path]}"')
            self.send_header("Location", f"/cdn{self.path}")
            self.end_headers()
            return
        content = self.server.files.get(self.path.removeprefix("/cdn"))
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) - self.server.short])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    with Server() as server:
        monkeypatch.setattr(downloads, "DETECTRON2", f"{server.url}/detectron2/")
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def cached(tmp_path: Path) -> list[str]:
    return sorted(str(p.relative_to(tmp_path / "cache")) for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_a_file_of_detectron2_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    server.files["/detectron2/ImageNetPretrained/torchvision/R-50.pkl"] = b"weights"
    for _ in range(2):
        path = local_weights("detectron2://ImageNetPretrained/torchvision/R-50.pkl")
        assert path.read_bytes() == b"weights"
    assert path == tmp_path / "cache/weights/detectron2/ImageNetPretrained/torchvision/R-50.pkl"
    assert len(server.asked) == 1


def test_half_a_download_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/w.pth"] = bytes(1000)
    server.short = 1
    with pytest.raises(WorkbenchError, match=r"only 999 of its 1000 bytes|IncompleteRead|999 bytes read"):
        local_weights(f"{server.url}/w.pth")
    assert cached(tmp_path) == []
    server.short = 0
    assert len(local_weights(f"{server.url}/w.pth").read_bytes()) == 1000


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_wrong_checksum_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(downloads, "_CHECKSUMS", {server.url[7:]: (r"_([0-9a-f]{6,})\.pkl$", kind)})
    name = f"/model_{hashlib.new(kind, b'right').hexdigest()[:8]}.pkl"
    server.files[name] = b"wrong"
    with pytest.raises(WorkbenchError, match=f"its {kind} is .* and not {name[7:15]}"):
        local_weights(server.url + name)
    assert cached(tmp_path) == []
    server.files[name] = b"right"
    assert local_weights(server.url + name).read_bytes() == b"right"


def test_no_network_is_one_sentence_with_the_address_and_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    with Server() as closed:
        monkeypatch.setattr(downloads, "DETECTRON2", f"{closed.url}/")
    place = tmp_path / "weights" / "detectron2" / "R-50.pkl"
    with pytest.raises(WorkbenchError) as raised:
        local_weights("detectron2://R-50.pkl")
    assert f"{closed.url}/R-50.pkl could not be downloaded" in str(raised.value)
    assert str(raised.value).endswith(f"put it at {place}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"copied by hand")
    assert local_weights("detectron2://R-50.pkl") == place


def test_a_repository_of_hugging_face_is_a_folder(server: Server, tmp_path: Path) -> None:
    base = "/owner/model/resolve/main/"
    weights = b"tensors"
    server.files = {base + "config.json": b"{}", base + "model.safetensors": weights}
    server.tags = {base + "model.safetensors": hashlib.sha256(b"others").hexdigest()}
    with pytest.raises(WorkbenchError, match="sha256"):
        local_weights("hf://owner/model")
    server.tags[base + "model.safetensors"] = hashlib.sha256(weights).hexdigest()
    folder = local_weights("hf://owner/model")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    before = len(server.asked)
    assert local_weights("hf://owner/model") == folder and len(server.asked) == before


def test_a_repository_in_pieces_is_fetched_whole(server: Server) -> None:
    base = "/owner/big/resolve/v2/"
    index = b'{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    server.files = {base + "config.json": b"{}", base + "model.safetensors.index.json": index}
    server.files |= {f"{base}{n}.safetensors": b"x" for n in (1, 2)}
    server.short = 0
    folder = local_weights("hf://owner/big@v2")
    assert {"1.safetensors", "2.safetensors", "config.json"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf://owner", "no address of the Hugging Face Hub"),
        ("hf://../..", "no address of the Hugging Face Hub"),
        ("hf://owner/nothing", "the server answers 404"),
        ("torchvision://resnet5", "no network 'resnet5'.*did you mean 'resnet50'"),
        ("torchvision://resnet50/V7", "no weights V7 of resnet50; it has IMAGENET1K_V1"),
    ],
)
def test_addresses_that_name_nothing(server: Server, name: str, said: str) -> None:
    with pytest.raises(WorkbenchError, match=said):
        local_weights(name)


def test_an_address_stays_inside_of_the_cache(server: Server, tmp_path: Path) -> None:
    server.files["/../../x"] = server.files["/x"] = b"x"
    path = local_weights(f"{server.url}/../../x")
    assert path.resolve().is_relative_to((tmp_path / "cache" / "weights").resolve())


def test_what_is_there_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"x")
    assert download("http://127.0.0.1:9/w", tmp_path / "w") == tmp_path / "w"
