"""The notes that a workspace keeps of its Prefect server, where they are old: of another's server, or of nobody's."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from flows import server


@pytest.fixture
def healthy() -> Iterator[tuple[str, list[str]]]:
    """The address of what says that it is a healthy Prefect API, of another workspace; and what it was asked for."""
    asked: list[str] = []

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\ntrue" if self.path != "/nonsense/health" else b"no web\r\n")

    web = ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}", asked
    web.shutdown()


def test_the_server_of_another_is_neither_used_nor_stopped(tmp_path: Path, healthy: tuple[str, list[str]]) -> None:
    """After a restart of the machine, another workspace's server may have both the port and the process number."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "prefect"])
    try:
        url = f"{healthy[0]}/api"
        (tmp_path / "server.json").write_text(json.dumps({"url": url, "process": other.pid}))
        assert server.answers(url)
        assert server._running(tmp_path) is None
        server._stop(tmp_path)
        time.sleep(0.5)
        assert other.poll() is None
        assert not (tmp_path / "server.json").exists()
    finally:
        other.kill()
        other.wait()


def test_an_address_may_end_in_a_slash_and_lead_to_what_is_no_web_server(healthy: tuple[str, list[str]]) -> None:
    address, asked = healthy
    assert server.answers(f"{address}/api/")
    assert asked == ["/api/health"]
    assert not server.answers(f"{address}/nonsense")
