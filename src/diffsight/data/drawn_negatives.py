"""Benchmarks that leave wrong candidates to chance: RefCOCOg and VQA as matching. Here seed and id decide on them."""

from collections import defaultdict
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from diffsight.data.manifests import find_image
from diffsight.data.queries import Query
from diffsight.data.rows import Read, as_object, digest, find, load_rows, placed, text_of, whole_of, with_ids
from diffsight.errors import InputError

NEGATIVES = 9  # beside the right one, as in Discffusion's tasks
_DRAWS = 64  # before all of a pool is looked through for these


def refcocog(place: Path, seed: int) -> Read:
    """A row for each sentence of an image, against sentences of others."""
    path, images = find(place, "refs(google).json"), find(place, "train2014", "images/train2014")
    pool: list[str] = []
    said: defaultdict[int, set[str]] = defaultdict(set)  # of each image
    rows: list[tuple[str, Any]] = []
    for index, ref in enumerate(load_rows(path, list)):
        try:
            # Not by its file_name, which has the number of the object in it, too.
            image, split, sentences = whole_of(ref, "image_id"), text_of(ref, "split"), as_object(ref).get("sentences")
            for sentence in sentences if isinstance(sentences, list) else [sentences]:
                text = text_of(sentence, "raw" if "raw" in as_object(sentence) else "sent")
                rows.append((str(whole_of(sentence, "sent_id")), (image, split, text)))
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
        texts, positive = placed(id, text, wrong)
        file = find_image(images, f"COCO_train2014_{image:012d}.jpg")
        return Query(id=id, images=(file,), texts=texts, positive=positive, tags=(split,))

    return rows, make


def vqa(place: Path, seed: int) -> Read:
    """A row for each question, its right answer against others."""
    questions = load_rows(find(place, "v2_OpenEnded_mscoco_val2014_questions.json"), list, "questions")
    notes = load_rows(find(place, "v2_mscoco_val2014_annotations.json"), list, "annotations")
    images = find(place, "val2014", "images/val2014")
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
        kind, start, answer = (text_of(row, key) for key in ("answer_type", "question_type", "multiple_choice_answer"))
        question = text_of(asked.get(str(whole_of(row, "question_id")), {}), "question")
        given = as_object(row).get("answers")
        taken = {answer, *(text_of(one, "answer") for one in (given if isinstance(given, list) else ()))}
        opposite = {"yes": "no", "no": "yes"}.get(answer) if kind == "yes/no" else None
        wrong = [opposite] if opposite else []
        for pool in () if opposite else (pools[kind, start], pools[kind,]):
            wrong += _sample(pool, NEGATIVES - len(wrong), f"{seed} {id}", {*taken, *wrong})
        texts, positive = placed(id, f"{question} {answer}", [f"{question} {other}" for other in wrong])
        file = find_image(images, f"COCO_val2014_{whole_of(row, 'image_id'):012d}.jpg")
        return Query(id=id, images=(file,), texts=texts, positive=positive, tags=(kind, start))

    return with_ids(notes, "question_id"), make


def _sample(pool: Sequence[str], count: int, address: str, banned: Set[str]) -> list[str]:
    """Different members of a pool at random, the frequent more often; fewer where there are not enough."""
    stream = np.random.Philox(key=digest(f"sample {address}"))
    drawn = [pool[int(word) % len(pool)] for word in stream.random_raw(_DRAWS).tolist()] if pool else []
    chosen = [text for text in dict.fromkeys(drawn) if text not in banned]
    if len(chosen) < count:
        left = [text for text in dict.fromkeys(pool) if text not in banned and text not in chosen]
        chosen += [left[int(place)] for place in np.argsort(stream.random_raw(len(left)), kind="stable").tolist()]
    return chosen[:count]
