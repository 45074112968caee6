"""What docs/fidelity.md says of the presets is what the code does."""

import re
from pathlib import Path

import numpy as np
import pytest

from diffsight.data import blurring, digital, pixel_noise, weather
from diffsight.data.corruptions import CORRUPTIONS
from diffsight.data.folder_sets import CLASS_FOLDERS
from diffsight.evaluation.task import list_tasks, load_task
from diffsight.features.heads.recipes import RECIPES, find_recipe
from diffsight.features.presets import PRESETS as PROBES
from diffsight.matching.options import fit_options
from diffsight.matching.settings import match_preset
from diffsight.synthesis.bag import DOMAINS, make_trick
from diffsight.synthesis.options import PRESETS as RECIPES_OF_NETWORKS
from diffsight.synthesis.plan import PAPER_TRICKS
from diffsight.synthesis.plan import PRESETS as SETS
from diffsight.zero_shot.settings import LI2023, preset

TEXT = (Path(__file__).parents[1] / "docs/fidelity.md").read_text("utf-8")
SHAPES = {"b19": (1024, 8, 8), "b24": (1024, 16, 16), "b30": (512, 64, 64)}


def rows(section, table=0):
    """The rows of a table below a heading that has these words, without its head."""
    (text,) = [part for part in re.split(r"^## ", TEXT, flags=re.M) if section in part.splitlines()[0]]
    tables = re.findall(r"^\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, flags=re.M)
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in tables[table].splitlines()]


def values(section):
    return {key.replace("`", ""): value for key, value in rows(section)}


def number(text):
    return float(text.replace(",", "").removesuffix("%").removesuffix("M"))


def numbers(text):
    return tuple(map(int, text.split()))


def test_li2023():
    found = rows("`li2023/…`")
    assert {row[0] for row in found} == {f"li2023/{name}" for name in LI2023}
    for name, classes, keep, asked, made, calls, loss, template in found:
        paper = preset(name)
        policy = paper.settings.policy
        assert (policy.keep, policy.samples, policy.stage_ends) == (numbers(keep), numbers(asked), numbers(made))
        assert policy.max_calls(int(classes)) == number(calls)
        assert (paper.settings.loss, paper.template, paper.settings.weighting) == (loss, template, "uniform")
        task = load_task(name.partition("/")[2])
        assert task.templates == (template,)
        assert len(task.class_names or ()) in (0, int(classes))
    levels = sorted(preset("li2023/pets").settings.policy.grid(1000).tolist())
    assert levels == list(range(2, 1000, 4))


def test_clark2023():
    found, settings = values("`clark2023`"), preset("clark2023").settings
    policy = settings.policy
    assert found["weight of the error of x"] == "exp(−7t)"
    assert (settings.weighting, settings.loss, policy.spacing) == ("exp", "l2", "random")
    assert found["level of each draw"] == "uniform, independent"
    assert policy.min_draws == number(found["draws before the first test"])
    assert policy.max_draws == number(found["most draws of a class"])
    assert policy.cutoff == number(found["p-value under which a class is out"])
    assert policy.step == number(found["draws between two tests"])
    assert all(len(load_task(name).presets.get("clark2023", ("",))) == 1 for name in list_tasks())
    assert f'"{found["template, ImageNet"]}"' in TEXT


def test_features():
    found = rows("`gd2023/…`")
    assert [row[0] for row in found] == list(PROBES)
    for name, timesteps, blocks, grid, head, rate, batch, epochs, parameters, published in found:
        paper = PROBES[name]
        recipe = find_recipe(paper.recipe)
        assert (paper.timesteps, paper.layers, paper.size) == (numbers(timesteps), tuple(blocks.split()), int(grid))
        assert (paper.head.name, paper.published) == (head, number(published))
        assert (recipe.learning_rate, recipe.batch_size) == (number(rate), number(batch))
        assert recipe.epochs == paper.views == number(epochs)
        assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0, 0)
        shapes = {
            f"{block}@{timestep}": (SHAPES[block][0], *(min(side, paper.size) for side in SHAPES[block][1:]))
            for timestep in paper.timesteps
            for block in paper.layers
        }
        network = paper.head.build(shapes, 1000)
        digits = len(parameters.removesuffix(" M").partition(".")[2])
        assert round(sum(each.numel() for each in network.parameters()) / 1e6, digits) == number(parameters)
    assert (RECIPES["gd2024/diffeed"].learning_rate, RECIPES["gd2024/diffeed"].batch_size) == (0.01, 16)


def test_matching():
    found, settings, learnt = values("`discffusion`"), match_preset("discffusion"), fit_options("discffusion")
    assert settings.draws == settings.policy.num_draws == number(found["draws (timestep and noise)"])
    low, high = numbers(found["lowest and highest level allowed"])
    first, stop = (round(share * 1000) for share in settings.timesteps)
    assert (first, stop - 1) == (low, high)
    levels = first + settings.policy.grid(stop - first)
    assert low <= levels.min() < levels.max() <= high
    assert (settings.tokens, settings.pooling.per_token) == ("all", False)
    assert settings.score.null == "average"
    assert settings.batch_leak is None
    assert settings.score.alpha == number(found["share of attention in the score"])
    assert settings.score.beta == number(found["share of the error's gain"])
    assert {
        "rank of LoRA": learnt.rank,
        "margin of the hinge": learnt.margin,
        "learning rate": learnt.learning_rate,
        "weight decay": learnt.weight_decay,
        "epochs": learnt.epochs,
        "draws per step, own for each candidate": learnt.draws_per_step,
    } == {key.removeprefix("training: "): number(value) for key, value in found.items() if "training" in key}
    assert not learnt.paired


def test_synthesis():
    found = values("`shipard2023/…`")
    for name, paper in SETS.items():
        assert (paper.model, paper.sampler.name, paper.sampler.steps) == (found["model"], found["sampler"], 40)
        assert paper.per_class == number(found["images of each prompt"])
        if paper.size is not None:
            said = f"{paper.size} with{'' if paper.antialias else 'out'} antialiasing"
            assert found[f"side, {name}"] == said
    assert number(found["steps"]) == 40
    assert PAPER_TRICKS.guidance.low == PAPER_TRICKS.guidance.high == number(found["guidance scale"])
    scales = f"{PAPER_TRICKS.random.low:g} to {PAPER_TRICKS.random.high:g}"
    assert found["random guidance scale, whole numbers"] == scales
    assert PAPER_TRICKS.random.whole
    assert len(DOMAINS) == number(found["domains"])
    (trick,) = make_trick("base", PAPER_TRICKS).parts
    assert [choice.prompt for choice in trick.prompts.choices("ship")] == ["an image of ship"]
    for recipe in RECIPES_OF_NETWORKS.values():
        assert recipe.learning_rate == number(found["training: optimiser's learning rate"])
        assert recipe.weight_decay == number(found["training: weight decay, of everything"])
        assert recipe.epochs == number(found["training: epochs"])
        assert recipe.batch_size == number(found["training: batch"])
        assert recipe.crop_scale == number(found["training: smallest crop"])
        assert recipe.label_smoothing == number(found["training: label smoothing"])
        assert (recipe.decay_all, recipe.select, recipe.schedule) == (True, "last", "cosine-epoch")


@pytest.mark.parametrize("section", ["`li2023/…`", "`clark2023`"])
def test_published_numbers_have_a_command_of_a_task_and_a_source(section):
    for published, command, origin in rows(section, table=1):
        assert re.search(r"\d %", published)
        assert origin in ("paper", "2nd", "issue", "code")
        for task in re.findall(r"--task ([^\s`]+)", command):
            assert task.partition("@")[0] in list_tasks()
        for split in re.findall(r"--split ([^\s`]+)", command):
            assert split.partition("/")[0] in CLASS_FOLDERS["imagenet"].splits


def test_every_preset_is_on_the_page():
    names = {f"li2023/{name}" for name in LI2023} | {"clark2023", "discffusion", *PROBES, *SETS}
    assert not [name for name in names if name.partition("/")[0] not in TEXT]


def test_numbers_that_could_not_be_confirmed_are_not_targets():
    assert not re.search(r"26\.4|77\.5|64\.6|30\.2|33\.9|32\.1", TEXT)


def test_corruptions():
    tables = {
        "gaussian-noise": pixel_noise.GAUSSIAN,
        "shot-noise": pixel_noise.PHOTONS,
        "impulse-noise": pixel_noise.STRUCK,
        "defocus-blur": blurring.DEFOCUS,
        "glass-blur": blurring.GLASS,
        "motion-blur": blurring.MOTION,
        "zoom-blur": blurring.ZOOM,
        "snow": weather.SNOW,
        "frost": weather.FROST,
        "fog": weather.FOG,
        "brightness": weather.BRIGHTNESS,
        "contrast": digital.CONTRAST,
        "elastic-transform": digital.ELASTIC,
        "pixelate": digital.PIXELATE,
        "jpeg-compression": digital.JPEG,
    }
    found = {name: cells for name, *cells in rows("Hendrycks & Dietterich")}
    assert found.keys() == {*CORRUPTIONS} == tables.keys()
    for name, cells in found.items():
        large = tables[name][False]  # the table of images of 224 pixels
        assert [[float(value) for value in cell.split()] for cell in cells] == [[*np.atleast_1d(one)] for one in large]
