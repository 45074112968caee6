import numpy as np
import pytest

from diffsight import load
from diffsight.backbones.cards import assets
from diffsight.data.splits import hold_out
from diffsight.errors import InputError
from diffsight.features.cache import extract
from diffsight.features.extraction import plan
from diffsight.features.heads.columns import Subset
from diffsight.features.heads.recipes import Recipe
from diffsight.features.heads.specs import Linear
from diffsight.features.heads.training import Probe, fit_heads
from diffsight.features.pooling import Pool
from diffsight.features.search import LOG_SNRS, coarse_timesteps, estimate_calls, search

QUICK = Recipe(epochs=5)


@pytest.fixture(scope="module")
def tiny():
    return load("tiny-fashion", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def photographs():
    files = sorted((assets() / "samples").rglob("*.png"))
    return files, np.unique([file.parent.name for file in files], return_inverse=True)[1]


@pytest.fixture(scope="module")
def found(tiny, photographs, tmp_path_factory):
    files, labels = photographs
    seen = []
    root = tmp_path_factory.mktemp("caches")
    result = search(
        tiny,
        files,
        labels,
        timesteps=[10, 90, 500],
        recipe=QUICK,
        root=root,
        batch_size=64,
        progress=lambda *report: seen.append(report),
    )
    return result, seen, root


def test_it_goes_from_coarse_to_fine(tiny, found):
    result, _, _ = found
    stages = [trial.stage for trial in result.trials]
    assert stages == sorted(stages, key=["layer", "pool", "timestep"].index)
    first = [trial for trial in result.trials if trial.stage == "layer"]
    assert {(t.layer, t.timestep) for t in first} == {(layer.name, t) for layer in tiny.layers for t in (10, 90, 500)}
    assert {t.size for t in first} == {1}
    pools = [trial for trial in result.trials if trial.stage == "pool"]
    assert len(pools) == 3 * 2
    assert {t.size for t in pools} == {2, 4}
    best_layers = sorted({t.layer for t in first}, key=lambda name: -max(t.accuracy for t in first if t.layer == name))
    worst_finalist = min(max(t.accuracy for t in first if t.layer == name) for name in {t.layer for t in pools})
    assert worst_finalist >= max(t.accuracy for t in first if t.layer in set(best_layers) - {t.layer for t in pools})
    steps = [trial for trial in result.trials if trial.stage == "timestep"]
    leader = max((t for t in result.trials if t.stage != "timestep"), key=lambda t: t.accuracy)
    assert steps
    assert {(t.layer, t.size) for t in steps} == {(leader.layer, leader.size)}
    assert not {t.timestep for t in steps} & {10, 90, 500}


def test_the_best_is_the_best_and_the_map_is_the_first_stage(found):
    result, _, _ = found
    assert result.best.accuracy == max(trial.accuracy for trial in result.trials)
    assert result.heatmap().shape == (9, 3)
    row, column = result.layers.index("mid"), result.timesteps.index(90)
    (cell,) = [t for t in result.trials if (t.stage, t.layer, t.timestep) == ("layer", "mid", 90)]
    assert result.heatmap()[row, column] == cell.accuracy


def test_an_accuracy_is_that_of_the_head_trained_alone(tiny, photographs, found, tmp_path):
    files, labels = photographs
    result, _, _ = found
    trial = result.best
    train, held = hold_out(labels, share=0.25, seed=0)
    extraction = plan(tiny, layers=[trial.layer], timesteps=[trial.timestep], pool=Pool(size=trial.size))
    cache = extract(extraction, files, out=tmp_path / "alone")
    probe = Probe(columns=cache.names, head=Linear(), learning_rate=trial.learning_rate)
    (fitted,) = fit_heads(Subset(cache, train), labels[train], [probe], recipe=QUICK, device="cpu")
    predicted = fitted.head.logits(Subset(cache, held)).argmax(dim=1).numpy()
    assert (predicted == labels[held]).mean() == pytest.approx(trial.accuracy, abs=1 / len(held) + 1e-9)


def test_cost_is_counted_and_told_beforehand(photographs, found):
    files, _ = photographs
    result, seen, _ = found
    stages = {stage: calls for stage, _, _, calls in seen}
    assert result.calls == sum(stages.values()) <= estimate_calls(len(files), 3)
    assert stages["layer"] == 3 * len(files)
    assert sum(result.images) == len(files)
    assert result.heads == 2 * len(result.trials)


def test_it_is_continued_from_the_cache(tiny, photographs, found, monkeypatch):
    files, labels = photographs
    result, _, root = found
    monkeypatch.setattr(type(tiny), "predict", lambda *_: pytest.fail("the model was asked"))
    again = search(tiny, files, labels, timesteps=[10, 90, 500], recipe=QUICK, root=root)
    assert again.trials == result.trials
    assert again.calls == 0


def test_no_image_is_both_trained_on_and_held_out(tiny, photographs, found, monkeypatch):
    files, labels = photographs
    seen = []

    def watched(columns, targets, probes, **options):
        seen.append((columns, targets))
        return fit_heads(columns, targets, probes, **options)

    monkeypatch.setattr("diffsight.features.search.fit_heads", watched)
    search(tiny, files, labels, timesteps=[10, 90, 500], recipe=QUICK, root=found[2])
    train, held = hold_out(labels, share=0.25, seed=0)
    for columns, targets in seen:
        used = columns.columns.columns.positions[columns.indices]
        assert np.array_equal(used, train)
        assert not set(used) & set(held)
        assert np.array_equal(targets, labels[used])


def test_noise_levels_of_the_papers_are_found_by_their_log_snr(tiny, sd):
    for backbone in (tiny, sd):
        levels = coarse_timesteps(backbone)
        assert list(levels) == sorted(levels)
        found = backbone.schedule.log_snr[list(levels)].tolist()
        assert found == pytest.approx(sorted(LOG_SNRS, reverse=True), abs=0.25)
    from diffsight.diffusion.schedule import ddpm

    linear = ddpm(1000, 1e-4, 0.02, "linear")
    assert [linear.nearest_level(value) for value in LOG_SNRS] == [10, 50, 90, 150, 300, 500]


def test_a_search_that_makes_no_sense_is_refused(tiny, photographs, tmp_path):
    files, labels = photographs
    with pytest.raises(InputError, match="100 images and 99 labels"):
        search(tiny, files, labels[:-1], root=tmp_path)
    with pytest.raises(InputError, match="over 0"):
        search(tiny, files, labels, sizes=[], root=tmp_path)
    with pytest.raises(InputError, match="over 0"):
        search(tiny, files, labels, sizes=[0], root=tmp_path)
    with pytest.raises(InputError, match=r"must divide the largest.*3 does not"):
        search(tiny, files, labels, sizes=[1, 3, 4], root=tmp_path)
    with pytest.raises(InputError, match=r"no layer 'dec\.9'"):
        search(tiny, files, labels, layers=["dec.9"], root=tmp_path)
    with pytest.raises(InputError, match="1000 is not a timestep"):
        search(tiny, files, labels, timesteps=[1000], root=tmp_path)
    with pytest.raises(InputError):
        search(tiny, files[:2], np.array([0, 1]), root=tmp_path)
