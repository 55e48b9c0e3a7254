"""A data set of the Hugging Face hub, streamed into parquet files. No code from the hub is run.

Costs the download; a row group is in memory at a time, and nothing but the files is on the disk. A slice of a split
(`train[:1%]`) cannot be streamed: `datasets` then keeps a copy of the whole split in its cache.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.params_data import HubSource

_BATCH = 256  # rows that come at a time
_ROW_GROUP = 16 << 20  # bytes in memory
_PART = 128 << 20  # bytes, before compression, of a file: each is a job for prepare


def write_hub(source: HubSource, folder: Path, look: Callable[[int], object]) -> int:
    """Writes the data set to `folder`/rows-NNNNN.parquet; returns its rows. Tells `look` the bytes that come.

    Raises what `datasets` raises: dozens of unrelated classes.
    """
    import datasets

    streaming = "[" not in source.split
    rows: Any = datasets.load_dataset(
        source.path, source.name, split=source.split, revision=source.revision, streaming=streaming
    )
    parts = _Parts(folder)
    try:
        for table in rows.with_format("arrow").iter(batch_size=_BATCH):
            parts.add(table)
            look(table.nbytes)
    finally:
        parts.close()
    return parts.rows


class _Parts:
    """Arrow tables → parquet files of about _PART bytes each."""

    def __init__(self, folder: Path) -> None:
        self.rows = 0
        self._folder = folder
        self._files = 0
        self._waiting: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None
        self._written = 0  # bytes, to the present file

    def add(self, table: pa.Table) -> None:
        """Takes rows."""
        self.rows += table.num_rows
        self._waiting.append(table)
        if sum(one.nbytes for one in self._waiting) >= _ROW_GROUP:
            self._write()
        if self._written >= _PART:
            self._end_file()

    def close(self) -> None:
        """Writes what is left."""
        if self._waiting:
            self._write()
        self._end_file()

    def _write(self) -> None:
        group = pa.concat_tables(self._waiting)
        self._waiting = []
        if self._writer is None:
            path = self._folder / f"rows-{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(path, group.schema, compression="zstd")
            self._files += 1
        self._writer.write_table(group)
        self._written += group.nbytes

    def _end_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._written = None, 0
