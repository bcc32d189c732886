"""The plan of an index: which volumes, in which order, and where; its identity does not depend on where they are."""

import pickle
import shutil

import pytest

from oct.plan import build_plan, identity, locations, manifest_spacing, relocate
from pathray.data.plan import Plan
from pathray.errors import MissingFile, UserError
from tests.builders.oct.scans import Scan, both_eyes, index_scans

SCANS = [
    *both_eyes("2", device="zeiss_cirrus"),
    *both_eyes("1"),
    Scan("3", exclusion="circular"),
    Scan("4", sources=("manifest", "manifest", "root"), size=(5, 16, 24)),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return index_scans(tmp_path_factory.mktemp("oct"), SCANS)


def test_a_plan_has_the_accepted_volumes_by_device_and_path(index, tmp_path):
    plan = build_plan(index.path, str(tmp_path / "plan"))
    assert plan.rows == 5 and plan.column("source").tolist() == [0, 1, 2, 3, 4]
    assert plan.sources["person"].to_pylist() == ["1", "1", "4", "2", "2"]
    assert locations(plan)[0] == f"{index.root}/{SCANS[3].path}"
    assert plan.sources.column_names[0] == "path" and plan.sources["frames"].to_pylist() == [8, 8, 5, 8, 8]
    source = plan.sources.to_pylist()[2]
    assert manifest_spacing(source) == (0.1, 0.01, None)
    assert pickle.loads(pickle.dumps(plan)).hash == plan.hash


def test_the_identity_of_a_plan_does_not_depend_on_its_root(tmp_path):
    first = build_plan(index_scans(tmp_path / "a", SCANS).path, str(tmp_path / "one"))
    other = build_plan(index_scans(tmp_path / "b", SCANS).path, str(tmp_path / "two"))
    assert identity(first) == identity(other)
    assert locations(first)[0] != locations(other)[0] and first.meta["root"] != other.meta["root"]


def test_the_identity_of_a_plan_does_not_depend_on_the_order_of_the_manifest(index, tmp_path):
    other = index_scans(tmp_path / "b", SCANS[::-1])
    one, two = (build_plan(i.path, str(tmp_path / str(n))) for n, i in enumerate((index, other)))
    assert identity(one) == identity(two)


@pytest.mark.parametrize(
    "other",
    [
        SCANS[:-1],
        [*SCANS[:-1], Scan("4", sources=("manifest", "manifest", "root"), size=(6, 16, 24))],
        [*SCANS[:-1], Scan("4", sources=("manifest", "root", "root"), size=(5, 16, 24))],
        [*SCANS[:-1], Scan("4", sources=("manifest", "manifest", "root"), size=(5, 16, 24), spacing_mm=(0.1, 0.1, 1))],
    ],
    ids=["fewer", "size", "source", "spacing"],
)
def test_the_identity_of_a_plan_covers_which_volumes_their_sizes_and_spacings(index, tmp_path, other):
    plan = build_plan(index.path, str(tmp_path / "plan"))
    assert identity(plan) != identity(build_plan(index_scans(tmp_path / "b", other).path, str(tmp_path / "other")))


def test_a_moved_data_set_is_found_below_its_new_root(index, tmp_path):
    plan = build_plan(index.path, str(tmp_path / "plan"))
    shutil.copytree(index.root, tmp_path / "moved")
    moved = relocate(plan, str(tmp_path / "moved"), str(tmp_path / "plan2"))
    assert locations(moved) == [path.replace(index.root, str(tmp_path / "moved")) for path in locations(plan)]
    assert identity(moved) == identity(plan) and moved.units_hash == plan.units_hash
    assert relocate(plan, index.root, plan.origin) is plan
    at_once = build_plan(index.path, str(tmp_path / "plan3"), root="memory://bucket/oct")
    assert locations(at_once)[0] == f"memory://bucket/oct/{SCANS[3].path}" and identity(at_once) == identity(plan)


def test_devices_persons_and_paths_select_volumes(index, tmp_path):
    def persons(**selection):
        plan = build_plan(index.path, str(tmp_path / "plan"), **selection)
        return plan.sources["person"].to_pylist()

    assert persons(devices=["zeiss_cirrus"]) == ["2", "2"]
    assert persons(persons={"4", "2", "99"}) == ["4", "2", "2"]
    assert persons(paths=[SCANS[0].path, SCANS[2].path]) == ["1", "2"]
    assert persons(devices=["topcon_triton"], persons={"1", "2"}) == ["1", "1"]


def test_a_selection_of_nothing_says_what_there_is(index, tmp_path):
    out = str(tmp_path / "plan")
    with pytest.raises(UserError, match="no volume has one of the persons") as error:
        build_plan(index.path, out, devices=["zeiss_cirrus"], persons={"1"})
    assert error.value.where["expected"] == "2 zeiss_cirrus of 1 persons"
    with pytest.raises(UserError, match="no volume has this value"):
        build_plan(index.path, out, devices=["topcon_maestro2"])
    with pytest.raises(UserError, match="not an accepted volume") as error:
        build_plan(index.path, out, paths=[SCANS[0].path, SCANS[4].path])
    assert f"{SCANS[4].path} (circular)" in str(error.value)
    with pytest.raises(MissingFile):
        build_plan(str(tmp_path / "gone.parquet"), out)
    assert not (tmp_path / "plan").exists()


def test_a_published_plan_opens_with_its_checks(index, tmp_path):
    build_plan(index.path, str(tmp_path / "plan"))
    assert Plan.open(tmp_path / "plan", verify=True).meta["kind"] == "oct-volumes"
