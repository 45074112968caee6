import json

import pytest
import torch
from pipelines import save_dit

from diffsight.backbones import load
from diffsight.data.prompts import PromptSet, templates_for
from diffsight.errors import InputError
from diffsight.evaluation.task import list_tasks, load_task
from diffsight.scoring.elimination import Exhaustive, Staged
from diffsight.scoring.policies import policy_from_dict
from diffsight.zero_shot.classifier import DiffusionClassifier
from diffsight.zero_shot.settings import LI2023, Settings, prepare, preset

# Fact sheet §1.4: what the authors' code really spends.
CALLS = {
    "cifar10": (10, 2750),
    "stl10": (10, 3000),
    "pets": (37, 2050),
    "aircraft": (100, 5550),
    "food101": (101, 5570),
    "flowers102": (102, 5590),
    "objectnet": (113, 14400),
    "imagenet": (1000, 124500),
    "cifar100": (100, 5550),
}


@pytest.mark.parametrize("name", list(LI2023))
def test_li2023_spends_what_the_authors_code_spends(name):
    classes, calls = CALLS[name]
    settings = preset(f"li2023/{name}").settings
    assert isinstance(settings.policy, Staged)
    assert settings.policy.max_calls(classes) == calls
    assert settings.weighting == "uniform"


def test_li2023_losses_and_templates():
    assert {name for name, p in LI2023.items() if p.settings.loss == "l1"} == {
        "cifar10",
        "pets",
        "flowers102",
        "stl10",
        "cifar100",
    }
    assert preset("li2023/cifar10").template == "a blurry photo of a {}."


def test_clark2023_is_the_paper():
    settings = preset("clark2023").settings
    policy = settings.policy
    assert (policy.min_draws, policy.max_draws, policy.cutoff, policy.step) == (20, 2000, 2e-3, 1)
    assert (settings.loss, settings.weighting) == ("l2", "exp")


def test_unknown_presets_get_the_nearest():
    with pytest.raises(InputError, match="li2023/cifar10"):
        preset("li2023/cifar-10")


def test_settings_survive_json():
    values = json.loads(json.dumps(Settings(policy=Staged(), loss="l1").to_dict()))
    policy = policy_from_dict(values.pop("policy"))
    assert Settings(**values, policy=policy) == Settings(policy=Staged(), loss="l1")


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return load(save_dit(tmp_path_factory.mktemp("dit")))


def test_a_class_conditional_model_brings_its_classes(dit):
    classifier = DiffusionClassifier(dit, policy=Exhaustive(num_draws=4)).fit()
    assert classifier.classes_.tolist() == ["cat", "dog", "bird"]
    image = torch.rand(3, 16, 16)
    assert classifier.predict([image])[0] in classifier.classes_
    subset = DiffusionClassifier(dit, ["dog", "2"], policy=Exhaustive(num_draws=4)).fit()
    assert subset.predict_proba([image]).shape == (1, 2)


def test_the_variational_bound_can_decide_where_variance_is_learned(dit):
    classifier = DiffusionClassifier(dit, loss="kl", policy=Exhaustive(num_draws=6)).fit()
    assert classifier.setup_.scorer.losses == ("l1", "l2", "huber", "kl")
    (verdict,) = classifier.classify([torch.rand(3, 16, 16)])
    assert verdict.probabilities.sum() == pytest.approx(1)


def test_class_ids_have_no_embeddings_to_average(dit):
    with pytest.raises(InputError, match="averages text embeddings"):
        prepare(dit, PromptSet.from_templates(["cat", "dog"], "{}"), Settings(ensemble="embedding"))


def test_tasks_and_presets_name_the_same_templates():
    for name in list_tasks():
        for paper, templates in load_task(name).presets.items():
            assert templates == templates_for(paper.split("/")[0], name)
