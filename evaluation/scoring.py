"""The scores of the test list: what they are read from, and the CSVs that hold them."""
import json
import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dataset import read_demographics
from diffusion import LatentSamples, Synthesizer, std_over_samples
from evaluation.metrics import METRICS, evaluate, summarize
from evaluation.results import forget_run, save_run
from evaluation.status import CLASSIFIERS, StatusClassifier, fit_status_classifiers, read_status, save_status_classifiers
from evaluation.uncertainty import assess, calibrate, describe, save_calibration
from experiment.experiment import PHANTOM_NOTICE, Experiment
from experiment.networks import CHECKPOINT
from imaging.volumes import save_synthesis
from runtime.checkpoints import read_history
from runtime.files import make_folder, write_csv
from runtime.logs import LOG, say
from utils import InputError, weights_key

STATUS_CLASSIFIERS, CALIBRATION = "status_classifiers.npz", "calibration.npz"  # of the test stage, for new scans


def clear_results(exp: Experiment) -> None:
    """Take away the results of an earlier test, and make the folders of this one."""
    forget_run(exp.cfg.result_dir)
    (exp.cfg.result_dir / CALIBRATION).unlink(missing_ok=True)
    shutil.rmtree(exp.cfg.result_dir / "deviation", ignore_errors=True)                      # not every run writes it anew
    for name in ("synthesized", "deviation") if exp.cfg.save_std else ("synthesized",):
        make_folder(exp.cfg.result_dir / name)


def trained_epochs(exp: Experiment) -> dict[str, int]:
    """How many epochs of each stage were trained, as the settings that ask for them; says so if they ask for another number."""
    trained = {}
    for stage in CHECKPOINT:
        path = exp.folder_of(stage) / "loss_curve.csv"
        try:
            trained[f"{stage}_epochs"] = int(read_history(path).groupby("stage")["epoch"].max()[stage])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not there or damaged; --stages aae ldm writes it again and trains nothing anew") from error
    for name, number in trained.items():
        if number != getattr(exp.cfg, name):
            say("test", f"{name} is {getattr(exp.cfg, name)}, but {number} are trained: the scores are those of {number}")
    return trained


def classifiers_bound_to(exp: Experiment, synthesizer: Synthesizer) -> dict[str, str]:
    """What a read-out of volumes is valid for: the networks, which are those of one training list, and the masks that it looks through."""
    masks, networks = exp.identity()["masks"], weights_key(synthesizer.unet, synthesizer.decoder)
    bound_to = {name: f"{networks} {masks['brain']}" for name in CLASSIFIERS}
    return bound_to | ({"suvr": f"{networks} {masks['cortex']} {masks['reference']}"} if exp.regions else {})


def calibration_bound_to(exp: Experiment, synthesizer: Synthesizer) -> dict:
    """What a calibration of the SUVR is valid for: networks, masks and sampling; the experiment has regions."""
    return {"networks and masks": classifiers_bound_to(exp, synthesizer)["suvr"], **exp.cfg.settings_of("synthesis")}


def fit_status(exp: Experiment, real: dict[str, pd.DataFrame], synthesizer: Synthesizer) -> dict[str, StatusClassifier]:
    """The read-outs of amyloid status, fitted before the long synthesis; none, and why, if status is not binary here.

    Writes those of volumes to status_classifiers.npz, for new scans.
    """
    path = exp.cfg.result_dir / STATUS_CLASSIFIERS
    path.unlink(missing_ok=True)
    if exp.cfg.num_classes != 2 or real["train"]["label"].nunique() < 2:
        say("test", "amyloid status is not read: it needs num_classes 2 and both labels in the training list")
        return {}
    readers = fit_status_classifiers(real["train"], real["validation"], exp.brain, exp.pool, exp.cfg.seed)
    save_status_classifiers(path, readers, classifiers_bound_to(exp, synthesizer))
    return readers


def survey_real(exp: Experiment) -> dict[str, pd.DataFrame]:
    """What status and uptake are read from, of the real PETs of each list, with age and sex if they are known."""
    cohort = exp.cohort
    lists = {split: getattr(cohort, split) for split in ("train", "validation", "test")}
    real = {split: evaluate(lambda batch: batch["pet"], exp.batches(scans, "mri", "pet", divided=True), exp.readable, f"read {split} list")
            for split, scans in lists.items()}
    if exp.regions:
        without = [name for table in real.values() for name in table.loc[~np.isfinite(table["SUVR"]), "ID"]]
        if without:
            raise InputError(f"reference_mask {exp.region_masks['reference_mask']}: no uptake in it in the PET of {', '.join(without)}")
    demographics, why_not = read_demographics(exp.cfg.info_folder, [scan for scans in lists.values() for scan in scans])
    if demographics is None:
        say("test", f"no read-out of age and sex: {why_not}")
        return real
    return {split: table.merge(demographics, on="ID") for split, table in real.items()}


# ---------------------------------------------------------------- synthesis

def synthesize_and_save(exp: Experiment, synthesizer: Synthesizer, sample: Callable[[dict], LatentSamples]) -> Callable[[dict], Tensor]:
    """A predict function for evaluate: MRI -> synthetic PET, noting SUVR_sd if there are regions.

    The PETs of the test list are saved on their MRIs' grids; beside them the deviation of their draws if asked for.
    """
    scans = {scan.id: scan for scan in exp.cohort.test}
    note = f"{PHANTOM_NOTICE if exp.is_phantom else 'IL-CLDM, synthetic PET'}; not for clinical use"   # NIfTI holds 79 bytes

    def save(volumes: Tensor, batch: dict, folder: str) -> None:
        for name, volume in zip(batch["id"], volumes[:, 0].cpu().numpy(), strict=True):
            if name in scans:
                save_synthesis(exp.cfg.result_dir / folder / f"{name}.nii.gz", volume, scans[name].mri, exp.crop, note)

    def predict(batch: dict) -> Tensor:
        """Batch of MRIs [B, 1, D, H, W] -> their PETs, written on the way."""
        samples = sample(batch)
        x_hat = synthesizer.decode(samples.mean())
        save(x_hat, batch, "synthesized")
        decoded = synthesizer.decode_samples(samples.z_0) if exp.regions or exp.cfg.save_std else None
        if exp.cfg.save_std:
            save(std_over_samples(decoded), batch, "deviation")
        if exp.regions:
            batch["noted"] = {"SUVR_sd": suvr_std(exp, decoded)}
        if samples.label is not None and exp.cfg.num_classes == 2:
            batch.setdefault("noted", {})["p_mri"] = samples.label[:, 1].tolist()
        return x_hat
    return predict


def suvr_std(exp: Experiment, decoded: Tensor) -> list[float]:
    """Standard deviation of the SUVR over each scan's decoded samples [B, m, 1, D, H, W]; NaN if one has no uptake in the reference."""
    composite = replace(exp.regions, named={}, centiloid=None)                               # further regions take their time
    suvr = [[composite.measure(volume[0])["SUVR"] for volume in scan] for scan in decoded.cpu().numpy()]
    return std_over_samples(torch.tensor(suvr, dtype=torch.float64)).tolist()


def measure_uncertainty(exp: Experiment, synthesizer: Synthesizer, validation: pd.DataFrame, test: pd.DataFrame,
                        real: dict[str, pd.DataFrame], readers: dict[str, StatusClassifier]) -> dict[str, pd.DataFrame]:
    """What validation_list.csv holds, and uncertainty.csv if there are regions: how good the calibration on the first is on the test list.

    Prints that, and saves the calibration for new scans.
    validation, test: rows of the synthetic PETs of either list, as evaluate gives with the measure of the test stage.
    """
    scores = {f"score_{name}": readers[name].score(validation) for name in CLASSIFIERS if name in readers}
    if not exp.regions:
        return {"validation_list": validation[["ID", "label", *METRICS]].assign(**scores)}
    validation, test = (table.assign(SUVR_real=table["ID"].map(real[split].set_index("ID")["SUVR"]))
                        for table, split in ((validation, "validation"), (test, "test")))
    calibration = calibrate(validation, exp.cfg.num_classes == 2)
    save_calibration(exp.cfg.result_dir / CALIBRATION, calibration, calibration_bound_to(exp, synthesizer))
    assessed = assess(calibration, test)
    say("test", describe(calibration, assessed))
    predicted = [name for name in ("p_mri",) if name in test]                                # of the label, from the MRI
    columns = ["ID", "label", *METRICS, "SUVR", "SUVR_sd", "SUVR_real", *predicted]
    return {"validation_list": validation[columns].assign(**scores), "uncertainty": assessed.join(test[predicted])}


# ---------------------------------------------------------------- what is written

def write_results(exp: Experiment, subjects: dict[str, pd.DataFrame], real: dict[str, pd.DataFrame], readers: dict[str, StatusClassifier],
                  epochs: dict[str, int], uncertain: dict[str, pd.DataFrame]) -> None:
    """Read status; write the per-subject CSVs, those of measure_uncertainty too, and summary.csv; print the summary with what it was
    measured on."""
    cfg = exp.cfg
    frames = {"test": pd.concat([table[["ID", "label", *METRICS]].assign(method=method) for method, table in subjects.items()])}
    frames["test"] = frames["test"][["method", "ID", "label", *METRICS]]
    people = real["test"][[name for name in ("ID", "age", "sex") if name in real["test"]]]
    readable = {"real": real["test"]} | {method: table.merge(people, on="ID") for method, table in subjects.items()}
    if exp.regions:
        columns = ["ID", "label", *(name for name in real["test"] if name == "CL" or name.startswith("SUVR"))]
        uptake = pd.concat([table[columns].assign(method=method) for method, table in readable.items()])
        frames["uptake"] = uptake[["method", *columns]]
    if readers:
        frames["predictions"] = read_status(readers, readable)
    facts = {"phantom": exp.is_phantom, "notice": exp.notice, "note": exp.scores_note(len(exp.cohort.test)), **exp.identity(),
             **json.loads(cfg.to_json()), "command": exp.command}
    facts["settings"] |= epochs | {"precision": exp.precision}
    save_run(cfg.result_dir, facts, frames | uncertain)
    summary = summarize(frames["test"])
    write_csv(cfg.result_dir / "summary.csv", summary.assign(data=PHANTOM_NOTICE if exp.is_phantom else cfg.data_dir))
    table = summary.assign(text=[f"{mean:.4f} +- {std:.4f}" for mean, std in zip(summary["mean"], summary["std"], strict=True)]) \
        .pivot(index="method", columns="metric", values="text").loc[list(subjects), list(METRICS)]
    say("test", f"mean +- SD over {exp.scores_note(len(exp.cohort.test))}")
    LOG.info("%s", table.rename_axis(index=None, columns=None).to_string())
