"""GeoTIFF files as EuroSAT's are: 64 × 64 pixels of 10 m in a zone of UTM, 13 channels of 16 bits."""

from PIL.TiffImagePlugin import ImageFileDirectory_v2


def write_geotiff(path, east, north, *, zone=33, system=None, leave_out=()):
    """A file whose upper left corner is there; Pillow cannot write 13 channels, so that it holds the tags alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    directory = ImageFileDirectory_v2()
    step = 0.0001 if system == 4326 else 10.0
    geographic = system == 4326
    key = (2048 if geographic else 3072, 0, 1, system or 32600 + zone)
    tags = {
        256: (4, 64),
        257: (4, 64),
        258: (3, (16,) * 13),
        277: (3, 13),
        33550: (12, (step, step, 0.0)),
        33922: (12, (0.0, 0.0, 0.0, float(east), float(north), 0.0)),
        34735: (3, (1, 1, 0, 3, 1024, 0, 1, 2 if geographic else 1, 1026, 34737, 7, 0, *key)),
    }
    for tag, (kind, value) in tags.items():
        if tag not in leave_out:
            directory.tagtype[tag] = kind
            directory[tag] = value
    with path.open("wb") as file:
        directory.save(file)
    return path
