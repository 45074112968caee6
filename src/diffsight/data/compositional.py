"""Published benchmarks of image–text matching, read from a local copy as their authors give them away.

Nothing is downloaded, and the lists may only name files below the folder of the images. Where the authors always put
the right candidate at one place, its place is here a hash of the query's id, so that a model that prefers a place, or
wins ties by it, is at chance. Negatives that a benchmark leaves to chance follow from the seed and the id alone.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from diffsight.data.manifests import Manifest, check_text, collect, find_image, load_csv, load_json, load_json_lines
from diffsight.data.queries import Crop, Query
from diffsight.errors import InputError, SourceError, nearest

STREAM = "compositional-philox4x64-1"
SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
NEGATIVES = 9  # beside the right one, as in Discffusion's tasks
_DRAWS = 64  # before all of a pool is looked through for these

# The rows of a benchmark with their ids, and what makes a query of one.
Read = tuple[Iterable[tuple[str, Any]], Callable[[str, Any], Query]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What is known of a benchmark.

    Attributes:
        name: What it is called here.
        description: What has to be matched, and what to know when results are compared.
        form: That of its queries, see `Query.form`.
        licence: Of the annotations and the images.
        citation: Who made it.
        layout: How the local copy must look.
        read: Opens the copy in a folder, with a seed.
    """

    name: str
    description: str
    form: str
    licence: str
    citation: str
    layout: str
    read: Callable[[Path, int], Read]


def read_benchmark(name: str, folder: str | Path, *, seed: int = 0) -> Manifest:
    """Read a benchmark.

    Args:
        name: A key of `BENCHMARKS`.
        folder: The local copy; see `Benchmark.layout`.
        seed: Chooses the negatives of ``refcocog`` and ``vqa``; the others come with theirs.

    Raises:
        SourceError: If there is no such benchmark, or the copy is absent or laid out in another way.
    """
    if name not in BENCHMARKS:
        raise SourceError(f"Unknown benchmark {name!r}. {nearest(name, BENCHMARKS)}")
    place = Path(folder).expanduser()
    try:
        rows, make = BENCHMARKS[name].read(place, seed)
        return collect(name, rows, make, where=str(place))
    except SourceError as error:
        raise SourceError(f"{error} The layout of {name} is: {BENCHMARKS[name].layout}") from error


def _winoground(place: Path, seed: int) -> Read:
    path, images = _find(place, "data/examples.jsonl", "examples.jsonl"), _find(place, "data/images", "images")

    def make(id: str, row: object) -> Query:
        tags = [_object(row).get(key) for key in ("collapsed_tag", "tag", "secondary_tag")]
        files = tuple(find_image(images, f"{_text(row, key)}.png") for key in ("image_0", "image_1"))
        texts = tuple(_text(row, key) for key in ("caption_0", "caption_1"))
        return Query(id=id, images=files, texts=texts, tags=tuple(check_text("tag", tag) for tag in tags if tag))

    return _with_ids((row for _, row in load_json_lines(path)), "id"), make


def _image_pairs(
    files: Sequence[str], folders: Sequence[str], tag: Callable[[object], str], place: Path, seed: int
) -> Read:
    """Rows of a sentence, an image that it fits and one that it does not."""
    path, images = _find(place, *files), _find(place, *folders)

    def make(id: str, row: object) -> Query:
        right, wrong = (find_image(images, f"{_text(row, key)}.jpg") for key in ("pos_image_id", "neg_image_id"))
        candidates, positive = _placed(id, right, [wrong])
        return Query(id=id, images=candidates, texts=(_text(row, "sentence"),), positive=positive, tags=(tag(row),))

    return _with_ids((row for _, row in load_csv(path, lambda _: None)), "id"), make


def _svo_tag(row: object) -> str:
    columns = {"subj_neg": "subject", "verb_neg": "verb", "obj_neg": "object"}
    differs = [kind for column, kind in columns.items() if _text(row, column).strip().lower() == "true"]
    if not differs:
        raise InputError(f"None of {', '.join(columns)} is True, so that the images do not differ.")
    return "+".join(differs)


def _aro(kind: str, tag: Callable[[object], str], place: Path, seed: int) -> Read:
    """Rows of a box in an image, a caption that fits it and one that does not."""
    path, images = _find(place, f"visual_genome_{kind}.json"), _find(place, "images")

    def make(id: str, row: object) -> Query:
        left, top, width, height = (_whole(row, f"bbox_{key}") for key in "xywh")
        part = Crop(find_image(images, _text(row, "image_path")), (left, top, left + width, top + height))
        texts, positive = _placed(id, _text(row, "true_caption"), [_text(row, "false_caption")])
        return Query(id=id, images=(part,), texts=texts, positive=positive, tags=(tag(row),))

    return _with_ids(_load(path, list)), make


def _attributes(row: object) -> str:
    pair = _object(row).get("attributes")
    return "_".join(check_text("attributes", name) for name in (pair if isinstance(pair, list) else [pair]))


def _sugarcrepe(place: Path, seed: int) -> Read:
    paths = {category: _find(place, f"data/{category}.json", f"{category}.json") for category in SUGARCREPE}
    images = _find(place, "val2017", "images/val2017")
    rows = ((f"{category}/{key}", row) for category in paths for key, row in _load(paths[category], dict).items())

    def make(id: str, row: object) -> Query:
        image = find_image(images, _text(row, "filename"))
        texts, positive = _placed(id, _text(row, "caption"), [_text(row, "negative_caption")])
        return Query(id=id, images=(image,), texts=texts, positive=positive, tags=(id.partition("/")[0],))

    return rows, make


def _refcocog(place: Path, seed: int) -> Read:
    path, images = _find(place, "refs(google).json"), _find(place, "train2014", "images/train2014")
    pool: list[str] = []
    said: defaultdict[int, set[str]] = defaultdict(set)  # of each image
    rows: list[tuple[str, Any]] = []
    for index, ref in enumerate(_load(path, list)):
        try:
            # Not by its file_name, which has the number of the object in it, too.
            image, split, sentences = _whole(ref, "image_id"), _text(ref, "split"), _object(ref).get("sentences")
            for sentence in sentences if isinstance(sentences, list) else [sentences]:
                text = _text(sentence, "raw" if "raw" in _object(sentence) else "sent")
                rows.append((str(_whole(sentence, "sent_id")), (image, split, text)))
                pool.append(text)
                said[image].add(text)
        except InputError as error:
            rows.append((f"ref {index}", error))

    def make(id: str, row: Any) -> Query:  # noqa: ANN401
        if isinstance(row, InputError):
            raise row
        image, split, text = row
        wrong = _sample(pool, NEGATIVES, f"{seed} {id}", said[image])
        if len(wrong) < NEGATIVES:
            raise InputError(f"Only {len(wrong)} other sentences are said of other images; {NEGATIVES} are needed.")
        texts, positive = _placed(id, text, wrong)
        file = find_image(images, f"COCO_train2014_{image:012d}.jpg")
        return Query(id=id, images=(file,), texts=texts, positive=positive, tags=(split,))

    return rows, make


def _vqa(place: Path, seed: int) -> Read:
    questions = _load(_find(place, "v2_OpenEnded_mscoco_val2014_questions.json"), list, "questions")
    notes = _load(_find(place, "v2_mscoco_val2014_annotations.json"), list, "annotations")
    images = _find(place, "val2014", "images/val2014")
    asked = {str(question.get("question_id")): question for question in questions if isinstance(question, dict)}
    pools: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for note in notes:
        answer = note.get("multiple_choice_answer") if isinstance(note, dict) else None
        if isinstance(answer, str) and answer.strip():
            kind, start = str(note.get("answer_type")), str(note.get("question_type"))
            # With repeats: were negatives rarer answers than the right ones, the text alone would give these away.
            pools[kind, start].append(answer)
            pools[kind,].append(answer)

    def make(id: str, row: object) -> Query:
        kind, start, answer = (_text(row, key) for key in ("answer_type", "question_type", "multiple_choice_answer"))
        question = _text(asked.get(str(_whole(row, "question_id")), {}), "question")
        given = _object(row).get("answers")
        taken = {answer, *(_text(one, "answer") for one in (given if isinstance(given, list) else ()))}
        opposite = {"yes": "no", "no": "yes"}.get(answer) if kind == "yes/no" else None
        wrong = [opposite] if opposite else []
        for pool in () if opposite else (pools[kind, start], pools[kind,]):
            wrong += _sample(pool, NEGATIVES - len(wrong), f"{seed} {id}", {*taken, *wrong})
        texts, positive = _placed(id, f"{question} {answer}", [f"{question} {other}" for other in wrong])
        file = find_image(images, f"COCO_val2014_{_whole(row, 'image_id'):012d}.jpg")
        return Query(id=id, images=(file,), texts=texts, positive=positive, tags=(kind, start))

    return _with_ids(notes, "question_id"), make


def _placed(id: str, right: T, wrong: Sequence[T]) -> tuple[tuple[T, ...], int]:
    """Put the right candidate among the others, where the id says, and give its place."""
    place = _digest(f"place {id}") % (len(wrong) + 1)
    return (*wrong[:place], right, *wrong[place:]), place


def _sample(pool: Sequence[str], count: int, address: str, banned: Set[str]) -> list[str]:
    """Different members of a pool at random, the frequent more often; fewer where there are not enough."""
    stream = np.random.Philox(key=_digest(f"sample {address}"))
    drawn = [pool[int(word) % len(pool)] for word in stream.random_raw(_DRAWS).tolist()] if pool else []
    chosen = [text for text in dict.fromkeys(drawn) if text not in banned]
    if len(chosen) < count:
        left = [text for text in dict.fromkeys(pool) if text not in banned and text not in chosen]
        chosen += [left[int(place)] for place in np.argsort(stream.random_raw(len(left)), kind="stable").tolist()]
    return chosen[:count]


def _digest(address: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{STREAM} {address}".encode(), digest_size=16).digest(), "little")


def _find(place: Path, *names: str) -> Path:
    found = [place / name for name in names if (place / name).exists()]
    if not found:
        raise SourceError(f"There is no {' or '.join(names)} in {place}.")
    return Path(os.path.realpath(found[0]))


def _load(path: Path, kind: type[T], key: str | None = None) -> T:
    content = load_json(path)
    rows = content.get(key) if key is not None and isinstance(content, dict) else content
    if not isinstance(rows, kind):
        raise SourceError(f"{path} holds a {type(rows).__name__}, not a {kind.__name__} of rows.")
    return rows


def _with_ids(rows: Iterable[object], key: str | None = None) -> Iterator[tuple[str, object]]:
    for index, row in enumerate(rows):
        id = row.get(key) if isinstance(row, dict) else None
        yield str(id) if isinstance(id, str | int) and str(id).strip() else str(index), row


def _object(row: object) -> dict[str, Any]:
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, dict):
        raise InputError(f"There must be an object with keys; got {row!r:.80}.")
    return row


def _text(row: object, key: str) -> str:
    return check_text(key, _object(row).get(key))


def _whole(row: object, key: str) -> int:
    value = _object(row).get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{key!r} must be a whole number from 0; got {value!r:.80}.")
    return value


_COCO, _VISUAL_GENOME = "COCO's images are their owners' on Flickr.", "Visual Genome's images: CC BY 4.0."
_COMVG = ("ComVG.csv", "compositional_visual_genome.csv")
_ARO = "Yuksekgonul et al., ICLR 2023, arXiv 2210.01936"

_ALL = (
    Benchmark(
        name="winoground",
        description="Two images and two captions of the same words, for the text, image and group score.",
        form="grid",
        licence="For research only; the agreement is among its files.",
        citation="Thrush et al., CVPR 2022, arXiv 2204.03162",
        layout="examples.jsonl and images/*.png of huggingface.co/datasets/facebook/winoground, or both in data/.",
        read=_winoground,
    ),
    Benchmark(
        name="comvg",
        description="Sentence; two images that differ in subject, verb or object. 279 right images make 5,400 rows.",
        form="images",
        licence=f"MIT. {_VISUAL_GENOME}",
        citation="Jiang et al. (ComCLIP), arXiv 2211.13854",
        layout="ComVG.csv of github.com/eric-ai-lab/ComCLIP (columns sentence, pos_image_id, neg_image_id, neg_value) "
        "or Discffusion's compositional_visual_genome.csv, and comvg_images/ID.jpg or vg_concept/ID.jpg.",
        read=partial(_image_pairs, _COMVG, ("comvg_images", "vg_concept"), lambda row: _text(row, "neg_value")),
    ),
    Benchmark(
        name="svo",
        description="Sentence; two images that differ in subject, verb or object; authors report those with one.",
        form="images",
        licence="CC BY 4.0; the images, from the web, are their owners'.",
        citation="Hendricks & Nematzadeh, Findings of ACL 2021, arXiv 2106.09141",
        layout="svo_probes.csv of github.com/google-deepmind/svo_probes, and the images as images/ID.jpg.",
        read=partial(_image_pairs, ("svo_probes.csv",), ("images",), _svo_tag),
    ),
    Benchmark(
        name="aro-relation",
        description="Part of an image; subject and object exchanged. Authors: the mean over asymmetric relations.",
        form="texts",
        licence=f"MIT. {_VISUAL_GENOME}",
        citation=_ARO,
        layout="visual_genome_relation.json and images/*.jpg, as the authors' code downloads them.",
        read=partial(_aro, "relation", lambda row: _text(row, "relation_name")),
    ),
    Benchmark(
        name="aro-attribution",
        description="Part of an image; attributes exchanged. Authors report the mean over pairs with 25 rows or more.",
        form="texts",
        licence=f"MIT. {_VISUAL_GENOME}",
        citation=_ARO,
        layout="visual_genome_attribution.json and images/*.jpg, as the authors' code downloads them.",
        read=partial(_aro, "attribution", _attributes),
    ),
    Benchmark(
        name="sugarcrepe",
        description="Image; its caption, and a fluent and plausible negative of one of seven kinds.",
        form="texts",
        licence=f"MIT. {_COCO}",
        citation="Hsieh et al., NeurIPS 2023, arXiv 2306.14610",
        layout="add_att.json … swap_obj.json (seven) of github.com/RAIVNLab/sugar-crepe, or data/*; val2017/*.jpg.",
        read=_sugarcrepe,
    ),
    Benchmark(
        name="refcocog",
        description="Whole image; one of its sentences, and 9 of other images, as in Discffusion. It is no grounding: "
        "there are no boxes, and random sentences make it easy. Its splits share images.",
        form="texts",
        licence=f"CC BY 4.0. {_COCO}",
        citation="Mao et al., CVPR 2016, arXiv 1511.02283",
        layout="train2014/*.jpg, and refs(google).json: the list in refs(google).p. That pickle can run any code, "
        "and is not read here; convert one that you trust: import json, pickle; "
        "json.dump(pickle.load(open('refs(google).p', 'rb')), open('refs(google).json', 'w')).",
        read=_refcocog,
    ),
    Benchmark(
        name="vqa",
        description="Image; a question with its most common answer, and with up to 9 others that questions of its type "
        "have and no annotator gave, or 'yes' against 'no'.",
        form="texts",
        licence=f"CC BY 4.0. {_COCO}",
        citation="Goyal et al., CVPR 2017, arXiv 1612.00837",
        layout="v2_OpenEnded_mscoco_val2014_questions.json and v2_mscoco_val2014_annotations.json of visualqa.org, and "
        "val2014/*.jpg.",
        read=_vqa,
    ),
)
BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
