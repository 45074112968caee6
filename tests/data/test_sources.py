import gzip
import inspect
import json
import os
import pickle

import numpy as np
import pytest
import scipy.io
from PIL import Image

from diffsight.data.cifar import CIFAR
from diffsight.data.images import ImageLimits, images_from
from diffsight.data.sources import Source, open_source
from diffsight.data.torchvision_sets import DEBIAN_FASHION_MNIST, TORCHVISION
from diffsight.errors import ImageError, SourceError
from diffsight.evaluation.task import load_task


def save(path, value=0, size=(5, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def fill(folder, *names):
    for index, name in enumerate(names):
        save(folder / name, value=10 * index)
    return f"folder:{folder}"


def test_flat_folder_is_unlabelled_and_in_natural_order(tmp_path):
    source = open_source(fill(tmp_path, "img10.png", "img2.PNG", "Img1.jpg", "b.webp"))
    assert source.ids == ("b.webp", "Img1.jpg", "img2.PNG", "img10.png")
    assert source.labels is None
    assert source.class_names is None
    assert source[2].label is None
    assert source[2].load().getpixel((0, 0)) == (10, 10, 10)


def test_class_folders_give_labels(tmp_path):
    source = open_source(fill(tmp_path, "polar_bear/a.png", "cat/deep/2.png", "cat/1.png"))
    assert source.class_names == ("cat", "polar bear")
    assert source.ids == ("cat/1.png", "cat/deep/2.png", "polar_bear/a.png")
    assert source.labels == (0, 0, 1)
    assert [sample.load().getpixel((0, 0))[0] for sample in source] == [20, 10, 0]


def test_folder_is_found_below_the_root(tmp_path):
    fill(tmp_path / "data", "a.png")
    assert open_source("folder:data", root=tmp_path).ids == ("a.png",)


def test_what_is_no_image_is_skipped_and_counted(tmp_path, caplog):
    uri = fill(tmp_path, "a.png", ".hidden.png", "__MACOSX/x.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "Thumbs.db").write_text("x")
    with caplog.at_level("INFO"):
        assert open_source(uri).ids == ("a.png",)
    assert "2 hidden" in caplog.text
    assert "1 .txt" in caplog.text


def test_files_are_decoded_only_when_asked_for(tmp_path):
    uri = fill(tmp_path, "good.png")
    (tmp_path / "bad.png").write_text("text")
    source = open_source(uri)
    assert source.ids == ("bad.png", "good.png")
    assert source[1].load().size == (5, 4)
    with pytest.raises(ImageError, match=r"bad\.png"):
        source[0].load()


def test_a_file_that_vanishes_is_an_image_error(tmp_path):
    source = open_source(fill(tmp_path, "a.png"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match=r"a\.png.*does not exist"):
        source[0].load()


def test_folders_that_are_not_there_or_empty(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.heic").write_text("x")
    for where, reason in (("no", "no folder"), ("file", "not a folder"), ("empty", "no image"), ("texts", "heic")):
        with pytest.raises(SourceError, match=reason):
            open_source(f"folder:{tmp_path / where}")
    with pytest.raises(SourceError, match="needs a folder"):
        open_source("folder:")


def test_a_class_folder_without_images_is_named(tmp_path):
    uri = fill(tmp_path, "cat/a.png", "dog/a.png")
    (tmp_path / "bird").mkdir()
    with pytest.raises(SourceError, match="'bird'"):
        open_source(uri)


def test_images_beside_class_folders_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"1 images beside.*b\.png"):
        open_source(fill(tmp_path, "cat/a.png", "b.png"))


def test_links_may_not_leave_the_folder(tmp_path):
    save(tmp_path / "secret.png")
    inside = tmp_path / "inside"
    uri = fill(inside, "a.png")
    (inside / "b.png").symlink_to(inside / "a.png")
    assert open_source(uri).ids == ("a.png", "b.png")
    (inside / "c.png").symlink_to("../secret.png")
    with pytest.raises(SourceError, match=r"c\.png.*outside"):
        open_source(uri)
    (inside / "c.png").unlink()
    (inside / "d").symlink_to(tmp_path)
    with pytest.raises(SourceError, match=r"d is a link.*outside"):
        open_source(uri)


def test_links_to_folders_do_not_loop(tmp_path):
    uri = fill(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    assert len(open_source(uri)) == 2


def test_dangling_links_fail_one_by_one(tmp_path):
    uri = fill(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    source = open_source(uri)
    assert source.ids == ("a.png", "b.png")
    with pytest.raises(ImageError, match=r"b\.png"):
        source[1].load()


def test_special_files_are_skipped(tmp_path):
    uri = fill(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert open_source(uri).ids == ("a.png",)


def test_file_names_that_are_no_text(tmp_path):
    uri = fill(tmp_path, "a.png")
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system knows only UTF-8 names")
    with pytest.raises(SourceError, match="not UTF-8"):
        open_source(uri)


def test_fingerprint_follows_ids_and_labels_not_the_place(tmp_path):
    names = ("cat/1.png", "dog/1.png")
    here, there = (open_source(fill(tmp_path / place, *names)) for place in ("here", "there"))
    assert here.fingerprint() == there.fingerprint()
    assert here.select([1, 0]).fingerprint() != here.fingerprint()
    more = open_source(fill(tmp_path / "here", "dog/2.png"))
    assert more.fingerprint() != here.fingerprint()


def test_selection_keeps_ids_and_images(tmp_path):
    source = open_source(fill(tmp_path, "cat/1.png", "dog/1.png", "dog/2.png")).select([2, 0])
    assert source.ids == ("dog/2.png", "cat/1.png")
    assert source.labels == (1, 0)
    assert source.class_names == ("cat", "dog")
    assert [sample.load().getpixel((0, 0))[0] for sample in source] == [20, 0]


def test_content_follows_the_images_and_nothing_else(tmp_path):
    names = ("cat/1.png", "cat/2.png", "dog/1.png")
    here, there = (open_source(fill(tmp_path / place, *names)) for place in ("here", "there"))
    known = here.content()
    assert known == there.content() == here.content()
    assert known == open_source(fill(tmp_path / "renamed", "a/x.png", "b/y.png", "c/z.png")).content()
    parts = {here.select(order).content() for order in ([0, 1, 2], [1, 0, 2], [0, 1], [0, 1, 2, 2][:2], [0])}
    assert len(parts) == 4
    assert known in parts
    save(tmp_path / "here" / "cat/2.png", value=77)
    assert here.content() != known
    assert here.select([0, 2]).content() == there.select([0, 2]).content()


def test_content_of_what_cannot_be_read(tmp_path):
    source = open_source(fill(tmp_path, "a.png", "b.png", "c.png", "d.png"))
    known = source.content()
    (tmp_path / "b.png").unlink()
    gone = source.content()
    assert gone != known
    (tmp_path / "b.png").write_bytes(b"text")
    assert source.content() not in (known, gone)
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "b.png")
    assert source.content() == gone
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to("b.png")
    assert source.content() == gone


def test_files_over_the_limit_are_not_read_for_their_content(tmp_path):
    uri = fill(tmp_path, "a.png")
    with (tmp_path / "b.png").open("wb") as file:
        file.truncate(2**40)
    large = open_source(uri).content()
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to("b.png")
    assert open_source(uri).content() == large
    assert open_source(uri, limits=ImageLimits(max_bytes=10)).content() != large


def test_content_reports_progress(tmp_path):
    seen = []
    open_source(fill(tmp_path, "a.png", "b.png")).content(lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_content_of_your_own_source_is_that_of_its_pixels():
    def read(id):
        if id == "bad":
            raise ImageError("no")
        return Image.new("RGB", (int(id), 12 // int(id)))

    def content(*ids):
        return Source(name="mine", ids=ids, read=read).content()

    assert content("2", "bad") == content("2", "bad")
    assert len({content("2"), content("3"), content("bad"), content("2", "3"), content("3", "2"), content()}) == 6


def test_content_travels_to_workers(tmp_path):
    source = open_source(fill(tmp_path, "1.png", "2.png"))
    assert pickle.loads(pickle.dumps(source)).content() == source.content()


def test_a_source_is_a_batch_of_images(tmp_path):
    source = open_source(fill(tmp_path, "1.png", "2.png"))
    for images in (images_from(source), images_from([source[0], source[1]])):
        assert [image.getpixel((0, 0))[0] for image in images] == [0, 10]


def test_sources_travel_to_workers(tmp_path):
    source = open_source(fill(tmp_path, "cat/1.png", "dog/1.png"))
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert copy[1].load().getpixel((0, 0)) == (10, 10, 10)


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("folde:x", "'folder'"),
        ("photos", "'folder:photos'"),
        ("fashion-mnist", "'torchvision:fashion-mnist'"),
        ("digits", "'sklearn:digits'"),
        ("sklearn:digit", "'digits'"),
        ("torchvision:cifar", "'cifar10'"),
        ("torchvision:", "pets"),
        ("", "folder"),
    ],
)
def test_unknown_sources(uri, hint):
    with pytest.raises(SourceError, match=hint):
        open_source(uri)


@pytest.mark.parametrize(("ids", "labels"), [(("a", "a"), None), (("a", "b"), (0,)), (("a",), (2,)), (("a",), (-1,))])
def test_inconsistent_sources(ids, labels):
    with pytest.raises(SourceError):
        Source(name="mine", ids=ids, labels=labels, class_names=("x", "y"), read=lambda id: Image.new("RGB", (1, 1)))


def idx(array):
    header = (0x0800 + array.ndim).to_bytes(4) + b"".join(side.to_bytes(4) for side in array.shape)
    return header + array.tobytes()


@pytest.fixture
def digits():
    return np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)


def write_idx(folder, digits, labels, *, packed, prefix="t10k"):
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.asarray(labels, dtype=np.uint8)
    for name, array in ((f"{prefix}-images-idx3-ubyte", digits), (f"{prefix}-labels-idx1-ubyte", labels)):
        data = idx(array)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"])
def test_fashion_mnist_in_every_layout(tmp_path, digits, packed, layout):
    write_idx(tmp_path / layout, digits, [9, 2, 1, 1, 6, 1, 4], packed=packed)
    source = open_source("torchvision:fashion-mnist", root=tmp_path)
    assert source.ids[5] == "fashion-mnist/test/00005"
    assert source.labels == (9, 2, 1, 1, 6, 1, 4)
    assert source.class_names[0] == "T-shirt/top"
    assert np.array_equal(np.asarray(source[3].load())[..., 1], digits[3])
    assert np.array_equal(np.asarray(source.select([6])[0].load())[..., 2], digits[6])
    write_idx(tmp_path / "other", np.flip(digits, 0), range(7), packed=True)
    other = open_source("torchvision:fashion-mnist", root=tmp_path / "other")
    assert other.content() != source.content() == other.select(range(6, -1, -1)).content()


def test_splits_are_kept_apart(tmp_path, digits):
    write_idx(tmp_path, digits, range(7), packed=True, prefix="train")
    assert open_source("torchvision:mnist", root=tmp_path, split="train").ids[0] == "mnist/train/00000"
    assert open_source("torchvision:mnist", root=tmp_path, split="train").class_names == tuple("0123456789")
    with pytest.raises(SourceError, match=r"mnist \(test\) is not here"):
        open_source("torchvision:mnist", root=tmp_path)
    with pytest.raises(SourceError, match="no split 'val'"):
        open_source("torchvision:mnist", root=tmp_path, split="val")


def test_data_folder_of_the_environment(tmp_path, monkeypatch, digits):
    write_idx(tmp_path / "MNIST" / "raw", digits, range(7), packed=True)
    monkeypatch.setenv("DIFFSIGHT_DATA", str(tmp_path))
    assert len(open_source("torchvision:mnist")) == 7


def test_damaged_idx_files(tmp_path, digits):
    write_idx(tmp_path, digits, range(7), packed=True)
    images = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    raw = gzip.decompress(whole)
    for data in (
        whole[:-20],
        b"text",
        gzip.compress(raw[:-1]),
        gzip.compress(raw[:5]),
        gzip.compress(b"\0" * len(raw)),
    ):
        images.write_bytes(data)
        with pytest.raises(SourceError, match="t10k-images"):
            open_source("torchvision:mnist", root=tmp_path)
    write_idx(tmp_path, digits, range(6), packed=True)
    with pytest.raises(SourceError, match="7 test images but 6 labels"):
        open_source("torchvision:mnist", root=tmp_path)
    write_idx(tmp_path, digits, [0, 1, 2, 3, 4, 5, 10], packed=True)
    with pytest.raises(SourceError, match="label 10"):
        open_source("torchvision:mnist", root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "flowers102", "svhn", "fashion-mnist"])
def test_absent_data_say_where_and_how(tmp_path, name):
    with pytest.raises(SourceError) as failure:
        open_source(f"torchvision:{name}", root=tmp_path)
    message = str(failure.value)
    assert str(tmp_path) in message
    assert f"{str(tmp_path)!r}, " in message
    assert "download=True" in message
    assert "\n" not in message


def food(root):
    save(root / "food-101/images/apple_pie/1.jpg", 40)
    save(root / "food-101/images/hot_dog/2.jpg", 80)
    (root / "food-101/meta").mkdir()
    (root / "food-101/meta/test.json").write_text(json.dumps({"apple_pie": ["apple_pie/1"], "hot_dog": ["hot_dog/2"]}))
    return "food101", ("apple pie", "hot dog")


def pets(root):
    save(root / "oxford-iiit-pet/images/Abyssinian_1.jpg", 40)
    save(root / "oxford-iiit-pet/images/great_pyrenees_2.jpg", 80)
    (root / "oxford-iiit-pet/annotations").mkdir()
    (root / "oxford-iiit-pet/annotations/test.txt").write_text("Abyssinian_1 1 1 1\ngreat_pyrenees_2 2 2 1\n")
    return "pets", ("Abyssinian", "Great Pyrenees")


def aircraft(root):
    data = root / "fgvc-aircraft-2013b/data"
    save(data / "images/11.jpg", 40)
    save(data / "images/22.jpg", 80)
    (data / "variants.txt").write_text("707-320\nF/A-18\n")
    (data / "images_variant_test.txt").write_text("11 707-320\n22 F/A-18\n")
    return "aircraft", ("707-320", "F/A-18")


def dtd(root):
    data = root / "dtd/dtd"
    save(data / "images/banded/1.jpg", 40)
    save(data / "images/polka-dotted/2.jpg", 80)
    (data / "labels").mkdir()
    (data / "labels/test1.txt").write_text("banded/1.jpg\npolka-dotted/2.jpg\n")
    return "dtd", ("banded", "polka-dotted")


def eurosat(root):
    save(root / "eurosat/2750/AnnualCrop/1.jpg", 40)
    save(root / "eurosat/2750/Forest/2.jpg", 80)
    return "eurosat", ("annual crop land", "forest")


def cars(root):
    data = root / "stanford_cars"
    save(data / "cars_test/1.jpg", 40)
    save(data / "cars_test/2.jpg", 80)
    (data / "devkit").mkdir()
    names = np.array(["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"], dtype=object)
    scipy.io.savemat(data / "devkit/cars_meta.mat", {"class_names": names})
    write_cars(data, "1.jpg", "2.jpg")
    return "cars", tuple(names)


def write_cars(data, *files):
    rows = np.array([(file, number) for number, file in enumerate(files, 1)], dtype=[("fname", "O"), ("class", "O")])
    scipy.io.savemat(data / "cars_test_annos_withlabels.mat", {"annotations": rows})


@pytest.mark.parametrize("make", [food, pets, aircraft, dtd, eurosat, cars])
def test_torchvisions_sets_of_files(tmp_path, make):
    name, class_names = make(tmp_path)
    source = open_source(f"torchvision:{name}", root=tmp_path)
    assert source.ids == (f"{name}/test/00000", f"{name}/test/00001")
    assert source.labels == (0, 1)
    assert source.class_names[:2] == class_names
    assert abs(source[1].load().getpixel((2, 2))[0] - 80) < 4
    known = source.content()
    save(next(tmp_path.rglob("*2.jpg")), 81)
    assert source.content() != known
    assert source.content() == source.select([0, 1]).content() != source.select([1, 0]).content()


@pytest.mark.parametrize("make", [food, pets])
def test_a_damaged_image_of_a_set_is_one_image_error(tmp_path, make):
    name, _ = make(tmp_path)
    for path in tmp_path.rglob("*2.jpg"):
        path.write_text("text")
    source = open_source(f"torchvision:{name}", root=tmp_path)
    assert source[0].load().size == (5, 4)
    with pytest.raises(ImageError):
        source[1].load()


def test_cars_say_that_they_cannot_be_downloaded(tmp_path):
    with pytest.raises(SourceError, match=r"cars_test_annos_withlabels\.mat.*page is gone"):
        open_source("torchvision:cars", root=tmp_path)


@pytest.mark.parametrize("outside", ["../../secret.jpg", "/etc/secret.jpg", "../../stanford_cars2/2.jpg"])
def test_lists_of_a_set_may_not_leave_its_folder(tmp_path, outside):
    cars(tmp_path)
    write_cars(tmp_path / "stanford_cars", "1.jpg", outside)
    with pytest.raises(SourceError, match="outside of it"):
        open_source("torchvision:cars", root=tmp_path)


def test_a_set_that_is_incomplete(tmp_path):
    (tmp_path / "food-101").mkdir()
    with pytest.raises(SourceError, match="incomplete or damaged"):
        open_source("torchvision:food101", root=tmp_path)


def test_cifar_as_torchvision_reads_it(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels.reshape(2, -1), "labels": [1, 0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile"]}))
    # Only the sums of the real files are taken away.
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    source = open_source("torchvision:cifar10", root=tmp_path)
    assert source.class_names == ("airplane", "automobile")
    assert source.labels == (1, 0)
    assert np.array_equal(np.asarray(source[1].load()), pixels[1].transpose(1, 2, 0))
    assert source.content() != source.select([1, 0]).content()
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels[::-1].reshape(2, -1), "labels": [1, 0]}))
    assert open_source("torchvision:cifar10", root=tmp_path).content() == source.select([1, 0]).content()


def write_cifar(root, pixels, labels, *, name="cifar10", parts=("test_batch.bin",)):
    """The binary version as its authors give it away, with few images."""
    known = CIFAR[name]
    folder = root / known.folder
    folder.mkdir(exist_ok=True)
    labels = np.asarray(labels, dtype=np.uint8)[:, None]
    first = [labels] if name == "cifar10" else [labels // 5, labels]
    records = np.concatenate([*first, pixels.reshape(len(pixels), -1)], axis=1)
    for part, some in zip(parts, np.array_split(records, len(parts)), strict=True):
        (folder / part).write_bytes(some.tobytes())
    names = load_task(name).class_names
    (folder / known.names).write_text("\n".join(each.replace(" ", "_") for each in names) + "\n\n")
    return folder


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_without_pickle(tmp_path, pixels, name):
    test, train = (("test_batch.bin",), [f"data_batch_{n}.bin" for n in range(1, 6)])
    if name == "cifar100":
        test, train = ("test.bin",), ("train.bin",)
    write_cifar(tmp_path, pixels, range(7), name=name, parts=test)
    write_cifar(tmp_path, pixels[::-1], range(6, -1, -1), name=name, parts=train)
    source, other = (open_source(f"torchvision:{name}", root=tmp_path, split=split) for split in ("test", "train"))
    assert source.labels == other.labels[::-1] == tuple(range(7))
    assert source.ids[3] == f"{name}/test/00003"
    assert source.class_names == load_task(name).class_names
    assert np.array_equal(np.asarray(source[4].load()), pixels[4].transpose(1, 2, 0))
    assert source.content() == other.select(range(6, -1, -1)).content() != other.content()


def test_both_versions_of_cifar_are_the_same_source(tmp_path, pixels, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "python" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    labels = [3, 8, 8, 0, 6, 6, 1]
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels.reshape(7, -1), "labels": labels}))
    names = list(load_task("cifar10").class_names)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    write_cifar(tmp_path, pixels, labels)
    one, other = (open_source("torchvision:cifar10", root=root) for root in (tmp_path, tmp_path / "python"))
    assert one == other
    assert one.content() == other.content()
    assert one.fingerprint() == other.fingerprint()


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_foreign_pickle_is_not_opened(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TRAP", str(tmp_path / "caught"))
    folder = tmp_path / TORCHVISION[name].place
    folder.mkdir()
    for file in ("batches.meta", "meta", "test_batch", "test", "train", *(f"data_batch_{n}" for n in range(1, 6))):
        (folder / file).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(SourceError, match="incomplete or damaged"):
        open_source(f"torchvision:{name}", root=tmp_path)
    assert not (tmp_path / "caught").exists()


def test_damaged_binary_cifar(tmp_path, pixels):
    folder = write_cifar(tmp_path, pixels, range(7))
    whole = (folder / "test_batch.bin").read_bytes()
    names = (folder / "batches.meta.txt").read_bytes()
    for file, data, message in [
        ("test_batch.bin", whole[:-1], r"test_batch\.bin has 21,510 bytes, no multiple of 3,073"),
        ("test_batch.bin", b"", "has 0 bytes"),
        ("test_batch.bin", b"\x0a" + whole[1:], "image 0 has the label 10, and there are 10 classes"),
        ("batches.meta.txt", names.replace(b"airplane\n", b""), "has 9 class names, not 10"),
        ("batches.meta.txt", b"\xff", "no list of class names"),
    ]:
        kept = (folder / file).read_bytes()
        (folder / file).write_bytes(data)
        with pytest.raises(SourceError, match=message):
            open_source("torchvision:cifar10", root=tmp_path)
        (folder / file).write_bytes(kept)
    with pytest.raises(SourceError, match=r"data_batch_1\.bin is missing"):
        open_source("torchvision:cifar10", root=tmp_path, split="train")


def test_absent_cifar_can_be_had_without_pickle(tmp_path):
    with pytest.raises(SourceError, match=r"or unpack https://\S+cifar-100-binary\.tar\.gz there"):
        open_source("torchvision:cifar100", root=tmp_path)


@pytest.mark.parametrize("name", TORCHVISION)
def test_all_sets_say_where_they_keep_their_images(name):
    # Else their content could be known only by decoding all of it.
    from torchvision import datasets

    known = TORCHVISION[name]
    bases = [cls for cls in getattr(datasets, known.cls).__mro__ if cls.__module__.startswith("torchvision")]
    assert known.is_idx or name == "pcam" or f"self.{known.stored}" in "".join(map(inspect.getsource, bases))


def test_flower_names_are_fit_for_prompts():
    from torchvision.datasets import Flowers102

    renamed = TORCHVISION["flowers102"].renamed
    assert set(renamed) < set(Flowers102.classes)
    names = [renamed.get(name, name) for name in Flowers102.classes]
    assert len(set(names)) == 102
    assert not any("?" in name for name in names)


def test_digits_of_scikit_learn():
    from sklearn.datasets import load_digits

    whole, train, test = (open_source("sklearn:digits", split=split) for split in ("all", "train", "test"))
    assert (len(whole), len(train), len(test)) == (1797, 1442, 355)
    assert test.ids[7] == "digits/test/00007"
    assert test.class_names == tuple("0123456789")
    assert np.array_equal(np.asarray(whole[5].load())[..., 1], np.round(load_digits().images[5] * 255 / 16))
    assert np.asarray(whole[5].load()).max() == 255
    for source in (train, test):
        share = np.bincount(source.labels) / np.bincount(whole.labels)
        assert np.ptp(share) < 0.01
    pixels = [{sample.load().tobytes() for sample in source} for source in (whole, train, test)]
    assert pixels[0] == pixels[1] | pixels[2]
    assert len({source.content() for source in (whole, train, test)}) == 3
    with pytest.raises(SourceError, match="no split 'val'"):
        open_source("sklearn:digits", split="val")


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_of_debian(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSIGHT_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    source = open_source("torchvision:fashion-mnist")
    assert len(source) == 10_000
    assert source.labels[:5] == (9, 2, 1, 1, 6)
    assert np.bincount(source.labels).tolist() == [1000] * 10
    assert source[0].load().size == (28, 28)
