import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch.utils.data import TensorDataset

from diffsight import DiffusionClassifier, Exhaustive, PromptSet, load
from diffsight.backbones.cards import assets
from diffsight.errors import ImageError, InputError, PromptError
from diffsight.zero_shot.classifier import TieWarning

CLASSES = ["bag", "sandal", "trouser"]
POLICY = Exhaustive(num_draws=16)


@pytest.fixture(scope="module")
def backbone():
    return load("tiny-fashion", device="cpu")


@pytest.fixture(scope="module")
def classifier(backbone):
    return DiffusionClassifier(backbone, CLASSES, policy=POLICY, batch_size=96).fit()


def sample(name, position=0):
    return sorted((assets() / "samples" / name).iterdir())[position]


@pytest.fixture(scope="module")
def paths():
    return [sample(name) for name in ("trouser", "bag", "sandal")]


@pytest.fixture(scope="module")
def probabilities(classifier, paths):
    return classifier.predict_proba(paths)


def test_photographs_are_classified_from_class_names(classifier, paths):
    assert classifier.predict(paths).tolist() == ["trouser", "bag", "sandal"]
    assert classifier.classes_.tolist() == CLASSES
    assert classifier.score(paths, ["trouser", "bag", "sandal"]) == 1.0


def test_probabilities_sum_to_one_and_are_not_flat(probabilities):
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert probabilities.max(axis=1).min() > 0.6


def test_decision_function_is_zero_for_the_winner_and_negative_elsewhere(classifier, paths, probabilities):
    scores = classifier.decision_function(paths)
    assert scores.shape == (3, 3)
    assert (scores.max(axis=1) == 0).all()
    assert np.array_equal(scores.argmax(axis=1), probabilities.argmax(axis=1))


def test_a_score_does_not_depend_on_order_batch_or_form(backbone, classifier, paths, probabilities):
    np.testing.assert_allclose(classifier.predict_proba(paths[::-1])[::-1], probabilities, atol=1e-5)
    one_by_one = DiffusionClassifier(backbone, CLASSES, policy=POLICY, batch_size=5).fit()
    np.testing.assert_allclose(one_by_one.predict_proba(paths), probabilities, atol=1e-4)
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    for form in (arrays, [Image.open(path) for path in paths], TensorDataset(torch.from_numpy(arrays)[:, None])):
        np.testing.assert_allclose(classifier.predict_proba(form), probabilities, atol=1e-5)


def test_it_is_a_scikit_learn_estimator(backbone, classifier):
    assert clone(classifier).get_params()["classes"] == CLASSES
    again = DiffusionClassifier(backbone, CLASSES).set_params(seed=3, policy=POLICY)
    assert again.fit(None, None) is again
    assert again.setup_.settings.seed == 3
    with pytest.raises((AttributeError, NotFittedError)):
        _ = DiffusionClassifier(backbone, CLASSES).classes_


def test_the_call_form_is_that_of_transformers(classifier, paths):
    one = classifier(paths[0], candidate_labels=["a dress", "trousers"], hypothesis_template="This is a photo of {}.")
    assert {frozenset(entry) for entry in one} == {frozenset({"score", "label"})}
    assert one[0]["label"] == "trousers"
    assert one[0]["score"] >= one[1]["score"]
    assert sum(entry["score"] for entry in one) == pytest.approx(1)
    many = classifier(paths[:2], candidate_labels="a dress, trousers")
    assert len(many) == 2
    assert many[0][0]["label"] == "trousers"
    assert classifier.classes_.tolist() == CLASSES


def test_a_bad_image_is_named_and_does_not_stop_the_others(classifier, paths, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("text")
    verdicts = classifier.classify([paths[0], bad, paths[1]])
    assert [verdict.label for verdict in verdicts] == [2, None, 0]
    assert "bad.png" in verdicts[1].failure
    with pytest.raises(ImageError, match=r"bad\.png"):
        classifier.predict([paths[0], bad])


def test_exact_ties_are_warned_of(backbone, paths):
    prompts = PromptSet(class_names=("bag", "sack", "dress"), prompts=("a bag", "a bag ", "a dress"), owner=(0, 1, 2))
    classifier = DiffusionClassifier(backbone, prompts, policy=Exhaustive(num_draws=8)).fit()
    with pytest.warns(TieWarning, match="images"):
        classifier.predict([paths[1]])
    (verdict,) = classifier.classify([paths[1]])
    assert verdict.tie
    assert verdict.tied == (0, 1)


@pytest.mark.parametrize("ensemble", ["mean", "min", "mixture", "embedding"])
def test_ensembles_of_prompts(backbone, paths, ensemble):
    classifier = DiffusionClassifier(
        backbone,
        CLASSES,
        templates=["a photo of a {}.", "a picture of a {}"],
        ensemble=ensemble,
        policy=Exhaustive(num_draws=8),
    ).fit()
    verdicts = classifier.classify(paths)
    assert [verdict.label for verdict in verdicts] == [2, 0, 1]
    assert {verdict.calls for verdict in verdicts} == {8 * 3 * (1 if ensemble == "embedding" else 2)}
    for verdict in verdicts:
        assert verdict.probabilities.sum() == pytest.approx(1)
        assert verdict.ranking[0] == verdict.label


def test_min_takes_the_best_prompt_and_mean_the_average(backbone, paths):
    settings = {"templates": ["a photo of a {}.", "a picture of a {}"], "policy": Exhaustive(num_draws=8)}
    image = paths[:1]
    tables = {}
    for ensemble in ("mean", "min"):
        classifier = DiffusionClassifier(backbone, CLASSES, ensemble=ensemble, **settings).fit()
        tables[ensemble] = -classifier.decision_function(image)[0]
    prompts = classifier.setup_.prompts
    single = DiffusionClassifier(
        backbone,
        PromptSet(class_names=prompts.prompts, prompts=prompts.prompts, owner=tuple(range(6))),
        policy=Exhaustive(num_draws=8),
    ).fit()
    gaps = -single.decision_function(image)[0].reshape(3, 2)
    np.testing.assert_allclose(tables["min"], gaps.min(axis=1), atol=1e-6)
    means = gaps.mean(axis=1)
    np.testing.assert_allclose(tables["mean"], means - means.min(), atol=1e-6)


def test_explain_gives_every_class_at_every_timestep(classifier, paths):
    explanation = classifier.explain(paths[0], num_draws=8)
    assert explanation.errors.shape == (8, 3)
    assert (np.diff(explanation.timesteps) > 0).all()
    assert explanation.errors.mean(axis=0).argmin() == CLASSES.index("trouser")
    assert sum(explanation.votes.values()) == 8
    assert "trouser" in str(explanation)


def test_a_given_scale_sets_how_sharp_probabilities_are(backbone, paths):
    def sharpest(scale):
        return DiffusionClassifier(backbone, CLASSES, policy=POLICY, scale=scale).fit().predict_proba(paths).max(axis=1)

    np.testing.assert_allclose(sharpest(0.0), 1 / 3)
    assert (sharpest(1e3) > sharpest(10.0)).all()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"classes": ["cat"]}, PromptError),
        ({"classes": ["cat", "Cat "]}, PromptError),
        ({"classes": ["cat", ""]}, PromptError),
        ({"classes": None}, InputError),
        ({"classes": CLASSES, "templates": "a photo"}, PromptError),
        ({"classes": CLASSES, "templates": "a {} in a {place}"}, PromptError),
        ({"classes": ["a bag " * 10, "sandal"]}, PromptError),
        ({"classes": CLASSES, "loss": "l3"}, InputError),
        ({"classes": CLASSES, "loss": "kl"}, InputError),
        ({"classes": CLASSES, "weighting": "heavy"}, InputError),
        ({"classes": CLASSES, "ensemble": "vote"}, InputError),
    ],
)
def test_what_cannot_give_a_right_answer_is_refused(backbone, paths, options, error):
    with pytest.raises(error):
        DiffusionClassifier(backbone, **options).fit().predict(paths)


def test_a_model_is_loaded_once_however_often_it_is_called(paths, monkeypatch):
    loads = []

    def counting(name):
        loads.append(name)
        return load(name, device="cpu")

    monkeypatch.setattr("diffsight.zero_shot.classifier.load", counting)
    pipe = DiffusionClassifier("tiny-fashion", policy=Exhaustive(num_draws=2))
    for _ in range(2):
        pipe(paths[0], candidate_labels=["bag", "dress"])
    pipe.set_params(classes=CLASSES).fit().predict(paths[:1])
    assert loads == ["tiny-fashion"]


def test_calibration_changes_how_sure_and_not_what(backbone, paths):
    photos = [sample(name, position) for name in CLASSES for position in range(3)]
    labels = [name for name in CLASSES for _ in range(3)]
    classifier = DiffusionClassifier(backbone, CLASSES, policy=POLICY).fit()
    before = classifier.predict_proba(photos)
    after = classifier.calibrate(photos, labels).predict_proba(photos)
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))
    truth = np.repeat(np.arange(3), 3)
    likelihoods = []
    for factor in (0.5, 1.0, 2.0):
        other = DiffusionClassifier(backbone, CLASSES, policy=POLICY, scale=factor * classifier.scale_).fit()
        likelihoods.append(np.log(other.predict_proba(photos)[np.arange(9), truth]).sum())
    assert max(likelihoods) == pytest.approx(np.log(after[np.arange(9), truth]).sum(), abs=0.1)
    with pytest.raises(InputError, match="none of the classes"):
        classifier.calibrate(photos[:1], ["zebra"])
    with pytest.raises(InputError, match="one label per image"):
        classifier.calibrate(photos, labels[:2])
