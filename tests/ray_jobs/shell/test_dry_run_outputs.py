"""What an output should be is said before the work begins."""

import pytest

from pathray.errors import UserError
from ray_jobs import doctor
from ray_jobs.build_anchors import BuildAnchorsConfig
from ray_jobs.index_slides import IndexSlidesConfig
from tests.builders.slides import write_slide


@pytest.mark.parametrize("given", ["{0}", "{0}/", "{0}/new/"])
def test_a_folder_where_a_file_is_written_is_refused_with_an_example(tmp_path, given):
    output = given.format(tmp_path)
    with pytest.raises(UserError, match=r"key: output.*slides\.parquet"):
        IndexSlidesConfig(manifest="m.csv", output=output)
    with pytest.raises(UserError, match=r"key: output.*anchor_catalog_manifest\.json"):
        BuildAnchorsConfig(slide_index="i.parquet", output=output)


def test_the_doctor_takes_a_folder_of_slides(tmp_path):
    for name in ("a", "b"):
        write_slide(tmp_path / f"{name}.tif", width=300, height=200, seed=1)
    assert doctor._slides(str(tmp_path)) == [f"{tmp_path}/a.tif", f"{tmp_path}/b.tif"]
    assert doctor._slides(f"{tmp_path}/a.tif") == [f"{tmp_path}/a.tif"]
