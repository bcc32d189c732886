"""What a pretraining job says before it begins. Starts no Ray."""

import pyarrow as pa
import pytest

from ijepath.config import CONFIGS_DIR, GROUPS
from pathray.config.load import fingerprint, load_config
from pathray.errors import UserError
from ray_jobs.pretrain_ijepath import JOB, PretrainConfig, _check_inputs, resolve_config
from ray_jobs.train import pretraining
from ray_jobs.train.ijepath_inputs import coarse_slides_note, remote_advice
from ray_jobs.train.training_jobs import cpus_of


def config(*words):
    base = ("output=run", "data.slide_manifest_csv=s.csv", "optimization.total_images_budget=100")
    return load_config(PretrainConfig, (*base, *words), configs_dir=CONFIGS_DIR, groups=GROUPS).config


@pytest.mark.parametrize(
    ("prefix", "slides", "words", "advised"),
    [
        ("gs://b/", 200, (), True),
        ("/disk/", 200, (), False),
        ("gs://b/", 20, (), False),
        ("gs://b/", 200, ("data.slide_window=4096",), False),
    ],
)
def test_many_slides_in_a_bucket_in_random_order_are_advised_of(prefix, slides, words, advised):
    sources = pa.table({"wsi_path": [f"{prefix}{i}.svs" for i in range(slides)]})
    advice = remote_advice(config(*words), sources)
    assert ("200 slides" in advice and "data.slide_window" in advice) if advised else advice == ""


def test_tuning_on_a_dataset_that_is_not_there_is_refused_before_slides_are_looked_at(tmp_path):
    missing = f"tuning.plugins[0].datasets.camelyon.manifest_csv={tmp_path / 'patches.csv'}"
    with pytest.raises(UserError, match="patches.csv"):
        _check_inputs(config("--config", "pathorob_camelyon", missing))
    with pytest.raises(UserError, match=r"tuning\.plugins\[0\]\.datasets\.camelyon\.manifest_csv"):
        _check_inputs(config("--config", "pathorob_camelyon"))


def test_evaluations_are_counted_among_the_cpus_that_a_run_takes():
    assert cpus_of(config("--config", "pathorob_camelyon")) == cpus_of(config()) + 1.0


def test_slides_of_an_older_catalog_that_are_enlarged_are_named():
    spacings = {"slide_id": ["fine", "bound", "coarse"], "source_context_mpp": [0.25, 1.0, 28.97]}
    sources = pa.table(spacings | {"source_target_mpp": [0.25, 1.0, 28.97]})  # contexts of 1.0, targets of 0.5 µm
    said = coarse_slides_note(config(), sources)
    assert said.startswith("1 of 3 slides") and "coarse" in said and "bound" not in said
    assert coarse_slides_note(config("max_enlargement=60"), sources) == ""


def test_a_run_that_is_resumed_keeps_the_name_of_its_profile_where_the_geometry_is_the_same(monkeypatch):
    now = config("profile=ctx1p0_tgt0p5_fov512um_k4", "data.context_fov_um=256", "data.target_fov_um=64")
    assert now.data.profile_id == "ctx1p0_tgt0p5_fov256um_k4"
    then = fingerprint(now)["values"] | {"data.profile_id": "ctx1p0_tgt0p5_fov512um_k4"}
    monkeypatch.setattr("ray_jobs.pretrain_ijepath.recorded_identity", lambda config: then)
    assert resolve_config(now, 100).data.profile_id == "ctx1p0_tgt0p5_fov512um_k4", "it was begun under that name"
    then["data.context_fov_um"] = 512
    assert resolve_config(now, 100).data.profile_id == "ctx1p0_tgt0p5_fov256um_k4", "it was begun with another profile"


def test_more_passes_over_the_anchors_than_were_asked_for_are_told(tmp_path, monkeypatch, caplog):
    from ijepath.plan import build_plan
    from tests.builders.runs.run import KEYS, index_and_catalog, write_cohort

    catalog = index_and_catalog(tmp_path, write_cohort(tmp_path / "cohort", slides=1))
    plan = build_plan(catalog, str(tmp_path / "plan"))
    monkeypatch.setattr(pretraining, "train_job", lambda *args, **more: None)
    monkeypatch.setattr(pretraining, "fit", lambda job: None)
    own = ("optimization.total_images_budget={epochs: 1}", f"output={tmp_path}/run")
    for batch, told in ((4, False), (2 * plan.rows, True)):
        words = (*KEYS, *own, f"optimization.global_batch={batch}")
        run = load_config(PretrainConfig, words, configs_dir=CONFIGS_DIR, groups=GROUPS).config
        pretraining.train(JOB, run, plan)
        assert (f"2 passes over the {plan.rows:,} training units instead of 1" in caplog.text) == told
