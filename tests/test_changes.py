"""Which sources have changed: files by their content, data sets of a hub (a small server here) by their commit."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from stage_runs import set_params

from flows.changes import QUIET_SECONDS, Changes, look_at_sources
from flows.overrides import overridden
from flows.workspace import WorkspaceHeld, workspace

DVC_YAML = """
stages:
  fetch:
    foreach: ${sources.remote}
    do:
      cmd: python -c "import os; os.makedirs('data/raw/${key}')"
      params: ["sources.remote.${key}"]
      outs: ["data/raw/${key}"]
  fetch_local:
    foreach: ${sources.local}
    do:
      cmd: python -c "import shutil; shutil.copytree('${item.path}', 'data/raw/${key}')"
      deps: ["${item.path}"]
      outs: ["data/raw/${key}"]
"""
FIRST, SECOND, THIRD = ("1" * 40, "2" * 40, "3" * 40)


class Hub:
    """What the hub's API says of one data set: the commit of each branch, or that it is not well."""

    def __init__(self) -> None:
        self.commits: dict[str, str] = {}
        self.well = True


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, _, branch = self.path.partition("?")[0].partition("/revision/")
            commit = found.commits.get(branch or "main")
            body = json.dumps({"id": "we/texts", "sha": commit}).encode()
            self.send_response(503 if not found.well else 200 if commit else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield found
    server.shutdown()


def project(root: Path, revision: str | None) -> Path:
    """A data set of the hub at a revision, or a folder of our own."""
    set_params(root, only="translation")
    hub = {"texts": {"kind": "hub", "path": "we/texts", "split": "train", "revision": revision}}
    own = {"texts": {"path": "inbox"}}
    entry = {"source": "texts", "reader": "table"}
    changes = {
        "sources.remote": hub if revision else {},
        "sources.local": {} if revision else own,
        "data.pretraining": [{**entry, "columns": {"text": "text"}}],
        "data.translation": [{**entry, "columns": {"source": "a", "target": "b"}}],
    }
    (root / "params.yaml").write_text(overridden((root / "params.yaml").read_text(), changes))
    (root / "dvc.yaml").write_text(DVC_YAML)
    return root


def fetch(root: Path, found: Changes) -> None:
    """What the pipeline does about it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with workspace(root, found.revisions):
        command = [sys.executable, "-m", "dvc", "repro", "-q"]
        subprocess.run(command, cwd=root, env={**os.environ, "PATH": path}, check=True)


def look(root: Path) -> Changes:
    return look_at_sources(root, {}, time.time())


def test_a_branch_is_followed_and_dvc_notes_its_commit(tmp_path: Path, hub: Hub) -> None:
    root = project(tmp_path, "daily")
    before = (root / "params.yaml").read_text()
    hub.commits = {"main": THIRD, "daily": FIRST}
    found = look(root)
    assert found == Changes(("fetch@texts",), (), {"sources.remote.texts.revision": FIRST}, ())
    fetch(root, found)
    assert FIRST in (root / "dvc.lock").read_text()
    assert look(root).stages == ()
    hub.commits["daily"] = SECOND
    assert look(root).stages == ("fetch@texts",)
    assert (root / "params.yaml").read_text() == before

    hub.well = False
    silent = look(root)
    assert silent.stages == (), "what was fetched last counts"
    [remark] = silent.remarks
    assert remark.startswith("sources.remote.texts: the hub does not tell the commit of we/texts (")


def test_a_commit_stays_and_a_newer_one_is_told(tmp_path: Path, hub: Hub) -> None:
    root = project(tmp_path, FIRST)
    hub.commits = {"main": FIRST}
    found = look(root)
    assert found == Changes(("fetch@texts",), (), {}, ()), "it was never fetched"
    fetch(root, found)
    hub.commits = {"main": SECOND}
    found = look(root)
    assert found.stages == ()
    assert found.remarks == (f"sources.remote.texts.revision pins {FIRST}; the newest commit of we/texts is {SECOND}",)


def test_a_folder_has_changed_where_its_content_has(tmp_path: Path) -> None:
    root = project(tmp_path, None)
    (root / "inbox").mkdir()
    file = root / "inbox" / "one.txt"
    for text, changed in (("a text", True), ("a text", False), ("another", True)):
        file.write_text(text)
        os.utime(file, (time.time() - 2 * QUIET_SECONDS,) * 2)
        found = look(root)
        assert found == Changes(("fetch_local@texts",) if changed else (), (), {}, ())
        fetch(root, found)
    fresh = root / "inbox" / "deeper" / "two.txt"
    fresh.parent.mkdir()
    fresh.write_text("half a te")
    assert look(root) == Changes(("fetch_local@texts",), (fresh,), {}, ())
    with workspace(root), pytest.raises(WorkspaceHeld):
        look(root)
