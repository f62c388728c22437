from pathlib import Path

import pytest

from tests.data.samples import encoded, pixels


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch) -> Path:
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setenv("KERAS_HOME", str(home / "keras"))
    return home


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Two classes, mixed sizes, formats and modes: 6 + 6 training, 2 + 2 test images."""
    root = tmp_path / "images"
    kinds = [
        ("a.jpg", "JPEG", None),
        ("b.JPEG", "JPEG", "L"),
        ("c.png", "PNG", "RGBA"),
        ("d.bmp", "BMP", None),
        ("e.webp", "WEBP", None),
        ("f.gif", "GIF", None),
    ]
    for part, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number, (file, image_format, mode) in enumerate(kinds[:count]):
                array = pixels(9 + number, 14 - number, seed=10 * label + number)
                (folder / file).write_bytes(encoded(array, image_format, mode))
    return root
