"""What the cohort decides where the settings say auto: whether regions that nobody gave are used, and with
them the label that the UNet is trained with. Settled before anything is written or bound to the settings."""
import dataclasses
import json

import numpy as np
from sklearn.metrics import roc_auc_score

from config import Config, with_later_settings
from dataset import Cohort, Scan
from experiment.experiment import Experiment, region_kind
from experiment.networks import CHECKPOINT
from imaging.grids import Crop
from imaging.mni_regions import lies_in_mni_space
from runtime.files import brief
from runtime.logs import progress_bar, say
from runtime.ranks import from_rank_0
from utils import InputError

LEAST_AUC = 0.85             # of the labels by the SUVR, for an SUVR in automatic regions to become the label


def settle_regions(cfg: Config, cohort: Cohort) -> Config:
    """The settings with regions none in the place of auto where there can be none, and with the choices of an
    earlier run where it has trained stage 2; says what was decided.

    Raises InputError if the settings do not fit together then.
    """
    if cfg.label_in_training == "auto" or (cfg.regions == "auto" and not cfg.cortex_mask):
        cfg = _as_before(cfg)
    if cfg.regions == "auto" and region_kind(cfg) == "mni":
        if not lies_in_mni_space(cohort.affine, Crop(cfg.crop_start, cfg.volume_size)):
            return _changed(cfg, "the crop does not hold the places of the MNI152 template's cortex and "
                                 "cerebellum; is the cohort in MNI space?", regions="none")
        say("check", "no masks are given: the SUVR is measured in plain regions of the MNI152 template "
                     "(--regions mni; --regions none leaves it out; docs/status.md)")
    elif cfg.predicts_label and not cfg.knows_regions:
        say("check", "the settings name no regions (cortex_mask, reference_mask): the UNet is trained with "
                     f"label_in_training {cfg.label_in_training} and sampled with the label predicted from "
                     f"the MRI (label_at_sampling {cfg.label_at_sampling})")
    return cfg


def _as_before(cfg: Config) -> Config:
    """The settings with regions and label of the experiment whose stage 2 is used or continued, if it is
    trained."""
    folder = cfg.result_dir.parent / (cfg.ldm_from or cfg.exp)
    if not any(folder.glob(f"{CHECKPOINT['ldm']}*.pth.tar")):
        return cfg
    try:
        saved = with_later_settings(json.loads((folder / "config.json").read_text())["settings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return cfg                                         # the checkpoint itself will say what differs
    changes = {}
    if cfg.regions == "auto" and region_kind(cfg) == "mni" and not saved.get("cortex_mask"):
        changes["regions"] = saved["regions"]
    if cfg.label_in_training == "auto":
        changes["label_in_training"] = saved.get("label_in_training", "auto")
    changes = {name: value for name, value in changes.items() if value != getattr(cfg, name)}
    return _changed(cfg, f"as in the training of {folder}", **changes) if changes else cfg


def settle_label(exp: Experiment) -> Experiment:
    """The experiment with the settings that the uptake of its PETs decides: regions none where a PET has no
    uptake in regions that nobody asked for, and the label of training. Itself if nothing is left to decide.

    Raises InputError if the settings do not fit together then.
    """
    cfg = from_rank_0(_decide, exp)
    return exp if cfg == exp.cfg else exp.with_settings(cfg)


def _decide(exp: Experiment) -> Config:
    """The settings of the experiment when its PETs are known; says what was decided."""
    cfg, cohort = exp.cfg, exp.cohort
    is_default = cfg.regions == "auto" and exp.measurement.files.kind == "mni"
    if not is_default and cfg.label_in_training != "auto":
        return cfg
    scans = cohort.train + cohort.validation + (cohort.test if is_default else [])
    suvr = _suvr_of(exp, scans)
    without = [scan.id for scan, value in zip(scans, suvr, strict=True) if not np.isfinite(value)]
    if without and is_default:
        return _changed(cfg, "no uptake in the template's cerebellum in the PET of "
                             f"{brief(', '.join(without))}", regions="none")
    if is_default:
        cfg = dataclasses.replace(cfg, regions="mni")
    if cfg.label_in_training != "auto":
        return cfg
    if without:                                            # in regions that the user asked for
        return _changed(cfg, f"no uptake in the regions {cfg.regions} in the PET of "
                             f"{brief(', '.join(without))}", label_in_training="true")
    labels = [scan.label for scan in cohort.train]
    auc = separation(np.array(labels), suvr[:len(labels)])
    chosen = "suvr" if auc >= LEAST_AUC else "true"
    cfg = _changed(cfg, label_in_training=chosen)
    sign = ">=" if chosen == "suvr" else "<"
    say("check", f"the SUVR in automatic regions tells the labels of the training list apart with AUC "
                 f"{auc:.3f} {sign} {LEAST_AUC}: label_in_training {cfg.label_in_training}, "
                 f"label_at_sampling {cfg.label_at_sampling}")
    return cfg


def separation(labels: np.ndarray, suvr: np.ndarray) -> float:
    """AUC of label 1 against 0 by the SUVR, both [n]; 0 where one label is missing."""
    if len(set(labels.tolist())) < 2:
        return 0.0
    return float(roc_auc_score(labels, suvr))


def _suvr_of(exp: Experiment, scans: list[Scan]) -> np.ndarray:
    """SUVR of the real PETs of these scans, [n]; the volumes stay in the cache for what follows."""
    suvr = []
    for batch in progress_bar(exp.batches(scans, "pet"), desc="SUVR of the real PETs", unit="batch"):
        suvr += exp.measurement.suvr(batch["pet"]).tolist()
    return np.array(suvr)


def _changed(cfg: Config, why: str = "", **changes: str) -> Config:
    """The settings with these changes, which are said with their reason if there is one.

    Raises InputError if they do not fit together then.
    """
    try:
        changed = dataclasses.replace(cfg, **changes)
    except ValueError as error:
        reason = f" ({why})" if why else ""
        raise InputError(f"auto means {changes} for this cohort{reason}, but then {error}") from error
    if why:
        now = ", ".join(f"{name} {getattr(changed, name)}" for name in (
            "regions", "label_in_training", "label_at_sampling"))
        say("check", f"{now}: {why}")
    return changed
