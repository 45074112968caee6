import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from geotiffs import write_geotiff
from PIL import Image

from diffsight.data.eurosat import BUFFER, CELL, divide, find_places
from diffsight.data.geotiff import place_of, write_places
from diffsight.data.sources import open_source
from diffsight.data.spatial import RADIUS
from diffsight.data.torchvision_sets import TORCHVISION
from diffsight.errors import SourceError

FOLDERS = TORCHVISION["eurosat"].folders
PER_CLASS = 24
TIFFS = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"


def patches():
    """Stem, and zone, east and north of its corner: pairs of neighbours in towns 60 km apart, in two zones of UTM."""
    for label, folder in enumerate(FOLDERS):
        for number in range(PER_CLASS):
            town, side = divmod(number, 2)
            yield f"{folder}/{folder}_{number + 1}", 32 + town % 2, 4e5 + label * 640, 5e6 + town * 6e4 + side * 640


@pytest.fixture
def root(tmp_path):
    for number, (stem, *_) in enumerate(patches()):
        path = tmp_path / "eurosat" / "2750" / f"{stem}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(path)
    return tmp_path


@pytest.fixture
def located(root):
    for stem, zone, east, north in patches():
        write_geotiff(root / "eurosat" / TIFFS / f"{stem}.tif", east, north, zone=zone)
    # Files that only the GeoTIFFs have are no matter.
    write_geotiff(root / "eurosat" / TIFFS / "SeaLake" / "Elsewhere_1.tif", 5e5, 5e6)
    return root


def points(source, places):
    lon, lat = np.radians([places[id.rpartition("/")[2].removesuffix(".jpg")] for id in source.ids]).T
    return RADIUS * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def test_parts_by_cells_lie_apart(located, caplog):
    with caplog.at_level("INFO"):
        train, test = (open_source("spatial:eurosat-cells", root=located, split=split) for split in ("train", "test"))
    assert {*train.ids}.isdisjoint(test.ids)
    assert len(train) + len(test) <= 10 * PER_CLASS
    assert test.name == "spatial:eurosat-cells/test"
    assert test.class_names == TORCHVISION["eurosat"].names
    assert all(FOLDERS[label] == id.partition("/")[0] for id, label in zip(test.ids, test.labels, strict=True))
    places = find_places(located / "eurosat")
    apart = np.linalg.norm(points(train, places)[:, None] - points(test, places)[None], axis=-1)
    assert apart.min() > BUFFER
    assert set(test.labels) == set(train.labels) == set(range(10))
    assert f"{len(test)} to test with in" in caplog.text
    assert "of each class" in caplog.text
    assert "(AnnualCrop)" in caplog.text or "(SeaLake)" in caplog.text
    assert test[0].load().size == (8, 8)
    again = open_source("spatial:eurosat-cells", root=located)
    assert (again.fingerprint(), again.content()) == (test.fingerprint(), test.content())


def test_neighbours_stay_together(located):
    test = set(open_source("spatial:eurosat-cells", root=located).ids)
    for folder in FOLDERS:
        for town in range(PER_CLASS // 2):
            pair = [f"{folder}/{folder}_{2 * town + side}.jpg" for side in (1, 2)]
            assert len(test.intersection(pair)) != 1


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_does_as_well_as_the_files(located, form):
    by_files = open_source("spatial:eurosat-cells", root=located)
    home = located / "eurosat"
    write_places(home / TIFFS, home / "places.csv")
    for path in (home / TIFFS).rglob("*.tif"):
        path.unlink()
    if form == "parquet":
        names = ("id", "lon", "lat")
        rows = [(f"{id}.tif", *place) for id, place in find_places(home).items()]
        (home / "places.csv").unlink()
        pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), home / "places.parquet")
    by_table = open_source("spatial:eurosat-cells", root=located)
    assert by_table.ids == by_files.ids


@pytest.mark.parametrize("name", ["EuroSAT_MS", "EuroSATallBands", "tif"])
def test_geotiffs_in_other_folders(root, name):
    for stem, zone, east, north in patches():
        path = write_geotiff(root / "eurosat" / name / f"{stem}.tif", east, north, zone=zone)
    assert find_places(root / "eurosat")[path.stem] == place_of(path)


def test_without_places_it_says_what_is_needed(root):
    with pytest.raises(SourceError) as failure:
        open_source("spatial:eurosat-cells", root=root)
    message = str(failure.value)
    for part in ("EuroSATallBands.zip", "places.csv", "id, lon, lat", "write_places", "eurosat-spatial"):
        assert part in message
    assert "\n" not in message


def test_places_that_are_missing_or_wrong(located):
    home = located / "eurosat"
    write_places(home / TIFFS, home / "places.csv")
    whole = (home / "places.csv").read_text()
    for text, message in [
        (whole.replace("River_3,", "Rhine_3,"), r"1 of 240 images have no place \('River_3', …\)"),
        (whole.replace("id,lon,lat", "id,x,y"), "has no column 'lon'"),
        (whole + "River_3,1,2\n", "line 243: 'River_3' is there already"),
        (whole + "River_99,east,2\n", "line 243: longitude and latitude must be numbers"),
        (whole + "River_99,181,2\n", "line 243: .*no longitude"),
        (whole + "River_99,nan,2\n", "line 243: .*no longitude"),
        (whole + "River_99,1\n", "line 243: not 3 cells"),
    ]:
        (home / "places.csv").write_text(text)
        with pytest.raises(SourceError, match=message):
            open_source("spatial:eurosat-cells", root=located)


def test_images_of_one_cell_cannot_be_divided(root):
    for stem, _, east, _ in patches():
        write_geotiff(root / "eurosat" / "tif" / f"{stem}.tif", east, 5e6)
    with pytest.raises(SourceError, match=f"lie in 1 cells of {CELL:g} km.*takes all of EuroSAT"):
        open_source("spatial:eurosat-cells", root=root)


def test_published_lists(root):
    home = root / "eurosat"
    home.joinpath("eurosat-spatial-test.txt").write_text("River_2.jpg\nAnnualCrop_5.jpg\n")
    home.joinpath("eurosat-spatial-train.txt").write_text("River_1.jpg\n\nForest_24.jpg")
    test, train = (open_source("spatial:eurosat", root=root, split=split) for split in ("test", "train"))
    assert test.ids == ("AnnualCrop/AnnualCrop_5.jpg", "River/River_2.jpg")
    assert test.labels == (0, 8)
    assert train.ids == ("Forest/Forest_24.jpg", "River/River_1.jpg")
    with pytest.raises(SourceError, match=r"eurosat-spatial-val\.txt is missing.*torchgeo/eurosat"):
        open_source("spatial:eurosat", root=root, split="val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"River_2.jpg\nRhine_1.jpg\n", "line 2 names 'Rhine_1.jpg', and there is no such image"),
        (b"River_2.jpg\nRiver_2.jpg\n", "line 2 names 'River_2.jpg' again"),
        (b"\n", "names no image"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_lists_that_do_not_fit(root, text, message):
    (root / "eurosat" / "eurosat-spatial-test.txt").write_bytes(text)
    with pytest.raises(SourceError, match=message):
        open_source("spatial:eurosat", root=root)


def test_unknown_sets_splits_and_folders(root, tmp_path):
    with pytest.raises(SourceError, match="Did you mean 'eurosat"):
        open_source("spatial:eurosat-cell", root=root)
    with pytest.raises(SourceError, match="no split 'val'"):
        open_source("spatial:eurosat-cells", root=root, split="val")
    with pytest.raises(SourceError, match=r"looked for .*2750.*unpack EuroSAT\.zip"):
        open_source("spatial:eurosat", root=tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="Did you mean 'spatial:eurosat-cells'"):
        open_source("eurosat-cells")
    (root / "eurosat" / "2750" / "Sea").mkdir()
    Image.new("RGB", (8, 8)).save(root / "eurosat" / "2750" / "Sea" / "Sea_1.jpg")
    for uri in ("spatial:eurosat", "torchvision:eurosat"):
        with pytest.raises(SourceError, match="class folder 'Sea'"):
            open_source(uri, root=root)


def test_the_division_is_what_it_was(located):
    """Another division would be another task: then its version has to be raised."""
    whole = open_source(f"folder:{located / 'eurosat' / '2750'}")
    divided = divide(whole.ids, whole.labels, located / "eurosat" / "2750")
    towns = {(int(re.findall(r"_(\d+)\.jpg", whole.ids[place])[0]) - 1) // 2 for place in divided.test}
    assert (towns, divided.cells, len(divided.train)) == ({3, 5}, (12, 2), 200)


def test_a_missing_folder_does_not_move_labels(tmp_path):
    for folder in ("River", "SeaLake"):
        path = tmp_path / "eurosat" / "2750" / folder / f"{folder}_1.jpg"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
    source = open_source("torchvision:eurosat", root=tmp_path)
    assert source.labels == (8, 9)
    assert [source.class_names[label] for label in source.labels] == ["river", "lake or sea"]
