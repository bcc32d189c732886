"""One small labelled data set for all tests of this folder."""

from pathlib import Path

import pytest

from tests.builders.oct.labelled import write_labelled, write_oct_encoder


@pytest.fixture(scope="package")
def labelled(tmp_path_factory) -> Path:
    """Twelve persons with both eyes, volumes.parquet, tables of labels, and `encoder`."""
    folder = tmp_path_factory.mktemp("labelled")
    write_labelled(folder)
    write_oct_encoder(folder / "encoder")
    return folder
