"""An external cohort: MRIs with PETs and labels from elsewhere, synthesized and scored by a trained
experiment of which nothing is fitted again.

    python main.py external --exp NAME --test_data DIR

Networks, label predictor, masks, thresholds of the status classifiers and the calibration of the uncertainty
are those that the experiment has; the labels of the external cohort are used for scores alone. The cohort is
checked like one's own, on the grid of the networks, and refused where it holds somebody of the training.
"""
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import DataLoader

from baselines import mean_pet, oracle
from config import BASELINES, Config
from dataset import SPLITS, VolumeDataset, volume_loader
from evaluation.external_results import refuse_other_results
from evaluation.external_table import in_words
from evaluation.covariate_status import with_cells
from evaluation.results import EXTERNAL, forget_run, load_run, save_run
from evaluation.scores import Predict, evaluate
from evaluation.uncertainty import assess, describe
from experiment.experiment import PHANTOM_NOTICE, RESEARCH_NOTICE, scores_note
from experiment.people import people_of_test_list
from experiment.saved import parse_for_experiment
from experiment.scoring import ScanSynthesis, frozen_digests, score_frames, write_summary
from imaging.cache import VolumeCache
from newscans.external_cohort import (ExternalCohort, TrainingLists, covariates_of, find_training_lists,
                                      info_folder, read_external, refuse_known_pictures)
from newscans.kept_synthesis import KeptSynthesis
from newscans.trained import Trained, load_trained
from runtime.files import FolderLock, check_place, make_folder, remove_leftovers, write_text
from runtime.logs import keep_log, say
from runtime.program import exit_code
from runtime.ranks import DistributedBatches
from runtime.settings import refuse, setting, value_problems
from utils import InputError

NOT_OF_A_PET = ("classifiers", "calibration")              # in Trained.made_with: of numbers read from it


@dataclass(frozen=True)
class ExternalSettings:
    """The settings of `python main.py external` beside those of the experiment. Raises ValueError that lists
    all wrong values."""

    exp: str = setting("",
        "name of the trained experiment; its settings are read from result/<exp>/config.json",
        section="an external cohort")
    test_data: str = setting("",
        "folder of the external cohort, with whole_MRI and whole_Abeta as in data/README.md")
    info_dir: str = setting("",
        "folder with its data_info.csv and its lists, if it has some; empty: data_info in test_data")
    lists: tuple[str, ...] = setting((),
        "lists whose scans are taken, all of which are unseen; none: test, or without test.txt every row of "
        "data_info.csv", choices=SPLITS, empty=True)
    name: str = setting("",
        "name of the external cohort; outputs go to result/<exp>/external/<name>; empty: that of the folder "
        "test_data")
    namesakes: bool = setting(False,
        "subjects with the ID of a training or validation subject are other people, as where two cohorts "
        "number theirs alike; without it they are refused")

    def __post_init__(self):
        missing = [f"--{name}" for name in ("exp", "test_data") if not getattr(self, name)]
        problems = value_problems(self) or ([f"external needs {', '.join(missing)}"] if missing else [])
        if not problems and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.cohort_name):
            problems = [f"name {self.cohort_name!r} must be a plain folder name of letters, digits, '.', '_' "
                        "and '-'; give one by --name"]
        refuse(problems)

    @property
    def cohort_name(self) -> str:
        """Name of the external cohort."""
        return self.name or Path(self.test_data).resolve().name


def main(argv: list[str]) -> int:
    """Score an external cohort, with the settings of a command line. Returns the exit code."""
    about = ("Synthesize and score an external cohort with the networks, masks, thresholds and calibration "
             "of a trained experiment; nothing is fitted on it.")
    settings, cfg = parse_for_experiment(ExternalSettings, argv, "main.py external", about)
    command = shlex.join(["python", "main.py", "external", *argv])
    return exit_code(partial(score_external, cfg, settings, command))


def score_external(cfg: Config, settings: ExternalSettings, command: str) -> None:
    """Check, synthesize and score the external cohort into result/<exp>/external/<name>; PETs that are there
    already, made from the same MRI by the same networks, stay.

    command: as it was given. Raises InputError with all problems of the cohort before the first synthesis.
    """
    data_dir, folder = Path(settings.test_data), cfg.result_dir / EXTERNAL / settings.cohort_name
    refuse_other_results(folder, data_dir)
    check_place(folder)
    trained = load_trained(cfg, 0.0)
    known = find_training_lists(cfg, trained)
    info_dir = info_folder(data_dir, settings.info_dir)
    external = read_external(data_dir, info_dir, settings.lists, trained, known, settings.namesakes)
    notice = f"{PHANTOM_NOTICE}; {RESEARCH_NOTICE}" if external.is_phantom else RESEARCH_NOTICE
    say("check", f"{data_dir}: no problem found ({notice})\n{external.cohort.report}")
    say("check", f"taken: {external.taken}")
    with FolderLock(folder) as lock:
        trained.sampler.people = covariates_of(external, trained.sampler.predictor)
        run = ExternalRun(trained, external, folder)
        real = run.read_real()
        refuse_known_pictures(real, known)
        made_from = run.made_from()
        make_folder(folder / "synthesized")
        lock.acquire()
        remove_leftovers(folder, everyones=True)
        keep_log(folder / "run.log")
        methods = run.methods(known, made_from)
        forget_run(folder)
        done = {"external": asdict(settings), "taken": external.taken, "command": command}
        write_text(folder / "config.json", json.dumps(done | json.loads(cfg.to_json()), indent=2) + "\n")
        about = {"notice": notice, "command": command, "name": settings.cohort_name}
        run.write(run.score(methods), real, about)


class ExternalRun:
    """The scoring of an external cohort by a trained experiment. folder: where its results go."""

    def __init__(self, trained: Trained, external: ExternalCohort, folder: Path):
        self.trained, self.external, self.folder, self.cfg = trained, external, folder, trained.cfg
        volumes = [path for scan in external.scans for path in (scan.mri, scan.pet)]
        self.cache = VolumeCache(volumes, trained.networks.crop, 0, self.cfg.cache, external.cohort.checksums)

    def batches(self, batch: int = 0) -> DataLoader:
        """MRIs and PETs of the scans in order, as the test stage has them."""
        scans = self.external.scans
        share = DistributedBatches(len(scans), batch or self.cfg.aae_batch_size, False)
        return volume_loader(VolumeDataset(scans, self.cache, ("mri", "pet")), share, 0,
                             self.trained.networks.device.type == "cuda")

    # ------------------------------------------------------------ before the first synthesis

    def read_real(self) -> pd.DataFrame:
        """What status and uptake are read from, of the real PETs. Raises InputError if some have no uptake in
        the reference region."""
        measurement = self.trained.measurement
        real = evaluate(lambda batch: batch["pet"], self.batches(), measurement.status_inputs,
                        "read real PETs")
        if measurement.regions:
            without = real.loc[~np.isfinite(real["SUVR"]), "ID"]
            if len(without):
                raise InputError(f"{measurement.files.named('reference_mask')}: no uptake in it in the PET "
                                 f"of {', '.join(without)}")
        return with_cells(real, self.trained.sampler.people)

    def made_from(self) -> dict[str, dict]:
        """ID -> what makes another PET of the same MRI: networks, settings of the synthesis, covariates."""
        of_all = {name: value for name, value in self.trained.made_with.items() if name not in NOT_OF_A_PET}
        of_all = json.loads(json.dumps(of_all))            # as a note beside a PET gives it back
        people = self.trained.sampler.people
        cells = {} if people is None else people.to_dict("index")
        return {scan.id: of_all | {"covariates": cells.get(scan.id, {})} for scan in self.external.scans}

    # ------------------------------------------------------------ methods

    def methods(self, known: TrainingLists, made_from: dict[str, dict]) -> dict[str, Predict]:
        """Name -> predict function: the reconstruction by the autoencoder, the synthesis, the mean PET of the
        training list if its survey is at hand, and the oracle of a phantom; says what is left out."""
        trained, scans = self.trained, self.external.scans
        synthesis = ScanSynthesis(trained.sampler, scans, self.folder, self.external.is_phantom)
        kept = KeptSynthesis(synthesis, made_from)
        say("test", f"{len(scans) - len(kept.columns)} of {len(scans)} PETs are to be synthesized (the "
                    f"others are there already), {self.cfg.samples_per_scan} latent samples by "
                    f"{self.cfg.sampler}, {kept.evaluations} network evaluations a scan, on "
                    f"{trained.networks.device}, {trained.notice}; writes {self.folder}")
        methods: dict[str, Predict] = {"aae": reconstruct(trained), "il_cldm": kept}
        if known.survey is not None:
            methods[mean_pet.NAME] = mean_pet.predict_mean(known.survey.mean_pet)
        else:
            say("test", f"no row mean_pet, the mean PET of the training list: {known.why_not}")
        data_dir = self.external.data_dir
        has_oracle = [oracle.oracle_file(data_dir, scan.id).is_file() for scan in scans]
        if all(has_oracle):
            methods[oracle.NAME] = oracle.read_oracle(data_dir, trained.networks.crop)
        elif any(has_oracle):
            say("test", f"no row oracle: {has_oracle.count(False)} of {len(scans)} scans have none (a "
                        "phantom keeps it for its validation and test list)")
        baselines = [name for name in BASELINES if trained.networks.best_path(name).exists()]
        if baselines:
            say("test", f"the trained baselines are not scored here: {', '.join(baselines)}")
        return methods

    def score(self, methods: dict[str, Predict]) -> dict[str, pd.DataFrame]:
        """Method -> a row a scan with all measures."""
        subjects, measures = {}, self.trained.measurement.all_measures
        for name, predict in methods.items():
            batches = self.batches(self.cfg.scans_at_once if name == "il_cldm" else 0)
            subjects[name] = evaluate(predict, batches, measures, f"external {name}")
        return subjects

    # ------------------------------------------------------------ what is written

    def write(self, subjects: dict[str, pd.DataFrame], real: pd.DataFrame, about: dict[str, str]) -> None:
        """Write the CSVs with their index, and summary.csv. about: notice, command, and name of the
        cohort."""
        trained, external, cfg = self.trained, self.external, self.cfg
        frames = score_frames(subjects, real, trained.classifiers)
        frames |= self.uncertainty(subjects["il_cldm"], real)
        frames["people"] = people_of_test_list(external.info_dir, external.scans,
                                               (*cfg.covariates, *cfg.subgroups))
        note = scores_note(cfg, trained.measurement, about["notice"], len(external.scans))
        origin = {"name": about["name"], "data_dir": str(external.data_dir),
                  "info_dir": str(external.info_dir), "place": str(external.data_dir.resolve()),
                  "taken": external.taken, "frozen": frozen_digests(cfg.result_dir)}
        metadata = {"phantom": external.is_phantom, "notice": about["notice"], "note": note,
                    "cohort": external.cohort.fingerprint("test"), "training": trained.trained_on,
                    "masks": trained.measurement.mask_keys(), "external": origin, **json.loads(cfg.to_json()),
                    "command": about["command"]}
        metadata["settings"] |= {"precision": trained.networks.precision}
        save_run(self.folder, metadata, frames)
        say("test", f"mean +- SD over {note}")
        data = PHANTOM_NOTICE if external.is_phantom else str(external.data_dir)
        write_summary(self.folder, frames["test"], data)
        for line in in_words(load_run(self.folder)):
            say("test", line)

    def uncertainty(self, test: pd.DataFrame, real: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """The content of uncertainty.csv by the frozen calibration, if there is one; prints how good it is
        here."""
        calibration = self.trained.calibration
        if calibration is None or not self.trained.measurement.regions:
            return {}
        test = test.assign(SUVR_real=test["ID"].map(real.set_index("ID")["SUVR"]))
        assessed = assess(calibration, test)
        say("test", describe(calibration, assessed))
        return {"uncertainty": assessed.join(test[["p_mri"] if "p_mri" in test else []])}


def reconstruct(trained: Trained) -> Callable[[dict], Tensor]:
    """A predict function for evaluate: PET -> its reconstruction by the frozen autoencoder."""
    networks, aae = trained.networks, trained.synthesizer.space.aae

    def predict(batch: dict) -> Tensor:
        """The reconstructions of a batch, [B, 1, D, H, W]."""
        with networks.cast():
            return aae(batch["pet"].to(networks.device)).float().clamp(0, 1)
    return predict
