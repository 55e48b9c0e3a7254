"""Fetching: pip's own download of a pinned wheel, local files, a hub data set; a failure leaves what was there."""

import gzip
import json
import os
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lightning_modules.errors import PipelineError
from stages.fetch import fetch, main, sha256_of
from stages.params_data import Sources
from stages.tracking import StageRun

ROOT = Path(__file__).parent.parent


def sources(**named: dict[str, object]) -> Sources:
    remote = {name: source for name, source in named.items() if "kind" in source}
    local = {name: source for name, source in named.items() if "kind" not in source}
    return Sources.model_validate({"remote": remote, "local": local})


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip finds through the user's configuration, which forbids the network."""
    path = tmp_path / "links" / "sometext-1.0-py3-none-any.whl"
    path.parent.mkdir()
    info = "sometext-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sometext/data.txt", "words")
        metadata = (
            "Metadata-Version: 2.1\nName: sometext\nVersion: 1.0\nRequires-Python: >=99\nRequires-Dist: nothing\n"
        )
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    configuration = tmp_path / "pip.conf"
    configuration.write_text(f"[global]\nno-index = true\nfind-links = {path.parent}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    for variable in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(variable, raising=False)
    return path


def pinned(wheel: Path, **changes: str) -> dict[str, object]:
    pin = {"kind": "wheel", "package": "sometext", "version": "1.0", "sha256": sha256_of(wheel)}
    return {**pin, **changes}


def test_a_pinned_wheel_is_taken_as_it_is(wheel: Path, tmp_path: Path) -> None:
    size = fetch(sources(some=pinned(wheel)), "some", tmp_path / "raw")
    assert [path.name for path in (tmp_path / "raw" / "some").rglob("*")] == [wheel.name]
    assert (tmp_path / "raw" / "some" / wheel.name).read_bytes() == wheel.read_bytes()
    assert size == wheel.stat().st_size


def test_a_wrong_hash_leaves_what_was_there(wheel: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    fetch(sources(some=pinned(wheel)), "some", raw)
    with pytest.raises(PipelineError, match=r"sources\.remote\.some\.sha256.*not the pinned 0000"):
        fetch(sources(some=pinned(wheel, sha256="0" * 64)), "some", raw)
    assert [path.name for path in raw.rglob("*")] == ["some", wheel.name]


def test_a_version_that_is_not_there(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"sources\.remote\.some: pip could not download sometext==2\.0: .*2\.0"):
        fetch(sources(some=pinned(wheel, version="2.0")), "some", tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


def test_no_network_is_one_line(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(PipelineError, match="index cannot be reached: check the network") as caught:
        fetch(sources(some=pinned(wheel)), "some", tmp_path / "raw")
    assert "\n" not in str(caught.value)


def test_a_name_that_looks_like_an_option_is_none(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="pip could not download"):
        fetch(sources(some=pinned(wheel, package="--editable=.")), "some", tmp_path / "raw")


def test_a_local_file_and_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "b.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    (folder / "notes.docx").write_text("skipped")
    both = sources(one={"path": str(folder / "a.txt")}, all={"path": str(folder)})
    assert fetch(both, "one", tmp_path / "raw") == 1
    fetch(both, "all", tmp_path / "raw")
    files = [path for path in sorted((tmp_path / "raw").rglob("*")) if path.is_file()]
    assert [path.relative_to(tmp_path / "raw").as_posix() for path in files] == [
        "all/a.txt",
        "all/sub/b.jsonl.gz",
        "one/a.txt",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "does not exist"),
        ("a.docx", b"x", "convert or rename it"),
        (".a.txt", b"x", "is hidden, .*: take the dot off"),
        ("a.txt", b"", "is empty"),
    ],
)
def test_a_local_file_that_cannot_be_used(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PipelineError, match=rf"sources\.local\.mine\.path: .*{name} .*{message}"):
        fetch(sources(mine={"path": str(tmp_path / name)}), "mine", tmp_path / "raw")
    assert not (tmp_path / "raw" / "mine").exists()


def test_a_folder_tells_what_it_leaves_out_and_what_dvc_does_not_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    for name in ("mine/a.txt", "mine/b.md", "mine/noext", "mine/.DS_Store", "mine/sub/c.TXT", "far/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    fetch(sources(mine={"path": str(folder)}), "mine", tmp_path / "raw")
    left_out = f"sources.local.mine: left out 2 of 4 files in {folder}, being none of .txt, .jsonl, .json, .csv, .tsv, "
    assert capsys.readouterr().out == f"{left_out}.parquet, .whl: b.md, noext\n"
    (folder / "linked").symlink_to(tmp_path / "far")
    fetch(sources(mine={"path": str(folder)}), "mine", tmp_path / "raw")
    assert (tmp_path / "raw/mine/linked/d.txt").read_text() == "text"
    assert not any(path.is_symlink() for path in (tmp_path / "raw").rglob("*"))
    told = f"sources.local.mine: DVC sees no change behind a link ({folder}/linked): after one, dvc repro --force "
    assert capsys.readouterr().out.splitlines()[1] == f"{told}--single-item fetch_local@mine"


def test_an_unknown_name_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"no source 'corpsu'.*did you mean corpus\?"):
        fetch(sources(corpus={"path": "x.txt"}), "corpsu", tmp_path)


def repository_of(tmp_path: Path, rows: list[dict[str, object]]) -> dict[str, object]:
    """A folder laid out like a repository of the hub: `datasets` loads it just as it loads the hub."""
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "hub", "path": str(repository), "split": "train", "revision": "main"}


def test_a_hub_data_set_becomes_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    source = repository_of(tmp_path, [{"body": f"text {n}"} for n in range(3)])
    fetch(sources(hub=source), "hub", tmp_path / "raw")
    table = pq.read_table(tmp_path / "raw" / "hub")
    assert table["body"].to_pylist() == ["text 0", "text 1", "text 2"]
    with pytest.raises(PipelineError, match=r"sources\.remote\.hub: cannot load .*split nosuch"):
        fetch(sources(hub={**source, "split": "nosuch"}), "hub", tmp_path / "raw")
    fetch(sources(hub={**source, "split": "train[1:]"}), "hub", tmp_path / "raw")
    assert pq.read_table(tmp_path / "raw" / "hub")["body"].to_pylist() == ["text 1", "text 2"]


def test_a_hub_data_set_without_rows_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    source = repository_of(tmp_path, [{"body": "text"}])
    fetch(sources(hub=source), "hub", tmp_path / "raw")
    with pytest.raises(PipelineError, match=r"sources\.remote\.hub: cannot load .*split train\[:0\].*no data"):
        fetch(sources(hub={**source, "split": "train[:0]"}), "hub", tmp_path / "raw")
    (tmp_path / "repository" / "train.jsonl").unlink()
    (tmp_path / "repository" / "train.csv").write_text("body\n")
    with pytest.raises(PipelineError, match=r"sources\.remote\.hub: .*repository, split train has no rows"):
        fetch(sources(hub=source), "hub", tmp_path / "raw")
    assert pq.read_table(tmp_path / "raw" / "hub")["body"].to_pylist() == ["text"]


def test_a_large_hub_data_set_becomes_several_files_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns that are empty at first, and values within values, come out as they went in."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("stages.hub._ROW_GROUP", 20_000)
    monkeypatch.setattr("stages.hub._PART", 60_000)
    rows: list[dict[str, object]] = [
        {"body": f"{n} " * 20, "late": None if n < 400 else f"x{n}", "pair": {"en": f"e{n}", "of": [n]}}
        for n in range(3000)
    ]
    fetch(sources(hub=repository_of(tmp_path, rows)), "hub", tmp_path / "raw")
    files = sorted((tmp_path / "raw" / "hub").iterdir())
    assert len(files) > 3
    assert all(pq.ParquetFile(file).num_row_groups > 1 for file in files[:-1])
    assert [row for file in files for row in pq.read_table(file).to_pylist()] == rows
    assert not any("arrow" in path.suffix for path in (tmp_path / "cache").rglob("*"))  # nothing was kept beside them


def test_the_command_exits_1_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    command = [sys.executable, "-m", "stages.fetch", "botocor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: params.yaml has no source 'botocor'")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_run_is_named_as_dvc_names_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is made of the files leads back to it."""
    text = (ROOT / "tests/params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("local: {} ", "local: {mine: {path: mine.txt}} "))
    names = []

    @contextmanager
    def stage_run(stage: str, **_: Any) -> Iterator[StageRun]:
        names.append(stage)
        yield StageRun()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.tracking.stage_run", stage_run)
    monkeypatch.setattr("stages.fetch.fetch", lambda *_: 1)
    for name in ("mine", "botocore"):
        main(Namespace(name=name))
    assert names == ["fetch_local@mine", "fetch@botocore"]
