import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from diffsight.data.queries import Crop, Query
from diffsight.errors import InputError
from diffsight.evaluation.blind import blind_baseline

WORDS = [a + b for a in ("ka", "lo", "mi", "nu", "pe", "ri", "so", "tu") for b in ("ban", "der", "fil", "gom", "hut")]


def sentence(rng, length=6):
    return " ".join(rng.sample(WORDS, length))


def choose(number, texts, positive, *, image=None):
    picture = Path(f"{number}.png") if image is None else image
    return Query(id=str(number), images=(picture,), texts=tuple(texts), positive=positive)


def random_queries(count, candidates=2, *, wrong=lambda text: text, seed=0, image=lambda number: None):
    rng = random.Random(seed)
    queries = []
    for number in range(count):
        positive = rng.randrange(candidates)
        texts = [sentence(rng) for _ in range(candidates)]
        texts = [text if place == positive else wrong(text) for place, text in enumerate(texts)]
        queries.append(choose(number, texts, positive, image=image(number)))
    return queries


def at_chance(measure):
    low, high = binom.interval(0.999, measure.queries, measure.chance)
    return low <= measure.estimate.value * measure.queries <= high


def seen_when_not_separated(queries):
    """Accuracy on the training data of a plain reader: what a leak between training and test would come near to."""
    texts = [text for query in queries for text in query.texts]
    right = [place == query.positive for query in queries for place in range(query.count)]
    features = TfidfVectorizer(ngram_range=(1, 2)).fit_transform(texts)
    scores = LogisticRegression(C=100).fit(features, right).decision_function(features)
    parts = np.split(scores, np.cumsum([query.count for query in queries])[:-1])
    return np.mean([part.argmax() == query.positive for query, part in zip(queries, parts, strict=True)])


@pytest.mark.parametrize("candidates", [2, 5])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: " ".join([*text.split()[:2], "not", *text.split()[2:]]),
        lambda text: text.upper() + " Not.",
        lambda text: " ".join(text.split()[:-1]),  # shorter, and nothing else
    ],
)
def test_texts_that_leak_are_found_out(wrong, candidates):
    blind = blind_baseline(random_queries(120, candidates, wrong=wrong))
    assert blind.texts.estimate.value > 0.95
    assert blind.texts.estimate.low > blind.texts.chance == pytest.approx(1 / candidates)
    assert blind.texts.queries == 120
    assert blind.images is blind.reason is None


def test_words_in_another_order_are_found_out_by_pairs():
    # The same words in both texts, of the same length: only that "sodel" follows "kanu" tells the wrong one.
    rng = random.Random(3)
    queries = []
    for number in range(200):
        words = rng.sample(WORDS, 5)
        pair = [" ".join([*words, "sodel", "kanu"]), " ".join([*words, "kanu", "sodel"])]
        queries.append(choose(number, pair if number % 2 else pair[::-1], 1 - number % 2))
    assert blind_baseline(queries).texts.estimate.value == 1


@pytest.mark.parametrize("candidates", [2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_texts_that_say_nothing_are_at_chance(candidates, seed):
    assert at_chance(blind_baseline(random_queries(200, candidates, seed=seed)).texts)


def test_texts_that_nobody_can_tell_apart_are_ties():
    # Every word occurs once, and all texts are of the same length: nothing is known of a test query.
    queries = [choose(n, [f"w{n:03}x", f"w{n:03}y", f"w{n:03}z"], n % 3) for n in range(30)]
    measure = blind_baseline(queries).texts
    assert measure.estimate.value == pytest.approx(1 / 3)
    assert measure.estimate.low < 0.25 < 0.45 < measure.estimate.high


def test_place_of_the_right_text_is_not_read():
    queries = random_queries(100, 3, wrong=lambda text: text.replace("kaban", "not"))
    moved = [choose(query.id, query.texts[::-1], 2 - query.positive) for query in queries]
    assert blind_baseline(moved).texts == blind_baseline(queries).texts
    first = [choose(number, query.texts, 0) for number, query in enumerate(random_queries(200, 2))]
    assert at_chance(blind_baseline(first).texts)


def test_same_texts_in_training_and_test_do_not_leak():
    rng = random.Random(5)
    pairs = [(sentence(rng), sentence(rng)) for _ in range(60)]
    written = [lambda text: text, lambda text: text.upper(), lambda text: f"  {text.replace(' ', ', ')}."]
    # Each pair is there three times, written differently, with the same answer and another image.
    queries = [
        choose(f"{copy}-{number}", map(written[copy], pair), number % 2)
        for copy in range(3)
        for number, pair in enumerate(pairs)
    ]
    rng.shuffle(queries)
    assert seen_when_not_separated(queries) > 0.95
    measure = blind_baseline(queries).texts
    assert measure.queries == 180
    # The three copies succeed or fail together, so it is the pairs that are independent.
    low, high = binom.interval(0.999, len(pairs), 0.5)
    assert low <= measure.estimate.value * len(pairs) <= high


def test_texts_that_leak_are_found_out_although_each_is_there_many_times():
    # Only if all copies of a text are tested together, there are others left to train on.
    pairs = [query.texts for query in random_queries(30, wrong=lambda text: f"not {text}") for _ in range(12)]
    queries = [choose(n, sorted(texts, key=lambda text: "not" in text), 0) for n, texts in enumerate(pairs)]
    random.Random(1).shuffle(queries)
    assert blind_baseline(queries).texts.estimate.value > 0.95


def test_case_is_not_read():
    queries = random_queries(200)
    mixed = [choose(n, map(str.upper, query.texts), query.positive) for n, query in enumerate(queries[::2])]
    mixed += [choose(f"b{n}", query.texts, query.positive) for n, query in enumerate(queries[1::2])]
    plain = [choose(n, query.texts, query.positive) for n, query in enumerate(queries[::2] + queries[1::2])]
    assert blind_baseline(mixed) == blind_baseline(plain)


@pytest.mark.parametrize(
    "picture",
    [
        lambda number, copy: Path(f"{number}.png"),
        lambda number, copy: Crop(Path(f"{number}.png"), (copy, 0, copy + 1, 1)),
        lambda number, copy: Image.new("RGB", (2, 2), (number, 0, 0)),
    ],
)
def test_same_image_in_training_and_test_does_not_leak(picture):
    # What is right for an image is said in its own words, which a reader could learn from its other queries.
    rng = random.Random(7)
    queries = []
    for number in range(80):
        for copy, start in enumerate(rng.sample(WORDS, 3)):
            texts = [f"{start} this{number}", f"{start} that{number}"]
            queries.append(choose(f"{number}-{copy}", texts, 0, image=picture(number, copy)))
    rng.shuffle(queries)
    assert seen_when_not_separated(queries) > 0.95
    other = [choose(number, query.texts, 0) for number, query in enumerate(queries)]
    assert blind_baseline(other).texts.estimate.value > 0.8
    assert blind_baseline(queries).texts.estimate.value < 0.65


def test_wrong_texts_that_are_right_elsewhere():
    # As in retrieval: all queries are linked by their texts. Every text is right once, so nothing can be learnt.
    rng = random.Random(9)
    captions = [sentence(rng) for _ in range(300)]

    def queries(mark):
        made = []
        for number, caption in enumerate(captions):
            others = rng.sample([other for other in captions if other != caption], 3)
            made.append(choose(number, [caption + mark, *others], 0))
        return made

    assert at_chance(blind_baseline(queries("")).texts)
    assert blind_baseline(queries(" indeed")).texts.estimate.value > 0.95


def test_few_texts_for_all_queries_leave_nothing_to_train_on():
    queries = [choose(number, ["A red thing.", "A blue thing."], number % 2) for number in range(100)]
    blind = blind_baseline(queries)
    assert blind.texts is None
    assert "share so many texts" in blind.reason
    one_image = [choose(n, query.texts, 0, image=Path("x.png")) for n, query in enumerate(random_queries(50))]
    assert blind_baseline(one_image).texts is None


def test_few_queries_give_no_number():
    queries = random_queries(20)
    assert blind_baseline(queries).texts.queries == 20
    few = blind_baseline(queries[1:])
    assert few.texts is None
    assert "19 queries" in few.reason


def test_choosing_among_images_is_chance_and_grids_have_no_part():
    images = [
        Query(id=f"i{n}", images=tuple(Path(f"{n}-{k}.png") for k in range(2 + n % 3)), texts=("a",), positive=0)
        for n in range(3)
    ]
    grid = Query(id="g", images=(Path("a.png"), Path("b.png")), texts=("a", "b"))
    unknown = [Query(id=f"u{n}", images=(Path("a.png"),), texts=("a", f"b{n}")) for n in range(50)]
    blind = blind_baseline([*images, grid, *unknown])
    chance = pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert (blind.images.estimate.value, blind.images.chance, blind.images.queries) == (chance, chance, 3)
    assert blind.images.estimate.low == blind.images.estimate.high == blind.images.estimate.value
    assert blind.texts is None
    texts = random_queries(40)
    assert blind_baseline([*texts, *images, grid, *unknown]).texts == blind_baseline(texts).texts


def test_same_queries_give_the_same_number():
    queries = random_queries(60, 4)
    assert blind_baseline(queries) == blind_baseline(iter(queries))
    values = json.loads(json.dumps(blind_baseline(queries).to_dict(), allow_nan=False))
    assert set(values["texts"]) == {"value", "low", "high", "chance", "queries"}
    assert values["images"] is values["reason"] is None


def test_texts_without_words():
    queries = [choose(number, [f"{'?' * (number + 1)}", f"{'!' * (number + 1)}"], 0) for number in range(40)]
    assert blind_baseline(queries).texts.queries == 40


def test_damaged_picture_is_no_reason_to_stop(tmp_path):
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with Image.open(path) as damaged:
        queries = [*random_queries(30), choose("cut", ["x y", "z w"], 0, image=damaged)]
        assert blind_baseline(queries).texts.queries == 31


@pytest.mark.parametrize(
    ("options", "says"), [({"folds": 1}, "got 1"), ({"folds": 21}, "got 21"), ({"level": 1.5}, "got 1.5")]
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        blind_baseline(random_queries(30), **options)
