"""Settings: what they accept, how they are given, what they refuse, and what a result is bound to."""
import dataclasses
import json
from pathlib import Path

import pytest

import main
from config import PRESETS, PUBLISHED, Config
from runtime.commandline import parse

ABOUT = "Trains and tests."

# The published method, written down from its description alone and not from config.py.
PAPER = {"seed": 0, "precision": "fp32", "image_size": (181, 217, 181), "crop_start": (10, 18, 10),
         "volume_size": (160, 192, 160), "crop_jitter": 2, "num_classes": 2, "aae_channels": (16, 32, 64),
         "latent_channels": 1, "aae_norm_groups": 16, "aae_output_norm": True, "aae_block_norm": True,
         "disc_channels": (16, 32, 64, 128), "lambda_rec": 100.0, "aae_lr": 1e-4, "aae_lr_decay": False,
         "aae_betas": (0.5, 0.999), "aae_batch_size": 2, "aae_epochs": 1000, "unet_channels": 128,
         "unet_mults": (1, 2, 2, 4), "unet_res_blocks": 2, "unet_attention_levels": (),
         "unet_norm_groups": 32, "time_dim": 128, "timesteps": 1000, "beta": (1e-4, 0.02),
         "zero_terminal_snr": False, "prediction": "eps", "min_snr": 0.0, "time_shift": 1.0,
         "image_loss": 0.0, "conditioning": "input", "latent_scaling": False, "label_in_training": "true",
         "shuffle_labels": False, "ldm_lr": 1e-4, "ldm_lr_decay": False, "ldm_batch_size": 2,
         "ldm_epochs": 1000, "ema_decay": 0.9999, "ema_start": 2000, "validation_every": 1, "sampler": "ddpm",
         "samples_per_scan": 1, "label_at_sampling": "none"}
# not ddpm: 999 evaluations a scan and epoch
VALIDATION = {"validation_sampler": "ddim", "validation_steps": 50}
REGIONS = {"cortex_mask": "cortex.nii.gz", "reference_mask": "cerebellum.nii.gz"}


def parse_config(*argv: str) -> Config:
    """The settings that main.py reads from these words."""
    return parse(Config, list(argv), "main.py", ABOUT, PRESETS)


def refused(capsys, *argv: str) -> str:
    """The message with which these words are refused."""
    with pytest.raises(SystemExit) as stop:
        parse_config(*argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def sections() -> dict[str, list[str]]:
    """Title of each group of settings -> their names."""
    groups, title = {}, ""
    for field in dataclasses.fields(Config):
        title = field.metadata["section"] or title
        groups.setdefault(title, []).append(field.name)
    return groups


# ---------------------------------------------------------------- defaults and presets

def test_defaults_are_the_sizes_of_the_paper():
    cfg = parse_config()
    assert cfg == Config()
    assert (cfg.exp, cfg.downscale, cfg.latent_size) == ("default", 4, (40, 48, 40))


def test_there_are_at_most_80_settings():
    assert len(dataclasses.fields(Config)) <= 80


@pytest.mark.parametrize("more",
                         [(), ("--cortex_mask", "cortex.nii.gz", "--reference_mask", "cerebellum.nii.gz")])
def test_published_preset_is_the_published_method(more):
    published = parse_config("--preset", "published", *more)
    expected = PAPER | VALIDATION
    assert {name: getattr(published, name) for name in expected} == expected


def test_published_preset_sets_back_what_the_default_changed_and_nothing_else():
    default, published = Config(**REGIONS), Config(**REGIONS, **PUBLISHED)
    changed = {
        field.name
        for field in dataclasses.fields(Config)
        if getattr(default, field.name) != getattr(published, field.name)
    }
    assert changed == PUBLISHED.keys()
    assert changed == {name for name in PAPER if getattr(default, name) != PAPER[name]} | {"validation_steps"}
    assert {name: (PAPER | VALIDATION)[name] for name in changed} == PUBLISHED


def test_a_default_that_departs_from_the_paper_says_so_on_its_field():
    for field in dataclasses.fields(Config):
        if field.name in PAPER and field.default != PAPER[field.name]:
            assert field.metadata["published"] == PAPER[field.name], field.name


def test_a_value_beats_a_preset_and_a_later_preset_an_earlier_one():
    cfg = parse_config("--preset", "demo", "published", "--aae_epochs", "3", "--latent_scaling", "true",
                       "--unet_mults", "1", "2")
    assert (cfg.aae_epochs, cfg.latent_scaling, cfg.unet_mults, cfg.prediction) == (3, True, (1, 2), "eps")
    assert cfg.volume_size == PRESETS["demo"]["volume_size"]
    assert cfg.exp == "demo_published"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_run_whose_folder_is_its_own(preset):
    assert parse_config("--preset", preset).exp == {"benchmark": "phantom_benchmark"}.get(preset, preset)


@pytest.mark.parametrize("exp", ["tables", "benchmark", "study"])
def test_folders_that_all_experiments_share_are_not_an_experiment(capsys, exp):
    assert f"exp '{exp}' is a folder of result/" in refused(capsys, "--exp", exp)


def test_the_lists_of_a_phantom_lie_beside_its_volumes():
    assert parse_config("--preset", "demo", "--data_dir", "data/other").info_folder == Path(
        "data/other/data_info"
    )
    assert parse_config("--info_dir", "lists").info_folder == Path("lists")


# ---------------------------------------------------------------- labels that depend on the cohort

@pytest.mark.parametrize(("settings", "in_training", "at_sampling"), [
    ({}, "true", "mixed"),
    (REGIONS, "suvr", "matched"),
    (PRESETS["demo"], "suvr", "matched"),
    (REGIONS | {"num_classes": 3}, "true", "mixed"),
    (REGIONS | {"label_in_training": "true"}, "true", "mixed"),
    (REGIONS | {"label_at_sampling": "mixed"}, "suvr", "mixed"),
    (REGIONS | {"label_at_sampling": "none"}, "suvr", "none"),
    ({"label_in_training": "none"}, "none", "none")])
def test_labels_are_chosen_by_what_is_known_of_the_cohort_and_saved_as_chosen(settings, in_training,
                                                                              at_sampling):
    cfg = Config(**settings)
    assert (cfg.label_in_training, cfg.label_at_sampling) == (in_training, at_sampling)
    assert cfg.predicts_label == (at_sampling != "none")
    saved = json.loads(cfg.to_json())["settings"]
    assert (saved["label_in_training"], saved["label_at_sampling"]) == (in_training, at_sampling)
    assert cfg.settings_of("ldm")["label_in_training"] == in_training
    assert Config(**settings | {"label_in_training": in_training, "label_at_sampling": at_sampling}) == cfg


# ---------------------------------------------------------------- the command line

def test_help_explains_every_field_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config("--help")
    assert stop.value.code == 0
    text = "".join(capsys.readouterr().out.split())        # help breaks lines at hyphens too
    assert "".join(ABOUT.split()) in text
    for field in dataclasses.fields(Config):
        assert f"--{field.name}" in text
        assert "".join(field.metadata["help"].split()) in text
    assert text.count("(default:") == len(dataclasses.fields(Config))


def test_help_lists_the_settings_in_their_groups(capsys):
    with pytest.raises(SystemExit):
        parse_config("--help")
    rest = capsys.readouterr().out
    assert rest.index("--preset") < rest.index("--exp")
    for title, names in sections().items():
        assert rest.count(f"\n{title}:\n") == 1
        rest = rest.split(f"\n{title}:\n")[1]
        listed = [line.split()[0] for line in rest.split("\n\n")[0].splitlines() if line.startswith("  --")]
        assert listed == [f"--{name}" for name in names]


@pytest.mark.parametrize(
    ("word", "meant"), [("--aae_epoch", "--aae_epochs"), ("--presett", "--preset"), ("--samplr", "--sampler")]
)
def test_unknown_setting_names_the_nearest(capsys, word, meant):
    message = refused(capsys, word, "3")
    assert f"unknown setting {word}; did you mean {meant}?" in message
    assert "python main.py --help lists all settings" in message


@pytest.mark.parametrize("word", ["--label_dropout", "--guidance", "--cortex_loss", "--gan", "loose"])
def test_words_that_are_not_settings_are_refused(capsys, word):
    assert refused(capsys, word).startswith(
        f"error: {'unknown setting ' + word if word[0] == '-' else repr(word) + ' belongs to no'}"
    )


def test_every_unknown_setting_is_named_at_once(capsys):
    message = refused(capsys, "--aae_epoch", "3", "--ldm_epoch=4", "--seed", "1")
    assert (
        "--aae_epoch; did you mean --aae_epochs?" in message
        and "--ldm_epoch; did you mean --ldm_epochs?" in message
    )


def test_a_switch_is_given_with_or_without_a_word():
    for words in (("--recompute",), ("--recompute", "true"), ("--recompute", "yes"), ("--recompute", "1")):
        assert parse_config(*words).recompute is True
    for word in ("false", "no", "0", "False"):
        assert parse_config("--latent_scaling", word).latent_scaling is False


@pytest.mark.parametrize(("argv", "expected"), [
    (["--volume_size", "162", "192", "160"],
     "volume_size (162, 192, 160) must be divisible by 4, because aae_channels has 3 levels"),
    (["--volume_size", "164", "192", "160"], "must be divisible by 8, because unet_mults has 4 levels"),
    (["--volume_size", "16", "32", "32"],
     "must be at least 32 along each axis, because disc_channels has 4 layers"),
    (["--volume_size", "160", "192"], "volume_size (160, 192) must be a tuple of 3 int"),
    (["--crop_start", "30", "18", "10"],
     "the crop [30, 190) with crop_jitter 2 leaves the image_size (181, 217, 181)"),
    (["--aae_channels", "8", "16"], "aae_channels (8, 16) must be divisible by the 16 groups"),
    (["--unet_channels", "20"],
     "unet_channels and its multiples (20, 20, 40, 40, 80) must be divisible by the 32 groups"),
    (["--unet_attention_levels", "4"], "unet_attention_levels (4,) must be below the 4"),
    (["--phantom_link", "1.5"], "phantom_link 1.5 must be between 0.0 and 0.95"),
    (["--aae_epochs", "0"], "aae_epochs 0 must be at least 1"),
    (["--aae_epochs", "three"], "aae_epochs 'three' must be of type int"),
    (["--aae_epochs", "1.5"], "aae_epochs '1.5' must be of type int"),
    (["--aae_lr", "nan"], "aae_lr nan must be between"),
    (["--sampler", "euler"], "sampler 'euler' must be one of ddim, dpm, ddpm"),
    (["--stages", "aae", "curve"], "stages 'curve' must be one of check, aae"),
    (["--latent_scaling", "maybe"], "latent_scaling 'maybe' must be true or false"),
    (["--sampling_steps", "1000"], "sampling_steps 1000 must be at most timesteps - 1 = 999"),
    (["--exp", "../up"], "exp '../up' must be a plain folder name"),
    (["--exp", "a", "--aae_from", "a"], "aae_from a is this experiment itself"),
    (["--subject_pattern", "("], "is not a regular expression"),
    (["--subject_pattern", "sub"], "has no group for the subject"),
    (["--time_dim", "7"], "time_dim 7 must be even"),
    (["--preset", "huge"], "invalid choice: 'huge'"),
    (["--aae_channels"], "aae_channels must not be empty"),
    (["--unet_channels", "16", "--unet_mults", "2", "4"],
     "unet_channels and its multiples (16, 32, 64) must be divisible by the 32"),
    (["--seed", "4294967296"], "seed 4294967296 must be between 0 and 4294967295"),
    (["--validation_every", "3"], "ldm_epochs 1000 must be a multiple of validation_every 3"),
    (["--zero_terminal_snr", "true", "--prediction", "eps"],
     "zero_terminal_snr needs prediction v or x0 and sampler ddim"),
    (["--save_std", "--samples_per_scan", "1"], "save_std needs samples_per_scan of at least 2"),
    (["--label_in_training", "suvr"], "label_in_training suvr needs a cortex_mask and a reference_mask"),
    (["--label_at_sampling", "matched"], "label_at_sampling matched needs label_in_training suvr, not true"),
    (["--label_in_training", "none", "--label_at_sampling", "mixed"],
     "label_at_sampling mixed needs a UNet that was trained with labels"),
    (["--cortex_mask", "a.nii.gz"], "cortex_mask and reference_mask go together"),
    (["--centiloid_intercept", "-10"], "centiloid_intercept -10.0 needs a centiloid_slope"),
    (["--preset", "demo", "--phantom_voxel", "2"],
     "image_size (45, 54, 45) must be (90, 108, 90), the phantom's at phantom_voxel 2"),
    (["--phantom_subjects", "5", "5", "5"], "give the phantom another, such as --data_dir data/phantom"),
    (["--phantom_subjects", "5", "0", "5"], "phantom_subjects (5, 0, 5) must be at least 2 in each list"),
])
def test_settings_that_cannot_work_are_refused_with_the_reason(capsys, argv, expected):
    assert expected in refused(capsys, *argv)


def test_all_wrong_settings_are_listed_at_once(capsys):
    message = refused(capsys, "--aae_epochs", "0", "--seed", "-1", "--ema_decay", "2", "--ldm_epochs", "many",
                      "--sampler", "euler", "--recompute", "maybe", "--volume_size", "160", "192")
    for part in ("7 problem(s)", "aae_epochs 0 must", "seed -1 must", "ema_decay 2.0 must",
                 "ldm_epochs 'many' must", "sampler 'euler' must", "recompute 'maybe' must",
                 "volume_size (160, 192) must"):
        assert part in message
    assert len(message.splitlines()) == 8


def test_all_settings_that_do_not_fit_together_are_listed_at_once(capsys):
    message = refused(capsys, "--exp", "tables", "--time_dim", "7", "--crop_jitter", "50", "--reference_mask",
                      "a.nii.gz")
    for part in ("exp 'tables'", "time_dim 7", "the crop [10, 170)",
                 "cortex_mask and reference_mask go together"):
        assert part in message


@pytest.mark.parametrize(
    "default",
    [{"aae_epochs": "3"}, {"latent_scaling": 1}, {"volume_size": [160, 192, 160]},
     {"volume_size": (160, 192)}, {"seed": 1.5}, {"seed": True}, {"sampler": ("ddim",)}],
)
def test_a_default_edited_to_another_type_is_refused(default):
    with pytest.raises(ValueError, match=next(iter(default))):
        Config(**default)


# ---------------------------------------------------------------- what is saved, and what a result is bound
# to

def test_json_holds_every_setting_and_the_versions():
    saved = json.loads(Config().to_json())
    assert saved["settings"].keys() == {field.name for field in dataclasses.fields(Config)}
    assert saved["settings"]["volume_size"] == [160, 192, 160]
    assert {"il_cldm", "python", "torch"} <= saved["versions"].keys()


FREE = {"exp", "aae_from", "ldm_from", "stages", "resume", "device", "gpus", "num_workers", "cache",
        "precision", "deterministic", "recompute", "data_dir", "info_dir", "subject_pattern",
        "sampling_batch", "baselines", "bootstrap_resamples", "shown_subjects"}   # speed, places, pictures
DATA = {"seed", "brain_mask", "image_size", "crop_start", "volume_size", "num_classes", "phantom_subjects",
        "phantom_voxel", "phantom_link", "phantom_seed"}


def names_of(stage: str) -> set[str]:
    """The settings of the group of a stage."""
    [names] = [names for title, names in sections().items() if title.startswith(stage)]
    return set(names)


def test_every_setting_of_a_training_is_bound_to_it():
    stage_1, stage_2 = names_of("stage 1") - {"aae_epochs"}, names_of("stage 2") - {"ldm_epochs"}
    assert Config().settings_of("aae").keys() == DATA | stage_1 | {"crop_jitter"}
    assert Config().settings_of("ldm").keys() == DATA | stage_2 | {"latent_channels"}
    for baseline in ("latent_regression", "image_regression"):
        bound = Config().settings_of(baseline).keys()
        assert DATA <= bound <= DATA | stage_2 | {"latent_channels", "regression_channels"}
        assert {"ldm_lr", "ldm_batch_size", "ema_decay", "unet_mults"} <= bound


def test_device_paths_and_epochs_are_not_bound_to_a_training_but_noted():
    for stage in ("aae", "ldm", "latent_regression", "image_regression"):
        bound, noted = Config().settings_of(stage), Config().noted_settings(stage)
        epochs = "aae_epochs" if stage == "aae" else "ldm_epochs"
        assert not bound.keys() & (FREE | {"aae_epochs", "ldm_epochs"})
        assert noted.keys() == FREE - {"exp", "stages", "resume"} | {epochs}


def test_every_setting_is_bound_to_a_result_or_free():
    affected = {field.name for field in dataclasses.fields(Config) if field.metadata["affects"]}
    assert {field.name for field in dataclasses.fields(Config)} - affected == FREE
    synthesis = Config().settings_of("synthesis").keys()
    assert synthesis == {"sampler", "sampling_steps", "samples_per_scan", "label_at_sampling"}
    assert Config().settings_of("validation").keys() == {"label_at_sampling"}


def test_what_is_bound_equals_itself_after_a_way_through_json():
    bound = parse_config("--preset", "demo").settings_of("aae", "ldm", "synthesis")
    assert json.loads(json.dumps(bound)) == bound


@pytest.mark.parametrize(("word", "hint"), [("synthesise", "did you mean synthesize?"), ("preproces", "did you mean preprocess?"),
                                            ("xyz", "there are preprocess, prepare, synthesize, sweep, study, benchmark")])
def test_a_misspelt_command_names_the_nearest(capsys, word, hint):
    with pytest.raises(SystemExit) as stop:
        main.main([word, "--exp", "a"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {word!r} is no command of main.py; {hint}")
