from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pathray.config.load import ABSENT, Group, fingerprint, list_differences, load_config
from pathray.errors import MissingFile, UserError
from pathray.fingerprint import added_field
from tests.builders.schemas import Data, Optimization, Plugin, Precision, Run, Runtime, Tuning, Vit

BUDGET = "optimization.total_images_budget=100"
GROUPS = (Group("platform", ""), Group("profile", "data"), Group("model", "model"))


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    root = tmp_path / "configs"
    files = {
        "profile/coarse.yaml": "context_mpp: 2.0\nseed: 5\n",
        "profile/fine.yaml": "context_mpp: 0.25\n",
        "model/small.yaml": "name: vit_small\n",
        "model/base.yaml": "name: vit_base\npatch_size: 14\n",
        "platform/gpu.yaml": "model: base\nruntime: {num_workers: 8}\n",
        "runs/smoke.yaml": f"{BUDGET.replace('=', ': ').replace('optimization.', 'optimization: {')}}}\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def load(configs: Path, *argv: str):
    return load_config(Run, argv, configs_dir=configs, groups=GROUPS)


def yaml_file(configs: Path, text: str, name: str = "run.yaml") -> str:
    path = configs.parent / name
    path.write_text(text)
    return str(path)


# ---- layers


def test_layers_win_in_order_defaults_group_config_files_command_line(configs):
    first = yaml_file(configs, "data: {context_mpp: 3.0, seed: 7}\nrun_name: first\n", "a.yaml")
    second = yaml_file(configs, "run_name: second\n", "b.yaml")
    config = load(configs, BUDGET, "profile=coarse", "--config", first, f"--config={second}", "data.seed=9").config
    assert config.data == Data(context_mpp=3.0, seed=9)
    assert config.run_name == "second"
    assert config.optimization.lr == 2e-4
    assert isinstance(config.model, Vit)


def test_a_file_later_on_the_line_wins_although_a_key_stands_before_it(configs):
    path = yaml_file(configs, "data: {seed: 7}\n")
    assert load(configs, BUDGET, "data.seed=9", "--config", path).config.data.seed == 9


def test_a_group_can_be_chosen_in_a_config_file_and_the_command_line_wins(configs):
    path = yaml_file(configs, f"profile: coarse\n{BUDGET.replace('=', ': ')}\n")
    assert load(configs, "--config", path).config.data == Data(context_mpp=2.0, seed=5)
    assert load(configs, "--config", path, "profile=fine").config.data == Data(context_mpp=0.25)


def test_a_group_typed_after_a_config_file_wins_over_it_and_says_what_it_replaces(configs):
    path = yaml_file(configs, "data: {context_mpp: 3.0, seed: 5}\n")
    loaded = load(configs, BUDGET, "--config", path, "profile=coarse")
    assert loaded.config.data == Data(context_mpp=2.0, seed=5)
    assert loaded.notes == [f"profile=coarse replaces data.context_mpp=3.0 of {path}"], "the seed is the same"
    other = load(configs, BUDGET, "profile=coarse", "--config", path)
    assert other.config.data.context_mpp == 3.0 and other.notes == []
    assert load(configs, BUDGET, "data.context_mpp=9", "--config", path, "profile=coarse").config.data.context_mpp == 9


def test_a_group_settles_its_section_by_what_its_file_alone_says(configs):
    def settle(section, alone) -> None:
        seen.append((section.context_mpp, alone.context_mpp, alone.seed))
        section.seed = 99

    seen: list = []
    groups = (Group("profile", "data", settle),)
    loaded = load_config(Run, [BUDGET, "profile=coarse", "data.context_mpp=1"], configs_dir=configs, groups=groups)
    assert seen == [(1.0, 2.0, 5)] and loaded.config.data.seed == 99 and "seed: 99" in loaded.yaml
    assert load_config(Run, [BUDGET], configs_dir=configs, groups=groups).config.data == Data()


def test_a_value_beside_a_group_choice_in_the_same_file_wins_over_the_group(configs):
    path = yaml_file(configs, f"profile: coarse\ndata: {{context_mpp: 4}}\n{BUDGET.replace('=', ': ')}\n")
    assert load(configs, "--config", path).config.data == Data(context_mpp=4.0, seed=5)


def test_a_groups_name_addresses_its_mount_on_the_command_line_and_in_files(configs):
    path = yaml_file(configs, "profile: {seed: 3}\n")
    config = load(configs, BUDGET, "--config", path, "profile.context_mpp=2.5").config
    assert config.data == Data(context_mpp=2.5, seed=3)


def test_a_group_whose_name_is_its_mount_takes_a_choice_and_overrides(configs):
    config = load(configs, BUDGET, "model=base", "model.patch_size=8").config
    assert config.model == Vit(name="vit_base", patch_size=8)


def test_a_root_group_reaches_the_whole_config_and_chooses_later_groups(configs):
    config = load(configs, BUDGET, "platform=gpu").config
    assert (config.runtime.num_workers, config.model.name) == (8, "vit_base")
    assert load(configs, BUDGET, "platform=gpu", "model=small").config.model == Vit(name="vit_small")


def test_a_group_can_be_a_path(configs):
    path = yaml_file(configs, "context_mpp: 8.0\n", "mine.yaml")
    assert load(configs, BUDGET, f"profile={path}").config.data.context_mpp == 8.0


def test_a_shipped_run_is_found_by_its_name(configs):
    assert load(configs, "--config", "runs/smoke").config.optimization.total_images_budget == 100


def test_interpolation_reaches_other_keys_and_the_environment(configs, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", "/data")
    path = yaml_file(configs, "data: {cache_dir: '${oc.env:DATA_ROOT}/cache', seed: 4}\nrun_name: run-${data.seed}\n")
    loaded = load(configs, BUDGET, "--config", path, "data.context_mpp=${optimization.lr}")
    assert loaded.config.data == Data(cache_dir="/data/cache", seed=4, context_mpp=2e-4)
    assert (loaded.config.run_name, loaded.config.output) == ("run-4", "out/4")
    assert "${" not in loaded.yaml


def test_lists_take_indexes_and_whole_values(configs):
    config = load(
        configs, BUDGET, "tuning.plugins=[{kind: a}, {kind: b}]", "tuning.plugins[1].every_n_evals=3",
        "optimization.ema=[0.9, 1]", "optimization.ema[0]=0.5", "model.size=[96, 96]",
    ).config  # fmt: skip
    assert config.tuning == Tuning(plugins=[Plugin("a"), Plugin("b", every_n_evals=3)])
    assert config.optimization.ema == [0.5, 1.0]
    assert config.model.size == (96, 96)


def test_an_optional_section_opens_with_its_defaults(configs):
    assert load(configs, BUDGET).config.tuning is None
    assert load(configs, BUDGET, "tuning.tune_every=5").config.tuning == Tuning(tune_every=5)


def test_a_section_left_empty_in_a_file_keeps_its_defaults(configs):
    path = yaml_file(configs, "data:\n#  seed: 3\n")
    assert load(configs, BUDGET, "--config", path).config.data == Data()


def test_free_mappings_merge_and_values_of_any_type_pass(configs):
    path = yaml_file(configs, "data: {weights: {breast: 2, a.b: 1}}\nextra: {epochs: 3}\n")
    config = load(configs, BUDGET, "--config", path, "data.weights.colon=0.5").config
    assert config.data.weights == {"breast": 2.0, "a.b": 1.0, "colon": 0.5}
    assert config.extra == {"epochs": 3}


def test_a_string_key_keeps_the_text_as_typed(configs):
    for text in ("007", "1e3", "yes", "2024-01-02"):
        assert load(configs, BUDGET, f"run_name={text}").config.run_name == text
    assert load(configs, BUDGET, "run_name='a b'").config.run_name == "a b"
    assert load(configs, BUDGET, "data.mask_path=null").config.data.mask_path is None
    assert load(configs, BUDGET, "run_name=gs://b/x?y=1").config.run_name == "gs://b/x?y=1"


def test_scientific_notation_enums_and_literals_convert(configs):
    config = load(configs, BUDGET, "optimization.lr=1e-4", "optimization.precision=bf16", "data.policy=skip_slide")
    assert config.config.optimization.lr == 1e-4
    assert config.config.optimization.precision is Precision.bf16
    assert config.config.data.policy == "skip_slide"


def test_the_resolved_yaml_gives_the_same_config_again(configs):
    loaded = load(configs, BUDGET, "tuning.plugins=[{kind: a}]", "extra={a: [1, 2]}", "data.weights.x=1", "model=base")
    again = load_config(Run, ["--config", yaml_file(configs, loaded.yaml)], configs_dir=configs)
    assert again.config == loaded.config
    assert again.yaml == loaded.yaml


def test_flags_and_sources_are_reported(configs):
    loaded = load(configs, BUDGET, "--dry-run", "--print-config", "profile=fine")
    assert (loaded.dry_run, loaded.print_config) == (True, True)
    assert loaded.sources == ["profile=fine", BUDGET]


# ---- errors


def failing(configs: Path, *argv: str) -> UserError:
    with pytest.raises(UserError) as info:
        load(configs, BUDGET, *argv)
    return info.value


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("data.sed=1", "data.seed"),
        ("dta.seed=1", "data.seed"),
        ("data.lr=1", "optimization.lr"),
        ("profil=coarse", "profile"),
        ("tuning.plugins[0].kindd=a", "tuning.plugins[0].kind"),
        ("profile.contxt_mpp=1", "data.context_mpp"),
        ("data.seed.x=1", "data.seed is int and has no subkeys"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_right_name(configs, argument, nearest):
    error = failing(configs, argument)
    assert error.where["file"] == "command line"
    assert error.where["expected"] == nearest


def test_a_misspelt_key_names_the_file_it_stood_in(configs):
    good = yaml_file(configs, "data: {seed: 1}\n", "good.yaml")
    bad = yaml_file(configs, "data: {contxt_mpp: 1}\n", "bad.yaml")
    error = failing(configs, "--config", good, "--config", bad)
    assert error.where["file"] == bad
    assert error.where["key"] == "data.contxt_mpp"
    (configs / "profile/fine.yaml").write_text("sead: 1\n")
    assert str(configs / "profile/fine.yaml") in str(failing(configs, "profile=fine"))


def test_a_key_unlike_any_other_lists_its_neighbours(configs):
    assert failing(configs, "model.zzz=1").where["expected"] == "one of model.name, model.patch_size, model.size"


@pytest.mark.parametrize(
    ("argument", "key", "expected"),
    [
        ("data.seed=abc", "data.seed", "int"),
        ("data.seed=1.5", "data.seed", "int"),
        ("data.seed=null", "data.seed", "int"),
        ("data.policy=skip", "data.policy", "one of skip_anchor, skip_slide"),
        ("optimization.bf16=perhaps", "optimization.bf16", "bool"),
        ("optimization.precision=fp8", "optimization.precision", "one of fp32, bf16"),
        ("optimization.ema=[a]", "optimization.ema", "list of float"),
        ("data.weights={a: b}", "data.weights.a", "float"),
        ("data=[1]", "data", "a section with context_mpp, policy, weights, seed, cache_dir, mask_path"),
        ("tuning.plugins=[{every_n_evals: x}]", "tuning.plugins[0].every_n_evals", "int"),
    ],
)
def test_a_wrong_type_names_key_found_and_expected(configs, argument, key, expected):
    error = failing(configs, argument)
    assert (error.where["key"], error.where["expected"]) == (key, expected)
    assert error.where["found"] is not None or "null" in argument


def test_a_list_index_that_is_not_there_is_refused(configs):
    assert failing(configs, "tuning.plugins[0].kind=a").where["key"] == "tuning.plugins[0]"
    assert failing(configs, "optimization.ema[2]=1").where["key"] == "optimization.ema[2]"


def test_an_open_required_key_is_named(configs):
    with pytest.raises(UserError, match="optimization.total_images_budget"):
        load(configs)


def test_missing_files_and_group_choices_list_what_there_is(configs):
    with pytest.raises(MissingFile, match="runs/smoke"):
        load(configs, "--config", "runs/smoek")
    with pytest.raises(MissingFile, match="one of coarse, fine"):
        load(configs, "profile=corse")


@pytest.mark.parametrize("text", ["- a\n- b\n", "data: {seed: 1\n", "data: {seed: 1}\ndata: {seed: 2}\n"])
def test_a_file_that_is_no_mapping_is_refused_with_its_name(configs, text):
    path = yaml_file(configs, text)
    assert str(failing(configs, "--config", path).where["file"]) == path


@pytest.mark.parametrize("value", ["${data.nope}", "${oc.env:SURELY_NOT_SET}", "${nope:1}", "${run_name}"])
def test_a_bad_interpolation_names_its_key_and_source(configs, value):
    error = failing(configs, f"data.seed={value}", "run_name=text")
    assert (error.where["key"], error.where["file"]) == ("data.seed", "command line")


@pytest.mark.parametrize("word", ["--manifest-csv", "--config", "data.seed", "-x"])
def test_an_argument_of_another_shape_is_refused(configs, word):
    assert "key=value" in str(failing(configs, word)) or "run.yaml" in str(failing(configs, word))


def test_a_user_error_of_post_init_comes_through(configs):
    with pytest.raises(UserError, match="the budget is not positive"):
        load(configs, "optimization.total_images_budget=-1")


# ---- help


def test_help_shows_keys_defaults_comments_and_groups(configs, capsys):
    with pytest.raises(SystemExit) as info:
        load(configs, "--help")
    text = capsys.readouterr().out
    assert info.value.code == 0
    assert "data.context_mpp: float = 1.0   # micrometres per pixel of the context" in text
    assert "optimization.total_images_budget: int   REQUIRED   # images until the end of training" in text
    assert "* runtime.num_workers: int = 1" in text
    assert "* data.cache_dir: str = /tmp/cache" in text
    assert "tuning.plugins: list of a section with kind, manifest_csv, every_n_evals = []" in text
    assert "profile=coarse|fine|FILE.yaml   merged into data" in text
    assert "runs/smoke" in text


def test_loading_a_config_imports_neither_torch_nor_ray():
    slow = "{'torch', 'ray', 'numpy', 'pandas'}"
    code = f"import pathray.config.load, pathray.config.help, sys; print({slow} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# ---- fingerprints


def full(**changes) -> Run:
    return Run(optimization=Optimization(total_images_budget=100), **changes)


def test_identity_leaves_out_placement_and_what_is_nested_in_it():
    identity = fingerprint(full())["values"]
    where = fingerprint(full(), placement=True)["values"]
    assert "data.cache_dir" not in identity and "runtime.num_workers" not in identity
    assert where == {
        "data.cache_dir": "/tmp/cache", "runtime.num_workers": 1, "runtime.threads": 2, "output": "out/${data.seed}",
    }  # fmt: skip
    assert not identity.keys() & where.keys()


def test_a_placement_change_keeps_the_hash_and_an_identity_change_does_not():
    assert fingerprint(full())["hash"] == fingerprint(full(runtime=Runtime(num_workers=7)))["hash"]
    assert fingerprint(full())["hash"] != fingerprint(full(data=Data(seed=1)))["hash"]


@dataclass
class Later(Data):
    loss: str = added_field("plain")


def test_a_field_that_was_added_later_is_left_out_of_the_fingerprint_at_its_default():
    assert fingerprint(Later()) == fingerprint(Data())
    assert fingerprint(Later(loss="huber"))["values"] == fingerprint(Data())["values"] | {"loss": "huber"}


def test_the_hash_is_sha256_of_canonical_json():
    import hashlib

    text = '{"context_mpp":1,"mask_path":null,"policy":"skip_anchor","seed":0,"weights.é":0.1}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert fingerprint(Data(weights={"é": 0.1}))["hash"] == expected


def test_lists_tuples_and_whole_floats_mean_the_same(configs):
    a = full(model=Vit(size=(96, 96)), data=Data(context_mpp=1))
    b = load(configs, BUDGET, "model.size=[96, 96]", "data.context_mpp=1.0").config
    assert fingerprint(a)["hash"] == fingerprint(b)["hash"]
    assert fingerprint(a)["values"]["model.size"] == [96, 96]


def test_the_hash_is_the_same_in_another_process():
    code = "from tests.pathray.config.test_load import *; print(fingerprint(full())['hash'])"
    root = Path(__file__).parents[3]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == fingerprint(full())["hash"]


def test_differing_names_keys_with_old_and_new():
    a, b = fingerprint(full()), fingerprint(full(data=Data(seed=3), tuning=Tuning(plugins=[Plugin("a")])))
    assert list_differences(a, b) == [
        ("data.seed", 0, 3),
        ("tuning", None, ABSENT),
        ("tuning.plugins[0].every_n_evals", ABSENT, 1),
        ("tuning.plugins[0].kind", ABSENT, "a"),
        ("tuning.plugins[0].manifest_csv", ABSENT, ""),
        ("tuning.tune_every", ABSENT, 1000),
    ]
    assert list_differences(a, a) == []


@pytest.mark.parametrize(
    ("science", "key", "meant"),
    [
        ("ijepath", "optimization.learning_rate", "optimization.lr"),
        ("ijepath", "optimization.max_grad_norm", "optimization.clip_grad"),
        ("ijepath", "data.num_workers", "data.threads"),
        ("ijepath", "data.tile_px", "data.patch_size"),
        ("ijepath", "optimization.epochs", "optimization.total_images_budget"),
        ("ijepath", "optimization.lrr", "optimization.lr"),
        ("adios", "learning_rate", "lr"),
        ("adios", "tile_px", "patch_size"),
        ("regression", "train.gradient_accumulation_steps", "train.grad_accum_steps"),
        ("regression", "train.precision", "train.amp"),
    ],
)
def test_a_key_that_other_projects_use_is_told_by_its_meaning(science, key, meant):
    from importlib import import_module

    from pathray.config.schema import nearest_key, split_key

    schema = import_module(f"{science}.config").RunConfig
    assert meant in nearest_key(schema, split_key(key)).split(" or ")


@pytest.mark.parametrize(
    "key", ["patch_size", "tile_px", "data.patch_px", "image_size", "size_px", "patch_px", "tile_size"]
)
@pytest.mark.parametrize(
    ("job", "schema", "meant"),
    [
        ("extract_features", "ExtractConfig", "tile_px"),
        ("cut_patches", "CutPatchesConfig", "size"),
        ("spatial_patches", "SpatialPatchesConfig", "patch_px"),
        ("pretrain_ijepath", "PretrainConfig", "data.patch_size"),
        ("pretrain_adios", "PretrainAdiosConfig", "data.patch_px"),
        ("train_regression", "TrainRegressionConfig", "data.image_size"),
    ],
)
def test_names_of_a_patchs_size_suggest_each_other_and_never_the_size_of_a_batch(job, schema, meant, key):
    import importlib

    from pathray.config.schema import keys_of, nearest_key, split_key

    module = importlib.import_module(f"ray_jobs.{job}")
    config = getattr(module, schema)
    if key not in [known for known, _, _ in keys_of(config)]:
        assert meant in nearest_key(config, split_key(key)).split(" or ")


def test_a_size_of_patches_is_no_misspelt_size_of_batches():
    from pathray.config.schema import nearest_key
    from ray_jobs.nuclei_benchmark import NucleiConfig

    assert nearest_key(NucleiConfig, ["patch_size"]).startswith("one of ")
    assert nearest_key(NucleiConfig, ["batchsize"]) == "batch_size"
