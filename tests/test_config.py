"""Settings: what they accept, how they are given, what they refuse, and what a result is bound to."""
import dataclasses
import json
from pathlib import Path

import pytest

import main
from config import (BENCHMARK, DEMO, PRESETS, PUBLISHED, SEEING_LABELS, SYSTEMS, Config, Pix2PixSettings,
                    ResvitSettings, with_later_settings)
from conftest import arguments
from experiment.saved import read_settings
from runtime.commandline import build, parse
from runtime.settings import is_group, options

ABOUT = "Trains and tests."

# The published method, written down from its description alone and not from config.py.
PAPER = {"seed": 0, "precision": "fp32", "image_size": (181, 217, 181), "crop_start": (10, 18, 10),
         "volume_size": (160, 192, 160), "crop_jitter": 2, "num_classes": 2, "aae_channels": (16, 32, 64),
         "latent_channels": 1, "aae_norm_groups": 16, "aae_norms": ("blocks", "output"),
         "upsampling": "transposed", "disc_channels": (16, 32, 64, 128), "lambda_rec": 100.0,
         "aae_lr": 1e-4, "aae_lr_decay": False,
         "aae_betas": (0.5, 0.999), "aae_batch_size": 2, "aae_epochs": 1000, "unet_channels": 128,
         "unet_mults": (1, 2, 2, 4), "unet_res_blocks": 2, "unet_attention_levels": (),
         "unet_norm_groups": 32, "time_dim": 128, "timesteps": 1000, "beta": (1e-4, 0.02),
         "prediction": "eps", "time_shift": 1.0,
         "image_loss": 0.0, "conditioning": "input", "latent_scaling": False, "label_in_training": "true",
         "shuffle_labels": False, "ldm_lr": 1e-4, "ldm_batch_size": 2,
         "ldm_epochs": 1000, "ema_decay": 0.9999, "ema_start": 2000, "validation_every": 1, "sampler": "ddpm",
         "samples_per_scan": 1, "label_at_sampling": "none"}
# The preset's: not ddpm, 999 evaluations a scan and epoch; and steps of ddim, where that is asked for.
FEW_STEPS = {"validation_sampler": "ddim", "validation_steps": 50, "sampling_steps": 50}
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
    """Title of each group of settings -> their names; dotted for those of a compared system."""
    groups, title = {}, ""
    for field in options(dataclasses.fields(Config)):
        title = field.metadata["section"] or title
        groups.setdefault(title, []).append(field.name)
    return groups


# ---------------------------------------------------------------- defaults and presets

def test_defaults_are_the_sizes_of_the_paper():
    cfg = parse_config()
    assert cfg == Config()
    assert (cfg.exp, cfg.downscale, cfg.latent_size) == ("default", 4, (40, 48, 40))


def test_there_are_at_most_80_settings():
    names = [option.name for option in options(dataclasses.fields(Config))]
    of_the_project = [name for name in names if name.split(".")[0] not in SYSTEMS]
    assert len(of_the_project) <= 80                       # those of the compared systems are their authors'


@pytest.mark.parametrize("more",
                         [(), ("--cortex_mask", "cortex.nii.gz", "--reference_mask", "cerebellum.nii.gz")])
def test_published_preset_is_the_published_method(more):
    published = parse_config("--preset", "published", *more)
    expected = PAPER | FEW_STEPS
    assert {name: getattr(published, name) for name in expected} == expected


def test_published_preset_sets_back_what_the_default_changed_and_nothing_else():
    default, published = Config(**REGIONS), Config(**REGIONS, **PUBLISHED)
    changed = {
        field.name
        for field in dataclasses.fields(Config)
        if getattr(default, field.name) != getattr(published, field.name)
    }
    assert changed == PUBLISHED.keys()
    departs = {name for name in PAPER if getattr(default, name) != PAPER[name]}
    assert changed == departs | {"validation_steps", "sampling_steps"}
    assert {name: (PAPER | FEW_STEPS)[name] for name in changed} == PUBLISHED


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


def test_the_fine_preset_shows_what_the_demo_shows_in_smaller_voxels():
    """The same people and latent grid; crops differ by less than a voxel of the demo at either end."""
    fine, demo = parse_config("--preset", "fine"), parse_config("--preset", "demo")
    assert (fine.phantom_voxel, demo.phantom_voxel) == (2, 4)
    assert (fine.phantom_subjects, fine.phantom_seed) == (demo.phantom_subjects, demo.phantom_seed)
    assert fine.unet_channels == demo.unet_channels and fine.latent_channels == demo.latent_channels
    for axis in range(3):
        assert (fine.volume_size[axis] // 2 ** (len(fine.aae_channels) - 1)
                == demo.volume_size[axis] // 2 ** (len(demo.aae_channels) - 1))
        ends = [(2 * start, 2 * (start + size)) for start, size in
                ((fine.crop_start[axis], fine.volume_size[axis]),
                 (2 * demo.crop_start[axis], 2 * demo.volume_size[axis]))]
        assert max(abs(one - other) for one, other in zip(*ends, strict=True)) < 4       # mm


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
    ({"regions": "none"}, "true", "mixed"),
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


@pytest.mark.parametrize("settings", [
    {}, {"regions": "mni"}, {"regions": "centiloid"}, PRESETS["demo"] | {"regions": "mni"},
    {"label_at_sampling": "matched"}, {"label_at_sampling": "none"}])
def test_with_automatic_regions_the_label_waits_for_the_cohort(settings):
    cfg = Config(**settings)
    assert cfg.has_automatic_regions
    assert cfg.label_in_training == "auto"
    settled = dataclasses.replace(cfg, label_in_training="suvr")
    assert settled.label_at_sampling == settings.get("label_at_sampling", "matched")


@pytest.mark.parametrize(("saved", "regions"), [
    ({}, "none"), (REGIONS, "auto"), ({"phantom_subjects": [4, 2, 2]}, "auto"), ({"regions": "mni"}, "mni")])
def test_settings_that_were_saved_before_there_were_automatic_regions_stay_what_they_were(saved, regions):
    assert with_later_settings(saved)["regions"] == regions


# Of the demo with Centiloids, an atlas and other numbers of pictures and resamples, as an earlier version
# saved them.
EARLIER = {"regression_channels": 8, "centiloid_slope": 100.0, "centiloid_intercept": -90.0,
           "regions_image": "atlas.nii.gz", "regions_table": "names.tsv", "aae_output_norm": False,
           "aae_block_norm": True, "shown_subjects": 4, "bootstrap_resamples": 500, "save_std": True}
PRESENT = {"image_regression", "centiloid", "atlas", "aae_norms"}  # what these are now


def test_settings_under_the_names_of_an_earlier_version_are_read():
    cfg = parse_config("--preset", "demo", "--centiloid", "100", "-90", "--atlas", "atlas.nii.gz",
                       "names.tsv", "--aae_norms", "blocks")
    saved = json.loads(cfg.to_json())["settings"]
    earlier = {name: saved[name] for name in saved.keys() - PRESENT} | EARLIER
    assert with_later_settings(earlier) == saved
    assert with_later_settings(saved) == saved
    assert earlier.keys() >= EARLIER.keys()                # the dict that is given stays as it is


def test_an_experiment_of_an_earlier_version_can_be_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "result" / "a"
    folder.mkdir(parents=True)
    saved = json.loads(parse_config("--preset", "demo").to_json())
    for name in PRESENT:
        del saved["settings"][name]
    saved["settings"] |= EARLIER | {"regression_channels": 4}
    (folder / "config.json").write_text(json.dumps(saved))
    cfg = Config(**read_settings("a"))
    assert (cfg.image_regression.channels, cfg.centiloid) == (4, (100.0, -90.0))
    assert (cfg.atlas, cfg.aae_norms) == (("atlas.nii.gz", "names.tsv"), ("blocks",))


def test_an_experiment_of_an_earlier_version_without_further_regions_has_no_atlas():
    assert with_later_settings({"regions_image": "", "regions_table": ""})["atlas"] == []


@pytest.mark.parametrize(("output", "block", "norms"), [
    (False, False, []), (True, False, ["output"]), (False, True, ["blocks"]),
    (True, True, ["blocks", "output"])])
def test_the_norms_of_an_earlier_version_are_where_they_were(output, block, norms):
    saved = {"aae_output_norm": output, "aae_block_norm": block}
    assert with_later_settings(saved)["aae_norms"] == norms


def test_the_places_of_norms_may_be_named_in_any_order():
    for words in (["output", "blocks"], ["blocks", "output", "blocks"]):
        assert parse_config("--aae_norms", *words).aae_norms == ("blocks", "output")
    assert parse_config("--preset", "published", "--aae_norms").aae_norms == ()


@pytest.mark.parametrize(("saved", "upsampling"),
                         [({}, "transposed"), ({"upsampling": "blurred"}, "blurred")])
def test_settings_that_were_saved_before_there_was_a_choice_had_the_published_upsampling(saved, upsampling):
    assert with_later_settings(saved)["upsampling"] == upsampling


# ---------------------------------------------------------------- the command line

def test_help_explains_every_field_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config("--help")
    assert stop.value.code == 0
    text = "".join(capsys.readouterr().out.split())        # help breaks lines at hyphens too
    assert "".join(ABOUT.split()) in text
    fields = options(dataclasses.fields(Config))
    for field in fields:
        assert f"--{field.name}" in text
        assert "".join(field.metadata["help"].split()) in text
    assert text.count("(default:") == len(fields)


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


@pytest.mark.parametrize(("word", "now"), [
    ("--regression_channels", "--image_regression.channels"),
    ("--regression_channels=4", "--image_regression.channels"),
    ("--centiloid_slope", "--centiloid"), ("--centiloid_intercept", "--centiloid"),
    ("--regions_image", "--atlas"), ("--regions_table", "--atlas"),
    ("--aae_output_norm", "--aae_norms"), ("--aae_block_norm", "--aae_norms")])
def test_who_gives_a_name_of_an_earlier_version_is_told_the_present_one(capsys, word, now):
    name = word.split("=")[0]
    assert f"unknown setting {name}, which is {now} now (docs/changes.md)" in refused(capsys, word, "3")


@pytest.mark.parametrize(("word", "instead"), [
    ("--bootstrap_resamples", "all intervals have the same number of resamples"),
    ("--bootstrap_resamples=500", "all intervals have the same number of resamples"),
    ("--shown_subjects", "two subjects of each label are shown"),
    ("--save_std", "synthesize --samples N writes PETs whose standard deviation means something")])
def test_who_gives_a_setting_that_is_gone_is_told_what_holds_instead(capsys, word, instead):
    name = word.split("=")[0]
    assert f"unknown setting {name}, which is gone: {instead} (docs/changes.md)" in refused(capsys, word, "3")


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
    (["--label_in_training", "suvr", "--regions", "none"],
     "label_in_training suvr needs the regions of an SUVR"),
    (["--label_at_sampling", "matched", "--regions", "none"],
     "label_at_sampling matched needs label_in_training suvr, not true"),
    (["--cortex_mask", "a", "--reference_mask", "b", "--regions", "mni"],
     "both name the regions of the SUVR"),
    (["--cortex_mask", "a", "--reference_mask", "b", "--regions", "none"],
     "both name the regions of the SUVR"),
    (["--regions", "own"], "regions 'own' must be one of auto, centiloid, mni, none"),
    (["--label_in_training", "none", "--label_at_sampling", "mixed"],
     "label_at_sampling mixed needs a UNet that was trained with labels"),
    (["--cortex_mask", "a.nii.gz"], "cortex_mask and reference_mask go together"),
    (["--aae_norms", "input"], "aae_norms 'input' must be one of blocks, output"),
    (["--atlas", "a.nii.gz"], "atlas ('a.nii.gz',) must be two files: a NIfTI label image, and the table"),
    (["--atlas", "a.nii.gz", ""], "atlas ('a.nii.gz', '') must be two files"),
    (["--atlas", "a.nii.gz", "b.csv", "c.csv"], "atlas ('a.nii.gz', 'b.csv', 'c.csv') must be two files"),
    (["--centiloid", "0", "-10"], "centiloid (0.0, -10.0) needs a slope above 0 as its first number"),
    (["--centiloid", "-90", "100"], "centiloid (-90.0, 100.0) needs a slope above 0 as its first number"),
    (["--preset", "demo", "--phantom_voxel", "2"],
     "image_size (45, 54, 45) must be (90, 108, 90), the phantom's at phantom_voxel 2"),
    (["--phantom_subjects", "5", "5", "5"], "give the phantom another, such as --data_dir data/phantom"),
    (["--phantom_subjects", "5", "0", "5"], "phantom_subjects (5, 0, 5) must be at least 2 in each list"),
    (["--preset", "demo", "--phantom_sites", "6"],
     "phantom_subjects (80, 10, 20) must be at least 12 in each list, two of each of the 6 sites, or all 0"),
    (["--phantom_sites", "7"], "phantom_sites 7 must be between 1 and 6"),
    (["--phantom_sites", "0"], "phantom_sites 0 must be between 1 and 6"),
    (["--preset", "benchmark", "--phantom_sites", "2", "--phantom_kind", "rare"],
     "phantom_kind rare needs phantom_sites 1, not 2"),
    (["--phantom_kind", "real"],
     "phantom_kind 'real' must be one of plain, white_matter, other_regions, rare"),
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


# ---------------------------------------------------------------- what is saved and what is bound

def test_json_holds_every_setting_and_the_versions():
    saved = json.loads(Config().to_json())
    assert saved["settings"].keys() == {field.name for field in dataclasses.fields(Config)}
    assert saved["settings"]["volume_size"] == [160, 192, 160]
    assert {"il_cldm", "python", "torch"} <= saved["versions"].keys()


FREE = {"exp", "aae_from", "ldm_from", "stages", "resume", "device", "gpus", "num_workers", "cache",
        "precision", "deterministic", "recompute", "data_dir", "latent_dir", "info_dir",
        "subject_pattern",
        "sampling_batch", "baselines", "subgroups"}
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
        assert DATA <= bound <= DATA | stage_2 | {"latent_channels", "image_regression.channels"}
        assert {"ldm_lr", "ldm_batch_size", "ema_decay", "unet_mults"} <= bound


def test_device_paths_and_epochs_are_not_bound_to_a_training_but_noted():
    both = {"aae_epochs", "ldm_epochs"}
    for stage, epochs in (
        ("aae", {"aae_epochs"}),
        ("ldm", {"ldm_epochs"}),
        ("latent_regression", {"ldm_epochs"}),
        ("image_regression", both),
        ("pix2pix", both),
    ):
        bound, noted = Config().settings_of(stage), Config().noted_settings(stage)
        assert not bound.keys() & (FREE | both)
        assert noted.keys() == FREE - {"exp", "stages", "resume"} | epochs


def test_every_setting_is_bound_to_a_result_or_free():
    affected = {field.name for field in dataclasses.fields(Config) if field.metadata["affects"]}
    assert {field.name for field in dataclasses.fields(Config)} - affected == FREE
    synthesis = Config().settings_of("synthesis").keys()
    assert synthesis == {"sampler", "sampling_steps", "samples_per_scan", "label_at_sampling"}
    assert Config().settings_of("validation").keys() == {"label_at_sampling"}


def test_what_is_bound_equals_itself_after_a_way_through_json():
    bound = parse_config("--preset", "demo").settings_of("aae", "ldm", "synthesis")
    assert json.loads(json.dumps(bound)) == bound


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("synthesise", "did you mean synthesize?"),
        ("preproces", "did you mean preprocess?"),
        ("xyz", "there are preprocess, prepare, calibrate, synthesize, external, sweep, study, benchmark"),
    ],
)
def test_a_misspelt_command_names_the_nearest(capsys, word, hint):
    with pytest.raises(SystemExit) as stop:
        main.main([word, "--exp", "a"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {word!r} is no command of main.py; {hint}")


# ---------------------------------------------------------------- the compared systems

# Their networks at 40x48x40, written down from the systems and not from config.py.
SMALL_SYSTEMS = {
    "pix2pix": {"downs": 3, "dropout_blocks": 1, "disc_layers": 1},
    "tpa_gan": {},
    "fgan": {"classifier_pools": 2},
    "resvit": {"width": 16, "downs": 1, "hidden": 96, "layers": 4, "heads": 4, "mlp": 384, "disc_width": 16,
               "disc_layers": 2, "slices_per_volume": 8, "predict_slices": 40},
    "ddpm": {"downsample": 1, "base_channels": 16, "channel_mults": (1, 2, 2, 4), "res_blocks": 1,
             "time_dim": 128, "norm_groups": 8, "lr": DEMO["ldm_lr"], "ema_decay": DEMO["ema_decay"],
             "ema_start": DEMO["ema_start"]}}              # its optimizer is the denoiser's
# Another value of every type, in every system.
CHANGES = {"pix2pix.lambda_l1": 50.0, "pix2pix.norm": "batch", "tpa_gan.shared_kernel": False,
           "tpa_gan.task_decays": (0.25,), "fgan.betas": (0.4, 0.9), "resvit.transformer_blocks": (2, 3, 4),
           "resvit.heads": 8, "ddpm.attention_levels": (2,), "ddpm.samples": 8}


def value_of(cfg: Config, name: str):
    """The value of a dotted name."""
    group, inner = name.split(".")
    return getattr(getattr(cfg, group), inner)


def names_of_system(system: str) -> set[str]:
    """The dotted names of a system's settings."""
    inner = dataclasses.fields(getattr(Config(), system))
    return {f"{system}.{field.name}" for field in inner}


def saved_settings(cfg: Config) -> dict:
    """The settings as a reader of config.json passes them on: lists at the top are tuples."""
    saved = json.loads(cfg.to_json())["settings"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}


def test_every_system_is_a_group_of_settings():
    groups = {field.name for field in dataclasses.fields(Config) if is_group(field)}
    assert groups == {"image_regression", *SYSTEMS}


def test_settings_of_a_system_are_given_by_dotted_names():
    cfg = parse_config(*arguments(CHANGES))
    assert {name: value_of(cfg, name) for name in CHANGES} == CHANGES
    assert dataclasses.replace(cfg.pix2pix, lambda_l1=100.0, norm="instance") == Pix2PixSettings()
    assert parse_config("--pix2pix.lambda_l1=50").pix2pix == Pix2PixSettings(lambda_l1=50.0)
    assert parse_config("--ddpm.output_norm").ddpm.output_norm is True
    assert parse_config("--tpa_gan.task_decays").tpa_gan.task_decays == ()


def test_every_setting_of_a_system_can_be_given():
    words = []
    for system in SYSTEMS:
        present = getattr(Config(), system)
        words += arguments({f"{system}.{field.name}": getattr(present, field.name)
                            for field in dataclasses.fields(present)})
    assert parse_config(*words) == Config()


def test_help_has_a_group_for_every_system():
    of_system = [names for names in sections().values() if "." in names[0]]
    assert [set(names) for names in of_system] == [
        names_of_system(group) for group in ("image_regression", *SYSTEMS)]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("preset", ["demo", "benchmark"])
def test_presets_of_small_volumes_have_small_systems(preset, system):
    cfg = parse_config("--preset", preset)
    expected = dataclasses.replace(getattr(Config(), system), **SMALL_SYSTEMS[system])
    assert getattr(cfg, system) == expected


def test_the_published_preset_says_nothing_of_the_systems():
    published = parse_config("--preset", "published")
    assert {name: getattr(published, name) for name in SYSTEMS} == {name: getattr(Config(), name)
                                                                    for name in SYSTEMS}
    assert parse_config("--preset", "demo", "published").resvit == DEMO["resvit"]


def test_a_dotted_value_changes_nothing_else_of_what_a_preset_says():
    cfg = parse_config("--preset", "demo", "--pix2pix.lambda_l1", "50")
    assert cfg.pix2pix == dataclasses.replace(DEMO["pix2pix"], lambda_l1=50.0)
    assert parse_config("--preset", "benchmark", "--resvit.heads", "8").resvit.width == 16


@pytest.mark.parametrize(("order", "expected"), [
    (("dotted", "whole"), ResvitSettings(width=32)),
    (("whole", "dotted"), ResvitSettings(width=32, heads=6, transformer_blocks=(3,)))])
def test_presets_give_dotted_names_or_a_whole_group_and_the_later_wins(order, expected):
    presets = {"dotted": {"resvit.heads": 6, "resvit.transformer_blocks": (3,)},
               "whole": {"resvit": ResvitSettings(width=32)}}
    assert parse(Config, ["--preset", *order], "main.py", ABOUT, presets).resvit == expected


def test_parsing_leaves_presets_as_they_are():
    before = dict(BENCHMARK)
    parse_config("--preset", "benchmark", "--pix2pix.downs", "2")
    assert before == BENCHMARK and DEMO["pix2pix"].downs == 3


@pytest.mark.parametrize(("word", "hint"), [
    ("--pix2pix.lamda_l1", "did you mean --pix2pix.lambda_l1?"),
    ("--pix2pixx.lambda_l1", "did you mean --pix2pix.lambda_l1?"),
    ("--tpa-gan.width", "did you mean --tpa_gan.width?"),
    ("--ddpm.samplr", "did you mean --ddpm.sampler?"),
    ("--pix2pix.banana", "--pix2pix. has downs, width, dropout_blocks,"),
    ("--fgan", "--fgan. has generator_width, generator_blocks,")])
def test_an_unknown_setting_of_a_system_names_the_nearest_or_all(capsys, word, hint):
    assert f"unknown setting {word}; {hint}" in refused(capsys, word, "3")


@pytest.mark.parametrize(("argv", "expected"), [
    (["--pix2pix.lambda_l1", "-1"], "pix2pix.lambda_l1 -1.0 must be at least 0.0"),
    (["--pix2pix.downs", "many"], "pix2pix.downs 'many' must be of type int"),
    (["--pix2pix.norm", "layer"], "pix2pix.norm 'layer' must be one of instance, batch"),
    (["--pix2pix.betas", "0.5"], "pix2pix.betas (0.5,) must be a tuple of 2 float"),
    (["--tpa_gan.shared_kernel", "maybe"], "tpa_gan.shared_kernel 'maybe' must be true or false"),
    (["--tpa_gan.task_layers"], "tpa_gan.task_layers must not be empty"),
    (["--fgan.classifier_share", "0"], "fgan.classifier_share 0.0 must be between"),
    (["--fgan.feature_layers", "0", "5"], "fgan.feature_layers (0, 5) must be at most 4"),
    (["--fgan.classifier_pools", "5"], "fgan.classifier_pools 5 must be at most 4"),
    (["--resvit.heads", "7"], "resvit.hidden 768 must be divisible by resvit.heads 7"),
    (["--resvit.transformer_blocks", "1", "10"],
     "resvit.transformer_blocks (1, 10) must be at most resvit.art_blocks 9"),
    (["--ddpm.sampler", "dpm"], "ddpm.sampler 'dpm' must be one of ddim, ddpm"),
    (["--ddpm.base_channels", "20"],
     "ddpm.base_channels and its multiples (20, 20, 40, 80, 160) must be divisible by the 32 groups"),
    (["--ddpm.attention_levels", "4"], "ddpm.attention_levels (4,) must be below the 4"),
    (["--ddpm.time_dim", "7"], "ddpm.time_dim 7 must be even"),
    (["--ddpm.sampling_steps", "1000"], "ddpm.sampling_steps 1000 must be at most ddpm.T - 1 = 999")])
def test_settings_of_a_system_that_cannot_work_are_refused_with_the_reason(capsys, argv, expected):
    assert expected in refused(capsys, *argv)


def test_wrong_settings_of_systems_are_listed_with_all_others(capsys):
    message = refused(capsys, "--aae_epochs", "0", "--pix2pix.lr", "nan", "--resvit.heads", "0",
                      "--ddpm.T", "x")
    for part in ("4 problem(s)", "aae_epochs 0 must", "pix2pix.lr nan must", "resvit.heads 0 must",
                 "ddpm.T 'x' must"):
        assert part in message


@pytest.mark.parametrize(("value", "problem"), [
    (3, "pix2pix 3 must be of type Pix2PixSettings"),
    (ResvitSettings(), "must be of type Pix2PixSettings"),
    (Pix2PixSettings(betas=[0.5, 0.999]), r"pix2pix.betas \[0.5, 0.999\] must be a tuple"),
    ({"lambda_l2": 1.0, "width": 0}, "(?s)pix2pix.lambda_l2 is no setting; .*pix2pix.width 0 must be"),
    ({"betas": [0.5]}, r"pix2pix.betas \(0.5,\) must be a tuple of 2")])
def test_a_group_of_another_kind_or_with_other_names_is_refused(value, problem):
    with pytest.raises(ValueError, match=problem):
        Config(pix2pix=value)


def test_saved_settings_of_systems_are_nested_and_read_again():
    cfg = parse_config("--preset", "demo", *arguments(CHANGES | {"ddpm.attention_levels": ()}))
    saved = saved_settings(cfg)
    assert saved["pix2pix"]["lambda_l1"] == 50.0 and saved["ddpm"]["channel_mults"] == [1, 2, 2, 4]
    assert Config(**saved) == cfg
    assert build(Config, saved) == cfg
    assert json.loads(Config(**saved).to_json()) == json.loads(cfg.to_json())


def test_what_was_saved_without_systems_or_without_a_setting_of_one_is_read_with_defaults():
    cfg = parse_config("--preset", "benchmark", "--pix2pix.width", "8")
    saved = saved_settings(cfg)
    older = {name: value for name, value in saved.items() if name not in SYSTEMS}
    assert Config(**older) == dataclasses.replace(cfg, **{name: getattr(Config(), name) for name in SYSTEMS})
    del saved["pix2pix"]["lambda_l1"]
    assert Config(**saved) == cfg


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_settings_of_a_system_are_bound_to_its_own_training_alone(system):
    bound = Config().settings_of(system)
    trained_with = names_of_system(system) - {"resvit.predict_slices", "ddpm.sampler", "ddpm.sampling_steps",
                                              "ddpm.samples"}
    labels = {"shuffle_labels"} if system in SEEING_LABELS else set()
    others = {"ldm_batch_size", "validation_every", "crop_jitter"}
    assert bound.keys() == DATA | trained_with | labels | others
    others = ("aae", "ldm", "latent_regression", "image_regression", "validation", "synthesis", "scores",
              "comparison", "new_scans", *(name for name in SYSTEMS if name != system))
    assert not Config().settings_of(*others).keys() & names_of_system(system)
    assert json.loads(json.dumps(bound)) == bound


def test_another_setting_of_a_system_leaves_every_other_result_as_it_is():
    one, other = Config(), parse_config("--pix2pix.lambda_l1", "50")
    for result in ("aae", "ldm", "image_regression", "tpa_gan", "fgan", "resvit", "ddpm", "synthesis"):
        assert one.settings_of(result) == other.settings_of(result)
    assert other.settings_of("pix2pix")["pix2pix.lambda_l1"] == 50.0
    assert one.settings_of("pix2pix") != other.settings_of("pix2pix")


@pytest.mark.parametrize("stage", ["aae", "ldm", "image_regression", *SYSTEMS])
def test_settings_of_systems_are_never_noted(stage):
    noted = Config().noted_settings(stage)
    assert not any(name.split(".")[0] in SYSTEMS for name in noted)
    assert ("ldm_epochs" in noted) == (stage != "aae")
