"""What the tests of faults share: photographs, a whole run of them, and the mark of the slow ones for `make faults`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="session")
def photos(tmp_path_factory, pictures) -> Path:
    """A folder of 48 images of two sizes, so that they are read from the disk in every epoch."""
    folder = tmp_path_factory.mktemp("faults") / "photos"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        wider = np.concatenate([picture, picture[:, : number % 2]], axis=1)
        Image.fromarray(wider).save(folder / f"{number:02d}.png")
    return folder
