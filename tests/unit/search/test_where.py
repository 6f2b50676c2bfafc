"""Expressions over what is known of images, and tables that are joined to them."""

import sqlite3
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.search.columns import columns_of
from rayssl.pipeline.search.items import Items
from rayssl.pipeline.search.where import LONGEST, matching

N = 60
IDS = np.arange(N, dtype=np.int64) * 7 + 2**62
LABELS = [None if i % 5 == 0 else i % 3 for i in range(N)]
PATHS = [f"{'ab'[i % 2]}/{i}.jpg" for i in range(N)]
SPLITS = ["test" if i % 4 == 0 else "train" for i in range(N)]
ITEMS = Items(
    pa.table({"id": IDS, "path": PATHS, "label": pa.array(LABELS, pa.int64()), "split": SPLITS}),
    ("cat", "dog", "it's"), "", "/photos",
)  # fmt: skip
YEARS = {i: 2000 + i for i in range(0, N, 2)}
COLUMNS = pa.table({"id": IDS[::2], "year": list(YEARS.values()), "odd name": [f"{i}" for i in YEARS]})
NAMES = {None: None, 0: "cat", 1: "dog", 2: "it's"}


def rows(expression: str) -> list[int]:
    return ((matching(ITEMS, expression, COLUMNS) - 2**62) // 7).tolist()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("label = 'cat'", [i for i in range(N) if LABELS[i] == 0]),
        ("label is null", [i for i in range(N) if LABELS[i] is None]),
        ("label = 'it''s' or path like 'a/1_.jpg'", [i for i in range(N) if LABELS[i] == 2 or i in range(10, 20, 2)]),
        ("year > 2030 and split = 'train'", [i for i in YEARS if i > 30 and i % 4]),
        ("\"odd name\" in ('4', '5', '6')", [4, 6]),
        ("\"LABEL\" = 'it''s' and '\"lable\"' is not null", [i for i in range(N) if LABELS[i] == 2]),
        ("id = 4611686018427387911", [1]),
        ("1", list(range(N))),
        ("0 -- nothing", []),
        ("year", list(YEARS)),
        ("year is null", list(range(1, N, 2))),
    ],
)  # fmt: skip
def test_an_expression_chooses_images(expression: str, expected: list[int]) -> None:
    assert rows(expression) == expected


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("\"lable\" != 'cat'", r"no column lable \(did you mean 'label'\?\)"),
        ("1) limit (1", "an expression is needed"),
        ("yaer = 2001", r"no column yaer \(did you mean 'year'\?\); there is id, path, label, split, year, odd name"),
        ("1; drop table items", "syntax error"),
        ("1); attach database 'x.db' as y; select (1", "one statement|syntax error"),
        ("exists(select * from sqlite_master)", "prohibited"),
        ("(select count(*) from pragma_table_list) > 0", "prohibited|not authorized|only columns"),
        ("load_extension('x.so')", "not authorized"),
        ("(with recursive t(x) as (select 1 union all select x + 1 from t) select count(*) from t)", "only columns"),
        ("(select count(*) from items a, items b, items c, items d, items e, items f) > 0", "takes too long"),
        ("(select group_concat(a.path || b.path || c.path) from items a, items b, items c) > ''", "too big"),
        ("(" * 2000 + "1" + ")" * 2000, "depth|overflow"),
        ("x" * (LONGEST + 1), "10,001 letters: at most 10,000"),
        ("", "syntax error"),
        ("\0", "null character"),
        ("path = '\udce9'", "encode"),
        ("count(*) > 1", "misuse of aggregate"),
    ],
    ids=range(17),
)
def test_what_is_no_expression_over_the_columns_is_one_line(expression: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as error:
        rows(expression)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=40))
def test_any_text_is_an_answer_or_one_line(text: str) -> None:
    with suppress(UserError):
        assert set(rows(text)) <= set(range(N))


def test_nothing_but_the_items_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda place, **more: (places.append(place), connect(place, **more))[1])
    rows("label = 'cat'")
    assert set(places) == {":memory:"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_joined_by_path(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"table{suffix}"
    paths = ["b/1.jpg", "a/0.jpg", "c/9.jpg", "./b/3.jpg"]
    table = pa.table({"path": paths, "camera": ["x", "y", "z", None], "year": [1, 2, 3, 4], "label": ["q"] * 4})
    csv.write_csv(table, file) if suffix == ".csv" else pq.write_table(table, file)
    found, told = columns_of(ITEMS, Path("/photos"), file)
    assert found.column_names == ["id", "camera", "year"]
    assert found.to_pydict()["year"] == [2, 1, 4]
    assert found["id"].to_pylist() == [int(IDS[i]) for i in (0, 1, 3)]
    assert told == ["columns camera, year of 3 images of 60", "left out: label", "1 rows name no image of the index"]
    assert ((matching(ITEMS, "camera = 'y'", found) - 2**62) // 7).tolist() == [0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name,year\nx,1\n", "has no column 'path', only name, year"),
        (b"path,year\n", "has no rows"),
        (b"path,year\nz.jpg,1\n", "names none of the 60 images"),
        (b"path,year\na/0.jpg,1\na/0.jpg,2\n", "names an image twice, e.g. a/0.jpg"),
        (b"path,year,year\na/0.jpg,1,2\n", "two columns of one name"),
        (b"path,year\na/0.jpg\n", "cannot be read as CSV or parquet"),
        (b"", "cannot be read as CSV or parquet"),
    ],
)
def test_tables_that_cannot_be_joined(content: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=told):
        columns_of(ITEMS, Path("/photos"), file)
    with pytest.raises(UserError, match="does not exist"):
        columns_of(ITEMS, Path("/photos"), tmp_path / "none.csv")
