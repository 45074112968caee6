import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pipelines import save_ddpm, save_dit, save_stable_diffusion

from diffsight import load
from diffsight.backbones.models.latent_unet import LatentUNet
from diffsight.backbones.sampling import Sampler
from diffsight.data.images import open_image
from diffsight.data.sources import open_source
from diffsight.errors import ImageError, InputError, ModelError, NumericsError, PromptError, RunError, SourceError
from diffsight.synthesis import folder as module
from diffsight.synthesis import generator
from diffsight.synthesis.bag import TrickOptions, make_trick
from diffsight.synthesis.dataset import read_synthetic
from diffsight.synthesis.estimating import estimate
from diffsight.synthesis.figures import contact_sheet
from diffsight.synthesis.filters import Filters
from diffsight.synthesis.generator import recreate, synthesize
from diffsight.synthesis.plan import SynthesisSettings, make_plan, preset
from diffsight.synthesis.tricks import Guidance

CLASSES = ["trouser", "bag", "boot=ankle boot"]
LOOSE = Filters(flat=0, near_duplicates=0)
RANDOM = make_trick("random-guidance+class-prompt", TrickOptions(random=Guidance(low=1, high=3, whole=True)))
SETTINGS = SynthesisSettings(trick=RANDOM, per_class=4, sampler=Sampler(name="dpm++", steps=2), filters=LOOSE)


@pytest.fixture(scope="module")
def fashion():
    return load("tiny-fashion", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return load(save_stable_diffusion(tmp_path_factory.mktemp("sd")), device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def made(fashion, tmp_path_factory):
    """A finished set of twelve images in batches of five."""
    out = tmp_path_factory.mktemp("made") / "set"
    seen = []
    found = synthesize(fashion, CLASSES, out, settings=SETTINGS, batch_size=5, progress=lambda *at: seen.append(at))
    return found, seen


@pytest.fixture
def every_batch(monkeypatch):
    """A commit after every batch."""
    monkeypatch.setattr(generator, "SECONDS_BETWEEN_COMMITS", -1.0)


def tree(path):
    return {file.relative_to(path).as_posix() for file in Path(path).rglob("*") if file.is_file()}


def contents(out):
    """What does not depend on the place of a set, nor on when and how it was made."""
    skipped = ("run/", "contact-")
    return {name: (Path(out) / name).read_bytes() for name in tree(out) if not name.startswith(skipped)}


def pixels(image):
    return np.asarray(image)


def test_a_set_is_an_ordinary_folder_of_images_with_a_row_for_each(made):
    found, seen = made
    files = {name for name in tree(found.path) if name.startswith("images/")}
    assert files == {f"images/{folder}/{i:05d}.png" for folder in ("trouser", "bag", "boot") for i in range(4)}
    assert found.classes == ("trouser", "bag", "ankle boot")
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert open_source(f"folder:{found.path / 'images'}").class_names == ("bag", "boot", "trouser")
    for number, row in enumerate(found.rows.to_pylist()):
        data = (found.path / row["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        with Image.open(found.path / row["file"]) as image:
            assert image.size == (row["width"], row["height"]) == (28, 28)
            assert image.mode == "RGB"
            assert "Synthetic image, drawn by tiny-fashion" in image.text["Comment"]
        given = SETTINGS.trick.prescribe(row["class"], row["label"], row["index"], seed=0)
        assert (row["prompt"], row["guidance_scale"], row["trick"]) == (given.prompt, given.guidance_scale, given.trick)
        assert (row["steps"], row["sampler"], row["seed"], row["model"]) == (2, "dpm++", 0, "tiny-fashion")
        assert row["weights"] == load("tiny-fashion").identity()["weights"]
        assert found.paths[number] == found.path / row["file"]
    unguided = sum(row["guidance_scale"] == 1 for row in found.rows.to_pylist())
    assert 0 < unguided < 12
    assert seen[-1] == (12, unguided * 2 + (12 - unguided) * 4)


def test_what_describes_a_set(made):
    found, _ = made
    card = json.loads((found.path / "dataset.json").read_text())
    assert card["synthetic"] is True
    assert card["classes"][2] == {"name": "ankle boot", "folder": "boot", "images": 4, "missing": 0}
    assert (card["images"], card["missing"], card["drawn"], card["dropped"]) == (12, 0, 12, {})
    assert card["tricks"] == {"class-prompt": 6, "random-guidance": 6}
    assert card["model"]["weights"] == found.row(0)["weights"]
    text = (found.path / "README.md").read_text()
    assert "None is a photograph" in text
    assert "| random-guidance | 6 | 1 to 3 | `an image of" in text
    for trick in card["tricks"]:
        with Image.open(found.path / f"contact-{trick}.png") as sheet:
            assert sheet.width > 200


def test_a_set_is_a_source_like_any_other(made):
    found, _ = made
    source = found.source()
    assert source.class_names == found.classes
    assert source.labels == tuple(found.labels.tolist())
    assert pixels(source[7].load()).tobytes() == pixels(found.image(7)).tobytes()
    assert source.content() == found.source().content()
    assert len({source.digest(id) for id in source.ids}) == 12


def test_every_image_is_drawn_again_to_the_bit(made, fashion):
    found, _ = made
    rows = found.rows.to_pylist()
    assert {row["rows"] for row in rows} > {5}  # full batches and what was left over
    for number, row in enumerate(rows):
        again = recreate(found.path, number, model=fashion)
        assert np.array_equal(pixels(again), pixels(found.image(number))), row
    assert np.array_equal(pixels(recreate(found.path, "bag/00002.png")), pixels(found.image(6)))
    assert np.array_equal(pixels(recreate(found.path, found.paths[6], model=fashion)), pixels(found.image(6)))
    with pytest.raises(InputError, match="is no image of"):
        recreate(found.path, "bag/00009.png", model=fashion)
    with pytest.raises(InputError, match="has 12 images, from 0 to 11; got 12"):
        recreate(found.path, 12, model=fashion)
    with pytest.raises(ModelError, match="Load the one that drew it"):
        recreate(found.path, 0, model=load("tiny-fashion", device="cpu", dtype="bf16"))


def test_noise_is_each_images_own(made):
    """Shipard et al.'s code gives all classes and domains the same noise (fact sheet A.5.5)."""
    found, _ = made
    assert len({row["sha256"] for row in found.rows.to_pylist()}) == 12


def test_batches_change_images_by_rounding_alone(made, fashion, tmp_path):
    found, _ = made
    other = synthesize(fashion, CLASSES, tmp_path, settings=SETTINGS, batch_size=12)
    for number in range(12):
        difference = pixels(found.image(number)).astype(int) - pixels(other.image(number))
        assert np.abs(difference).max() <= 1
    assert found.rows.drop_columns(["rows", "place", "sha256"]) == other.rows.drop_columns(["rows", "place", "sha256"])


def test_an_image_does_not_depend_on_the_other_classes(made, fashion, tmp_path):
    found, _ = made
    fewer = synthesize(fashion, CLASSES[:2], tmp_path, settings=replace(SETTINGS, per_class=2), batch_size=4)
    for number, of in ((0, 0), (1, 1), (2, 4), (3, 5)):
        assert np.abs(pixels(fewer.image(number)).astype(int) - pixels(found.image(of))).max() <= 1


def test_a_finished_set_is_left_as_it_is(made, fashion, monkeypatch):
    found, _ = made
    before = contents(found.path)
    monkeypatch.setattr(LatentUNet, "predict", lambda *_: pytest.fail("the model was asked"))
    again = synthesize(fashion, CLASSES, found.path, settings=SETTINGS)
    assert contents(found.path) == before
    assert again.rows == found.rows


def _synthesize_until_killed(out, marker):
    generator.SECONDS_BETWEEN_COMMITS = -1.0
    torch.set_num_threads(1)

    def report(images, _):
        if images > 5:
            marker.set()
            signal.pause()

    synthesize("tiny-fashion", CLASSES, out, settings=SETTINGS, batch_size=2, progress=report)


def test_a_killed_set_is_continued_and_is_the_undisturbed_one_to_the_byte(fashion, tmp_path):
    context = multiprocessing.get_context("spawn")
    marker = context.Event()
    process = context.Process(target=_synthesize_until_killed, args=(tmp_path / "killed", marker))
    process.start()
    assert marker.wait(180)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(SourceError, match="is not finished"):
        read_synthetic(tmp_path / "killed")
    assert not (tmp_path / "killed" / "dataset.json").exists()
    (tmp_path / "killed" / "images" / "bag" / ".00003.png.tmp").write_bytes(b"half")
    seen = []
    # As in the child, so that sums are rounded alike.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report = lambda images, calls: seen.append(images)  # noqa: E731
        synthesize(fashion, CLASSES, tmp_path / "killed", settings=SETTINGS, batch_size=2, progress=report)
        synthesize(fashion, CLASSES, tmp_path / "whole", settings=SETTINGS, batch_size=2)
    finally:
        torch.set_num_threads(threads)
    assert seen[0] > 4
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_other_settings_are_refused_with_their_differences(made, fashion):
    found, _ = made
    other = replace(SETTINGS, seed=1, sampler=Sampler(name="ddim", steps=2))
    with pytest.raises(RunError) as refused:
        synthesize(fashion, CLASSES, found.path, settings=other)
    assert 'settings.sampler.name: "dpm++" in the run, "ddim" asked now' in str(refused.value)
    assert "settings.seed: 0 in the run, 1 asked now" in str(refused.value)
    with pytest.raises(RunError, match=r'classes\[2\].name: "ankle boot" in the run, "boot" asked now'):
        synthesize(fashion, ["trouser", "bag", "boot"], found.path, settings=SETTINGS)


def test_foreign_directories_are_refused(fashion, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RunError, match=r"holds 'mine.txt' and is no set"):
        synthesize(fashion, CLASSES, tmp_path, settings=SETTINGS)
    with pytest.raises(RunError, match="is a file"):
        synthesize(fashion, CLASSES, tmp_path / "mine.txt", settings=SETTINGS)
    assert tree(tmp_path) == {"mine.txt"}


def test_a_link_out_of_the_directory_is_not_followed(fashion, tmp_path, monkeypatch, every_batch):
    out, outside = tmp_path / "set", tmp_path / "outside"
    outside.mkdir()
    monkeypatch.setattr(LatentUNet, "predict", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        synthesize(fashion, CLASSES, out, settings=SETTINGS)
    (out / "images" / "bag").rmdir()
    (out / "images" / "bag").symlink_to(outside)
    with pytest.raises(RunError, match="is a link out of"):
        synthesize(fashion, CLASSES, out, settings=SETTINGS)
    shutil.rmtree(out / "images")
    (out / "images").symlink_to(outside)
    with pytest.raises(RunError, match="images is a link out of"):
        synthesize(fashion, CLASSES, out, settings=SETTINGS)
    assert list(outside.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing_half_written(sd, tmp_path, monkeypatch, every_batch):
    settings = replace(SETTINGS, trick=make_trick("class-prompt"))
    put, left = module.put, [5]

    def full(path, data):
        left[0] -= 1
        if left[0] < 0:
            path.with_name(f".{path.name}.tmp").write_bytes(data[:10])
            path.with_name(f".{path.name}.tmp").unlink()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        put(path, data)

    monkeypatch.setattr(module, "put", full)
    with pytest.raises(
        RunError, match=r"No space left on device. Make room on the disk and give the same command again"
    ):
        synthesize(sd, ["cat", "dog"], tmp_path / "set", settings=settings, batch_size=4)
    images = list((tmp_path / "set").rglob("*.png*"))
    assert 0 < len(images) <= 5
    for path in images:
        open_image(path)
    monkeypatch.setattr(module, "put", put)
    synthesize(sd, ["cat", "dog"], tmp_path / "set", settings=settings, batch_size=4)
    synthesize(sd, ["cat", "dog"], tmp_path / "whole", settings=settings, batch_size=4)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_a_lost_image_is_drawn_again_as_it_was(sd, tmp_path):
    settings = replace(SETTINGS, trick=make_trick("class-prompt"))
    synthesize(sd, ["cat", "dog"], tmp_path, settings=settings, batch_size=3)
    before = contents(tmp_path)
    (tmp_path / "images/cat/00002.png").unlink()
    (tmp_path / "images/dog/00000.png").write_bytes(b"")
    synthesize(sd, ["cat", "dog"], tmp_path, settings=settings, batch_size=3)
    assert contents(tmp_path) == before


def test_dropped_images_are_drawn_again_with_other_noise(sd, tmp_path, every_batch):
    settings = replace(
        SETTINGS,
        trick=make_trick("class-prompt"),
        per_class=1,
        filters=replace(LOOSE, scorer="first", max_attempts=3),
    )

    class First:
        """Is content with class 0 at once, and with class 1 at the second image that it sees of it."""

        name = "first"
        seen = 0

        def __call__(self, images):
            First.seen += 1
            return np.array([[1.0, 0.0]] * len(images)) if First.seen < 3 else np.array([[0.0, 1.0]] * len(images))

    found = synthesize(sd, ["cat", "dog"], tmp_path, settings=settings, scorer=First(), batch_size=1)
    assert found.rows.column("attempt").to_pylist() == [0, 1]
    assert found.rows.column("flags").to_pylist() == ["", "label"]
    assert found.card["dropped"] == {"label": 1}
    assert found.card["drawn"] == 3
    assert np.array_equal(pixels(recreate(tmp_path, 1, model=sd)), pixels(found.image(1)))
    assert "1 taken for another class by the scorer" in (tmp_path / "README.md").read_text()


def test_an_image_that_is_never_right_is_given_up_and_counted(sd, tmp_path):
    class Cats:
        name = "cats"

        def __call__(self, images):
            return np.array([[1.0, 0.0]] * len(images))

    filters = replace(LOOSE, scorer="cats", max_attempts=2)
    settings = replace(SETTINGS, trick=make_trick("class-prompt"), per_class=2, filters=filters)
    found = synthesize(sd, ["cat", "dog"], tmp_path / "a", settings=settings, scorer=Cats())
    assert found.labels.tolist() == [0, 0]
    assert found.card["missing"] == 2
    assert found.card["classes"][1]["missing"] == 2
    assert found.card["dropped"] == {"label": 4}
    assert not list((tmp_path / "a/images/dog").iterdir())
    flat = replace(settings, filters=Filters(flat=128.0, max_attempts=2))
    with pytest.raises(RunError, match=r"Not one of 4 images .* dropped as 'flat'"):
        synthesize(sd, ["cat", "dog"], tmp_path / "b", settings=flat)


def test_a_replacement_for_different_noises_is_not_kept_at_its_first_coming_either(sd, tmp_path, monkeypatch):
    """As a safety checker does: the same stock picture for some images."""
    stock, calls = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3), []
    paint = generator.Painter._pixels

    def checked(painter, orders):
        calls.append([order.attempt for order in orders])
        real = paint(painter, orders)
        for row, order in enumerate(orders):
            if order.index in (0, 2) and order.attempt == 0:
                real[row] = stock
        return real

    monkeypatch.setattr(generator.Painter, "_pixels", checked)
    settings = replace(SETTINGS, trick=make_trick("class-prompt"), filters=replace(LOOSE, max_attempts=3))
    found = synthesize(sd, ["cat", "dog"], tmp_path, settings=settings, batch_size=8)
    assert calls == [[0] * 8, [1] * 4]
    assert not any(np.array_equal(pixels(found.image(number)), stock) for number in range(8))
    assert found.card["dropped"] == {"repeated": 4}
    assert found.card["missing"] == 0


def test_shards_hold_the_same_images(made, fashion, tmp_path, monkeypatch):
    found, _ = made
    monkeypatch.setattr("diffsight.synthesis.finishing.PER_SHARD", 5)
    settings = replace(SETTINGS, format="wds")
    packed = synthesize(fashion, CLASSES, tmp_path, settings=settings, batch_size=5)
    assert {name for name in tree(tmp_path) if name.endswith(".tar")} == {f"shards/0000{i}.tar" for i in range(3)}
    assert not (tmp_path / "images").exists()
    assert packed.labels.tolist() == found.labels.tolist()
    for number in range(12):
        assert np.array_equal(pixels(packed.image(number)), pixels(found.image(number)))
        assert np.array_equal(pixels(packed.source()[number].load()), pixels(found.image(number)))
    with tarfile.open(tmp_path / "shards/00000.tar") as tar:
        names = tar.getnames()
        assert names[:3] == ["00000000.png", "00000000.cls", "00000000.json"]
        labels = [int(tar.extractfile(name).read()) for name in names if name.endswith(".cls")]
        assert labels == [0, 1, 2, 0, 1]  # classes are mixed
        assert json.loads(tar.extractfile("00000001.json").read())["class"] == "bag"
    assert np.array_equal(pixels(recreate(tmp_path, 4, model=fashion)), pixels(packed.image(4)))
    with pytest.raises(InputError, match="packed in shards"):
        _ = packed.paths
    before = contents(tmp_path)
    monkeypatch.setattr(LatentUNet, "predict", lambda *_: pytest.fail("the model was asked"))
    synthesize(fashion, CLASSES, tmp_path, settings=settings)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("antialias", [True, False])
def test_resizing_is_torchvisions_and_is_recorded(sd, tmp_path, antialias):
    from torchvision.transforms.v2 import functional

    usual = replace(SETTINGS, trick=make_trick("class-prompt"), per_class=1)
    small = replace(usual, size=5, antialias=antialias)
    whole = synthesize(sd, ["cat", "dog"], tmp_path / "whole", settings=usual)
    resized = synthesize(sd, ["cat", "dog"], tmp_path / "small", settings=small)
    drawn = torch.tensor(pixels(whole.image(1))).permute(2, 0, 1)
    expected = functional.resize(drawn, [5, 5], antialias=antialias)
    assert np.abs(pixels(resized.image(1)).astype(int) - expected.permute(1, 2, 0).numpy()).max() <= 1
    assert resized.row(1)["resize"] == ("5A" if antialias else "5")
    assert np.array_equal(pixels(recreate(tmp_path / "small", 1, model=sd)), pixels(resized.image(1)))


def test_out_of_memory_halves_batches(sd, tmp_path, monkeypatch):
    predict = LatentUNet.predict

    def small(backbone, x_t, index, condition):
        if len(x_t) > 3:
            raise torch.OutOfMemoryError("too much")
        return predict(backbone, x_t, index, condition)

    monkeypatch.setattr(LatentUNet, "predict", small)
    settings = replace(SETTINGS, trick=make_trick("class-prompt"))
    found = synthesize(sd, ["cat", "dog"], tmp_path / "a", settings=settings, batch_size=8)
    assert found.rows.column("rows").to_pylist() == [2] * 8
    monkeypatch.setattr(LatentUNet, "predict", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("too much")))
    with pytest.raises(ModelError, match="a single image ran out of memory"):
        synthesize(sd, ["cat", "dog"], tmp_path / "b", settings=settings)


def test_what_is_not_a_number_stops(sd, tmp_path, monkeypatch):
    predict = LatentUNet.predict

    def broken(backbone, x_t, index, condition):
        found = predict(backbone, x_t, index, condition)
        return replace(found, output=found.output * torch.nan)

    monkeypatch.setattr(LatentUNet, "predict", broken)
    with pytest.raises(NumericsError, match="not a number"):
        synthesize(sd, ["cat", "dog"], tmp_path, settings=replace(SETTINGS, trick=make_trick("class-prompt")))


def test_class_conditional_models_draw_by_their_class_names(tmp_path):
    dit = load(save_dit(tmp_path / "dit"), device="cpu", dtype="fp32")
    settings = replace(SETTINGS, trick=make_trick("class-prompt"), per_class=1)
    found = synthesize(dit, ["cat", "bird"], tmp_path / "a", settings=settings)
    assert len(found) == 2
    with pytest.raises(PromptError, match="takes class ids and reads no text: use the trick 'class-prompt'"):
        make_plan(dit, ["cat", "bird"], replace(settings, trick=make_trick("base")))
    with pytest.raises(PromptError, match="'dog-like' is not one of them"):
        make_plan(dit, ["cat", "dog-like"], settings)
    plain = load(save_ddpm(tmp_path / "plain", names=("cat", "dog")), device="cpu", dtype="fp32")
    with pytest.raises(InputError, match="no null class, which guidance needs"):
        make_plan(plain, ["cat", "dog"], settings)
    one = make_trick("class-prompt", TrickOptions(guidance=Guidance(low=1, high=1)))
    assert len(synthesize(plain, ["cat", "dog"], tmp_path / "b", settings=replace(settings, trick=one))) == 2


def test_what_cannot_be_drawn_is_refused_before_anything_is(sd, tmp_path):
    unconditional = load(save_ddpm(tmp_path / "ddpm"), device="cpu", dtype="fp32")
    with pytest.raises(PromptError, match="unconditional"):
        make_plan(unconditional, ["cat", "dog"])
    with pytest.raises(PromptError, match="at least two classes; got only 'cat'"):
        synthesize(sd, ["cat"], tmp_path / "out")
    with pytest.raises(PromptError, match="path separator"):
        synthesize(sd, ["cat", "../dog"], tmp_path / "out")
    with pytest.raises(PromptError, match=r"tokens, but .* reads 16"):
        make_plan(sd, ["cat", "a very long name of a class"])
    same = make_trick("aliases", TrickOptions(aliases={"cat": ("pet",), "dog": ("Pet",)}))
    with pytest.raises(PromptError, match="'cat' and 'dog' share the prompt 'an image of a Pet'"):
        make_plan(sd, ["cat", "dog"], replace(SETTINGS, trick=same))
    for wrong in ({"per_class": 0}, {"size": 2}, {"format": "zip"}, {"seed": -1}):
        with pytest.raises(InputError):
            replace(SETTINGS, **wrong)
    with pytest.raises(InputError, match="1000 noise levels"):
        make_plan(sd, ["cat", "dog"], replace(SETTINGS, sampler=Sampler(steps=1000)))
    with pytest.raises(InputError, match="batch_size is a number of images from 1; got 0"):
        synthesize(sd, ["cat", "dog"], tmp_path / "out", batch_size=0)
    assert not (tmp_path / "out").exists()


def test_the_cost_is_known_beforehand(fashion, made):
    _, seen = made
    plan = make_plan(fashion, CLASSES, SETTINGS)
    assert plan.calls == seen[-1][1]
    cost = estimate(plan, 5)
    assert (cost.images, cost.calls, cost.pilot_images) == (12, plan.calls, 5)
    assert cost.seconds > 0
    assert 12 * 100 < cost.bytes < 12 * 3000


def test_batches_are_full_and_of_mixed_classes(fashion):
    plan = make_plan(fashion, CLASSES, replace(SETTINGS, trick=make_trick("class-prompt"), per_class=10))
    wanted = [(label, index) for label in range(3) for index in range(10)]
    batches = list(plan.batches(wanted, 7))
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 2]
    assert all({label for label, _ in batch} == {0, 1, 2} for batch in batches[:4])
    assert sorted(key for batch in batches for key in batch) == wanted


def test_damaged_sets_are_refused(made, tmp_path):
    found, _ = made
    with pytest.raises(SourceError, match="is no synthetic set"):
        read_synthetic(tmp_path / "none")
    for name, content, message in (
        ("dataset.json", b"{", "is damaged"),
        ("dataset.json", b'{"schema": 99}', "Upgrade"),
        ("manifest.parquet", b"PAR1", "is damaged"),
    ):
        copy = tmp_path / f"{name}-{message.replace(' ', '')}"
        shutil.copytree(found.path, copy)
        (copy / name).write_bytes(content)
        with pytest.raises(SourceError, match=message):
            read_synthetic(copy)
    copy = tmp_path / "leads-out"
    shutil.copytree(found.path, copy)
    rows = found.rows.to_pylist()
    rows[3]["file"] = "images/../../secret.png"
    pq.write_table(type(found.rows).from_pylist(rows), copy / "manifest.parquet")
    with pytest.raises(SourceError, match="is no file of a set"):
        read_synthetic(copy)
    copy = tmp_path / "lost"
    shutil.copytree(found.path, copy)
    (copy / "images/bag/00000.png").unlink()
    lost = read_synthetic(copy)
    with pytest.raises(ImageError, match=r"bag/00000\.png"):
        lost.image(4)
    with pytest.raises(ImageError, match=r"bag/00000\.png"):
        lost.source().read("images/bag/00000.png")


def test_a_contact_sheet_has_a_row_for_each_class(made):
    found, _ = made
    sheet = contact_sheet(found, "class-prompt", columns=2)
    fewer = contact_sheet(found, "class-prompt", columns=2, rows=2)
    assert sheet.height - fewer.height == 84 + 4  # 28 pixels, each three wide, and the gap
    first = next(n for n, row in enumerate(found.rows.to_pylist()) if row["trick"] == "class-prompt")
    tile = found.image(first).resize((84, 84), Image.Resampling.NEAREST)
    assert pixels(tile).tobytes() in {
        pixels(sheet.crop((left, top, left + 84, top + 84))).tobytes()
        for left in range(10, 140)
        for top in range(20, 50)
    }
    with pytest.raises(InputError, match="no image of the trick 'base'"):
        contact_sheet(found, "base")


def test_the_presets_are_the_papers():
    paper = preset("shipard2023/cifar10")
    assert (paper.model, paper.sampler, paper.per_class) == ("sd-1.4", Sampler(name="ddim", steps=40), 2000)
    assert (paper.size, paper.antialias) == (32, True)
    assert (preset("shipard2023/eurosat").size, preset("shipard2023/eurosat").antialias) == (64, False)
    with pytest.raises(InputError, match="Did you mean 'shipard2023'"):
        preset("shipard")
