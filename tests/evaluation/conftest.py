import pytest
from PIL import Image


@pytest.fixture(scope="session")
def folders(tmp_path_factory, pictures):
    """The pictures as files, in a folder for each of their four kinds."""
    folder = tmp_path_factory.mktemp("folders")
    for i, picture in enumerate(pictures):
        (folder / f"kind{i % 4}").mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"kind{i % 4}" / f"{i}.png")
    return folder
