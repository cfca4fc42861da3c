"""The methods of a run as text for a paper, generated from its metadata and the numbers of its lists: every
sentence holds for that run, or is not written. What the run cannot know stands in [square brackets]."""
import json
from collections.abc import Iterator, Sequence

from config import BASELINES, SECOND_ROWS
from evaluation import statistics
from evaluation.grey_zone import why_none
from evaluation.participants import TITLES, Flow
from evaluation.results import Run
from evaluation.subgroups import LEAST
from imaging.regions import ABOUT
from labels.covariates import LEAST_MISSING
from model import Diffusion

REFERENCES = {
    "Ou et al. 2025": "Ou, Pan, Xie, Guo, Shen. Image-and-Label Conditioning Latent Diffusion Model: "
                      "Synthesizing Aβ-PET From MRI for Detecting Amyloid Status. IEEE J Biomed Health "
                      "Inform 29(2):1221-1231, 2025. doi:10.1109/JBHI.2024.3492020",
    "Ho et al. 2020": "Ho, Jain, Abbeel. Denoising Diffusion Probabilistic Models. NeurIPS 2020.",
    "Song et al. 2021": "Song, Meng, Ermon. Denoising Diffusion Implicit Models. ICLR 2021.",
    "Lu et al. 2022": "Lu et al. DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic "
                      "Models. arXiv:2211.01095, 2022.",
    "Salimans and Ho 2022": "Salimans, Ho. Progressive Distillation for Fast Sampling of Diffusion Models. "
                            "ICLR 2022.",
    "Esser et al. 2024": "Esser et al. Scaling Rectified Flow Transformers for High-Resolution Image "
                         "Synthesis. ICML 2024.",
    "Platt 1999": "Platt. Probabilistic Outputs for Support Vector Machines and Comparisons to Regularized "
                  "Likelihood Methods. In: Advances in Large Margin Classifiers. MIT Press, 1999.",
    "Guo et al. 2017": "Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017.",
    "Papadopoulos et al. 2002": "Papadopoulos, Proedrou, Vovk, Gammerman. Inductive Confidence Machines for "
                                "Regression. ECML 2002.",
    "Lei et al. 2018": "Lei, G'Sell, Rinaldo, Tibshirani, Wasserman. Distribution-Free Predictive Inference "
                       "for Regression. J Am Stat Assoc 113:1094-1111, 2018.",
    "Klunk et al. 2015": "Klunk et al. The Centiloid Project: Standardizing quantitative amyloid plaque "
                         "estimation by PET. Alzheimers Dement 11:1-15, 2015. doi:10.1016/j.jalz.2014.07.003",
    "Wolpert 1992": "Wolpert. Stacked Generalization. Neural Networks 5:241-259, 1992.",
    "Hall et al. 1999": "Hall, Wolff, Yao. Methods for Estimating a Conditional Distribution Function. J Am "
                        "Stat Assoc 94:154-163, 1999.",
    "Wang et al. 2004": "Wang, Bovik, Sheikh, Simoncelli. Image Quality Assessment: From Error Visibility to "
                        "Structural Similarity. IEEE Trans Image Process 13:600-612, 2004.",
    "McGraw and Wong 1996": "McGraw, Wong. Forming Inferences About Some Intraclass Correlation "
                            "Coefficients. Psychol Methods 1:30-46, 1996.",
    "Cox 1958": "Cox. Two Further Applications of a Model for Binary Regression. Biometrika 45:562-565, "
                "1958.",
    "Kruskal and Wallis 1952": "Kruskal, Wallis. Use of Ranks in One-Criterion Variance Analysis. J Am Stat "
                               "Assoc 47:583-621, 1952.",
    "Holm 1979": "Holm. A Simple Sequentially Rejective Multiple Test Procedure. Scand J Stat 6:65-70, 1979."}
PREDICTIONS = {"eps": "the noise (Ho et al. 2020)", "v": "v (Salimans and Ho 2022)"}
SAMPLERS = {"ddpm": "ancestral sampling (Ho et al. 2020)", "ddim": "DDIM (Song et al. 2021)",
            "dpm": "DPM-Solver++(2M) (Lu et al. 2022)"}
COMPARED = {"mean_pet": "the mean training PET",
            "oracle": "the PET that the simulation expects from the true anatomy",
            "aae": "the reconstruction of the real PET by the autoencoder"}
TO_FILL_IN = ("[To be filled in: cohort, dates and centres, eligibility, scanners, tracers, preprocessing, "
              "definition of the label, ethics approval.]")


def methods_text(run: Run, flow: Flow, externals: Sequence[str] = ()) -> str:
    """Paragraphs on data, training, synthesis, evaluation and software of a run, then the references that
    they cite. externals: names of the external cohorts that it has scored."""
    parts = {"Data": _data, "Networks and training": _training, "Synthesis": _synthesis,
             "Evaluation": _evaluation}
    lines = [f"{title}. {' '.join(part(run, flow))}" for title, part in parts.items()]
    if externals:
        lines[-1] += (f" The external cohort{'s' * (len(externals) > 1)} {', '.join(externals)} "
                      f"{'was' if len(externals) == 1 else 'were'} scored with the same networks, thresholds "
                      "and calibration; nothing was fitted or chosen there.")
    lines.append(f"Software. {' '.join(_software(run))}")
    text = "\n\n".join(lines)
    cited = [f"- {full}" for short, full in REFERENCES.items() if short in text]
    return f"{text}\n\nReferences\n" + "\n".join(cited) + "\n"


def _grid(sizes: list[int]) -> str:
    return " x ".join(map(str, sizes))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


# ---------------------------------------------------------------- data

def _data(run: Run, flow: Flow) -> Iterator[str]:
    settings = run.metadata["settings"]
    if run.metadata["phantom"]:
        known = [f"{name} {json.dumps(value)}" for name, value in settings.items()
                 if name.startswith("phantom_") and name != "phantom_subjects"]
        drawn = f" ({', '.join(known)})" if any(settings["phantom_subjects"]) else ""
        yield (f"All data are a simulated digital phantom, not patient data{drawn}; nothing measured on it "
               "says anything about patients.")
    else:
        yield TO_FILL_IN
    if flow.found:
        yield (f"Of {flow.found} with an MRI or a PET, {flow.all_left_out} were left out, and "
               f"{flow.labelled} were used.")
    for split, count in flow.lists.items():
        labels = [f"{number} with label {label}" for label, number in flow.labels[split].items()]
        yield f"The {TITLES[split]} held {count} ({', '.join(labels)})."
    yield "By their IDs, no subject was in more than one list."
    yield (f"Volumes of {_grid(settings['image_size'])} voxels with intensities in [0, 1] were cropped to "
           f"{_grid(settings['volume_size'])}.")


# ---------------------------------------------------------------- training

def _training(run: Run, _: Flow) -> Iterator[str]:
    settings = run.metadata["settings"]
    yield ("PETs were synthesized with IL-CLDM (Ou et al. 2025) in an independent implementation, whose "
           "settings may differ from the published ones.")
    size = [n // 2 ** (len(settings["aae_channels"]) - 1) for n in settings["volume_size"]]
    decay = ", falling to 0 along half a cosine" if settings["aae_lr_decay"] else ""
    shift = settings["crop_jitter"]
    shifted = f", on crops shifted by up to {_counted(shift, 'voxel')} an axis" if shift else ""
    yield ("In stage 1, an adversarial autoencoder learned to encode a PET as a latent of "
           f"{_counted(settings['latent_channels'], 'channel')} and {_grid(size)} voxels: "
           f"{_counted(settings['aae_epochs'], 'epoch')} of Adam, learning rate "
           f"{settings['aae_lr']:g}{decay}, {_counted(settings['aae_batch_size'], 'volume')} a step and "
           f"process{shifted}, L1 weighted by {settings['lambda_rec']:g} against a hinge loss.")
    yield from _stage_2(settings)
    yield "Of each stage the epoch with the best PSNR + 10 SSIM of the validation list was kept."
    for stage, source in ((1, settings["aae_from"] or settings["ldm_from"]), (2, settings["ldm_from"])):
        if source:
            yield f"The networks of stage {stage} are those of the experiment {source}."


def _stage_2(settings: dict) -> Iterator[str]:
    """Sentences on the denoiser and its training."""
    label = {"suvr": "the amount of amyloid, where the SUVR of the subject's own PET lies between the mean "
                     "SUVRs of the two labels",
             "true": "the subject's label"}.get(settings["label_in_training"])
    given = [] if settings["conditioning"] == "none" else ["the MRI"]
    given += [label] if label else []
    low, high = settings["beta"]
    yield ("In stage 2, a UNet learned to predict " + PREDICTIONS[settings["prediction"]]
           + f" in a diffusion of these latents of {settings['timesteps']} steps (noise variances {low:g} to "
             f"{high:g}, linear)" + (f", given {' and '.join(given)}" if given else "")
           + f": {_counted(settings['ldm_epochs'], 'epoch')} of AdamW, learning rate {settings['ldm_lr']:g}"
           + f", {_counted(settings['ldm_batch_size'], 'subject')} a step and process; the moving average of "
             f"its weights (decay {settings['ema_decay']:g}) was used.")
    if settings["latent_scaling"]:
        yield "Latents were scaled to mean 0 and standard deviation 1 over the training list."
    if settings["time_shift"] != 1:
        direction = "high" if settings["time_shift"] > 1 else "low"
        yield (f"Times were drawn with a shift of {settings['time_shift']:g} to {direction} noise (Esser et "
               "al. 2024).")
    if settings["image_loss"]:
        yield (f"An L1 loss between PET and decoded estimate was added, weighted by "
               f"{settings['image_loss']:g} over the standard deviation of the training PETs.")
    if settings["shuffle_labels"]:
        yield "As a null control, the labels of the training list changed places at random before stage 2."


# ---------------------------------------------------------------- synthesis

def _synthesis(run: Run, _: Flow) -> Iterator[str]:
    settings = run.metadata["settings"]
    diffusion = Diffusion(settings["timesteps"], settings["beta"], settings["prediction"])
    each = diffusion.evaluations(settings["sampler"], settings["sampling_steps"])
    samples = settings["samples_per_scan"]
    kind = settings["label_at_sampling"]
    if kind == "none":
        yield "No label was given in sampling."
    else:
        yield from _predicted_label(settings)
    is_drawn = kind == "sampled"
    is_matched = kind == "matched" or (is_drawn and settings["label_in_training"] == "suvr")
    total = each * samples * (2 if is_matched else 1)
    yield (f"{_counted(samples, 'latent sample')} a scan {'was' if samples == 1 else 'were'} drawn by "
           f"{SAMPLERS[settings['sampler']]} with {_counted(each, 'network evaluation')} each.")
    if is_drawn:
        yield ("Each had a label of its own, drawn from " + (
            "that prediction and its cross-fitted residuals at like predictions of the training list (Hall "
            "et al. 1999)." if is_matched else "those probabilities."))
    if is_matched:
        first = "its first" if is_drawn else "the first"
        yield ("They were drawn twice: the second time, the label was corrected by what the SUVR of "
               f"{first} synthetic PET lacked.")
    decoded = "It was decoded" if samples == 1 else "Their mean was decoded"
    yield f"{decoded} to the synthetic PET, {_counted(total, 'network evaluation')} a scan in all."


def _predicted_label(settings: dict) -> Iterator[str]:
    """Sentences on the label that sampling is given."""
    further = settings.get("covariates", [])
    source = f"its MRI and {', '.join(further)}" if further else "its MRI"
    what = "amount of amyloid" if settings["label_in_training"] == "suvr" else "label"
    yield (f"The {what} that a scan was given in sampling was predicted from {source} by ridge regression "
           "fitted on the training list; the true label of a scan was never used.")
    if further:
        yield ("How much MRI and covariates count was learned from predictions of MRIs that their regression "
               "had not seen (Wolpert 1992); a missing covariate was replaced by its mean over the training "
               f"list, beside an indicator where that list lacks {LEAST_MISSING} values or more.")
    if what == "label":
        how = "(Platt 1999)" if settings["num_classes"] == 2 else "by a temperature (Guo et al. 2017)"
        yield ("The prediction was turned into probabilities on cross-fitted subjects of the training list "
               f"{how}.")


# ---------------------------------------------------------------- evaluation

def _evaluation(run: Run, _: Flow) -> Iterator[str]:
    settings = run.metadata["settings"]
    n = run.test["ID"].nunique()
    mask = settings["brain_mask"] or "the MNI152 brain mask of nilearn"
    yield (f"{_counted(n, 'scan')} of the test list {'was' if n == 1 else 'were'} synthesized and scored by "
           "PSNR, SSIM (Wang et al. 2004; uniform window of 7 voxels) and MAE, data range 1, on the cropped "
           f"box and inside {mask}.")
    methods = run.test["method"].unique()
    others = [COMPARED[name] for name in COMPARED if name in methods]
    trained = [name for name in (*BASELINES, *SECOND_ROWS) if name in methods]
    if trained:
        others.append("trained for comparison: " + ", ".join(trained))
    if others:
        yield f"They were compared with {'; '.join(others)}."
    if run.uptake is not None:
        yield from _uptake(run)
    if run.predictions is not None:
        yield ("Amyloid status was read by classifiers fitted on the training list (of volumes: logistic "
               "regression on principal components of voxels of about 8 mm), with thresholds of the best "
               "balanced accuracy on the validation list's real volumes; 95 % intervals are percentile "
               f"bootstrap intervals over subjects ({statistics.RESAMPLES} resamples).")
        yield from _status(run)
    if run.people is not None:
        yield (f"Headline numbers were computed in groups of {LEAST} subjects or more, and differences "
               "between the groups of a column tested (Kruskal and Wallis 1952; for AUC and correlation by "
               "permutation), corrected for multiple tests (Holm 1979).")
    if "mean_pet" in methods:
        tests = "Wilcoxon's signed-rank test"
        if run.predictions is not None:
            tests += ", the paired bootstrap (AUC) and McNemar's exact test (accuracy)"
        yield (f"Paired differences were tested by {tests}, two-sided, corrected for multiple tests (Holm "
               "1979).")


def _status(run: Run) -> Iterator[str]:
    """Sentences on further status classifiers, on calibration and the grey zone."""
    classifiers = set(run.predictions["classifier"])
    covariates = ", ".join(run.metadata["settings"].get("covariates", []))
    if "covariates" in classifiers:
        yield f"Beside them stood logistic regression on {covariates}, alone and with the MRI."
    if classifiers - {"suvr"}:
        yield ("Calibration of the probabilities was measured by the slope and intercept of a logistic "
               "regression on their log odds (Cox 1958) and by the expected calibration error in 10 bins "
               "(basic bootstrap interval).")
    if not why_none(run):
        yield "Status was also scored without subjects whose real PET had 10 to 30 Centiloids."


def _uptake(run: Run) -> Iterator[str]:
    """Sentences on SUVR, interval and probability."""
    settings = run.metadata["settings"]
    if settings["cortex_mask"]:
        regions = f"the regions of {settings['cortex_mask']} over {settings['reference_mask']}"
    elif settings["regions"] == "auto":
        regions = "the phantom's own cortex over its cerebellum" if run.metadata["phantom"] else ABOUT["mni"]
    else:
        regions = ABOUT[settings["regions"]]
    is_centiloid = not settings["cortex_mask"] and settings["regions"] == "centiloid"
    yield f"The SUVR was measured in {regions}{' (Klunk et al. 2015)' if is_centiloid else ''}."
    yield ("Agreement with the real PET's was measured by bias, error, correlation and ICC(A,1) (McGraw and "
           "Wong 1996).")
    slope, intercept = settings["centiloid"]
    if slope:
        yield f"Centiloids were computed as {slope:g} SUVR {intercept:+g} (Klunk et al. 2015)."
    table = run.uncertainty
    if table is not None and table["low"].notna().any():
        yield ("A 90 % interval of the SUVR was calibrated on the validation list by split conformal "
               "prediction with normalised scores (Papadopoulos et al. 2002; Lei et al. 2018).")
    if table is not None and table["probability"].notna().any():
        yield ("The probability of positive status was calibrated on the validation list by logistic "
               "regression on the SUVR (Platt 1999).")


# ---------------------------------------------------------------- software

def _software(run: Run) -> Iterator[str]:
    settings, versions = run.metadata["settings"], run.metadata["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    precision = {"fp32": "float32", "bf16": "bfloat16 (weights in float32)"}.get(settings["precision"])
    yield f"Versions: {named}."
    if precision:
        yield f"Networks computed in {precision}."
    yield f"The seed was {settings['seed']}. All settings are in config.json of the experiment {run.name}."
