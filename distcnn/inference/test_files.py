"""The files of the test images of a data set."""

import logging
from pathlib import Path

from distcnn.config import DataConfig
from distcnn.data.folder import FolderSplit
from distcnn.data.sources import open_source
from distcnn.errors import DataError

log = logging.getLogger("distcnn")


def test_files_of(data: DataConfig, seed: int) -> list[Path]:
    """Returns the files of the test images, in the order in which they are evaluated.

    Args:
        data: The data section.
        seed: Seed of the test images, if they were drawn.

    Raises:
        DataError: There are no test images, or they are not files.
    """
    source = open_source(data, seed)
    where = data.place
    if source.division:
        log.info("%s", source.division)
    if source.test is None:
        raise DataError(f"{where} has no test images; name files or folders instead of --split")
    if not isinstance(source.test, FolderSplit):
        raise DataError(
            f"the images of {data.source} are not files; use distcnn evaluate, or name files"
        )
    return [Path(source.test.describe(index)) for index in range(len(source.test))]
