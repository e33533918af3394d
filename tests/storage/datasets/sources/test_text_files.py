"""CSV and JSON Lines: every bad row is found, whatever block it is in, and named as an editor would show it."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput, NotFound
from holdfast.storage.datasets.sources import csv_files, jsonl_files, open_sources


@pytest.fixture
def small_blocks(monkeypatch):
    """Makes a small file one of many blocks."""
    monkeypatch.setattr(csv_files, "_BLOCK_BYTES", 2000)
    monkeypatch.setattr(csv_files, "_GROUP_ROWS", 50)
    monkeypatch.setattr(jsonl_files, "_CHUNK_BYTES", 2000)


@pytest.fixture(params=["in one block", "in many blocks"])
def blocks(request):
    if request.param == "in many blocks":
        request.getfixturevalue("small_blocks")


def all_rows(**arguments) -> int:
    return sum(b.num_rows for source in open_sources(**arguments).values() for b in source.batches())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "case",
    [
        ("n", "7", "seven", "is no int64"),
        ("n", "7", "7.5", "is no int64"),
        ("n", "7", "99999999999999999999", "is no int64"),
        ("x", "0.5", "half", "is no double"),
        ("b", "true", "maybe", "is no bool"),
        ("d", "2024-01-01", "2024-13-01", "is no date32"),
        ("s", "text", "caf\xe9", "is not UTF-8"),
    ],
)
@pytest.mark.parametrize("quoted", [False, True])
def test_a_csv_value_that_does_not_fit_is_named_with_row_and_column(write, case, quoted):
    column, good, bad, why = case
    lines = [f'{i},{good},"a\n, b"\n' for i in range(3000)]
    lines[2345] = f'2345,"{bad}",x\n' if quoted else f"2345,{bad},x\n"
    path = write("a.csv", (f"i,{column},t\n" + "".join(lines)).encode("latin-1"))
    with pytest.raises(
        InvalidInput,
        match=rf"a\.csv, row 2345 \(the first is 0; line 4692 of the file\), column '{column}'.*{why}",
    ):
        all_rows(path=path)


@pytest.mark.usefixtures("blocks")
def test_text_of_another_encoding_is_never_stored_as_bytes(write):
    path = write("a.csv", ("a,b\n" + "1,x\n" * 900 + "1,caf\xe9\n").encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"a\.csv, row 900 .*line 902 .*column 'b': .*is not UTF-8"):
        all_rows(path=path)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("at", [0, 10, 2999])
@pytest.mark.parametrize("bad", ["1\n", "1,2,3\n"])
def test_a_csv_row_with_more_or_fewer_values_is_named(write, bad, at):
    lines = ["1,2\n"] * 3000
    lines[at] = bad
    path = write("a.csv", "a,b\n" + "".join(lines))
    with pytest.raises(
        InvalidInput,
        match=rf"a\.csv, row {at} .*line {at + 2} of the file\): it has {bad.count(',') + 1} values, the header 2",
    ):
        all_rows(path=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty|Empty"),
        ("a,b,a\n1,2,3\n", "several columns of the same name: 'a'"),
        ("caf\xe9,b\n1,2\n".encode("latin-1"), "header .* not UTF-8|not UTF-8"),
        ("a\n" + "x" * (9 << 20) + "\n", "row of more than 4 MiB, or a quote"),
    ],
)
def test_a_csv_file_that_is_no_table_says_why(write, content, message):
    path = write("a.csv", content)
    with pytest.raises(InvalidInput, match=message) as caught:
        all_rows(path=path)
    assert str(path) in str(caught.value)


def test_a_bad_value_behind_long_texts_is_named(write):
    body = "".join(f"{i},{'x' * 300_000}\n" for i in range(40)) + "bad,x\n"
    with pytest.raises(InvalidInput, match=r"a\.csv, row 40 .*column 'n': 'bad' is no int64"):
        all_rows(path=write("a.csv", "n,s\n" + body))


def test_integers_of_more_than_64_bits_are_kept_as_text_and_never_rounded(write, read):
    path = write("a.csv", "id,x\n18446744073709551615,1e20\n7,100000000000000000000\n,0.5\n")
    assert read(path=path).to_pydict() == {"id": ["18446744073709551615", "7", ""], "x": [1e20, 1e20, 0.5]}


@pytest.mark.parametrize("missing", csv_files.MISSING)
def test_each_spelling_of_no_value_keeps_the_type_of_a_column(write, read, missing):
    path = write("a.csv", f"id,n,x\n18446744073709551615,1,0.5\n{missing},{missing},{missing}\n")
    assert read(path=path).to_pydict() == {
        "id": ["18446744073709551615", missing],
        "n": [1, None],
        "x": [0.5, None],
    }


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("at", [0, 2345])
@pytest.mark.parametrize("large", ["9007199254740993", " -9007199254740993", "1" * 400])
def test_an_integer_among_floats_is_never_rounded_in_csv(write, read, large, at):
    values = ["1e300"] + ["9007199254740992", "0.5", "9007199254740993.5", ""] * 750
    path = write("a.csv", "i,x\n" + "".join(f"{i},{value}\n" for i, value in enumerate(values)))
    assert read(path=path)["x"].to_pylist()[:3] == [1e300, 2.0**53, 0.5]
    values[at] = large
    path = write("a.csv", "i,x\n" + "".join(f"{i},{value}\n" for i, value in enumerate(values)))
    with pytest.raises(
        InvalidInput, match=rf"a\.csv, row {at} .*column 'x': '{large[:80]}' is an integer that"
    ):
        read(path=path)


@pytest.mark.parametrize("end", ["", "\n", "\n2,y\n3,z\n", "\n2,y", "\r\n2,end\r\n"])
def test_a_csv_file_that_ends_inside_of_quotes_is_no_table(write, end):
    path = write("a.csv", '\nid,s\n\n0,"a\n""b"\n1,"x' + end)
    with pytest.raises(InvalidInput, match=r"a\.csv, row 1 \(the first is 0; line 6 of the file\): .*quotes"):
        all_rows(path=path)
    with pytest.raises(InvalidInput, match=r"a\.csv"):
        all_rows(path=write("a.csv", 'id,"s' + end))
    path.write_bytes(gzip.compress(b'id,s\n1,"'))
    with pytest.raises(InvalidInput, match=r"a\.csv\.gz, row 0 "):
        all_rows(path=path.rename(path.with_suffix(".csv.gz")))


def test_quotes_in_the_middle_of_a_field_are_a_part_of_it(write, read):
    path = write("a.csv", 'id,s\n1,5" pipe\n2,"a"\nend,end')
    assert read(path=path)["s"].to_pylist() == ['5" pipe', "a", "end"]


def test_a_csv_column_without_a_value_at_first_says_so_later(write, monkeypatch):
    monkeypatch.setattr(csv_files, "_BLOCK_BYTES", 2000)
    path = write("a.csv", "a,b\n" + "1,\n" * 3000 + "1,x\n")
    with pytest.raises(InvalidInput, match=r"row 3000 .*column 'b': 'x' comes after a start in which"):
        all_rows(path=path)


def test_csv_parts_share_the_types_of_the_first_that_has_values(write, read):
    write("p/part-0.csv", "a,b,c\n")
    write("p/part-1.csv", "c,a,b\n,1,x\n")
    folder = write("p/part-2.csv", "a,b,c\n2,y,2.5\n").parent
    table = read(path=folder)
    assert table.to_pylist() == [{"a": 1, "b": "x", "c": None}, {"a": 2, "b": "y", "c": 2.5}]
    write("p/part-3.csv", "a,b,c\ntwo,y,2.5\n")
    with pytest.raises(InvalidInput, match=r"part-3\.csv, row 0 .*column 'a': 'two' is no int64"):
        read(path=folder)
    write("p/part-3.csv", "a,b\n2,y\n")
    with pytest.raises(
        InvalidInput, match=r"part-3\.csv has other columns than .*part-0\.csv: it lacks \['c'\]"
    ):
        read(path=folder)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ('{"n": "seven", "s": "a"}', r"column 'n': 'seven' .*text"),
        ('{"n": 7.5, "s": "a"}', "column 'n': 7.5 "),
        ('{"n": 7.0, "s": "a"}', "column 'n': 7.0 "),
        ('{"n": 99999999999999999999, "s": "a"}', "column 'n': 99999999999999999999 "),
        ('{"n": 7, "s": true}', "column 's': True "),
        ('{"n": 7, "more": 1}', "column 'more': 1 is in a column that no row before"),
        ('{"n": 7, "n": 8}', "twice: \\['n'\\]"),
        ('{"n": 7, "o": {"a": 1, "z": 2}}', r"column 'o': .*'z'"),
        ('{"n": 7', "is not JSON: '{\"n\": 7'"),
        ("[1, 2]", r"is \[1, 2\]: a row is an object"),
        ("7", "is 7: a row is an object"),
        ("null", "is None: a row is an object"),
        ('{"n": 7}{"n": 8}', "is not JSON"),
        ('{"n":\n7}', "is not JSON"),
        ('{"n": 7}{"n":\n8}', "is not JSON"),
        ('{"n": 1}{"o":\n{"a": 8}}', "is not JSON"),
        (b'{"n": 7, "s": "\xff"}', "is not UTF-8"),
    ],
)
def test_a_json_row_that_does_not_fit_is_named(write, bad, why):
    lines = [json.dumps({"n": i, "s": "text", "o": {"a": i}}).encode() for i in range(3000)]
    lines[2345] = bad.encode() if isinstance(bad, str) else bad
    path = write("a.jsonl", b"\n".join(lines))
    with pytest.raises(InvalidInput, match=rf"a\.jsonl, row 2345 \(the first is 0.*{why}"):
        all_rows(path=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ('[{"a": 1}]', "is one JSON array"),
        ("{}\n", "no columns"),
        ('{"a": 1}\n{"a": "x"}\n', r"a\.jsonl, row 1 .*column 'a': 'x'"),
    ],
)
def test_a_json_file_that_is_no_table_says_why(write, content, message):
    with pytest.raises(InvalidInput, match=message):
        open_sources(path=write("a.jsonl", content))


def test_json_rows_with_infinities_and_long_lines_are_read(write, monkeypatch, read):
    monkeypatch.setattr(jsonl_files, "_CHUNK_BYTES", 2000)
    rows = [
        {"x": float("inf") if i == 1500 else i / 2, "s": "long" * (10_000 if i == 1600 else 1)}
        for i in range(2000)
    ]
    path = write("a.jsonl", "\n".join(map(json.dumps, rows)))
    assert read(path=path).to_pylist() == rows


@pytest.mark.parametrize(
    ("good", "bad"), [(0.5, 2**53 + 1), ([0.5], [2**53 + 1]), ({"a": 0.5}, {"a": 2**53 + 1})]
)
def test_an_integer_that_is_no_float_is_never_rounded(write, read, good, bad):
    rows = [{"x": bad if i == 1500 else good} for i in range(2000)]
    with pytest.raises(InvalidInput, match=r"a\.jsonl, row 1500 .*column 'x'.*9007199254740993"):
        read(path=write("a.jsonl", "\n".join(map(json.dumps, rows))))
    rows[1500] = {"x": 1e300} if good == 0.5 else rows[0]
    assert read(path=write("a.jsonl", "\n".join(map(json.dumps, rows)))).to_pylist() == rows


@pytest.mark.parametrize(("good", "bad"), [([1], [2.5]), ({"k": 1}, {"k": 2.5}), ([[1]], [[2.5]])])
def test_a_fraction_inside_is_never_cut_off(write, read, good, bad):
    path = write("a.jsonl", "\n".join(json.dumps({"x": value}) for value in [good] * 2000 + [bad]))
    with pytest.raises(InvalidInput, match=r"a\.jsonl, row 2000 .*column 'x'.*has a float in it"):
        read(path=path)


def test_texts_that_look_like_times_stay_texts_in_json(write, read):
    assert read(path=write("a.jsonl", '{"d": "2024-01-01"}\n'))["d"].to_pylist() == ["2024-01-01"]


def test_json_parts_are_one_after_the_other_and_rows_counted_in_each(write, read):
    write("p/0.jsonl", '{"a": 1}\n{"a": 2}\n')
    folder = write("p/1.jsonl", '{"a": 3.5, "b": "x"}\n').parent
    assert read(path=folder).to_pylist() == [
        {"a": 1.0, "b": None},
        {"a": 2.0, "b": None},
        {"a": 3.5, "b": "x"},
    ]
    write("p/2.jsonl", '{"a": 1}\n{"a": "x"}\n')
    with pytest.raises(InvalidInput, match=r"2\.jsonl, row 1 "):
        read(path=folder)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.tsv.gz"])
def test_a_compressed_file_that_ends_too_early_is_never_taken_for_a_whole_one(write, name):
    body = ("a,b\n" + "1,2\n" * 50_000) if "jsonl" not in name else '{"a": 1}\n' * 50_000
    path = write(name, gzip.compress(body.encode())[:-200])
    with pytest.raises(Corrupt, match=rf"{name} is damaged, ends too early"):
        all_rows(path=path)
    path.write_bytes(b"not gzip at all")
    with pytest.raises((Corrupt, InvalidInput), match=name):
        all_rows(path=path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("a.csv", "a.jsonl", "a.parquet", "a.npz", "folder"):
        with pytest.raises(NotFound, match=name):
            open_sources(path=tmp_path / name)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), JSON_VALUES, min_size=1), min_size=1, max_size=8),
    st.booleans(),
)
def test_json_lines_are_the_rows_that_python_reads_or_the_same_error(tmp_path_factory, rows, ascii_only):
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows), encoding="utf-8"
    )

    def outcome(**arguments):
        try:
            source = open_sources(**arguments)["train"]
            return pa.Table.from_batches(source.batches(), source.schema)
        except InvalidInput as error:
            return str(error).partition(", row ")[2].replace("; ", ") ").partition(")")[0]

    in_file, in_memory = outcome(path=path), outcome(data=rows)
    assert in_file.equals(in_memory) if isinstance(in_file, pa.Table) else in_file == in_memory
