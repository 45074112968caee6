import csv

import pytest
from geotiffs import write_geotiff
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from diffsight.data.geotiff import from_utm, place_of, places_of, write_places
from diffsight.errors import SourceError


@pytest.mark.parametrize(
    ("system", "east", "north", "lon", "lat"),
    [  # by pyproj 3.7.2
        (32631, 448251.795, 5411932.678, 2.294499997, 48.858200003),
        (32633, 699960.0, 5000040.0, 17.542631357, 45.125524883),
        (32629, 300000.0, 4100020.0, -11.248374592, 37.025095637),
        (32635, 834000.0, 7400000.0, 34.532401454, 66.537489165),
        (32733, 266000.0, 6240000.0, 12.467763973, -33.954497221),
        (32633, 500000.0, 0.0, 15.0, 0.0),
    ],
)
def test_zones_of_utm(system, east, north, lon, lat):
    found = from_utm(east, north, zone=system % 100, south=system // 100 == 327)
    assert found == pytest.approx((lon, lat), abs=8e-9)  # a millimetre


def test_the_place_is_the_middle_of_the_patch(tmp_path):
    corner = write_geotiff(tmp_path / "a.tif", 699960, 5000040)
    assert place_of(corner) == pytest.approx(from_utm(699960 + 320, 5000040 - 320, zone=33), abs=1e-12)
    degrees = write_geotiff(tmp_path / "b.tif", 10.0, 50.0, system=4326)
    assert place_of(degrees) == pytest.approx((10.0032, 49.9968))
    south = write_geotiff(tmp_path / "c.tif", 266000, 6240000, system=32733)
    assert place_of(south)[1] < -33


@pytest.mark.parametrize("big", [False, True])
def test_files_with_pixels(tmp_path, big):
    tags = ImageFileDirectory_v2()
    tags[33550], tags[33922] = (10.0, 10.0, 0.0), (0.0, 0.0, 0.0, 699960.0, 5000040.0, 0.0)
    tags.tagtype |= {33550: 12, 33922: 12, 34735: 3}
    tags[34735] = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)
    Image.new("I;16", (64, 64), 1200).save(tmp_path / "a.tif", tiffinfo=tags, big_tiff=big, compression="tiff_lzw")
    assert place_of(tmp_path / "a.tif") == place_of(write_geotiff(tmp_path / "b.tif", 699960, 5000040))


def test_what_has_no_place_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.tif")
    Image.new("RGB", (4, 4)).save(tmp_path / "jpeg.jpg")
    (tmp_path / "text.tif").write_text("text")
    (tmp_path / "empty.tif").write_bytes(b"")
    whole = write_geotiff(tmp_path / "cut.tif", 0, 0).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    for name, reason in [
        ("plain.tif", "does not say where it lies"),
        ("jpeg.jpg", "damaged or no TIFF"),
        ("text.tif", "damaged or no TIFF"),
        ("empty.tif", "damaged or no TIFF"),
        ("cut.tif", "does not say where it lies"),
        ("absent.tif", "is missing"),
    ]:
        with pytest.raises(SourceError, match=reason) as failure:
            place_of(tmp_path / name)
        assert name in str(failure.value)
    for tag in (256, 33550, 33922, 34735):
        with pytest.raises(SourceError, match="does not say where it lies"):
            place_of(write_geotiff(tmp_path / "part.tif", 500000, 5000000, leave_out={tag}))
    with pytest.raises(SourceError, match=r"EPSG:3035.*Give a table with the columns id, lon, lat"):
        place_of(write_geotiff(tmp_path / "other.tif", 4321000, 3210000, system=3035))
    with pytest.raises(SourceError, match="which is nowhere"):
        place_of(write_geotiff(tmp_path / "far.tif", 200.0, 50.0, system=4326))


def test_a_folder_becomes_a_table(tmp_path):
    for number in range(3):
        write_geotiff(
            tmp_path / "tif" / f"Class{number % 2}" / f"Class{number % 2}_{number}.tif", 5e5, 5e6 + number * 640
        )
    (tmp_path / "tif" / "Class0" / "notes.txt").write_text("text")
    (tmp_path / "tif" / "Class0" / "._Class0_0.tif").write_text("of a Mac")
    assert write_places(tmp_path / "tif", tmp_path / "places.csv") == 3
    with (tmp_path / "places.csv").open() as file:
        rows = list(csv.DictReader(file))
    known = places_of(tmp_path / "tif")
    assert {row["id"] for row in rows} == {*known} == {"Class0_0", "Class1_1", "Class0_2"}
    for row in rows:
        assert (float(row["lon"]), float(row["lat"])) == pytest.approx(known[row["id"]], abs=1e-6)


def test_folders_of_no_use(tmp_path):
    folder = tmp_path / "tif"
    folder.mkdir()
    with pytest.raises(SourceError, match="no file that ends in"):
        places_of(folder)
    write_geotiff(folder / "a" / "one.tif", 5e5, 5e6)
    write_geotiff(folder / "b" / "one.tif", 5e5, 5e6)
    with pytest.raises(SourceError, match=r"Two files below .* are called 'one'"):
        places_of(folder)
    (folder / "b" / "one.tif").unlink()
    (folder / "b" / "two.tif").symlink_to(write_geotiff(tmp_path / "secret.tif", 5e5, 5e6))
    with pytest.raises(SourceError, match="is a link out of"):
        places_of(folder)
