"""The test stage's parts: status classifiers, the synthetic PETs of the lists, their uncertainty, and the
CSVs that hold the scores."""
import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from config import BASELINES, DENOISER, SECOND_ROWS
from dataset import Scan
from evaluation.covariate_status import PREFIX, with_cells
from evaluation.power import expected_widths
from evaluation.results import forget_run, save_run
from evaluation.scores import Predict, Prediction, evaluate, summarize
from evaluation.spectrum import SPECTRAL
from evaluation.status import (
    CLASSIFIERS,
    OF_COVARIATES,
    StatusClassifier,
    fit_status_classifiers,
    read_status,
    save_status_classifiers,
)
from evaluation.uncertainty import assess, calibrate, describe, save_calibration
from experiment.experiment import PHANTOM_NOTICE, Experiment
from experiment.networks import CHECKPOINT, LatentSampler
from experiment.people import people_of_test_list
from experiment.survey import Survey
from imaging.grids import Crop
from imaging.volumes import save_synthesis
from labels.people import read_demographics
from model import Synthesizer, std_over_samples
from runtime.checkpoints import load_checkpoint, read_history
from runtime.files import make_folder, write_csv
from runtime.logs import LOG, say
from runtime.ranks import from_rank_0, is_rank_0
from utils import METRICS, InputError, weights_key

# of a state dict
NOT_TRAINED = ("running_mean", "running_var", "num_batches_tracked", "_extra_state", "frequencies")
# of the test stage, for new scans
STATUS_CLASSIFIERS, CALIBRATION = "status_classifiers.npz", "calibration.npz"
FROZEN = (STATUS_CLASSIFIERS, CALIBRATION)                 # for an external cohort
COMPARISON = "comparison.png"                              # of the test stage, if there is what to compare
COST = "cost.csv"


def clear_results(exp: Experiment) -> None:
    """Take away the results of an earlier test, and make the folders of this one."""
    from_rank_0(_clear_results, exp)


def _clear_results(exp: Experiment) -> None:
    folder = exp.cfg.result_dir
    forget_run(folder)
    for name in (CALIBRATION, COMPARISON, COST):     # not every run writes them again
        (folder / name).unlink(missing_ok=True)
    for own in (folder / "std", exp.one_sample_folder):    # std: of PETs of an earlier version
        shutil.rmtree(own, ignore_errors=True)
    make_folder(folder / "synthesized")


def trained_epochs(exp: Experiment) -> dict[str, int]:
    """How many epochs of each stage were trained, as the settings that ask for them; says so if they ask for
    another number."""
    trained = {}
    for stage in CHECKPOINT:
        path = exp.networks.folder_of(stage) / "loss_curve.csv"
        try:
            trained[f"{stage}_epochs"] = int(read_history(path).groupby("stage")["epoch"].max()[stage])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not there or damaged; --stages aae ldm writes it again and trains "
                             "nothing") from error
    for name, number in trained.items():
        if number != getattr(exp.cfg, name):
            say("test", f"{name} is {getattr(exp.cfg, name)}, but {number} are trained: the scores are those "
                        f"of {number}")
    return trained


# ---------------------------------------------------------------- amyloid status

def classifiers_bound_to(masks: dict[str, str], synthesizer: Synthesizer,
                         covariates: tuple[str, ...] = ()) -> dict[str, str]:
    """What a status classifier is valid for: the networks, which are those of one training list, the masks
    that it looks through, and the covariates that it sees.

    masks: as Measurement.mask_keys gives.
    """
    networks = weights_key(synthesizer.unet, synthesizer.space.decoder)
    bound_to = {name: f"{networks} {masks['brain']}" for name in CLASSIFIERS}
    if covariates:
        bound_to |= {name: f"{bound_to['mri']} {' '.join(covariates)}" for name in OF_COVARIATES}
    if "cortex" in masks:
        bound_to["suvr"] = f"{networks} {masks['cortex']} {masks['reference']}"
    return bound_to


def frozen_digests(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of the thresholds and the calibration in an experiment's folder, as far as they are
    there; both are bound to the networks."""
    digests = {}
    for name in FROZEN:
        if (folder / name).is_file():
            digests[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return digests


def calibration_bound_to(sampling: dict, masks: dict[str, str], synthesizer: Synthesizer) -> dict:
    """What a calibration of the SUVR is valid for: networks, masks and sampling. sampling: the settings that
    affect the synthesis, and the covariates if there are some."""
    return {"networks and masks": classifiers_bound_to(masks, synthesizer)["suvr"], **sampling}


def read_real(exp: Experiment, survey: Survey) -> dict[str, pd.DataFrame]:
    """What status and uptake are read from, of the real PETs of each list, with age and sex if they are
    known."""
    cohort, measurement = exp.cohort, exp.measurement
    test = evaluate(lambda batch: batch["pet"], exp.batches(cohort.test, "mri", "pet", divided=True),
                    measurement.status_inputs, "read test list")
    real = {"train": survey.of(cohort.train), "validation": survey.of(cohort.validation), "test": test}
    real = {split: with_cells(table, exp.people) for split, table in real.items()}
    if measurement.regions:
        for table in real.values():
            without = table.loc[~np.isfinite(table["SUVR"]), "ID"]
            if len(without):
                raise InputError(f"{measurement.files.named('reference_mask')}: no uptake in it in the PET "
                                 f"of {', '.join(without)}")
    demographics, why_not = read_demographics(exp.cfg.info_folder, [scan.id for scan in cohort.scans])
    if demographics is None:
        say("test", f"no status classifier of age and sex: {why_not}")
        return real
    return {split: table.merge(demographics, on="ID") for split, table in real.items()}


def fit_status(exp: Experiment, real: dict[str, pd.DataFrame],
               synthesizer: Synthesizer) -> dict[str, StatusClassifier]:
    """The status classifiers, fitted before the long synthesis; none, and why, if status is not binary here.

    Writes those of volumes to status_classifiers.npz, for new scans.
    """
    if not is_rank_0():
        return {}
    path, measurement = exp.cfg.result_dir / STATUS_CLASSIFIERS, exp.measurement
    path.unlink(missing_ok=True)
    if exp.cfg.num_classes != 2 or real["train"]["label"].nunique() < 2:
        say("test", "amyloid status is not read: it needs num_classes 2 and both labels in the training list")
        return {}
    classifiers = fit_status_classifiers(real["train"], real["validation"], measurement.brain,
                                         measurement.pool, exp.cfg.seed)
    bound_to = classifiers_bound_to(measurement.mask_keys(), synthesizer, exp.cfg.covariates)
    save_status_classifiers(path, classifiers, bound_to)
    return classifiers


# ---------------------------------------------------------------- synthesis

class ScanSynthesis:
    """Synthesis of the scans of a list for evaluate: MRI -> synthetic PET, with SUVR_sd and p_mri as further
    columns if they are known.

    saved: the scans whose PETs are written on their MRIs' grids into folder/synthesized. is_phantom: whether
    the scans are a phantom's, which the files say.
    """

    def __init__(self, sampler: LatentSampler, saved: list[Scan], folder: Path, is_phantom: bool):
        self.sampler, self.synthesizer, self.cfg = sampler, sampler.synthesizer, sampler.cfg
        self.saved, self.folder = {scan.id: scan for scan in saved}, folder
        self.crop = Crop(self.cfg.crop_start, self.cfg.volume_size)
        # NIfTI holds 79 bytes
        self.note = f"{PHANTOM_NOTICE if is_phantom else 'IL-CLDM, synthetic PET'}; not for clinical use"
        self.seconds = 0.0                                 # of sampling and decoding alone

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser that a scan takes (NFE)."""
        return self.sampler.evaluations

    def __call__(self, batch: dict) -> Prediction:
        """The PETs of a batch {id, mri [B, 1, D, H, W]}, written on the way."""
        cfg, measurement, columns = self.cfg, self.sampler.measurement, {}
        started = time.perf_counter()
        z_0 = self.sampler(batch)                                                         # [B, m, C, d, h, w]
        x_hat = self.synthesizer.decode(z_0.mean(dim=1))                                     # [B, 1, D, H, W]
        wait_for_gpu()
        self.seconds += time.perf_counter() - started
        self._save(x_hat, batch)
        if measurement.regions:
            decoded = self.synthesizer.decode_samples(z_0)                                # [B, m, 1, D, H, W]
            suvr = measurement.suvr(decoded.flatten(0, 1)).view(decoded.shape[:2])           # [B, m]
            columns["SUVR_sd"] = std_over_samples(suvr).tolist()
        probabilities = self.sampler.label_probabilities(batch)
        if probabilities is not None and cfg.num_classes == 2:
            columns["p_mri"] = probabilities[:, 1].tolist()
        return Prediction(x_hat, columns)

    def _save(self, x_hat: Tensor, batch: dict) -> None:
        for name, volume in zip(batch["id"], x_hat[:, 0].cpu().numpy(), strict=True):
            if name in self.saved:
                save_synthesis(self.folder / "synthesized" / f"{name}.nii.gz", volume, self.saved[name].mri,
                               self.crop, self.note)


# ---------------------------------------------------------------- what a method costs

class Clock:
    """A predict function whose scans and seconds are counted."""

    def __init__(self, predict: Predict):
        self.predict, self.scans, self.seconds = predict, 0, 0.0

    def __call__(self, batch: dict) -> Tensor | Prediction:
        """What the function gives for a batch."""
        wait_for_gpu()                                     # for the scores of scans before
        started = time.perf_counter()
        prediction = self.predict(batch)
        wait_for_gpu()
        self.scans += len(batch["id"])
        self.seconds += time.perf_counter() - started
        return prediction


def wait_for_gpu() -> None:
    """Wait until a GPU has done what it was given, so that the time that it took can be read."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def write_costs(exp: Experiment, clocks: dict[str, Clock]) -> None:
    """Write cost.csv, a row a method: weights that are trained for it, volumes that its trainings see and
    their seconds, network evaluations (NFE) and seconds of the synthesis of a scan. No row for what is not
    trained."""
    if not is_rank_0():
        return
    rows, known = [], {}                                   # stage -> its cost; checkpoints are large
    for method, clock in clocks.items():
        for stage in trainings_of(method):
            if stage not in known:
                known[stage] = _training_cost(exp, stage)
        trainings = [known[stage] for stage in trainings_of(method)]
        if trainings:
            seconds = getattr(clock.predict, "seconds", clock.seconds)
            rows.append({"method": method, **pd.DataFrame(trainings).sum(skipna=False),
                         "NFE": getattr(clock.predict, "evaluations", 1), "scan_s": seconds / clock.scans})
    table = pd.DataFrame(rows).astype({"weights": "Int64", "volumes_seen": "Int64"})
    write_csv(exp.cfg.result_dir / COST, table.round({"training_s": 1, "scan_s": 4}))


def trainings_of(method: str) -> tuple[str, ...]:
    """The stages and baselines that are trained for a method, in order."""
    own = {"aae": ("aae",), "il_cldm": ("aae", "ldm")}
    if method in own:
        return own[method]
    method = SECOND_ROWS.get(method, method)
    if method in BASELINES:
        return ("aae", method) if method in DENOISER else (method,)
    return ()


def _training_cost(exp: Experiment, stage: str) -> dict[str, float]:
    """Weights of a training from its best checkpoint, volumes seen and seconds from the last one; NaN without
    it."""
    last = exp.networks.last_path(stage)
    saved = load_checkpoint(last if last.exists() else exp.networks.best_path(stage))
    weights = 0
    for part, state in saved["state"].items():
        if not part.startswith(("opt", "ema")):
            weights += sum(value.numel() for name, value in state.items() if not name.endswith(NOT_TRAINED))
    if not last.exists():
        return {"weights": weights, "volumes_seen": float("nan"), "training_s": float("nan")}
    batch = saved["settings"]["aae_batch_size" if stage == "aae" else "ldm_batch_size"]
    return {"weights": weights, "training_s": saved.get("seconds", float("nan")),
            "volumes_seen": saved["step"] * batch * saved["free_settings"].get("processes", 1)}


# ---------------------------------------------------------------- what is written

@dataclass(frozen=True)
class TestScores:
    """The scores of the test stage.

    subjects: method -> a row a test subject; validation: a row a validation subject of il_cldm; real: split
    -> a row a subject of the real PETs; classifiers: those of status; epochs: trained, by the setting that
    asks for them.
    """
    subjects: dict[str, pd.DataFrame]
    validation: pd.DataFrame
    real: dict[str, pd.DataFrame]
    classifiers: dict[str, StatusClassifier]
    epochs: dict[str, int]


def measure_uncertainty(exp: Experiment, synthesizer: Synthesizer,
                        scores: TestScores) -> dict[str, pd.DataFrame]:
    """The content of validation_list.csv, and of uncertainty.csv if there are regions: how good the
    calibration on the validation list is on the test list. Prints that, and saves the calibration for new
    scans."""
    validation, test, real = scores.validation, scores.subjects["il_cldm"], scores.real
    status = {f"score_{name}": scores.classifiers[name].score(validation)
              for name in CLASSIFIERS if name in scores.classifiers}
    if not exp.measurement.regions:
        return {"validation_list": validation[["ID", "label", *METRICS, *SPECTRAL]].assign(**status)}
    validation = validation.assign(SUVR_real=validation["ID"].map(real["validation"].set_index("ID")["SUVR"]))
    test = test.assign(SUVR_real=test["ID"].map(real["test"].set_index("ID")["SUVR"]))
    calibration = calibrate(validation, exp.cfg.num_classes == 2)
    bound_to = calibration_bound_to(exp.cfg.sampling_settings(), exp.measurement.mask_keys(), synthesizer)
    save_calibration(exp.cfg.result_dir / CALIBRATION, calibration, bound_to)
    assessed = assess(calibration, test)
    say("test", describe(calibration, assessed))
    predicted = ["p_mri"] if "p_mri" in test else []       # of the label, from the MRI
    columns = ["ID", "label", *METRICS, *SPECTRAL, "SUVR", "SUVR_sd", "SUVR_real", *predicted]
    return {"validation_list": validation[columns].assign(**status),
            "uncertainty": assessed.join(test[predicted])}


def write_results(exp: Experiment, synthesizer: Synthesizer, scores: TestScores) -> None:
    """Read status; write the per-subject CSVs and summary.csv; print the summary with what it was measured
    on."""
    if not is_rank_0():
        return
    cfg, real = exp.cfg, scores.real
    frames = score_frames(scores.subjects, real["test"], scores.classifiers)
    frames |= measure_uncertainty(exp, synthesizer, scores)
    frames["people"] = people_of_test_list(cfg.info_folder, exp.cohort.test,
                                           (*cfg.covariates, *cfg.subgroups))
    note = exp.scores_note(len(exp.cohort.test))
    metadata = {"phantom": exp.is_phantom, "notice": exp.notice, "note": note, **exp.identity(),
                **json.loads(cfg.to_json()), "command": exp.command}
    metadata["settings"] |= scores.epochs | {"precision": exp.networks.precision}
    save_run(cfg.result_dir, metadata, frames)
    if "predictions" in frames:
        label = real["test"]["label"]
        say("test", expected_widths(int((label == 1).sum()), int((label == 0).sum())))
    say("test", f"mean +- SD over {note}")
    write_summary(cfg.result_dir, frames["test"], PHANTOM_NOTICE if exp.is_phantom else cfg.data_dir)


def score_frames(subjects: dict[str, pd.DataFrame], real: pd.DataFrame,
                 classifiers: dict[str, StatusClassifier]) -> dict[str, pd.DataFrame]:
    """The content of test.csv, of uptake.csv if there are regions, and of predictions.csv if there are status
    classifiers.

    subjects: method -> a row a subject of one list, with all measures. real: the rows of their real PETs.
    """
    frames = {"test": _stacked(subjects, ["ID", "label", *METRICS, *SPECTRAL])}
    people = real[[name for name in real if name in ("ID", "age", "sex") or name.startswith(PREFIX)]]
    read = {"real": real} | {method: table.merge(people, on="ID") for method, table in subjects.items()}
    uptake = [name for name in real if name == "CL" or name.startswith("SUVR")]
    if uptake:
        frames["uptake"] = _stacked(read, ["ID", "label", *uptake])
    if classifiers:
        frames["predictions"] = read_status(classifiers, read)
    return frames


def write_summary(folder: Path, test: pd.DataFrame, data: str) -> None:
    """Write summary.csv and print it. test: the content of test.csv. data: where its subjects come from."""
    summary = summarize(test)
    write_csv(folder / "summary.csv", summary.assign(data=data))
    LOG.info("%s", _shown(summary, list(dict.fromkeys(test["method"]))))


def _stacked(tables: dict[str, pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """These columns of the tables of all methods, one below the other, the method first."""
    stacked = pd.concat([table[columns].assign(method=method) for method, table in tables.items()])
    return stacked[["method", *columns]]


def _shown(summary: pd.DataFrame, methods: list[str]) -> str:
    text = [f"{mean:.4f} +- {std:.4f}" for mean, std in zip(summary["mean"], summary["std"], strict=True)]
    table = summary.assign(text=text).pivot(index="method", columns="metric", values="text")
    table = table.loc[methods, list(dict.fromkeys(summary["metric"]))]
    return table.rename_axis(index=None, columns=None).to_string()
