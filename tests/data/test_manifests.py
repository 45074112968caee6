import csv
import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffsight.data import manifests, tables
from diffsight.data.manifests import read_manifest, write_manifest
from diffsight.data.queries import Crop, Query
from diffsight.errors import InputError, SourceError

ROWS = [
    {"id": "which text", "image": "a.png", "texts": ["a cat, asleep", 'a "dog"'], "positive": 1, "tags": ["x", "y"]},
    {"image": "a.png", "texts": ["一只猫", "a dog"]},
    {"id": "which image", "images": ["a.png", "in/b.png"], "text": "a cat", "positive": 0, "tags": "x"},
    {"id": "grid", "images": ["a.png", "in/b.png"], "texts": ["a cat", "a dog"]},
]
GOOD = {"id": "good", "image": "a.png", "texts": ["a", "b"]}
SUFFIXES = ("jsonl", "json", "csv", "parquet")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    for name in ("a.png", "in/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, manifests.KEYS)
            writer.writeheader()
            cells = ({key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows)
            writer.writerows(cells)
    else:
        tags = [{**row, "tags": [row["tags"]]} if isinstance(row.get("tags"), str) else row for row in rows]
        pq.write_table(pa.Table.from_pylist([dict.fromkeys(manifests.KEYS) | row for row in tags]), path)
    return path


def plain(query, folder):
    images = tuple(str(image.relative_to(folder)) for image in query.images)
    return query.id, images, query.texts, query.positive, query.tags


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_formats_say_the_same(folder, suffix):
    manifest = read_manifest(write(folder / f"pets.{suffix}", ROWS))
    assert manifest.name == "pets"
    assert manifest.failures == ()
    assert [plain(query, folder) for query in manifest.queries] == [
        ("which text", ("a.png",), ("a cat, asleep", 'a "dog"'), 1, ("x", "y")),
        ("1", ("a.png",), ("一只猫", "a dog"), None, ()),
        ("which image", ("a.png", "in/b.png"), ("a cat",), 0, ("x",)),
        ("grid", ("a.png", "in/b.png"), ("a cat", "a dog"), None, ()),
    ]


def test_a_file_may_begin_with_a_byte_order_mark_and_have_empty_lines(folder):
    path = folder / "m.jsonl"
    path.write_text("\ufeff\n" + json.dumps(GOOD) + "\r\n\r\n" + json.dumps({**GOOD, "id": 7}), encoding="utf-8")
    assert [query.id for query in read_manifest(path).queries] == ["good", "7"]


def test_images_may_be_in_another_folder(folder, tmp_path):
    path = write(tmp_path / "m.jsonl", [GOOD, {**GOOD, "id": "full", "image": str(folder / "in" / "b.png")}])
    (first, second) = read_manifest(path, images=folder).queries
    assert first.images == (folder / "a.png",)
    assert second.images == (folder / "in" / "b.png",)
    with pytest.raises(SourceError, match=r"nowhere, does not exist"):
        read_manifest(path, images=folder / "nowhere")


BAD = [
    ({"image": "c.png"}, r"'c\.png' is no file"),
    ({"image": "in"}, "'in' is no file"),
    ({"image": "../secret.png"}, r"'\.\./secret\.png' leads out of .*data, to .*secret\.png\. Give a folder above"),
    ({"image": "in/../../secret.png"}, "leads out of"),
    ({"image": "/etc/passwd"}, "'/etc/passwd' leads out of"),
    ({"image": "link.png"}, "'link.png' leads out of"),
    ({"image": "outside/secret.png"}, "leads out of"),
    ({"image": "a" * 999}, "cannot be looked up"),
    ({"image": ["a.png"]}, "'image' must be text"),
    ({"image": 3}, "'image' must be text"),
    ({"image": None}, "'image' or 'images'"),
    ({"images": ["a.png"]}, "'image' or 'images', not both"),
    ({"image": None, "images": "a.png"}, "'images' must be a list"),
    ({"image": None, "images": ["a.png", None]}, "'images' must be text"),
    ({"image": None, "images": ["a.png", "./a.png"]}, r"image .*a\.png twice"),
    ({"image": None, "images": []}, "0 image"),
    ({"texts": ["a"]}, "1 image.* 1 text"),
    ({"texts": ["a", "a"]}, "text 'a' twice"),
    ({"texts": ["a", ""]}, "'texts' must be text, and not empty"),
    ({"texts": ["a", " \t"]}, "'texts' must be text, and not empty"),
    ({"texts": ["a", 3]}, "'texts' must be text"),
    ({"texts": ["a", "\ud800"]}, "'texts' is not Unicode"),
    ({"texts": "a or b"}, "'texts' must be a list"),
    ({"text": "a"}, "'text' or 'texts', not both"),
    ({"texts": None}, "'text' or 'texts'"),
    ({"positive": 2}, "positive 2, but its candidates are 0 to 1"),
    ({"positive": -1}, "positive -1"),
    ({"positive": True}, "'positive' must be a whole number.*True"),
    ({"positive": 1.0}, r"'positive' must be a whole number.*1\.0"),
    ({"positive": "1"}, "'positive' must be a whole number.*'1'"),
    ({"tags": [3]}, "'tags' must be text"),
    ({"tags": {"kind": "x"}}, "'tags' must be text"),
    ({"id": ""}, "'id' must be text or a whole number"),
    ({"id": 1.5}, "'id' must be text or a whole number"),
    ({"id": True}, "'id' must be text or a whole number"),
    ({"id": "\ud800"}, "'id' is not Unicode"),
    ({"id": "good"}, "'good' is there before"),
]


@pytest.mark.parametrize(("changes", "says"), BAD)
def test_one_bad_row_is_one_failure(folder, changes, says):
    Image.new("RGB", (4, 4)).save(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "outside").symlink_to(folder.parent)
    row = {**GOOD, "id": "bad", **changes}
    manifest = read_manifest(write(folder / "m.jsonl", [GOOD, row, {**GOOD, "id": "last"}]))
    assert [query.id for query in manifest.queries] == ["good", "last"]
    (failure,) = manifest.failures
    assert failure.id == (row["id"] if isinstance(row["id"], str) and row["id"] else "1")
    assert re.search(says, failure.reason), failure.reason


def test_a_zero_in_a_path(folder):
    manifest = read_manifest(write(folder / "m.jsonl", [GOOD, {**GOOD, "id": "bad", "image": "a.png\0"}]))
    assert "cannot be looked up" in manifest.failures[0].reason


@pytest.mark.parametrize("line", ["{", "not JSON", "[1, 2]", '"text"', "3", "null", "[" * 100_000])
def test_lines_that_are_no_object(folder, line):
    path = write(folder / "m.jsonl", [GOOD])
    path.write_text(line + "\n" + path.read_text())
    manifest = read_manifest(path)
    assert [query.id for query in manifest.queries] == ["good"]
    assert manifest.failures[0].id == "0"
    assert manifest.failures[0].reason.startswith("line 1: ")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('x,a.png,"[""a"", ""b""]",1,extra', "line 3: not 4 cells"),
        ("x,a.png", "line 3: not 4 cells"),
        ("x,a.png,a or b,1", "'texts' must be a list.*a JSON array"),
        ('x,a.png,"[""a"", ""b""",1', "'texts' must be a list"),
        ('x,a.png,"[""a"", ""b""]",one', "'positive' must be a whole number.*'one'"),
        ('x,a.png,"[""a"", ""b""]",true', "'positive' must be a whole number"),
        ('x,,"[""a"", ""b""]",1', "'image' or 'images'"),
    ],
)
def test_bad_lines_of_csv(folder, line, says):
    path = folder / "m.csv"
    path.write_text('id,image,texts,positive\ngood,a.png,"[""a"", ""b""]",1\n' + line + "\n")
    manifest = read_manifest(path)
    assert [(query.id, query.positive) for query in manifest.queries] == [("good", 1)]
    assert re.search(says, manifest.failures[0].reason), manifest.failures[0].reason


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_misspelt_key_is_refused(folder, suffix):
    path = folder / f"m.{suffix}"
    if suffix == "csv":
        path.write_text('image,texts,postive\na.png,"[""a"", ""b""]",1\n')
    elif suffix == "parquet":
        pq.write_table(pa.table({"image": ["a.png"], "texts": [["a", "b"]], "postive": [1]}), path)
    else:
        write(path, [GOOD, {**GOOD, "id": "2", "postive": 1}])
    with pytest.raises(SourceError, match=r"unknown key 'postive'\. Did you mean 'positive'"):
        read_manifest(path)


def test_the_line_of_a_misspelt_key_is_named(folder):
    with pytest.raises(SourceError, match=r"m\.jsonl, line 2: unknown key 'label'.*Known names: id, image"):
        read_manifest(write(folder / "m.jsonl", [GOOD, {**GOOD, "label": 1}]))


GARBAGE = bytes(range(256)) * 4


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.jsonl", b"", "no query in .*no rows"),
        ("m.jsonl", b"\n\n", "no rows"),
        ("m.jsonl", GARBAGE, "not JSON lines in UTF-8"),
        ("m.jsonl", b'{"id": 1}\n{"id": 2}', "none of its 2 rows.*line 1: there must be 'image' or 'images'"),
        ("m.jsonl", b"image,text\n", "line 1: not JSON"),
        ("m.json", b"", "not JSON"),
        ("m.json", b"[]", "no rows"),
        ("m.json", b'{"queries": []}', "holds a dict; it must hold a list"),
        ("m.json", GARBAGE, "not JSON in UTF-8"),
        ("m.json", b"[" * 100_000, "not JSON"),
        ("m.csv", b"", "neither a column 'image' nor 'images'"),
        ("m.csv", b"id,image,positive\n", "neither a column 'text' nor 'texts'"),
        ("m.csv", b"image,text\n", "no rows"),
        ("m.csv", b"image,image,texts\n", "has a column twice"),
        ("m.csv", b'image,text\na.png,"a\n', "after line 1 is not CSV"),
        ("m.csv", b"image,text\na.png,\xff\n", "not CSV in UTF-8"),
        ("m.csv", b"image,text\na.png," + b"a" * 200_000, "after line 1 is not CSV"),
        ("m.parquet", b"", "not Parquet"),
        ("m.parquet", GARBAGE, "not Parquet"),
        ("m.parquet", b"PAR1" + GARBAGE + b"PAR1", "not Parquet"),
        ("m.txt", b"", r"ending '\.txt'.*\.jsonl, \.json, \.csv, \.parquet"),
    ],
)
def test_files_that_are_no_manifest(folder, name, content, says):
    (folder / name).write_bytes(content)
    with pytest.raises(SourceError, match=says):
        read_manifest(folder / name)


def test_parquet_without_columns(folder):
    pq.write_table(pa.table({"image": ["a.png"]}), folder / "m.parquet")
    with pytest.raises(SourceError, match="neither a column 'text' nor 'texts'"):
        read_manifest(folder / "m.parquet")


def test_damaged_parquet(folder):
    path = write(folder / "m.parquet", ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(200) + whole[204:])
    with pytest.raises(SourceError, match="damaged or not Parquet"):
        read_manifest(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_absent_files(folder, suffix):
    with pytest.raises(SourceError, match="is missing"):
        read_manifest(folder / f"m.{suffix}")
    (folder / f"m.{suffix}").mkdir()
    with pytest.raises(SourceError, match="no file"):
        read_manifest(folder / f"m.{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_that_are_too_large(folder, suffix, monkeypatch):
    path = write(folder / f"m.{suffix}", ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "MOST_ROWS", 3)
        with pytest.raises(SourceError, match="more rows than the limit of 3"):
            read_manifest(path)
    with path.open("r+b") as file:
        file.truncate(2**30 + 1)
    with pytest.raises(SourceError, match="1,073,741,825 bytes, over the limit"):
        read_manifest(path)


def test_parquet_that_unpacks_to_too_much(folder, monkeypatch):
    path = folder / "m.parquet"
    texts = [[f"{number}" + "a" * 1000, "b"] for number in range(200)]
    pq.write_table(pa.table({"image": ["a.png"] * 200, "texts": texts}), path, compression="zstd")
    monkeypatch.setattr(tables, "LARGEST_FILE", 100_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(SourceError, match="unpacks to"):
        read_manifest(path)


captions = st.text(min_size=1).filter(lambda text: text.strip() and not any("\ud800" <= c <= "\udfff" for c in text))


@given(captions, st.lists(captions, min_size=2, max_size=4, unique=True), st.lists(captions, max_size=2), st.data())
def test_what_is_written_is_read(tmp_path_factory, id, texts, tags, data):
    folder = tmp_path_factory.mktemp("round")
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    positive = data.draw(st.none() | st.integers(0, len(texts) - 1))
    query = Query(id=id, images=(folder / "a.png",), texts=tuple(texts), positive=positive, tags=tuple(tags))
    write_manifest(folder / "m.jsonl", [query])
    (read,) = read_manifest(folder / "m.jsonl").queries
    assert plain(read, folder) == plain(query, folder)


def test_all_forms_are_written_and_read(folder):
    queries = read_manifest(write(folder / "m.json", ROWS)).queries
    write_manifest(folder / "kept.jsonl", queries)
    again = read_manifest(folder / "kept.jsonl").queries
    assert [plain(query, folder) for query in again] == [plain(query, folder) for query in queries]


def test_a_written_folder_can_be_moved(folder):
    write_manifest(folder / "m.jsonl", read_manifest(write(folder / "m.json", ROWS)).queries)
    moved = folder.rename(folder.parent / "moved")
    assert read_manifest(moved / "m.jsonl").queries[2].images == (moved / "a.png", moved / "in" / "b.png")


def test_images_elsewhere_are_written_in_full(folder, tmp_path):
    path = tmp_path / "elsewhere" / "m.jsonl"
    path.parent.mkdir()
    write_manifest(path, read_manifest(write(folder / "m.json", ROWS)).queries)
    with pytest.raises(SourceError, match="leads out of"):
        read_manifest(path)
    assert len(read_manifest(path, images=tmp_path).queries) == 4


def test_what_is_not_written(folder):
    query = Query(id="q", images=(folder / "a.png",), texts=("a", "b"))
    path = folder / "m.jsonl"
    for image, kind in ((Image.new("RGB", (2, 2)), "Image"), (Crop(folder / "a.png", (0, 0, 2, 2)), "Crop")):
        with pytest.raises(InputError, match=rf"'p' has an image that is no file but a {kind}"):
            write_manifest(path, [query, Query(id="p", images=(image,), texts=("a", "b"))])
    with pytest.raises(InputError, match="Two queries have the id 'q'"):
        write_manifest(path, [query, query])
    with pytest.raises(InputError, match="no queries"):
        write_manifest(path, [])
    with pytest.raises(InputError, match=r"must end in \.jsonl"):
        write_manifest(folder / "m.csv", [query])
    with pytest.raises(InputError, match="cannot be written"):
        write_manifest(folder / "nowhere" / "m.jsonl", [query])
    assert not path.exists()
    assert sorted(os.listdir(folder)) == ["a.png", "in"]


def test_pyarrow_is_loaded_for_parquet_only(folder):
    path = write(folder / "m.jsonl", [GOOD])
    code = f"""if True:
        import sys
        from diffsight.data.manifests import read_manifest
        read_manifest({str(path)!r})
        assert "pyarrow" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)
