"""The published code's leak: what its formula says, only when it is asked for, and labelled as what it is."""

import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from diffsight.backbones.encoders.dual import DualEncoder
from diffsight.backbones.encoding import by_content, encode_images
from diffsight.data.images import images_from
from diffsight.data.queries import Query
from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import InputError
from diffsight.matching.attention import default_layers, reading
from diffsight.matching.fitting import fit_adapter
from diffsight.matching.matcher import ImageTextMatcher
from diffsight.matching.scores import Attention, DenoisingError, Hybrid
from diffsight.matching.settings import MatchSettings, levels_of, match_preset
from diffsight.scoring.elimination import Exhaustive
from diffsight.scoring.racing import Forecast

PUBLISHED = replace(match_preset("discffusion"), draws=3, policy=Exhaustive(num_draws=3, spacing="midpoint"))
LEAKING = replace(PUBLISHED, batch_leak=3)
ATTENTION = MatchSettings(score=Attention(), draws=2, batch_leak=2)
near = partial(np.testing.assert_allclose, rtol=1e-5)
TEXTS = ("a photo of a cat", "a dog", "a bird", "a cat on a dog", "a")


@pytest.fixture
def queries(pictures):
    """Captions of an image; the right one in every place."""
    return [
        Query(id=str(number), images=(pictures[number],), texts=(TEXTS[number], TEXTS[number - 1]), positive=number % 2)
        for number in range(5)
    ]


@pytest.fixture
def reversed_queries(pictures):
    """Images of a caption."""
    return [
        Query(id=str(number), images=(pictures[number], pictures[number - 1]), texts=(TEXTS[number],), positive=1)
        for number in range(3)
    ]


def as_published(backbone, images, texts, settings):
    """Scores of one candidate of each query: the queries of a batch in one call, whose attention has one mean."""
    levels = levels_of(settings, settings.policy, backbone)
    x0 = torch.stack([encoded.x0 for encoded in encode_images(backbone, by_content(images_from(images), []))])
    condition = backbone.condition([*[""] * len(texts), *texts])
    layers = default_layers(backbone.network)
    found = []
    for draw, level in enumerate(levels.tolist()):
        noise = NoiseBank(seed=settings.seed, shared=True).noise("any", [draw], x0.shape[1:]).expand_as(x0)
        x_t = backbone.schedule.mix(x0, noise, torch.full((len(x0),), level))
        with torch.no_grad(), reading(backbone.network, layers, lse) as pooled:
            eps = backbone.predict(torch.cat([x_t, x_t]), torch.full((2 * len(x0),), level), condition).eps
            attention = torch.stack([pooled[layer.path] for layer in layers]).mean()
        under_null, under_text = ((noise - half).flatten(1).norm(dim=1) for half in eps.chunk(2))
        found.append((attention + under_null - under_text).numpy())
    return np.mean(found, axis=0)


def lse(query, key):
    return (torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5).logsumexp(-1).mean()


def scores(backbone, queries, settings):
    return np.stack([match.scores.ravel() for match in ImageTextMatcher(backbone, settings=settings).match(queries)])


def test_a_leak_is_that_of_the_published_code(small, queries):
    found = scores(small, queries, LEAKING)
    for batch in (queries[:3], queries[3:]):
        own = {query.id: query.texts[query.positive] for query in batch}
        other = {query.id: query.texts[1 - query.positive] for query in batch}
        images = [query.images[0] for query in batch]
        right, wrong = (as_published(small, images, list(texts.values()), PUBLISHED) for texts in (own, other))
        for query, *expected in zip(batch, right, wrong, strict=True):
            near(found[int(query.id)][[query.positive, 1 - query.positive]], expected)


def test_a_leak_between_images_of_a_caption(small, reversed_queries):
    found = scores(small, reversed_queries, LEAKING)
    texts = [query.texts[0] for query in reversed_queries]
    for place in (1, 0):
        images = [query.images[place] for query in reversed_queries]
        near(found[:, place], as_published(small, images, texts, PUBLISHED))


def test_scores_share_information_with_the_leak_and_never_without(small, queries):
    whole, other = scores(small, queries[:3], LEAKING), scores(small, [*queries[:2], queries[4]], LEAKING)
    assert np.abs(whole[:2] - other[:2]).max() > 1e-4
    for settings in (PUBLISHED, replace(ATTENTION, batch_leak=None)):
        near(scores(small, queries, settings)[1], scores(small, queries[1:2], settings)[0])


def test_attention_alone_is_one_vote_of_a_batch(small, queries):
    found = scores(small, queries, ATTENTION)
    alone = scores(small, queries, replace(ATTENTION, batch_leak=None))
    for batch in ([0, 1], [2, 3], [4]):
        first = [found[place][queries[place].positive] for place in batch]
        near(first, np.mean([alone[place][queries[place].positive] for place in batch]))
    # A query that does not say which is right has its first candidate first.
    unknown = [replace(query, positive=None) for query in queries[:2]]
    near(scores(small, unknown, ATTENTION)[0], alone[:2].mean(0))


def test_pairs_leak_in_their_places(small, pictures):
    grids = [
        Query(id=str(number), images=tuple(pictures[number : number + 2]), texts=TEXTS[number : number + 2])
        for number in range(2)
    ]
    alone = scores(small, grids, replace(ATTENTION, batch_leak=None))
    near(scores(small, grids, ATTENTION), [alone.mean(0)] * 2)


def test_what_cannot_be_read_leaks_nothing(small, queries, tmp_path):
    broken = replace(queries[1], images=(tmp_path / "gone.png",))
    first, failed, *_ = ImageTextMatcher(small, settings=ATTENTION).match([queries[0], broken, *queries[2:]])
    assert "gone.png" in failed.failure
    alone = scores(small, queries[:1], replace(ATTENTION, batch_leak=None))
    near(first.scores.ravel(), alone[0])


def test_batches_are_cut_alike_however_many_are_answered_together(small, queries, monkeypatch):
    whole = scores(small, queries, ATTENTION)
    monkeypatch.setattr("diffsight.matching.matcher.TOGETHER", 3)
    near(scores(small, queries, ATTENTION), whole)


def test_leaking_answers_are_labelled_and_told_of_once(small, queries, reversed_queries, caplog):
    matcher = ImageTextMatcher(small, settings=LEAKING)
    alone = matcher.rank(queries[0].images[0], queries[0].texts)
    assert alone.invalid is None
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        found = [*matcher.match(queries), *matcher.match(queries)]
    assert all("share information between queries" in match.invalid for match in found)
    assert caplog.text.count("NOT VALID") == 1
    caplog.clear()
    assert {match.invalid for match in ImageTextMatcher(small, settings=PUBLISHED).match(queries)} == {None}
    assert caplog.text == ""


def test_nothing_leaks_unless_it_is_asked_for():
    assert MatchSettings().batch_leak is None
    assert match_preset("discffusion").batch_leak is None
    assert "batch_leak" not in PUBLISHED.to_dict()
    assert LEAKING.to_dict() == PUBLISHED.to_dict() | {"batch_leak": 3}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"score": DenoisingError()}, "'error' has none"),
        ({"score": Hybrid(), "policy": Forecast()}, "leave out the policy 'forecast'"),
        ({"score": Attention(), "batch_leak": 1}, "at least 2"),
        ({"score": Attention(), "batch_leak": True}, "whole number"),
    ],
)
def test_leaks_that_are_none_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        MatchSettings(**{"batch_leak": 4, **wrong})


def test_queries_that_the_published_code_cannot_batch_are_refused(small, queries, pictures):
    odd = Query(id="odd", images=(pictures[0],), texts=TEXTS[:3], positive=0)
    with pytest.raises(InputError, match=r"'odd' has 1 images and 3 texts, .* with '0', which has 1 and 2"):
        list(ImageTextMatcher(small, settings=ATTENTION).match([queries[0], odd]))
    assert len(scores(small, queries[:2], ATTENTION)) == 2
    mixed = list(ImageTextMatcher(small, settings=ATTENTION).match([*queries[:2], odd]))  # another batch
    assert [match.failure for match in mixed] == [None] * 3
    with pytest.raises(InputError, match="Use match"):
        ImageTextMatcher(small, settings=ATTENTION).score(pictures, TEXTS)
    with pytest.raises(InputError, match="nothing leaks"):
        fit_adapter(small, queries, settings=ATTENTION)
    clip = object.__new__(DualEncoder)
    object.__setattr__(clip, "name", "some-clip")
    with pytest.raises(InputError, match=r"some-clip is a CLIP model.*no batch_leak"):
        ImageTextMatcher(clip, settings=ATTENTION)


def test_many_candidates_are_all_measured(small, pictures):
    texts = tuple(f"a {word} cat" for word in "abcdefghijklmnop")
    matcher = ImageTextMatcher(small, settings=ATTENTION)
    assert matcher.policy_for(Query(id="q", images=(pictures[0],), texts=texts)) == Exhaustive(num_draws=2)
    assert replace(ATTENTION, batch_leak=None).policy_for(16) == Forecast()
