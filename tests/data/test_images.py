import io
import threading
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from diffsight.data.images import ImageLimits, ImageTransform, images_from, open_image
from diffsight.errors import ImageError, InputError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(width=6, height=4):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def as_float(image):
    return torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1)


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_lossless_files_come_back_exactly(tmp_path, form, options):
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(encode(picture(), form, **options))
    assert np.array_equal(open_image(path), picture())
    assert np.array_equal(open_image(str(path)), picture())
    assert np.array_equal(open_image(path.read_bytes()), picture())


def test_all_forms_of_an_image_agree():
    pixels = np.asarray(picture())
    for form in (
        pixels,
        pixels / 255,
        pixels.astype(np.uint16) * 257,
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
    ):
        assert np.array_equal(open_image(form), pixels)
    assert np.array_equal(open_image(as_float(picture())), pixels)
    assert np.array_equal(open_image(picture()), pixels)


def test_half_precision_tensors():
    image = open_image(torch.tensor([[[0.0, 0.5, 1.0]]], dtype=torch.bfloat16))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
def test_grey_arrays_have_three_equal_channels(shape):
    grey = np.arange(24, dtype=np.uint8).reshape(shape)
    assert np.array_equal(open_image(grey), np.repeat(grey.reshape(4, 6, 1), 3, 2))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(form):
    deep = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    image = open_image(encode(Image.fromarray(deep), form))
    assert np.array_equal(np.asarray(image)[..., 0], np.round(deep / 257))


def tiff(deep, **tags):
    data = bytearray(encode(Image.fromarray(deep), "TIFF"))
    for tag, value in tags.items():
        number = {"photometric": 262, "bits": 258}[tag]
        at = data.index(number.to_bytes(2, "little") + b"\3\0\1\0\0\0")
        data[at + 8 : at + 10] = value.to_bytes(2, "little")
    return bytes(data)


def test_tiff_where_zero_is_white():
    deep = np.array([[0, 257 * 55, 65535]], dtype=np.uint16)
    assert np.asarray(open_image(tiff(deep, photometric=0)))[0, :, 0].tolist() == [255, 200, 0]


def test_twelve_bits_are_scaled_to_their_own_white():
    packed = np.frombuffer(bytes([0xFF, 0xF0, 0x00, 0x80, 0x00, 0x00, 0x00, 0x00]), np.uint16).reshape(1, 4)
    assert np.asarray(open_image(tiff(packed, bits=12)))[0, :, 0].tolist() == [255, 0, 128, 0]


def test_float_files_are_scaled():
    image = open_image(encode(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), "TIFF"))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "values", [np.array([[0.0, 200.0]], np.float32), np.array([[0, 70000]], np.int32), np.array([[-5, 9]], np.int32)]
)
def test_values_without_a_known_white_are_refused(values):
    with pytest.raises(ImageError, match="values from"):
        open_image(encode(Image.fromarray(values), "TIFF"))


def test_cmyk_keeps_its_colours():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixel = np.asarray(open_image(encode(cmyk, "JPEG", quality=100)))[4, 4]
    assert np.abs(pixel.astype(int) - RED).max() < 8


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (4, 4), (255, 0, 0, 0)),
        Image.new("LA", (4, 4), (0, 0)),
    ],
)
def test_transparent_is_white(image):
    assert open_image(encode(image, "PNG")).getpixel((1, 1)) == WHITE


def test_half_transparent_is_mixed_with_white():
    grey = Image.new("LA", (4, 4), (0, 51))
    assert open_image(encode(grey, "PNG")).getpixel((0, 0)) == (204, 204, 204)
    assert open_image(np.full((4, 4, 4), (0, 0, 0, 51), np.uint8)).getpixel((0, 0)) == (204, 204, 204)


def test_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    opened = open_image(encode(image, "PNG", transparency=0))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [WHITE, BLUE]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert open_image(data).getpixel((3, 3)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(form, orientation):
    corner = Image.new("RGB", (64, 32))
    corner.paste(WHITE, (0, 0, 16, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose of what undoes each orientation.
    stored = corner.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encode(stored, form, exif=exif))
    assert image.size == (64, 32)
    assert image.getpixel((5, 5))[0] > 200
    assert max(image.getpixel(xy)[0] for xy in ((60, 5), (5, 28), (60, 28))) < 50


def test_opening_twice_turns_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(), "PNG", exif=exif)
    once = open_image(data)
    assert once.size == (4, 6)
    assert np.array_equal(open_image(once), once)
    assert np.array_equal(open_image(Image.open(io.BytesIO(data))), once)


def test_the_given_image_is_left_alone():
    image = picture()
    image.info["note"] = "mine"
    opened = open_image(image)
    opened.putpixel((0, 0), RED)
    assert image.info == {"note": "mine"}
    assert np.array_equal(image, picture())


def png_bomb(width, height):
    def chunk(kind, body):
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 12_000, 60_000])
def test_decompression_bomb(side):
    with pytest.raises(ImageError, match="pixels"):
        open_image(png_bomb(side, side))


def test_limits_are_the_callers():
    data = encode(Image.new("RGB", (20, 20)), "PNG")
    with pytest.raises(ImageError, match="20×20 = 400 pixels, over the limit of 399"):
        open_image(data, limits=ImageLimits(max_pixels=399))
    with pytest.raises(ImageError, match="bytes, over the limit of 10"):
        open_image(data, limits=ImageLimits(max_bytes=10))
    with pytest.raises(ImageError, match="too thin"):
        open_image(np.zeros((1, 101), np.uint8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_truncated(tmp_path, form):
    data = encode(picture(64, 64), form)
    path = tmp_path / "cut.png"
    for keep in (len(data) // 2, len(data) // 5, 12):
        path.write_bytes(data[:keep])
        with pytest.raises(ImageError, match=r"cut\.png"):
            open_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "not a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"%PDF-1.7", "not a JPEG"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, reason):
    path = tmp_path / "note.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"note\.png.*{reason}"):
        open_image(path)


def test_formats_that_are_not_allowed():
    with pytest.raises(ImageError, match="not a JPEG"):
        open_image(encode(picture(), "PPM"))


def test_paths_that_are_no_files(tmp_path):
    for path, reason in ((tmp_path / "no.png", "does not exist"), (tmp_path, "folder"), ("/dev/zero", "regular file")):
        with pytest.raises(ImageError, match=reason):
            open_image(path)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture(), "PNG"))

    # Permissions do not bind root, under whom tests often run.
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(ImageError, match=r"a\.png.*Permission denied"):
        open_image(path)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((2, 2), np.nan), "NaN"),
        (np.full((2, 2), np.inf), "infinite"),
        (np.full((2, 2), 1.5), "divide by 255"),
        (np.full((2, 2), -1.0), r"\(x \+ 1\) / 2"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4, 2), np.uint8), r"\(H, W, C\)"),
        (np.zeros((4,), np.uint8), r"shape \(4,\)"),
        (torch.zeros(5, 4, 3), r"\(C, H, W\)"),
        (torch.zeros(4, 4, dtype=torch.bool), "bool"),
    ],
)
def test_bad_arrays(array, reason):
    with pytest.raises(ImageError, match=reason):
        open_image(array)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]), st.data())
def test_damaged_bytes_give_an_image_or_an_image_error(form, data):
    damaged = bytearray(encode(picture(16, 16), form))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = open_image(bytes(damaged), limits=ImageLimits(max_pixels=10_000))
    except ImageError:
        return
    assert image.mode == "RGB"


def test_threads_leave_no_warning_filter_behind():
    import warnings

    data = encode(picture(), "PNG")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [open_image(data) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


@pytest.mark.parametrize("size", [(37, 90), (90, 37), (33, 33), (32, 47), (20, 31)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_shortest_is_torchvisions(size, interpolation):
    reference = Compose(
        [
            Resize(32, interpolation=InterpolationMode(interpolation)),
            CenterCrop(32),
            ToTensor(),
            Normalize([0.5], [0.5]),
        ]
    )
    image = picture(*size)
    got = ImageTransform(size=32, interpolation=interpolation)(image)
    torch.testing.assert_close(got, reference(image), atol=1e-6, rtol=0)


def test_adm_halves_with_boxes_first():
    # Blocks of 4×4 of one value: two halvings are exact, and nothing is left to interpolate.
    small = np.random.default_rng(1).integers(0, 256, (10, 16, 3), dtype=np.uint8)
    image = Image.fromarray(small.repeat(4, 0).repeat(4, 1))
    got = ImageTransform(size=10, resize="adm")(image)
    assert torch.equal(got, ImageTransform(size=10)(Image.fromarray(small[:, 3:13])))


def test_crop_first_sees_only_the_centre_square():
    image = Image.new("RGB", (30, 10), RED)
    image.paste(GREEN, (10, 0, 20, 10))
    assert np.unique(ImageTransform(size=5, resize="crop_first")(image).flatten(1), axis=1).T.tolist() == [[-1, 1, -1]]


def test_squash_keeps_the_edges():
    image = Image.new("RGB", (30, 10), RED)
    image.paste(BLUE, (15, 0, 30, 10))
    got = ImageTransform(size=10, resize="squash", interpolation="box")(image)
    assert got[:, 0, 0].tolist() == [1, -1, -1]
    assert got[:, 0, -1].tolist() == [-1, -1, 1]


@pytest.mark.parametrize("resize", ["shortest", "adm", "crop_first", "squash"])
@given(width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 40), pad=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_any_image_gives_the_same_shape(resize, width, height, size, pad):
    transform = ImageTransform(size=size, resize=resize, pad=pad)
    got = transform(picture(width, height))
    assert got.shape == (3, transform.output_size, transform.output_size)
    assert got.dtype == torch.float32
    assert got.abs().max() <= 1


def test_padding_repeats_the_edge():
    got = ImageTransform(size=4, pad=2)(picture(4, 4))
    inner = ImageTransform(size=4)(picture(4, 4))
    assert torch.equal(got[:, 2:-2, 2:-2], inner)
    assert torch.equal(got, torch.nn.functional.pad(inner, (2, 2, 2, 2), mode="replicate"))


def test_grayscale():
    grey = ImageTransform(size=4, grayscale=True)(picture(4, 4))
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    already = open_image(np.arange(16, dtype=np.uint8).reshape(4, 4))
    assert torch.equal(ImageTransform(size=4, grayscale=True)(already), ImageTransform(size=4)(already))


def test_transform_survives_its_dictionary():
    transform = ImageTransform(size=28, resize="adm", interpolation="box", pad=2, grayscale=True)
    assert ImageTransform.from_dict(transform.to_dict()) == transform
    assert ImageTransform.from_dict({"size": 64}) == ImageTransform(size=64)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"size": 0}, "size"),
        ({"size": 8, "pad": -1}, "pad"),
        ({"size": True}, "size"),
        ({"size": 8, "resize": "shortes"}, "shortest"),
        ({"size": 8, "interpolation": "nearest"}, "unknown interpolation"),
        ({"sise": 8}, "'size'"),
        ({}, "size"),
    ],
)
def test_transform_refuses(bad, reason):
    with pytest.raises(InputError, match=reason):
        ImageTransform.from_dict(bad)


class Pairs(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], 7


def test_every_form_of_a_batch(tmp_path):
    pixels = np.stack([np.asarray(picture()), 255 - np.asarray(picture())])
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    paths = []
    for index, image in enumerate(pixels):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(image).save(paths[-1])
    mixed = [paths[0], pixels[1]]
    forms = [
        pixels,
        tensor,
        tensor / 255,
        paths,
        np.array(list(map(str, paths))),
        mixed,
        iter(mixed),
        Pairs(list(pixels)),
        TensorDataset(tensor),
    ]
    for form in forms:
        images = images_from(form)
        assert len(images) == 2
        assert np.array_equal(np.stack([np.asarray(image) for image in images]), pixels)
        assert np.array_equal(images[-1], pixels[1])


@pytest.mark.parametrize("one", [picture(), np.asarray(picture()), np.zeros((4, 6), np.uint8), as_float(picture())])
def test_one_image_is_a_batch_of_one(one):
    images = images_from(one)
    assert len(images) == 1
    assert images[0].size == (6, 4)


def test_batch_of_grey_arrays():
    assert images_from(np.zeros((3, 4, 6), np.uint8))[2].size == (6, 4)


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path):
    good = tmp_path / "good.png"
    picture().save(good)
    images = images_from([good, tmp_path / "gone.png", good])
    assert images[0].size == (6, 4)
    assert images[2].size == (6, 4)
    with pytest.raises(ImageError, match=r"X\[1\].*gone\.png.*does not exist"):
        list(images)


def test_a_bad_element_is_named():
    with pytest.raises(ImageError, match=r"X\[1\] is a NoneType"):
        images_from([picture(), None])
    with pytest.raises(ImageError, match=r"X\[1\].*NaN"):
        list(images_from([picture(), np.full((2, 2), np.nan)]))
    with pytest.raises(ImageError, match=r"X\[0\].*\[0, 1\]"):
        images_from(torch.full((2, 3, 4, 4), -1.0))[0]


def test_a_failing_dataset_is_an_image_error():
    class Broken(Pairs):
        def __getitem__(self, index):
            raise RuntimeError("disk on fire")

    with pytest.raises(ImageError, match=r"X\[0\].*disk on fire"):
        list(images_from(Broken([1, 2])))


@pytest.mark.parametrize(
    "bad", [[], np.zeros((0, 4, 4, 3)), 3, {"a": 1}, torch.zeros(2, 5, 4), torch.zeros(1, 1, 3, 4, 4)]
)
def test_what_is_no_batch_of_images(bad):
    with pytest.raises(InputError):
        images_from(bad)


def test_index_out_of_range():
    with pytest.raises(IndexError):
        images_from([picture()])[1]
