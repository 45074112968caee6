import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from diffsight.data.sources import open_source
from diffsight.errors import ImageError, InputError, NumericsError, RunError
from diffsight.features import cache as module
from diffsight.features.cache import bytes_per_image, column_shapes, extract, load_cache
from diffsight.features.extraction import plan
from diffsight.features.noise import Noise
from diffsight.features.pooling import Pool


def everything(cache, column, view=0):
    return cache.rows(column, np.arange(len(cache)), view)


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 16 images, so that 40 pictures make three."""
    monkeypatch.setattr(module, "_SHARD_IMAGES", 16)


def test_what_is_read_is_what_was_extracted(sd, pictures, tmp_path, small_shards):
    extraction = plan(sd, layers=["dec.0", "mid"], timesteps=[90, 20], pool=Pool(size=2), views=2)
    cache = extract(extraction, pictures, out=tmp_path / "cache")
    assert len(cache) == 40
    assert len(cache.shards) == 3
    assert cache.views == 2
    assert cache.failures == ()
    assert cache.names == extraction.columns
    assert cache.shape("mid@20") == (16, 2, 2)
    chunks = list(extraction.run(module.images_from(pictures)))
    for column in cache.names:
        expected = torch.cat([chunk.features[column] for chunk in chunks])
        for view in range(2):
            torch.testing.assert_close(everything(cache, column, view), expected[:, view], atol=1e-5, rtol=1e-5)
    order = np.array([39, 0, 17, 17, 3])
    assert torch.equal(cache.rows("mid@20", order, 1), everything(cache, "mid@20", 1)[order])


def test_a_finished_cache_computes_nothing(sd, pictures, tmp_path, monkeypatch):
    extraction = plan(sd, layers=["mid"])
    first = extract(extraction, pictures[:20], root=tmp_path)
    monkeypatch.setattr(type(sd), "predict", lambda *_: pytest.fail("the model was asked"))
    again = extract(extraction, pictures[:20], root=tmp_path)
    assert first.path == again.path
    assert torch.equal(everything(first, first.names[0]), everything(again, again.names[0]))


def test_it_goes_on_where_it_stood(sd, pictures, tmp_path, small_shards):
    extraction = plan(sd, layers=["mid"])
    whole = extract(extraction, pictures, out=tmp_path / "whole")
    part = tmp_path / "part"
    extract(extraction, pictures, out=part)
    (part / "shard-00002.safetensors").unlink()
    with pytest.raises(RunError, match="first 32 of 40 images"):
        load_cache(part)
    before, began, seen = json.loads((part / "seconds.json").read_text())["seconds"]["extraction"], time.time(), []
    cache = extract(extraction, pictures, out=part, progress=lambda images, calls: seen.append((images, calls)))
    assert seen == [(40, 8)]
    assert torch.equal(everything(cache, cache.names[0]), everything(whole, whole.names[0]))
    assert before < cache.seconds < before + time.time() - began
    assert load_cache(part).seconds == cache.seconds


def _extract_until_killed(path, folder, marker):
    from diffsight import load

    module._SHARD_IMAGES = 16

    def report(images, calls):
        if images > 16:
            marker.set()
            signal.pause()

    pictures = open_source(f"folder:{folder}")
    extract(plan(load("tiny-fashion", device="cpu")), pictures, out=path, batch_size=16, progress=report)


@pytest.mark.slow
def test_a_killed_extraction_is_continued_and_gives_the_same_bytes(tmp_path, folder, small_shards):
    from diffsight import load

    context = multiprocessing.get_context("spawn")
    marker = context.Event()
    process = context.Process(target=_extract_until_killed, args=(tmp_path / "killed", folder, marker))
    process.start()
    assert marker.wait(120)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / "killed" / "shard-00000.safetensors").exists()
    assert not (tmp_path / "killed" / "shard-00001.safetensors").exists()
    extraction, source = plan(load("tiny-fashion", device="cpu")), open_source(f"folder:{folder}")
    continued = extract(extraction, source, out=tmp_path / "killed", batch_size=16)
    undisturbed = extract(extraction, source, out=tmp_path / "undisturbed", batch_size=16)
    for a, b in zip(continued.shards, undisturbed.shards, strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"layers": ["dec.0"]},
        {"timesteps": [91]},
        {"pool": Pool(size=2)},
        {"pool": Pool("max", 1)},
        {"noise": Noise(seed=1)},
        {"noise": Noise(kind="none")},
        {"noise": Noise(kind="mean", draws=2)},
        {"prompt": "a cat"},
        {"views": 2},
    ],
)
def test_all_that_changes_numbers_finds_another_cache(sd, pictures, tmp_path, change):
    usual = {"layers": ["mid"], "timesteps": [90]}
    first = extract(plan(sd, **usual), pictures[:2], root=tmp_path)
    other = extract(plan(sd, **(usual | change)), pictures[:2], root=tmp_path)
    assert first.path != other.path


def test_another_model_or_dtype_finds_another_cache(sd, dit, pictures, tmp_path):
    from pipelines import save_stable_diffusion

    from diffsight import load

    folder = save_stable_diffusion(tmp_path / "model", seed=5)
    other, half = load(folder, device="cpu", dtype="fp32"), load(folder, device="cpu", dtype="bf16")
    caches = {extract(plan(model), pictures[:2], root=tmp_path / "caches").path for model in (sd, dit, other, half)}
    assert len(caches) == 4


def test_batch_size_and_place_find_the_same_cache(sd, folder, tmp_path):
    extraction = plan(sd, layers=["mid"])
    source = open_source(f"folder:{folder}")
    first = extract(extraction, source, root=tmp_path / "caches")
    shutil.copytree(folder, tmp_path / "elsewhere")
    again = extract(extraction, open_source(f"folder:{tmp_path / 'elsewhere'}"), root=tmp_path / "caches", batch_size=3)
    assert first.path == again.path


def test_a_replaced_photograph_is_noticed(sd, folder, pictures, tmp_path):
    extraction = plan(sd, layers=["mid"])
    first = extract(extraction, open_source(f"folder:{folder}"), root=tmp_path / "caches")
    pictures[30].save(folder / "cat" / "00.png")
    second = extract(extraction, open_source(f"folder:{folder}"), root=tmp_path / "caches")
    assert first.path != second.path
    changed = (everything(first, first.names[0]) != everything(second, first.names[0])).flatten(1).any(1)
    assert changed.tolist() == [True] + [False] * 19


def test_other_settings_in_the_same_directory_are_refused_with_the_difference(sd, pictures, tmp_path):
    extract(plan(sd, layers=["mid"], timesteps=[90]), pictures[:3], out=tmp_path / "cache")
    with pytest.raises(RunError, match=r"timesteps\[0\]: 90 in the cache, 30 asked now"):
        extract(plan(sd, layers=["mid"], timesteps=[30]), pictures[:3], out=tmp_path / "cache")
    with pytest.raises(RunError, match=r"images.count: 3 in the cache, 4 asked now"):
        extract(plan(sd, layers=["mid"], timesteps=[90]), pictures[:4], out=tmp_path / "cache")


def test_failures_have_no_row_and_keep_their_place(sd, pictures, tmp_path, small_shards):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    mixed = [*pictures[:10], broken, *pictures[10:30], broken]
    cache = extract(plan(sd, layers=["mid"]), mixed, out=tmp_path / "cache")
    assert [failure.position for failure in cache.failures] == [10, 31]
    assert cache.positions.tolist() == [i for i in range(32) if i not in (10, 31)]
    alone = extract(plan(sd, layers=["mid"]), pictures[:30], out=tmp_path / "alone")
    name = cache.names[0]
    torch.testing.assert_close(everything(cache, name), everything(alone, name), atol=1e-5, rtol=1e-5)


def test_a_shard_of_nothing_but_failures_is_no_hole(sd, pictures, tmp_path, small_shards):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    cache = extract(plan(sd, layers=["mid"]), [*[broken] * 16, *pictures[:4]], out=tmp_path / "cache")
    assert cache.positions.tolist() == [16, 17, 18, 19]
    assert len(cache.failures) == 16


def test_no_image_at_all_is_said(sd, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"None of 2 images.*broken\.png"):
        extract(plan(sd, layers=["mid"]), [broken, broken], out=tmp_path / "cache")


def test_half_precision_takes_half_the_room(sd, pictures, tmp_path):
    extraction = plan(sd, layers=["dec.0"], pool=Pool(size=None), views=4)
    full = extract(extraction, pictures, out=tmp_path / "full")
    half = extract(extraction, pictures, out=tmp_path / "half", storage="fp16")
    name = full.names[0]
    torch.testing.assert_close(everything(half, name), everything(full, name), atol=2e-2, rtol=2e-3)
    sizes = [cache.shards[0].stat().st_size for cache in (full, half)]
    assert sizes[0] - sizes[1] == pytest.approx(40 * bytes_per_image(extraction) / 2, rel=0.01)


def test_what_is_too_large_for_half_precision_is_refused(sd, pictures, tmp_path, monkeypatch):
    huge = Pool(size=1)
    monkeypatch.setattr(Pool, "__call__", lambda self, maps: maps.float().mean((2, 3), keepdim=True) + 1e5)
    with pytest.raises(NumericsError, match="too large for fp16"):
        extract(plan(sd, layers=["mid"], pool=huge), pictures[:2], out=tmp_path / "cache", storage="fp16")


def test_shapes_are_known_beforehand(sd, dit, pictures, tmp_path):
    for backbone in (sd, dit):
        layers = [layer.name for layer in backbone.layers]
        noise = Noise(kind="resample", draws=2)
        extraction = plan(backbone, layers=layers, timesteps=[5, 9], pool=Pool(size=3), noise=noise, views=2)
        cache = extract(extraction, pictures[:2], root=tmp_path)
        assert dict(cache.shapes) == column_shapes(extraction)


def test_rows_are_mapped_and_not_loaded(sd, pictures, tmp_path):
    cache = extract(plan(sd, layers=["mid"]), pictures[:4], out=tmp_path / "cache")
    mapped = cache._maps[0][cache.names[0]]
    assert str(cache.shards[0]) in Path("/proc/self/maps").read_text()
    assert mapped.shape == (4, 1, 16, 1, 1)


@pytest.mark.parametrize("damage", ["cut", "foreign", "no header", "swapped"])
def test_damage_is_named(sd, pictures, tmp_path, small_shards, damage):
    from safetensors.torch import save_file

    extraction = plan(sd, layers=["mid"])
    cache = extract(extraction, pictures, out=tmp_path / "cache")
    victim = cache.shards[1]
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-10])
    elif damage == "foreign":
        other = extract(plan(sd, layers=["dec.0"]), pictures, out=tmp_path / "other")
        shutil.copy(other.shards[1], victim)
    elif damage == "no header":
        save_file({"x": torch.zeros(1)}, victim)
    else:
        shutil.copy(cache.shards[2], victim)
    with pytest.raises(RunError, match=f"{victim.name} is damaged"):
        load_cache(cache.path)
    with pytest.raises(RunError, match=f"{victim.name} is damaged"):
        extract(extraction, pictures, out=cache.path)


def test_an_edited_manifest_is_refused(sd, pictures, tmp_path):
    cache = extract(plan(sd, layers=["mid"], timesteps=[90]), pictures[:2], out=tmp_path / "cache")
    manifest = cache.path / "manifest.json"
    value = json.loads(manifest.read_text())
    value["fingerprint_fields"]["timesteps"] = [91]
    manifest.write_text(json.dumps(value))
    with pytest.raises(RunError, match="damaged"):
        load_cache(cache.path)


def test_a_strange_directory_is_left_alone(sd, pictures, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match=r"thesis\.txt.*no cache"):
        extract(plan(sd), pictures[:2], out=tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    with pytest.raises(RunError, match="no manifest"):
        load_cache(tmp_path / "mine")


def test_two_processes_do_not_write_one_cache(sd, pictures, tmp_path):
    from diffsight.store.disk import lock

    (tmp_path / "cache").mkdir()
    with lock(tmp_path / "cache"), pytest.raises(RunError, match="in use"):
        extract(plan(sd), pictures[:2], out=tmp_path / "cache")


def test_wrong_options_are_refused(sd, pictures, tmp_path):
    with pytest.raises(InputError, match="fp32 or fp16"):
        extract(plan(sd), pictures[:2], out=tmp_path / "cache", storage="fp8")
    with pytest.raises(InputError, match="not both"):
        extract(plan(sd), pictures[:2], out=tmp_path / "cache", root=tmp_path)
    cache = extract(plan(sd, layers=["mid"], timesteps=[90]), pictures[:2], out=tmp_path / "cache")
    with pytest.raises(InputError, match=r"no column 'dec\.0@90'\. They have mid@90"):
        cache.shape("dec.0@90")
