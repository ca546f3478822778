"""Parquet files as tables, a batch of rows at a time (needs gpt2kit[tables])."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gpt2kit.data.packed import require_pyarrow
from gpt2kit.data.tables import ABSENT, Table
from gpt2kit.errors import CorpusError

LARGEST_ROW = 2**24  # bytes


def read_parquet(
    file: BinaryIO, path: Path, n: int, groups: Sequence[int] | None = None
) -> Iterator[Table]:
    """Yield the rows of a file that can be sought, n at a time; the columns keep their types.

    With `groups`, only these row groups are read. Tables have fewer rows if those are long.

    Raises CorpusError for a damaged file and for a row of more than LARGEST_ROW bytes,
    MissingDependencyError without pyarrow.
    """
    require_pyarrow()
    import pyarrow
    import pyarrow.parquet

    try:
        source = pyarrow.parquet.ParquetFile(file)
        schema = source.schema_arrow
        columns = tuple(schema.names)
        types = dict(zip(columns, schema.types, strict=True))
        # A file of a kilobyte can give a text of a megabyte to every row: texts stay dictionaries
        # and references to them until it is known how long the rows are.
        leaves = [source.schema.column(number) for number in range(len(source.schema))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        source = pyarrow.parquet.ParquetFile(file, read_dictionary=texts)
        yield Table(columns, [], path, types=types)
        first = 1
        for batch in source.iter_batches(batch_size=n, row_groups=groups):
            for part in _bounded(batch, path, first):
                cells = [column.to_pylist() for column in part.columns]
                rows = list(zip(*cells, strict=True))
                yield Table(columns, rows, path, first=first, types=types)
                first += len(rows)
    except (pyarrow.ArrowException, ValueError, OSError) as error:  # or a name that is not UTF-8
        detail = str(error).partition("\n")[0]
        raise CorpusError(f"{path}: not a Parquet file, or damaged: {detail}", path=path) from error


def _bounded(batch: Any, path: Path, first: int) -> Iterator[Any]:
    """Yield the rows of a batch, whose first has the number `first`, in parts of bounded size."""
    size = sum(map(_unpacked_size, batch.columns))
    if size <= LARGEST_ROW:
        yield batch
    elif batch.num_rows > 1:
        half = batch.num_rows // 2
        yield from _bounded(batch.slice(0, half), path, first)
        yield from _bounded(batch.slice(half), path, first + half)
    else:
        raise CorpusError(
            f"{path}: row {first:,} has {size:,} bytes, expected at most {LARGEST_ROW:,}", path=path
        )


def _unpacked_size(array: Any) -> int:
    """Return how many bytes the cells of a column have, each counted with all that it refers to."""
    import pyarrow.compute
    import pyarrow.types as kinds

    if kinds.is_dictionary(array.type):
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return pyarrow.compute.sum(lengths.take(array.indices)).as_py() or 0
    if kinds.is_struct(array.type):
        return sum(_unpacked_size(array.field(n)) for n in range(array.type.num_fields))
    if kinds.is_list(array.type) or kinds.is_large_list(array.type):
        return 8 * len(array) + _unpacked_size(array.flatten())
    if kinds.is_map(array.type):
        return _unpacked_size(array.keys) + _unpacked_size(array.items)
    return int(array.nbytes)


def row_groups(path: Path) -> list[tuple[int, int]]:
    """Return the rows and bytes of each row group of a file; raises as `read_parquet` does."""
    require_pyarrow()
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as source:
            found = [source.metadata.row_group(n) for n in range(source.num_row_groups)]
            return [(group.num_rows, group.total_byte_size) for group in found]
    except (pyarrow.ArrowException, ValueError, OSError) as error:  # or a name that is not UTF-8
        detail = str(error).partition("\n")[0]
        raise CorpusError(f"{path}: not a Parquet file, or damaged: {detail}", path=path) from error


class ParquetWriter:
    """Writes tables to a file, one below another; the first one decides on columns and types."""

    def __init__(self, file: BinaryIO) -> None:
        require_pyarrow()
        self._file = file
        self._writer: Any = None  # comes with the first table

    def write(self, table: Table) -> None:
        """Add the rows of a table; raises CorpusError for a cell of another type."""
        import pyarrow
        import pyarrow.parquet

        cells = [
            [None if row[index] is ABSENT else row[index] for row in table.rows]
            for index in range(len(table.columns))
        ]
        if self._writer is None:
            types = [
                _type(table.types.get(name), column)
                for name, column in zip(table.columns, cells, strict=True)
            ]
            self._schema = pyarrow.schema(list(zip(table.columns, types, strict=True)))
            self._writer = pyarrow.parquet.ParquetWriter(self._file, self._schema)
        try:
            arrays = [
                pyarrow.array(column, type=field.type)
                for column, field in zip(cells, self._schema, strict=True)
            ]
        except pyarrow.ArrowException as error:
            raise CorpusError(
                f"{table.path}: a cell has another type than those above it: {error}; "
                "write a .jsonl file, whose cells may have any type"
            ) from error
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the end of the file."""
        if self._writer is not None:
            self._writer.close()


def _type(known: Any, cells: Sequence[Any]) -> Any:
    """Return Arrow's type for a column: the known one, or that of its cells."""
    import pyarrow

    names = {float: pyarrow.float64(), int: pyarrow.int64(), str: pyarrow.string()}
    if known is not None:
        return names.get(known, known)
    kinds = {type(cell) for cell in cells if cell is not None}
    if not kinds:
        return pyarrow.string()
    if kinds == {int, float}:
        return pyarrow.float64()
    try:
        return pyarrow.array(cells).type
    except pyarrow.ArrowException as error:
        raise CorpusError(
            f"a column has cells of several types: {error}; write a .jsonl file"
        ) from error
