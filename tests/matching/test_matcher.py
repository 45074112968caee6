"""Scores of images and texts: what they are, and that nothing but image, text, draw and model decides them."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diffsight.backbones.cards import assets
from diffsight.backbones.encoding import by_content, encode_images
from diffsight.data.images import images_from
from diffsight.data.queries import Query
from diffsight.diffusion.noise import NoiseBank
from diffsight.diffusion.schedule import nested_grid
from diffsight.errors import InputError, ModelError
from diffsight.matching import candidates
from diffsight.matching.matcher import ImageTextMatcher
from diffsight.matching.scores import PMI, Attention, DenoisingError, Hybrid, layer_shares, score_from_dict
from diffsight.matching.settings import MatchSettings, match_preset
from diffsight.scoring.elimination import Exhaustive
from diffsight.scoring.racing import Forecast

TEXTS = ("a photo of a bag", "a photo of a sneaker", "a dress", "")
FEW = MatchSettings(draws=3)
SCORES = ("pmi", "error", "attention", Attention(null="subtract"), "hybrid")


def errors_by_hand(backbone, picture, text, draws, *, seed=0, low=0, high=None):
    """Mean squared error of eps at each draw, from the definition, one call at a time."""
    high = len(backbone.schedule) if high is None else high
    (encoded,) = encode_images(backbone, by_content(images_from(picture), []))
    levels = low + nested_grid(high - low, draws)
    found = []
    for draw, level in enumerate(levels.tolist()):
        eps = NoiseBank(seed=seed, shared=True).noise("any", [draw], encoded.x0.shape)
        alpha, sigma = backbone.schedule.alpha[level].float(), backbone.schedule.sigma[level].float()
        guess = backbone.predict(
            alpha * encoded.x0[None] + sigma * eps, torch.tensor([level]), backbone.condition([text])
        ).eps
        found.append(float((guess - eps).square().mean()))
    return np.array(found)


def test_scores_are_what_they_are_defined_to_be(tiny, pictures):
    texts, image = TEXTS[:2], pictures[0]
    under, null = (np.stack([errors_by_hand(tiny, image, t, 3) for t in some]) for some in (texts, [""]))
    error = ImageTextMatcher(tiny, "error", settings=FEW).score(image, texts)
    np.testing.assert_allclose(error[0], -under.mean(1), rtol=1e-5)
    pmi = ImageTextMatcher(tiny, "pmi", settings=FEW).score(image, texts)
    np.testing.assert_allclose(pmi[0], (null - under).mean(1), atol=1e-6)
    size = np.prod(tiny.latent_shape)
    gain = (np.sqrt(size * null) - np.sqrt(size * under)).mean(1)
    gain_alone = ImageTextMatcher(tiny, Hybrid(alpha=0.0), settings=FEW).score(image, texts)
    np.testing.assert_allclose(gain_alone[0], gain, atol=1e-4)
    attention = ImageTextMatcher(tiny, Attention(null="subtract"), settings=FEW).score(image, texts)
    both = ImageTextMatcher(tiny, Hybrid(alpha=0.5, beta=2.0), settings=FEW).score(image, texts)
    np.testing.assert_allclose(both[0], 0.5 * attention[0] + 2 * gain, atol=1e-4)


def test_timesteps_and_seed_choose_the_draws(tiny, pictures):
    settings = MatchSettings(draws=2, timesteps=(0.4, 0.9), seed=5)
    expected = errors_by_hand(tiny, pictures[0], TEXTS[0], 2, seed=5, low=400, high=900)
    found = ImageTextMatcher(tiny, "error", settings=settings).score(pictures[0], TEXTS[0])
    np.testing.assert_allclose(found, -expected.mean(), rtol=1e-5)


def test_the_last_level_alone_can_be_looked_at(tiny, pictures):
    settings = MatchSettings(draws=1, timesteps=(0.9999, 1.0))
    found = ImageTextMatcher(tiny, "error", settings=settings).score(pictures[0], TEXTS[0])
    last = len(tiny.schedule) - 1
    np.testing.assert_allclose(found, -errors_by_hand(tiny, pictures[0], TEXTS[0], 1, low=last).mean(), rtol=1e-5)


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_a_score_does_not_depend_on_batch_order_or_neighbours(tiny, pictures, score):
    whole = ImageTextMatcher(tiny, score, settings=FEW, batch_size=256).score(pictures[:3], TEXTS[:3])
    spread = np.abs(whole).max()
    single = ImageTextMatcher(tiny, score, settings=FEW, batch_size=5).score(pictures[2::-1], TEXTS[2::-1])
    np.testing.assert_allclose(single[::-1, ::-1], whole, atol=1e-5 * spread)
    alone = ImageTextMatcher(tiny, score, settings=FEW).score(pictures[1], TEXTS[2])
    np.testing.assert_allclose(alone[0, 0], whole[1, 2], atol=1e-5 * spread)


def test_attention_does_not_depend_on_padding(small, pictures):
    """The tokens behind the end of a text are not looked at, unless asked for."""
    found = []
    for tokens in ("content", "content+end", "all"):
        settings = replace(FEW, tokens=tokens, layers=("mid.0",))
        matcher = ImageTextMatcher(small, "attention", settings=settings)
        found.append(matcher.score(pictures[0], "a cat")[0, 0])
    assert len({round(value, 9) for value in found}) == 3


def test_blocks_of_images_are_one_matrix(tiny, pictures, monkeypatch):
    whole = ImageTextMatcher(tiny, settings=FEW).score(pictures, TEXTS[:2])
    monkeypatch.setattr("diffsight.matching.matcher._PAIRS", 4)
    np.testing.assert_allclose(ImageTextMatcher(tiny, settings=FEW).score(pictures, TEXTS[:2]), whole, atol=1e-7)


def test_the_empty_text_is_worth_nothing_and_is_run_once_per_image(tiny, pictures):
    matcher = ImageTextMatcher(tiny, "pmi", settings=FEW)
    np.testing.assert_allclose(matcher.score(pictures[:2], ["a bag", ""])[:, 1], 0, atol=1e-7)
    matcher = ImageTextMatcher(tiny, "pmi", settings=FEW)
    matcher.score(pictures[:2], TEXTS[:3])
    assert matcher.calls == 2 * (3 + 1) * 3
    assert (
        ImageTextMatcher(tiny, "error", settings=FEW).max_calls([Query(id="q", images=(pictures[0],), texts=TEXTS[:3])])
        == 3 * 3
    )


def test_both_directions_and_pairs_read_the_same_matrix(tiny, pictures):
    matcher = ImageTextMatcher(tiny, settings=FEW)
    whole = matcher.score(pictures[:2], TEXTS[:2])
    queries = [
        Query(id="a", images=(pictures[0],), texts=TEXTS[:2]),
        Query(id="b", images=tuple(pictures[:2]), texts=(TEXTS[1],)),
        Query(id="c", images=tuple(pictures[:2]), texts=TEXTS[:2]),
    ]
    before = matcher.calls
    a, b, c = matcher.match(queries)
    np.testing.assert_allclose(a.scores, whole[:1], atol=1e-7)
    np.testing.assert_allclose(b.scores, whole[:, 1:], atol=1e-7)
    np.testing.assert_allclose(c.scores, whole, atol=1e-7)
    assert (a.best, b.best, c.best) == (int(whole[0].argmax()), int(whole[:, 1].argmax()), None)
    assert a.order == np.argsort(-whole[0]).tolist()
    # What queries have in common is run once: two images with two texts and the empty one, three draws.
    assert matcher.calls - before == 2 * 3 * 3


def test_what_cannot_be_read_fails_its_own_query(tiny, pictures, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    long = "bag " * 40
    queries = [
        Query(id="good", images=(pictures[0],), texts=TEXTS[:2]),
        Query(id="bad image", images=(tmp_path / "no.png",), texts=TEXTS[:2]),
        Query(id="missing", images=(tmp_path / "gone.png", pictures[0]), texts=("a bag",)),
        Query(id="long", images=(pictures[0],), texts=("a bag", long)),
    ]
    good, *failed = ImageTextMatcher(tiny, settings=FEW).match(queries)
    assert good.failure is None
    assert good.best is not None
    for match, reason in zip(failed, ("no.png", "gone.png", "tokens"), strict=True):
        assert reason in match.failure
        assert match.best is None
        assert match.order == []
        assert np.isnan(match.scores).all()
    alone = next(ImageTextMatcher(tiny, settings=FEW).match(queries[:1]))
    np.testing.assert_allclose(alone.scores, good.scores, atol=1e-7)


def test_a_file_and_its_picture_score_alike(tiny, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    matcher = ImageTextMatcher(tiny, settings=FEW)
    found = matcher.score([tmp_path / "a.png", pictures[0]], TEXTS[:2])
    np.testing.assert_array_equal(found[0], found[1])


def test_ties_are_told(tiny, pictures):
    query = Query(id="q", images=(pictures[0], pictures[1], pictures[0].copy()), texts=("a bag",))
    (match,) = ImageTextMatcher(tiny, settings=FEW).match([query])
    equal = match.scores[0, 0] == match.scores[2, 0]
    assert equal
    if match.scores[0, 0] > match.scores[1, 0]:
        assert match.best is None
        assert match.tied == (0, 2)


@pytest.mark.parametrize("score", ["error", "attention", Attention(null="average"), Hybrid(null="average")], ids=str)
def test_scores_that_cannot_compare_images_say_so_once(tiny, pictures, caplog, score):
    caplog.set_level(logging.WARNING)
    matcher = ImageTextMatcher(tiny, score, settings=FEW)
    matcher.rank(pictures[0], TEXTS[:2])
    matcher.score(pictures, TEXTS[0])
    assert caplog.text == ""
    found = matcher.rank(pictures[:2], TEXTS[0])
    assert found.best is not None
    assert f"{matcher.settings.score} cannot compare images for one text, as query 'query' asks" in caplog.text
    assert "Use the score 'pmi'" in caplog.text
    queries = [Query(id="a", images=tuple(pictures[:2]), texts=TEXTS[:2])]
    list(matcher.match(queries))
    assert len(caplog.records) == 1
    list(ImageTextMatcher(tiny, score, settings=FEW).match(queries))  # Winoground compares images, too.
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "score", ["pmi", "hybrid", Attention(null="subtract"), Hybrid(alpha=0, null="average")], ids=str
)
def test_scores_that_can_compare_images_are_quiet(tiny, pictures, caplog, score):
    ImageTextMatcher(tiny, score, settings=FEW).rank(pictures[:2], TEXTS[0])
    assert caplog.text == ""


def test_many_candidates_are_eliminated_and_the_answer_stays(tiny):
    photo = Image.open(next(iter(sorted((assets() / "samples" / "sneaker").iterdir()))))
    names = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    texts = [f"a photo of a {name}" for name in names] + [f"a blurry photo of a {name}" for name in names]
    full = ImageTextMatcher(tiny, settings=MatchSettings(policy=Exhaustive(num_draws=64))).rank(photo, texts)
    matcher = ImageTextMatcher(tiny)
    fast = matcher.rank(photo, texts)
    assert isinstance(matcher.policy_for(Query(id="q", images=(photo,), texts=tuple(texts))), Forecast)
    assert fast.best == full.best == 7
    assert matcher.calls < 21 * 64 / 2


def test_elimination_does_not_depend_on_neighbours(tiny, pictures):
    texts = tuple(f"a photo of a {name}" for name in ("bag", "dress", "coat", "shirt", "sandal"))
    settings = MatchSettings(policy=Forecast())
    queries = [Query(id=str(i), images=(picture,), texts=texts[i % 2 :]) for i, picture in enumerate(pictures)]
    queries.append(Query(id="same", images=(pictures[0],), texts=texts))
    together = list(ImageTextMatcher(tiny, settings=settings, batch_size=64).match(queries))
    for query, match in zip(queries, together, strict=True):
        (alone,) = ImageTextMatcher(tiny, settings=settings, batch_size=7).match([query])
        np.testing.assert_allclose(alone.scores, match.scores, atol=1e-7)
        assert alone.best == match.best


def test_explanations_are_the_networks_own_attention(tiny, pictures):
    explanation = ImageTextMatcher(tiny).explain(pictures[0], "a photo of a sneaker", draws=2)
    assert explanation.words == ("start", "a", "photo", "of", "a", "sneaker", "end")
    height, width = tiny.latent_shape[1:]
    assert explanation.maps.shape == (7, height, width)
    assert (explanation.maps >= 0).all()
    # Start, words and end share the attention with padding: their shares add up to less than one.
    assert (explanation.maps.sum(0) < 1 + 1e-5).all()
    under = errors_by_hand(tiny, pictures[0], "a photo of a sneaker", 2)
    null = errors_by_hand(tiny, pictures[0], "", 2)
    order = np.argsort(nested_grid(len(tiny.schedule), 2).numpy())
    np.testing.assert_allclose(explanation.gain_by_timestep, (null - under)[order], atol=1e-6)
    np.testing.assert_allclose(explanation.gain.mean(), (null - under).mean(), atol=1e-6)
    assert "sneaker" in str(explanation)


def test_wrong_input_is_refused(tiny, pictures, tmp_path):
    matcher = ImageTextMatcher(tiny, settings=FEW)
    with pytest.raises(InputError, match="nothing to choose"):
        matcher.rank(pictures[0], ["a bag"])
    with pytest.raises(InputError, match="twice"):
        matcher.rank(pictures[0], ["a bag", "a bag"])
    with pytest.raises(InputError, match="no text"):
        matcher.score(pictures[0], [])
    with pytest.raises(InputError, match="tokens"):
        matcher.score(pictures[0], ["bag " * 40])
    with pytest.raises(InputError, match="attention"):
        ImageTextMatcher(tiny, "atention")
    with pytest.raises(InputError, match="CLIP"):
        ImageTextMatcher(tiny, "clip")
    with pytest.raises(InputError, match="no adapter"):
        ImageTextMatcher(tiny, adapter=tmp_path / "none.safetensors")
    with pytest.raises(ModelError):
        ImageTextMatcher(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"timesteps": (0.5, 0.5)}, {"timesteps": (-0.1, 1.0)}, {"draws": 0}, {"tokens": "words"}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError):
        MatchSettings(**wrong)


@pytest.mark.parametrize("score", [PMI(), DenoisingError(), Attention(null="average"), Hybrid(beta=0.25)])
def test_scores_are_written_and_read(score):
    values = score.to_dict()
    assert values["name"] == score.name
    assert score_from_dict(values) == score


@pytest.mark.parametrize(
    "wrong", [{"name": "none"}, {"name": "hybrid", "gamma": 1}, {"name": "attention", "null": "x"}]
)
def test_unknown_scores_are_refused(wrong):
    with pytest.raises(InputError):
        score_from_dict(wrong)


def test_layers_count_alike_whatever_their_heads():
    shares = layer_shares(("mid.0/0", "up.1.0/0", "up.1.0/1", "up.1.0/2", "up.1.0/3"))
    np.testing.assert_allclose(shares, [0.5, 0.125, 0.125, 0.125, 0.125])


def test_the_papers_preset_is_the_papers_score(small, pictures):
    """Attention over all 16 tokens, no division, both halves of the batch; plus the gain; He et al.'s pipeline."""
    settings = match_preset("discffusion")
    assert settings.policy.num_draws == 30
    found = ImageTextMatcher(small, settings=settings).score(pictures[0], "a cat")[0, 0]
    parts = [
        ImageTextMatcher(small, score, settings=settings).score(pictures[0], text)[0, 0]
        for score, text in ((Attention(), "a cat"), (Attention(), ""), (Hybrid(alpha=0.0), "a cat"))
    ]
    np.testing.assert_allclose(found, (parts[0] + parts[1]) / 2 + parts[2], rtol=1e-5)
    with pytest.raises(InputError, match="discffusion"):
        match_preset("discfusion")


def test_one_set_of_one_policy_does_not_disturb_another(tiny, pictures):
    short, long = Exhaustive(num_draws=2), Exhaustive(num_draws=3)
    sets = [candidates.Candidates(pictures=(pictures[0],), texts=TEXTS[:2], policy=p) for p in (short, long, short)]
    results, calls = candidates.run(tiny, MatchSettings(), sets)
    assert [len(result.per_draw) for result in results] == [2, 3, 2]
    assert calls == 3 * 2 + 3 * 3
