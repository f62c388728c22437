import contextlib
import functools
import hashlib
import http.server
import multiprocessing
import resource
import socket
import threading

import pytest

from distcnn.data import download as download_module
from distcnn.data.download import download
from distcnn.errors import DataError

CONTENT = bytes(range(256)) * 8192
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.SimpleHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012 - counted over all instances

    def do_GET(self):
        self.requests.append(self.path)
        if self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000])
        elif self.path in ("/endless", "/announced"):
            self.send_response(200)
            self.send_header("Content-Length", "a" if self.path == "/endless" else str(10**15))
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(CONTENT)
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file").write_bytes(CONTENT)
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    Handler.requests.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def fail(url, path, sha256=SHA256):
    with pytest.raises(DataError) as caught:
        download(url, path, sha256)
    message = str(caught.value)
    assert "\n" not in message
    assert not path.exists()
    assert not list(path.parent.glob(".*partial"))
    return message


def test_downloads_once(server, tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for _ in range(2):
        download(f"{server}/file", path, SHA256)
        assert path.read_bytes() == CONTENT
    assert Handler.requests == ["/file"]
    path.write_bytes(b"damaged")
    download(f"{server}/file", path, SHA256)
    assert path.read_bytes() == CONTENT


def test_failures_name_the_url_and_the_ways_out(server, tmp_path):
    path = tmp_path / "file"
    message = fail(f"{server}/file", path, sha256="0" * 64)
    assert f"its sha256 is {SHA256}, expected 000" in message
    for text in (f"{server}/file", f"archive at {path}", "--data.dir DIR", "--recipe quickstart"):
        assert text in message
    assert "File not found" in fail(f"{server}/missing", path)
    assert "sha256" in fail(f"{server}/cut", path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file"
    assert "Connection refused" in fail(url, path)


def test_a_download_without_an_end_is_stopped(server, tmp_path, monkeypatch):
    message = fail(f"{server}/announced", tmp_path / "file")
    assert "it has 1000000000000000 bytes or more; expected at most 1073741824" in message
    monkeypatch.setattr(download_module, "_MAX_BYTES", 5_000_000)
    assert "bytes or more; expected at most 5000000" in fail(f"{server}/endless", tmp_path / "file")


def test_disk_failures_name_the_path(server, tmp_path):
    (tmp_path / "plain").write_text("x")
    with pytest.raises(DataError, match=r"cannot write .*plain/file"):
        download(f"{server}/file", tmp_path / "plain" / "file", SHA256)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        message = fail(f"{server}/file", tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write" in message
    assert "File too large" in message


def test_two_processes_download_once(server, tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (f"{server}/file", tmp_path / "file", SHA256)
    processes = [context.Process(target=download, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert Handler.requests == ["/file"]
