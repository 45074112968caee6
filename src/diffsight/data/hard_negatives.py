"""Benchmarks whose authors give wrong candidates, close to the right one: Winoground, ComVG, SVO, ARO, SugarCrepe."""

from collections.abc import Callable, Sequence
from pathlib import Path

from diffsight.data.manifests import check_text, find_image
from diffsight.data.queries import Crop, Query
from diffsight.data.rows import Read, as_object, find, load_rows, placed, text_of, whole_of, with_ids
from diffsight.data.tables import load_csv, load_json_lines
from diffsight.errors import InputError

SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


def winoground(place: Path, seed: int) -> Read:
    """Rows of two images and two captions, the first of which belong together."""
    path, images = find(place, "data/examples.jsonl", "examples.jsonl"), find(place, "data/images", "images")

    def make(id: str, row: object) -> Query:
        tags = [as_object(row).get(key) for key in ("collapsed_tag", "tag", "secondary_tag")]
        files = tuple(find_image(images, f"{text_of(row, key)}.png") for key in ("image_0", "image_1"))
        texts = tuple(text_of(row, key) for key in ("caption_0", "caption_1"))
        return Query(id=id, images=files, texts=texts, tags=tuple(check_text("tag", tag) for tag in tags if tag))

    return with_ids((row for _, row in load_json_lines(path)), "id"), make


def image_pairs(
    files: Sequence[str], folders: Sequence[str], tag: Callable[[object], str], place: Path, seed: int
) -> Read:
    """Rows of a sentence, an image that it fits and one that it does not."""
    path, images = find(place, *files), find(place, *folders)

    def make(id: str, row: object) -> Query:
        right, wrong = (find_image(images, f"{text_of(row, key)}.jpg") for key in ("pos_image_id", "neg_image_id"))
        candidates, positive = placed(id, right, [wrong])
        return Query(id=id, images=candidates, texts=(text_of(row, "sentence"),), positive=positive, tags=(tag(row),))

    return with_ids((row for _, row in load_csv(path, lambda _: None)), "id"), make


def svo_kind(row: object) -> str:
    """In what the two images of a row differ: subject, verb, object, or several of them.

    Raises:
        InputError: If in nothing.
    """
    columns = {"subj_neg": "subject", "verb_neg": "verb", "obj_neg": "object"}
    differs = [kind for column, kind in columns.items() if text_of(row, column).strip().lower() == "true"]
    if not differs:
        raise InputError(f"None of {', '.join(columns)} is True, so that the images do not differ.")
    return "+".join(differs)


def aro(kind: str, tag: Callable[[object], str], place: Path, seed: int) -> Read:
    """Rows of a box in an image, a caption that fits it and one that does not."""
    path, images = find(place, f"visual_genome_{kind}.json"), find(place, "images")

    def make(id: str, row: object) -> Query:
        left, top, width, height = (whole_of(row, f"bbox_{key}") for key in "xywh")
        part = Crop(find_image(images, text_of(row, "image_path")), (left, top, left + width, top + height))
        texts, positive = placed(id, text_of(row, "true_caption"), [text_of(row, "false_caption")])
        return Query(id=id, images=(part,), texts=texts, positive=positive, tags=(tag(row),))

    return with_ids(load_rows(path, list)), make


def attribute_pair(row: object) -> str:
    """The attributes that are exchanged in a row.

    Raises:
        InputError: If it names none.
    """
    pair = as_object(row).get("attributes")
    return "_".join(check_text("attributes", name) for name in (pair if isinstance(pair, list) else [pair]))


def sugarcrepe(place: Path, seed: int) -> Read:
    """Rows of an image, its caption and a negative, in a file for each kind of negative."""
    paths = {category: find(place, f"data/{category}.json", f"{category}.json") for category in SUGARCREPE}
    images = find(place, "val2017", "images/val2017")
    rows = ((f"{category}/{key}", row) for category in paths for key, row in load_rows(paths[category], dict).items())

    def make(id: str, row: object) -> Query:
        image = find_image(images, text_of(row, "filename"))
        texts, positive = placed(id, text_of(row, "caption"), [text_of(row, "negative_caption")])
        return Query(id=id, images=(image,), texts=texts, positive=positive, tags=(id.partition("/")[0],))

    return rows, make
