"""Rows to predict: matched by name, in five formats; mistakes are named by file, row, column."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest

from tuner.core.errors import UsageError
from tuner.core.features import Feature
from tuner.operations import input_rows
from tuner.operations.input_rows import Wanted

NAMED = Wanted(
    features=(Feature("age", "float64"), Feature("visits", "int64"), Feature("smokes", "bool")),
    shape=(3,),
    dtype="float32",
)
UNNAMED = Wanted(features=(), shape=(3,), dtype="float64")
IMAGES = Wanted(features=(), shape=(2, 2), dtype="float32")
ROWS = [[40.5, 3, 1], [50, 0, 0]]
TABLE = pd.DataFrame(ROWS, columns=["age", "visits", "smokes"])


def read(content: bytes | str, kind: str, wanted: Wanted, **options: bool) -> np.ndarray:
    stream = io.BytesIO(content.encode() if isinstance(content, str) else content)
    return input_rows.read(stream, f"rows.{kind}", kind, wanted, **options)


def written(table: pd.DataFrame, kind: str) -> bytes:
    """Return a table in a format that has names."""
    match kind:
        case "csv":
            return table.to_csv(index=False).encode()
        case "json":
            return table.to_json(orient="records").encode()
        case "jsonl":
            return table.to_json(orient="records", lines=True).encode()
        case "parquet":
            return table.to_parquet(index=False)
        case _:
            stream = io.BytesIO()
            np.save(stream, table.to_records(index=False))
            return stream.getvalue()


def array(rows: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(rows))
    return stream.getvalue()


@pytest.mark.parametrize("kind", input_rows.FORMATS)
def test_columns_are_matched_by_name_in_any_order(kind: str) -> None:
    for columns in (["age", "visits", "smokes"], ["smokes", "age", "visits"]):
        found = read(written(TABLE[columns], kind), kind, NAMED)
        assert found.dtype == np.float32
        assert np.array_equal(found, np.array(ROWS, dtype=np.float32))


@pytest.mark.parametrize("kind", input_rows.FORMATS)
@pytest.mark.parametrize(
    ("table", "said"),
    [
        (TABLE.drop(columns="visits"), "missing 'visits'"),
        (TABLE.assign(id=1), "unknown 'id'"),
        (
            TABLE.rename(columns={"age": "Age"}),
            "missing 'age'; unknown 'Age'; expected the model's",
        ),
        (TABLE.set_axis(["0", "1", "2"], axis=1), "missing 'age', 'visits', 'smokes'; unknown '0'"),
    ],
    ids=["missing", "unknown", "renamed", "numbered"],
)
def test_other_columns_are_refused_by_name(kind: str, table: pd.DataFrame, said: str) -> None:
    with pytest.raises(UsageError, match=rf"^rows.{kind}: (row 1( \(line 1\))?: )?columns: {said}"):
        read(written(table, kind), kind, NAMED)


@pytest.mark.parametrize(
    ("content", "kind"),
    [("40.5,3,1\n50,0,0\n", "csv"), (json.dumps(ROWS), "json"), (array(ROWS), "npy")],
)
def test_a_model_with_names_takes_none_by_position_unless_asked(
    content: bytes | str, kind: str
) -> None:
    with pytest.raises(UsageError, match=r"missing 'age'|by name.*--by-position"):
        read(content, kind, NAMED)
    found = read(content, kind, NAMED, by_position=True)
    assert np.array_equal(found, np.array(ROWS, dtype=np.float32))


@pytest.mark.parametrize("first", ["40.5,3,1", "0,1,2", "7,7,7"])
def test_numbers_in_place_of_a_header_are_refused_with_advice(first: str) -> None:
    with pytest.raises(UsageError, match=r"The first line has numbers, not names; .*--by-position"):
        read(f"{first}\n50,0,0\n", "csv", NAMED)


def test_a_header_of_numbers_is_no_row_by_position() -> None:
    content = pd.DataFrame(ROWS).to_csv(index=False)  # its header is 0,1,2
    with pytest.raises(UsageError, match=r"line 1: this looks like a header.*remove that line"):
        read(content, "csv", NAMED, by_position=True)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("1,2,3\n4,5,6\n", "csv"),
        ("\ufeff1 , 2,3\r\n4,5,6\r\n\r\n", "csv"),
        ("[[1, 2, 3], [4, 5, 6]]", "json"),
        ("[1, 2, 3]\n\n[4, 5, 6]\n", "jsonl"),
        ('[{"0": 1, "2": 3, "1": 2}, {"0": 4, "1": 5, "2": 6}]', "json"),
        (written(pd.DataFrame([[1, 2, 3], [4, 5, 6]]).set_axis(["0", "1", "2"], axis=1), "parquet"),
         "parquet"),
        (array([[1, 2, 3], [4, 5, 6]]), "npy"),
    ],
)  # fmt: skip
def test_unnamed_columns_are_matched_by_position(content: bytes | str, kind: str) -> None:
    assert np.array_equal(read(content, kind, UNNAMED), [[1.0, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("content", ["1,2,3,4\n", "[[[1, 2], [3, 4]]]", "[[1, 2, 3, 4]]"])
def test_a_row_of_another_shape_may_be_flat(content: str) -> None:
    found = read(content, "json" if content[0] == "[" else "csv", IMAGES)
    assert np.array_equal(found, [[[1, 2], [3, 4]]])


@pytest.mark.parametrize(
    ("wanted", "kind", "content", "said"),
    [
        (
            NAMED,
            "csv",
            "age,visits,smokes\n1,2,0\n1,,1\n",
            "row 2 (line 3), column 'visits': expected a number, got ''",
        ),
        (
            NAMED,
            "csv",
            "age,visits,smokes\n1,2\n",
            "row 1 (line 2): expected 3 columns, as in the header, got 2",
        ),
        (
            NAMED,
            "csv",
            "age,age,smokes\n1,2,0\n",
            "expected each column once, got 'age' more than once",
        ),
        (
            NAMED,
            "csv",
            "age,visits,smokes\n1,2.5,0\n2,0.5,1\n",
            "row 1 (line 2), column 'visits': expected a whole number",
        ),
        (NAMED, "csv", "age,visits,smokes\n1,2,0.5\n", "column 'smokes': expected 0 or 1, got 0.5"),
        (
            NAMED,
            "csv",
            "age,visits,smokes\nnan,2,0\ninf,2,0\n",
            "column 'age': expected a finite number that float64 has, got nan, and 1 more like it",
        ),
        (
            NAMED,
            "csv",
            "age,visits,smokes\n1e39,2,0\n",
            "column 'age': expected a finite number that float32 has, got 1e+39",
        ),
        (
            NAMED,
            "csv",
            "age,visits,smokes\n1,9007199254740993,0\n",
            "column 'visits': expected a whole number from",
        ),
        (
            NAMED,
            "csv",
            "age,visits,smokes\n1_0,2,0\n",
            "column 'age': expected a number, got '1_0'",
        ),
        (NAMED, "csv", "age,visits,smokes\n", "expected at least one row, got none"),
        (NAMED, "csv", "", "expected at least one row, got none"),
        (NAMED, "csv", b"\xff\xfe", "expected text in UTF-8"),
        (
            NAMED,
            "json",
            '[{"age": 1, "visits": 2, "smokes": true}, {"age": null, "visits": 1, "smokes": 0}]',
            "row 2, column 'age': expected a number, got null",
        ),
        (
            NAMED,
            "json",
            '[{"age": "1", "visits": 2, "smokes": true}]',
            "row 1, column 'age': expected a number, got '1'",
        ),
        (
            NAMED,
            "json",
            '[{"age": true, "visits": 2, "smokes": true}]',
            "row 1, column 'age': expected a number, got True",
        ),
        (NAMED, "json", '[{"age": 1, "age": 2}]', "the name 'age' twice in one object"),
        (NAMED, "json", '{"age": 1}', "expected a JSON list of rows, got an object"),
        (NAMED, "json", "[1]", "row 1: expected an object or a list, got a number"),
        (NAMED, "json", "[", "expected JSON, got"),
        (
            NAMED,
            "jsonl",
            '{"age": 1, "visits": 2, "smokes": 0}\n{"age": 1, "visits": 2}\n',
            "row 2 (line 2): columns: missing 'smokes'",
        ),
        (NAMED, "jsonl", '{"age": 1, "visits": 2, "smokes": 0}\n{\n', "line 2: expected JSON, got"),
        (
            NAMED,
            "parquet",
            written(TABLE.assign(age=[1.0, None]), "parquet"),
            "row 2, column 'age': expected a finite number that float64 has, got nan",
        ),
        (
            NAMED,
            "parquet",
            written(TABLE.assign(age=["a", "b"]), "parquet"),
            "column 'age': expected numbers, got",
        ),
        (NAMED, "parquet", "age", "expected Parquet, got"),
        (
            UNNAMED,
            "csv",
            "0,1,2\n1,2,3\n",
            "line 1: this looks like a header, and the model has no named features",
        ),
        (UNNAMED, "csv", "x,y,z\n1,2,3\n", "row 1 (line 1), column 1: expected a number, got 'x'"),
        (UNNAMED, "csv", "1,2,3\n\n1,2,3\n", "row 2 (line 2): expected 3 columns, got 0"),
        (
            UNNAMED,
            "json",
            '[{"x": 1, "y": 2, "z": 3}]',
            "missing '0', '1', '2'; unknown 'x', 'y', 'z'; expected the model's unnamed columns",
        ),
        (
            UNNAMED,
            "npy",
            array([1.0, 2.0]),
            "expected rows of shape (3,) of float64, got rows of shape () of float64",
        ),
        (UNNAMED, "npy", array([[1.0, 2.0, np.nan]]), "row 1, column 3: expected a finite number"),
        (UNNAMED, "npy", "1,2\n", "expected an array in a .npy file"),
        (
            IMAGES,
            "json",
            "[[[1, 2], [3]]]",
            "row 1: expected 4 columns or lists of shape (2, 2), got 2",
        ),
    ],
)
def test_a_mistake_names_file_row_and_column(
    wanted: Wanted, kind: str, content: bytes | str, said: str
) -> None:
    with pytest.raises(UsageError) as error:
        read(content, kind, wanted)
    assert f"rows.{kind}: " in str(error.value)
    assert said in str(error.value)
