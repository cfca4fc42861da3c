"""What the settings accept, how they are given, and what they refuse."""
import dataclasses
import json
from pathlib import Path

import pytest
from presets import PRESETS

from config import Config
from runtime.commandline import parse_args


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_args(list(argv))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_defaults_are_the_sizes_of_the_paper():
    cfg = parse_args([])
    assert cfg == Config()
    assert (cfg.exp, cfg.downscale, cfg.latent_size) == ("paper", 4, (40, 48, 40))


def test_published_preset_sets_back_what_the_default_changed_and_nothing_else():
    default, published = Config(), parse_args(["--preset", "published"])
    changed = {f.name for f in dataclasses.fields(Config) if getattr(default, f.name) != getattr(published, f.name)} - {"exp"}
    assert changed == {"prediction", "label_at_sampling", "latent_scaling", "aae_output_norm", "samples_per_scan",
                       "sampler", "precision", "validation_steps", "latent_channels", "aae_block_norm", "aae_lr_decay", "time_shift",
                       "conditioning", "label_predictor", "image_loss"}
    assert (published.prediction, published.label_dropout, published.label_at_sampling) == ("eps", 0.0, "none")


def test_a_value_beats_a_preset_and_a_later_preset_an_earlier_one():
    cfg = parse_args(["--preset", "demo", "published", "--aae_epochs", "3", "--latent_scaling", "true", "--unet_mults", "1", "2"])
    assert (cfg.aae_epochs, cfg.latent_scaling, cfg.unet_mults, cfg.prediction) == (3, True, (1, 2), "eps")
    assert cfg.volume_size == PRESETS["demo"]["volume_size"]
    assert cfg.exp == "demo_published"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_run_whose_folder_is_its_own(preset):
    assert parse_args(["--preset", preset]).exp == {"benchmark": "phantom_benchmark"}.get(preset, preset)


@pytest.mark.parametrize("exp", ["tables", "benchmark", "study"])
def test_folders_that_all_experiments_share_are_no_experiment(capsys, exp):
    assert f"exp '{exp}' is a folder of result/" in refused(capsys, "--exp", exp)


def test_help_explains_every_field_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(["--help"])
    assert stop.value.code == 0
    text = "".join(capsys.readouterr().out.split())        # help breaks lines at hyphens too
    for field in dataclasses.fields(Config):
        assert f"--{field.name}" in text
        assert "".join(field.metadata["help"].split()) in text
    assert text.count("(default:") == len(dataclasses.fields(Config))


def test_unknown_setting_names_the_nearest(capsys):
    assert "unknown setting --aae_epoch; did you mean --aae_epochs" in refused(capsys, "--aae_epoch", "3")


@pytest.mark.parametrize(("argv", "expected"), [
    (["--volume_size", "162", "192", "160"], "volume_size (162, 192, 160) must be divisible by 4, because aae_channels has 3 levels"),
    (["--volume_size", "164", "192", "160"], "must be divisible by 8, because unet_mults has 4 levels"),
    (["--volume_size", "16", "32", "32"], "must be at least 32 along each axis, because disc_channels has 4 layers"),
    (["--crop_start", "30", "18", "10"], "the crop [30, 190) with crop_jitter 2 leaves the image_size (181, 217, 181)"),
    (["--aae_channels", "8", "16"], "aae_channels (8, 16) must be divisible by the 16 groups"),
    (["--unet_channels", "20"], "unet_channels and its multiples (20, 20, 40, 40, 80) must be divisible by the 32 groups"),
    (["--unet_attention_levels", "4"], "unet_attention_levels (4,) must be below the 4"),
    (["--label_dropout", "1.5"], "label_dropout 1.5 must be between 0.0 and 1.0"),
    (["--aae_epochs", "0"], "aae_epochs 0 must be at least 1"),
    (["--aae_lr", "nan"], "aae_lr nan must be between"),
    (["--sampler", "euler"], "invalid choice: 'euler'"),
    (["--latent_scaling", "maybe"], "'maybe' is neither true nor false"),
    (["--sampling_steps", "1000"], "sampling_steps 1000 must be at most timesteps - 1 = 999"),
    (["--exp", "../up"], "exp '../up' must be a plain folder name"),
    (["--subject_pattern", "("], "is no regular expression"),
    (["--time_dim", "7"], "time_dim 7 must be even"),
    (["--preset", "huge"], "invalid choice: 'huge'"),
    (["--aae_channels"], "aae_channels must not be empty"),
    (["--unet_channels", "16", "--unet_mults", "2", "4"], "unet_channels and its multiples (16, 32, 64) must be divisible by the 32"),
    (["--seed", "4294967296"], "seed 4294967296 must be between 0 and 4294967295"),
    (["--validation_every", "3"], "ldm_epochs 1000 must be a multiple of validation_every 3"),
    (["--preset", "demo", "--phantom_voxel", "2"], "image_size (45, 54, 45) must be (90, 108, 90), the phantom's at phantom_voxel 2"),
    (["--phantom_subjects", "5", "5", "5"], "give the phantom another, such as --data_dir data/phantom"),
    (["--phantom_subjects", "5", "0", "5"], "phantom_subjects (5, 0, 5) must be at least 2 in each list"),
])
def test_settings_that_cannot_work_are_refused_with_the_reason(capsys, argv, expected):
    assert expected in refused(capsys, *argv)


def test_all_wrong_settings_are_listed_at_once(capsys):
    message = refused(capsys, "--aae_epochs", "0", "--seed", "-1", "--ema_decay", "2")
    for part in ("3 problem(s)", "aae_epochs", "seed", "ema_decay"):
        assert part in message


@pytest.mark.parametrize("default", [{"aae_epochs": "3"}, {"latent_scaling": 1}, {"volume_size": [160, 192, 160]},
                                     {"volume_size": (160, 192)}, {"seed": 1.5}, {"sampler": ("ddim",)}])
def test_a_default_edited_to_another_type_is_refused(default):
    with pytest.raises(ValueError, match=next(iter(default))):
        Config(**default)


def test_the_lists_of_a_phantom_lie_beside_its_volumes():
    assert parse_args(["--preset", "demo", "--data_dir", "data/other"]).info_folder == Path("data/other/data_info")
    assert parse_args(["--info_dir", "lists"]).info_folder == Path("lists")


def test_json_holds_every_setting_of_an_experiment_and_the_versions():
    saved = json.loads(Config(stages=("synthesize",), mri="a.nii", out="b", overwrite=True).to_json())
    assert {f.name for f in dataclasses.fields(Config)} - saved["settings"].keys() >= {"mri", "out", "overwrite"}
    assert saved["settings"].keys() >= {"exp", "seed", "data_dir", "phantom_seed", "aae_lr", "ldm_lr", "sampler", "cortex_mask"}
    assert saved["settings"]["volume_size"] == [160, 192, 160]
    assert {"il_cldm", "python", "torch"} <= saved["versions"].keys()


def test_a_checkpoint_is_bound_to_what_changes_its_training_only():
    fixed = Config().fixed_settings("aae")
    assert {"seed", "lambda_rec", "volume_size", "phantom_link"} <= fixed.keys()
    assert not {"device", "num_workers", "exp", "stages", "data_dir", "subject_pattern", "aae_epochs", "ldm_lr", "sampler"} & fixed.keys()
    assert "ldm_lr" in Config().fixed_settings("ldm")
