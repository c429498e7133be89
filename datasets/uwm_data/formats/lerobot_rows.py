"""Rows of LeRobot's parquet tables as arrays and back, with pyarrow alone and a few megabytes at a time.

Tables hold numbers, texts, lists of them, and pictures as PNG bytes. Whatever else stands in a column that is asked for
(pickles, extension types, other structures) is refused by its type, before a value is read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from uwm_data.errors import FormatError
from uwm_data.formats import pictures
from uwm_data.formats.lerobot_features import INDEX_DTYPES, Field

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError("LeRobot datasets need pyarrow: pip install 'uwm[data]'") from error

_TROUBLE = (pa.ArrowException, MemoryError, OSError, ValueError, OverflowError, KeyError, NotImplementedError, UnicodeDecodeError)
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_BATCH_BYTES = 8 << 20  # of a data table: pictures may be large
_TABLE_BATCH = 1024  # rows of a table of episodes or tasks
MAX_TABLE_BYTES = 1 << 30


# ---- reading ------------------------------------------------------------------------------------------------------


@contextmanager
def explained(path: Path):
    """Whatever pyarrow says about a file, as a FormatError that names the file."""
    try:
        yield
    except FormatError:
        raise
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing; copy it back, or leave its episodes out") from error
    except _TROUBLE as error:
        words = str(error).partition("\n")[0] or type(error).__name__
        raise FormatError(f"{path} cannot be read ({words}); it is damaged, cut off or not a parquet table") from error


def read_whole(path: Path, without: str = "\0") -> dict[str, list]:
    """A small table (of episodes or tasks) as lists per column; columns that begin with `without` are not read."""
    with explained(path), pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if not name.startswith(without)]
        for name in names:
            _refuse_unsafe(file.schema_arrow.field(name), path)
        batches, size = [], 0
        for batch in file.iter_batches(_TABLE_BATCH, columns=names, use_threads=False):
            batches.append(batch)
            size += batch.nbytes
            if size > MAX_TABLE_BYTES:
                raise FormatError(f"{path} unpacks to more than {MAX_TABLE_BYTES >> 20} MB; a table of episodes or tasks is smaller")
        return pa.Table.from_batches(batches).to_pydict() if batches else {name: [] for name in names}


def _refuse_unsafe(field: pa.Field, path: Path) -> None:
    if not _is_safe(field.type):
        raise FormatError(f"{path}: column {field.name!r} holds {field.type}; numbers, texts and lists of them are read, nothing else")


def _is_safe(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_safe(kind.value_type)
    plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string, types.is_null)
    return any(check(kind) for check in plain)


class Rows:
    """One data table, read forwards: rows that follow the last ones asked for continue where those ended.

    Only the row groups and columns in question are touched; a huge row group is unpacked in small batches.
    """

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path = path
        with explained(path):
            # So a column is read in pieces; with pyarrow's usual settings a whole row group of it would be in memory.
            self._file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=1 << 16)
            facts = self._file.metadata
            self.count = facts.num_rows
            groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
            sizes = [group.num_rows for group in groups]
            row_bytes = sum(group.total_byte_size for group in groups) / max(self.count, 1)
        self._batch_rows = int(np.clip(_BATCH_BYTES / max(row_bytes, 1), 8, 4096))
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._columns = list(columns)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._next, self._rest = -1, None
        self._refuse_what_is_not_there()

    def _refuse_what_is_not_there(self) -> None:
        schema = self._file.schema_arrow
        lacking = [name for name in self._columns if name not in schema.names]
        if lacking:
            raise FormatError(f"{self.path} lacks the columns {lacking} that info.json promises; it has {schema.names}")
        if self.count != self._starts[-1] or self.count < 0:
            raise FormatError(f"{self.path} promises {self.count} rows and has row groups for {self._starts[-1]}")

    def read(self, start: int, count: int) -> pa.Table:
        """Rows `start` to `start + count - 1`."""
        if start + count > self.count:
            raise FormatError(f"{self.path} has {self.count} rows, {start} to {start + count - 1} are promised; it is cut off or another")
        with explained(self.path):
            try:
                if start != self._next:
                    self._go_to(start)
                return self._take(count)
            except BaseException:
                self._next = -1
                raise

    def _go_to(self, start: int) -> None:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        groups = list(range(first, len(self._starts) - 1))
        self._batches = self._file.iter_batches(self._batch_rows, row_groups=groups, columns=self._columns, use_threads=False)
        self._next, self._rest = int(self._starts[first]), None
        self._take(start - self._next)

    def _take(self, count: int) -> pa.Table:
        taken, due = [], count
        while due:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                raise FormatError(f"{self.path} ends {due} rows early")
            taken.append(batch.slice(0, due))
            self._rest = batch.slice(due) if batch.num_rows > due else None
            due -= taken[-1].num_rows
        self._next += count
        return pa.Table.from_batches(taken) if taken else self._file.schema_arrow.empty_table()

    def close(self) -> None:
        """Let go of the file."""
        self._batches = iter(())
        self._file.close()


def integers(table: pa.Table, name: str, where: str) -> np.ndarray:
    """An index column as int64 (T,)."""
    return numbers(table, Field(name, "int64", ()), where)


def numbers(table: pa.Table, field: Field, where: str) -> np.ndarray:
    """A column of numbers or (nested) lists of numbers, (T, *shape) in the field's dtype."""
    values = table.column(field.key).combine_chunks()
    shape = () if field.shape == (1,) and not _is_list(values.type) else field.shape
    for size in shape:
        if not _is_list(values.type) or values.null_count or not _all_have(values, size):
            raise FormatError(f"{where}: feature {field.key!r} holds {values.type}, expected lists of shape {list(field.shape)}")
        values = values.flatten()
    if _is_list(values.type) or values.null_count:
        raise FormatError(f"{where}: feature {field.key!r} has {values.null_count} missing values or deeper lists than {list(field.shape)}")
    return _cast(values, field, where).reshape(table.num_rows, *field.shape)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _all_have(values: pa.Array, size: int) -> bool:
    if pa.types.is_fixed_size_list(values.type):
        return values.type.list_size == size
    offsets = values.offsets.to_numpy()
    return bool((np.diff(offsets) == size).all())


def _cast(values: pa.Array, field: Field, where: str) -> np.ndarray:
    kind = values.type
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise FormatError(f"{where}: feature {field.key!r} holds {kind}, expected {field.dtype}; nothing but numbers is read")
    plain = values.to_numpy(zero_copy_only=False)
    if not np.can_cast(plain.dtype, field.dtype, "same_kind"):
        raise FormatError(f"{where}: feature {field.key!r} holds {kind}, which does not fit into the promised {field.dtype}")
    return plain.astype(field.dtype)


def texts(table: pa.Table, field: Field, where: str) -> list[str]:
    """A column of texts, one per row."""
    column = table.column(field.key)
    kind = column.type.value_type if _is_list(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise FormatError(f"{where}: feature {field.key!r} holds {column.type}, expected texts")
    return [_one_text(value) for value in column.to_pylist()]


def _one_text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")


def decoded_pictures(table: pa.Table, field: Field, where: str) -> np.ndarray:
    """A column of PNG or JPEG pictures, (T, H, W, C) uint8."""
    column = table.column(field.key)
    inner = {part.name: part.type for part in column.type} if pa.types.is_struct(column.type) else {}
    if not (pa.types.is_binary(inner.get("bytes", pa.null())) or pa.types.is_large_binary(inner.get("bytes", pa.null()))):
        raise FormatError(f"{where}: feature {field.key!r} holds {column.type}, expected pictures as a struct of bytes and path")
    frames = np.empty((table.num_rows, *field.shape), np.uint8)
    for place, cell in enumerate(column):
        data = cell["bytes"].as_py() if cell.is_valid else None
        if not data:
            raise FormatError(f"{where}: feature {field.key!r} has no picture in frame {place}")
        frames[place] = pictures.decode(data, field.shape, f"{where}, {field.key!r}, frame {place}")
    return frames


# ---- writing ------------------------------------------------------------------------------------------------------


def schema_for(fields: Sequence[Field]) -> pa.Schema:
    """The columns of a data table: the fields that are not videos, then the five that always exist.

    LeRobot up to 0.3 lets Hugging Face's library guess the columns, which takes a struct for a picture only where it is told so.
    """
    told = [pa.field(field.key, _type_of(field)) for field in fields if field.dtype != "video"]
    seen = {field.key: {"_type": "Image"} for field in fields if field.dtype == "image"}
    metadata = {"huggingface": json.dumps({"info": {"features": seen}})} if seen else None
    return pa.schema(told + [pa.field(key, pa.from_numpy_dtype(np.dtype(dtype))) for key, dtype in INDEX_DTYPES.items()], metadata)


def _type_of(field: Field) -> pa.DataType:
    if field.dtype in ("image", "string", "task"):
        return {"image": _PICTURE, "string": pa.string(), "task": pa.int64()}[field.dtype]
    kind = pa.from_numpy_dtype(np.dtype(field.dtype))
    if len(field.shape) == 1:
        return kind if field.shape == (1,) else pa.list_(kind, field.shape[0])
    for _ in field.shape:
        kind = pa.list_(kind)
    return kind


def table_of(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """A table from arrays (T, *shape), texts, or PNG bytes per column."""
    return pa.table([_array(columns[field.name], field.type) for field in schema], schema=schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray):
        return _nested(values, kind)
    if kind == _PICTURE:
        values = [{"bytes": data, "path": f"frame-{number:06d}.png"} for number, data in enumerate(values)]
    return pa.array(values, kind)


def _nested(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """(T, *shape) as T values of `kind`, lists within lists built from the inside out."""
    if not _is_list(kind):
        return pa.array(values.reshape(-1), kind)
    inner = _nested(values.reshape(-1, *values.shape[2:]), kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(inner, type=kind)
    offsets = pa.array(np.arange(len(values) + 1) * values.shape[1], pa.int32())
    return pa.ListArray.from_arrays(offsets, inner, type=kind)


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as one parquet file of one row group."""
    held = io.BytesIO()
    write_tables(held, [table], table.schema)
    return held.getvalue()


def write_tables(file: Any, tables: Iterator[pa.Table] | Sequence[pa.Table], schema: pa.Schema) -> None:
    """Tables of one schema behind one another into one parquet file, a row group each: an episode is found without its neighbours."""
    with pq.ParquetWriter(file, schema, compression="snappy", write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(len(table), 1))


def column_of(path: Path, field: Field) -> np.ndarray:
    """One column of a whole file that we wrote ourselves, (rows, *shape)."""
    with explained(path), pq.ParquetFile(path) as file:
        return numbers(file.read(columns=[field.key]), field, str(path))
