import csv
import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from diffsight.data.compositional import BENCHMARKS, read_benchmark
from diffsight.data.hard_negatives import SUGARCREPE
from diffsight.data.queries import Crop
from diffsight.errors import SourceError

MANY = 400
FLAGS = ("subj_neg", "verb_neg", "obj_neg")


def save(path, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def put_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def put_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def winoground(place, count):
    rows = [
        {
            "id": number,
            "image_0": "ex_0_img_0",
            "image_1": "ex_0_img_1",
            "caption_0": f"an old person kisses {number} young persons",
            "caption_1": f"a young person kisses {number} old persons",
            "tag": "Adjective-Age",
            "secondary_tag": "Series" if number else "",
            "num_main_preds": 1,
            "collapsed_tag": "Relation",
        }
        for number in range(count)
    ]
    for name in ("ex_0_img_0", "ex_0_img_1"):
        save(place / "data" / "images" / f"{name}.png")
    (place / "data" / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def comvg(place, count):
    rows = [
        {
            "id": number + 1,
            "sentence": "a man is sitting at a table",
            "pos_triplet": "man,sit,table",
            "neg_triplet": "('dog', 'sit', 'table')",
            "pos_image_id": 2358258,
            "neg_image_id": 2357994,
            "neg_value": ("subject", "verb", "object")[number % 3],
        }
        for number in range(count)
    ]
    for number in (2358258, 2357994):
        save(place / "comvg_images" / f"{number}.jpg")
    put_csv(place / "ComVG.csv", rows)


def svo(place, count):
    rows = [
        {
            "sentence": "A girl is sitting on a swing.",
            "pos_triplet": "girl,sit,swing",
            "neg_triplet": "boy,sit,swing",
            "pos_url": "http://example.org/1",
            "neg_url": "http://example.org/2",
            "pos_image_id": 17,
            "neg_image_id": 4,
            **{column: str(number % 3 == index) for index, column in enumerate(FLAGS)},
        }
        for number in range(count)
    ]
    for number in (17, 4):
        save(place / "images" / f"{number}.jpg")
    put_csv(place / "svo_probes.csv", rows)


def aro(kind, more):
    def write(place, count):
        rows = [
            {
                "image_path": "2315337.jpg",
                "bbox_x": 2,
                "bbox_y": 1,
                "bbox_w": 5,
                "bbox_h": 3,
                "true_caption": "the horse is eating the grass",
                "false_caption": "the grass is eating the horse",
                **more,
            }
        ] * count
        save(place / "images" / "2315337.jpg", (10, 8))
        put_json(place / f"visual_genome_{kind}.json", rows)

    return write


def sugarcrepe(place, count):
    row = {"filename": "000000544519.jpg", "caption": "A green shirt.", "negative_caption": "A blue shirt."}
    save(place / "val2017" / row["filename"])
    for category in SUGARCREPE:
        put_json(place / "data" / f"{category}.json", {str(number): row for number in range(count // 7 + 1)})


def refcocog(place, count):
    refs = [
        {
            "ref_id": number,
            "ann_id": 900 + number,
            "image_id": number // 2,
            "file_name": f"COCO_train2014_{number // 2:012d}_{900 + number}.jpg",
            "split": "val" if number % 4 else "train",
            "sentences": [
                {"sent_id": 2 * number + part, "raw": f"Man no. {number}, {part}!", "sent": f"man no {number} {part}"}
                for part in range(2)
            ],
        }
        for number in range(max(12, count // 2))
    ]
    for number in range(len(refs) // 2 + 1):
        save(place / "train2014" / f"COCO_train2014_{number:012d}.jpg")
    put_json(place / "refs(google).json", refs)


COLOURS = ("white", "black", "red", "blue", "green", "yellow", "brown", "grey", "orange", "pink", "purple", "tan")


def vqa(place, count):
    questions, notes = [], []
    for number in range(max(50, count)):
        kind = ("other", "number", "yes/no")[number % 3]
        begins, answer = {
            "other": ("what color is the", COLOURS[number // 6 % 12 if number // 3 % 2 else 0]),
            "number": ("how many", str(number % 40)),
            "yes/no": ("is the", ("yes", "no")[number % 2]),
        }[kind]
        question = {"question_id": 1000 + number, "image_id": 42, "question": f"{begins} {number}?"}
        given = [{"answer": answer, "answer_id": 1}, {"answer": "red" if kind == "other" else "3", "answer_id": 2}]
        questions.append(question)
        note = {"question_type": begins, "answer_type": kind, "multiple_choice_answer": answer, "answers": given}
        notes.append({"question_id": 1000 + number, "image_id": 42, **note})
    save(place / "val2014" / "COCO_val2014_000000000042.jpg")
    put_json(place / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    put_json(place / "v2_mscoco_val2014_annotations.json", {"annotations": notes})


COPIES = {
    "winoground": winoground,
    "comvg": comvg,
    "svo": svo,
    "aro-relation": aro("relation", {"relation_name": "eating"}),
    "aro-attribution": aro("attribution", {"attributes": ["white", "tall"]}),
    "sugarcrepe": sugarcrepe,
    "refcocog": refcocog,
    "vqa": vqa,
}
CHOICES = sorted(COPIES.keys() - {"winoground"})


@pytest.fixture
def copy(tmp_path):
    def write(name, count=3):
        COPIES[name](tmp_path, count)
        return tmp_path

    return write


def names(query):
    return [image.name for image in query.images]


@pytest.mark.parametrize("name", COPIES)
def test_every_benchmark_is_read(copy, name):
    manifest = read_benchmark(name, copy(name))
    assert COPIES.keys() == BENCHMARKS.keys()
    assert manifest.name == BENCHMARKS[name].name == name
    assert manifest.failures == ()
    assert {query.form for query in manifest.queries} == {BENCHMARKS[name].form}


@pytest.mark.parametrize("name", CHOICES)
def test_the_positive_is_as_often_in_every_place(copy, name):
    by_count = {}
    for query in read_benchmark(name, copy(name, MANY)).queries:
        by_count.setdefault(query.count, Counter())[query.positive] += 1
    for count, places in by_count.items():
        total = places.total()
        assert total > 100
        expected = total / count
        assert max(abs(places[place] - expected) for place in range(count)) < 4.5 * expected**0.5


@pytest.mark.parametrize("name", COPIES)
def test_reading_again_gives_the_same(copy, name):
    place = copy(name, 20)
    first, second = (read_benchmark(name, place).queries for _ in range(2))
    assert [(q.id, q.images, q.texts, q.positive) for q in first] == [
        (q.id, q.images, q.texts, q.positive) for q in second
    ]


def test_winoground(copy):
    first, second, _ = read_benchmark("winoground", copy("winoground")).queries
    assert names(first) == ["ex_0_img_0.png", "ex_0_img_1.png"]
    assert first.texts == ("an old person kisses 0 young persons", "a young person kisses 0 old persons")
    assert (first.id, first.positive, first.tags) == ("0", None, ("Relation", "Adjective-Age"))
    assert second.tags == ("Relation", "Adjective-Age", "Series")


def test_winoground_may_lie_flat(copy):
    place = copy("winoground")
    for path in (place / "data").iterdir():
        path.rename(place / path.name)
    assert len(read_benchmark("winoground", place).queries) == 3


def test_comvg(copy):
    queries = read_benchmark("comvg", copy("comvg", 30)).queries
    assert [query.id for query in queries[:2]] == ["1", "2"]
    assert queries[0].texts == ("a man is sitting at a table",)
    assert {query.tags for query in queries} == {("subject",), ("verb",), ("object",)}
    assert {query.images[query.positive].name for query in queries} == {"2358258.jpg"}


def test_comvg_as_discffusion_has_it(copy):
    place = copy("comvg")
    (place / "ComVG.csv").rename(place / "compositional_visual_genome.csv")
    (place / "comvg_images").rename(place / "vg_concept")
    assert len(read_benchmark("comvg", place).queries) == 3


def test_svo(copy):
    place = copy("svo")
    queries = read_benchmark("svo", place).queries
    assert [query.tags for query in queries] == [("subject",), ("verb",), ("object",)]
    assert [query.id for query in queries] == ["0", "1", "2"]
    assert {query.images[query.positive].name for query in queries} == {"17.jpg"}
    path = place / "svo_probes.csv"
    path.write_text(
        path.read_text().replace("True,False,False", "True,False,True").replace("False,True", "False,False")
    )
    several = read_benchmark("svo", place)
    assert several.queries[0].tags == ("subject",)
    assert "None of subj_neg" in several.failures[0].reason


def test_images_that_differ_in_several_things_count_for_none(copy):
    place = copy("svo")
    path = place / "svo_probes.csv"
    path.write_text(path.read_text().replace("True,False,False", "True,False,True"))
    assert read_benchmark("svo", place).queries[0].tags == ("subject+object",)


@pytest.mark.parametrize(("name", "tag"), [("aro-relation", "eating"), ("aro-attribution", "white_tall")])
def test_aro_shows_the_part_in_the_box(copy, name, tag):
    place = copy(name)
    query = read_benchmark(name, place).queries[0]
    assert query.images == (Crop(place / "images" / "2315337.jpg", (2, 1, 7, 4)),)
    assert np.asarray(query.images[0].load()).shape == (3, 5, 3)
    assert query.texts[query.positive] == "the horse is eating the grass"
    assert query.tags == (tag,)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bbox_w": 0}, r"\(2, 1, 2, 4\).*is empty"),
        ({"bbox_x": "2"}, "'bbox_x' must be a whole number"),
        ({"bbox_h": None}, "'bbox_h' must be a whole number"),
        ({"image_path": "../../secret.jpg"}, "leads out of"),
        ({"image_path": "1.jpg"}, "is no file"),
        ({"false_caption": "the horse is eating the grass"}, "twice"),
        ({"true_caption": ""}, "'true_caption' must be text"),
        ({"relation_name": None}, "'relation_name' must be text"),
    ],
)
def test_bad_rows_of_aro(copy, changes, says):
    place = copy("aro-relation")
    path = place / "visual_genome_relation.json"
    rows = json.loads(path.read_text())
    put_json(path, [rows[0], {**rows[1], **changes}, "text"])
    manifest = read_benchmark("aro-relation", place)
    assert [query.id for query in manifest.queries] == ["0"]
    assert [failure.id for failure in manifest.failures] == ["1", "2"]
    assert re.search(says, manifest.failures[0].reason), manifest.failures[0].reason
    assert "an object with keys" in manifest.failures[1].reason


def test_sugarcrepe(copy):
    queries = read_benchmark("sugarcrepe", copy("sugarcrepe")).queries
    assert [query.id for query in queries] == [f"{category}/0" for category in SUGARCREPE]
    assert [query.tags for query in queries] == [(category,) for category in SUGARCREPE]
    assert {query.texts[query.positive] for query in queries} == {"A green shirt."}


def test_refcocog_takes_sentences_of_other_images(copy):
    place = copy("refcocog", 100)
    queries = read_benchmark("refcocog", place).queries
    said = {}
    for query in queries:
        said.setdefault(names(query)[0], set()).add(query.texts[query.positive])
    for query in queries:
        assert query.count == 10
        assert said[names(query)[0]] & set(query.texts) == {query.texts[query.positive]}
    # By image_id; file_name has the number of an object in it.
    assert (queries[-1].id, names(queries[-1])) == ("99", ["COCO_train2014_000000000024.jpg"])
    assert queries[-1].texts[queries[-1].positive] == "Man no. 49, 1!"
    assert {query.tags for query in queries} == {("train",), ("val",)}


@pytest.mark.parametrize("name", ["refcocog", "vqa"])
def test_seeds_choose_other_negatives_for_the_same_positives(copy, name):
    place = copy(name, 100)
    first, second = (read_benchmark(name, place, seed=seed).queries for seed in (0, 1))
    assert [query.texts[query.positive] for query in first] == [query.texts[query.positive] for query in second]
    assert sum(a.texts != b.texts for a, b in zip(first, second, strict=True)) > 0.6 * len(first)


def test_negatives_do_not_depend_on_other_failures(copy):
    place = copy("refcocog", 100)
    before = {query.id: query.texts for query in read_benchmark("refcocog", place).queries}
    (place / "train2014" / "COCO_train2014_000000000003.jpg").unlink()
    manifest = read_benchmark("refcocog", place)
    assert [failure.id for failure in manifest.failures] == ["12", "13", "14", "15"]
    assert {query.id: query.texts for query in manifest.queries}.items() <= before.items()


def test_few_refs_and_bad_refs(copy):
    place = copy("refcocog")
    path = place / "refs(google).json"
    refs = json.loads(path.read_text())
    put_json(path, refs[:4])
    with pytest.raises(SourceError, match="Only 4 other sentences are said of other images; 9 are needed"):
        read_benchmark("refcocog", place)
    put_json(path, [*refs, {**refs[0], "image_id": "1"}, {**refs[0], "sentences": None}, 7])
    manifest = read_benchmark("refcocog", place)
    assert [failure.id for failure in manifest.failures] == ["ref 12", "ref 13", "ref 14"]
    assert len(manifest.queries) == 24


def test_refcocog_without_raw_sentences(copy):
    place = copy("refcocog")
    path = place / "refs(google).json"
    path.write_text(path.read_text().replace('"raw"', '"other"'))
    query = read_benchmark("refcocog", place).queries[0]
    assert query.texts[query.positive] == "man no 0 0"


def test_vqa_has_negatives_of_the_same_type(copy):
    queries = read_benchmark("vqa", copy("vqa", 120)).queries
    assert [query.id for query in queries[:2]] == ["1000", "1001"]
    for query in queries:
        kind, begins = query.tags
        answers = [text.partition("? ")[2] for text in query.texts]
        assert all(text.startswith(begins) for text in query.texts)
        if kind == "yes/no":
            assert set(answers) == {"yes", "no"}
        else:
            assert query.count == 10
            assert all(answer.isdigit() for answer in answers) == (kind == "number")


def test_what_an_annotator_answered_is_no_negative(copy):
    for query in read_benchmark("vqa", copy("vqa", 120)).queries:
        if query.tags[0] == "other":
            wrong = {text.partition("? ")[2] for text in query.texts} - {query.texts[query.positive].partition("? ")[2]}
            assert "red" not in wrong


def test_frequent_answers_are_frequent_negatives(copy):
    # "white" is every second answer; where another is right, it has to be nearly always there.
    queries = [query for query in read_benchmark("vqa", copy("vqa", 300)).queries if query.tags[0] == "other"]
    others = [query for query in queries if not query.texts[query.positive].endswith(" white")]
    assert len(others) > 20
    assert sum(any(text.endswith(" white") for text in query.texts) for query in others) > 0.9 * len(others)


def test_bad_rows_of_vqa(copy):
    place = copy("vqa")
    path = place / "v2_mscoco_val2014_annotations.json"
    notes = json.loads(path.read_text())["annotations"]
    for number, changes in enumerate(
        ({"question_id": 5}, {"answers": [3]}, {"image_id": 43}, {"answer_type": 1}, {"multiple_choice_answer": " "})
    ):
        notes[number] |= changes
    put_json(path, {"annotations": [*notes, None]})
    manifest = read_benchmark("vqa", place)
    assert [failure.id for failure in manifest.failures] == ["5", "1001", "1002", "1003", "1004", "50"]
    assert len(manifest.queries) == 45


def test_unknown_benchmarks():
    with pytest.raises(SourceError, match=r"Unknown benchmark 'winogrounds'\. Did you mean 'winoground'"):
        read_benchmark("winogrounds", ".")


@pytest.mark.parametrize("name", COPIES)
def test_an_absent_copy_tells_the_layout(tmp_path, name):
    layout = re.escape(f"The layout of {name} is: {BENCHMARKS[name].layout}")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SourceError, match=rf"There is no .* in {folder}\. {layout}"):
            read_benchmark(name, folder)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_without_images_tells_the_first_and_the_layout(copy, name):
    place = copy(name)
    for image in [*place.rglob("*.jpg"), *place.rglob("*.png")]:
        image.unlink()
    with pytest.raises(SourceError, match=r"none of its \d+ rows.*is no file in .* The layout"):
        read_benchmark(name, place)


@pytest.mark.parametrize("content", [b"", b"\xff\x00\xfe" * 100, b"{}", b"3", b"[", b"a,b\n1,2\n"])
@pytest.mark.parametrize("name", COPIES)
def test_damaged_lists(copy, name, content):
    place = copy(name)
    for path in [*place.rglob("*.json"), *place.rglob("*.jsonl"), *place.rglob("*.csv")]:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=f"The layout of {name}"):
        read_benchmark(name, place)


def test_lists_may_not_leave_the_folder(copy, tmp_path):
    place = copy("comvg")
    save(tmp_path / "secret.jpg")
    path = place / "ComVG.csv"
    path.write_text(path.read_text().replace("2357994", "../secret", 1))
    (failure,) = read_benchmark("comvg", place).failures
    assert "leads out of" in failure.reason


def test_the_pickle_of_refcocog_is_not_read(copy):
    place = copy("refcocog")
    (place / "refs(google).json").rename(place / "refs(google).p")
    with pytest.raises(SourceError, match=r"no refs\(google\)\.json.*That pickle can run any code.*json\.dump"):
        read_benchmark("refcocog", place)


def test_repeated_ids(copy):
    place = copy("comvg")
    path = place / "ComVG.csv"
    path.write_text(path.read_text().replace("\n2,a man", "\n1,a man"))
    manifest = read_benchmark("comvg", place)
    assert [query.id for query in manifest.queries] == ["1", "3"]
    assert [(failure.id, "is there before" in failure.reason) for failure in manifest.failures] == [("1", True)]
