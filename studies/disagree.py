"""What an MRI cannot know: the label predicted from the MRI, from covariates and from both, where atrophy and
amyloid agree and where they do not (docs/study_disagree.md).

    python main.py study disagree              all of it; the same command goes on after an interruption
    python main.py study disagree --discordance 0.6 --seeds 0
    python main.py study disagree --tables     runs nothing; the tables of what is finished

On the benchmark phantom. Both stages are trained once for a seed and a share of discordant subjects; all rows
sample those networks, with a label that is predicted from something else. Writes result/study/disagree*.
"""
import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from config import PRESETS, Config
from evaluation.covariate_status import CovariateClassifier, with_cells
from evaluation.scores import Prediction, evaluate
from experiment.experiment import Experiment
from experiment.session import check
from experiment.stage_2 import fit_label_predictor
from labels.linear import LabelClassifier
from labels.people import read_covariates
from model import Synthesizer
from runtime.commandline import parse
from runtime.files import read_own_table, write_csv, write_text
from runtime.logs import say
from studies.disagree_table import make_table, to_markdown
from studies.running import FOLDER, SEEDS, Failed, cohort_words, run_stages, run_study
from utils import derived_seed, pick_device, weights_key

DISCORDANCE = (0.6, 1.0, 0.0, 0.3)                         # the most telling first
STAGES = ["check", "aae", "encode", "ldm"]
ALL = ("age", "apoe4", "mmse", "ptau217")
LONG = ["--ldm_epochs", "48", "--validation_every", "8"]   # four times the updates of stage 2
MISSING = 0.3                                              # share of the cells that are emptied in a row


class Row(NamedTuple):
    """What the label is predicted from.

    covariates: columns of data_info.csv. with_mri: whether the MRI too. change: of the cells, 'shuffled'
    among the subjects of a list, 'gappy' where MISSING of them are emptied at random, or none.
    """
    name: str
    covariates: tuple[str, ...]
    with_mri: bool = True
    change: str = ""


ROWS = (
    Row("mri", ()),
    Row("marker", ("ptau217",), with_mri=False),
    Row("mri_marker", ("ptau217",)),
    Row("mri_all", ALL),
    Row("mri_marker_gappy", ("ptau217",), change="gappy"),
    Row("mri_all_shuffled", ALL, change="shuffled"),
    Row("mri_age_mmse", ("age", "mmse")),
    Row("covariates", ALL, with_mri=False),
)


# ---------------------------------------------------------------- the experiments

def experiment_name(seed: int, discordance: float, is_long: bool) -> str:
    """Name of the experiment of a seed and a share of discordant subjects."""
    return f"disagree{seed}_{discordance:g}" + ("_long" if is_long else "")


def words(seed: int, discordance: float, is_long: bool) -> list[str]:
    """The command line of an experiment, without its stages."""
    cohort = f"data/disagree{seed}_{discordance:g}"
    own = cohort_words(experiment_name(seed, discordance, is_long), seed, cohort)
    longer = LONG if is_long else []
    return ["--preset", "benchmark", *own, "--phantom_discordant", f"{discordance:g}", *longer]


def measure(seed: int, discordance: float, is_long: bool) -> None:
    """Train an experiment, if that is not done, and write result/<exp>/disagree.csv: a row a test subject and
    what its label was predicted from. Rows of the same networks that are there already stay."""
    name, own = experiment_name(seed, discordance, is_long), words(seed, discordance, is_long)
    run_stages(name, name, own, [STAGES])
    cfg = parse(Config, [*own, "--stages", "check"], "main.py", "", PRESETS)
    exp = Experiment(cfg, check(cfg), pick_device(cfg.device))
    exp.refuse_conflicts(needs=("aae", "ldm"))
    synthesizer, _ = exp.networks.best_synthesizer()
    networks = weights_key(synthesizer.unet, synthesizer.space.decoder)
    measured_on = f"{networks}-{exp.cohort.fingerprint('test')}"
    path = cfg.result_dir / "disagree.csv"
    table = pd.DataFrame({"row": [], "measured_on": []})
    if path.is_file():
        table = read_own_table(path, ["row", "measured_on"], f"remove {path}", measured_on=str)
        table = table[table["measured_on"] == measured_on]
    about = {"seed": seed, "discordance": discordance, "budget": "long" if is_long else "base",
             "measured_on": measured_on}
    for row in ROWS:
        if row.name not in set(table["row"]):
            new = measure_row(exp, synthesizer, row).assign(row=row.name, **about)
            table = pd.concat([table, new]) if len(table) else new
            write_csv(path, table)


# ---------------------------------------------------------------- one row

def measure_row(exp: Experiment, synthesizer: Synthesizer, row: Row) -> pd.DataFrame:
    """A row a test subject: image scores, SUVR synthetic and real, probability of status without a PET, by
    the predictor of the label and by a status classifier, and whether it is discordant."""
    train, test = exp.cohort.train, exp.cohort.test
    cells = changed_cells(exp, row)
    known = None if cells is None else cells.loc[[scan.id for scan in train]]
    metadata = exp.networks.best_checkpoint("ldm")["metadata"]
    labels = np.array([scan.label for scan in train])
    predictor = fit_label_predictor(exp, exp.survey(), labels, metadata["soft_labels"][:len(train)],
                                    metadata["label_predictor"]["levels"], known, row.with_mri)
    sampler = exp.latent_sampler(synthesizer, predictor)
    sampler.people = cells

    def predict(batch: dict) -> Prediction:
        """The PETs of a batch, with the probability of positive status that the label's predictor gives."""
        return Prediction(sampler.synthesize(batch),
                          {"p_label": sampler.label_probabilities(batch)[:, 1].tolist()})

    scans = exp.batches(test, "mri", "pet", batch=exp.cfg.scans_at_once)
    scores = evaluate(predict, scans, exp.measurement.all_measures, f"{exp.cfg.exp} {row.name}")
    real = evaluate(lambda batch: batch["pet"], exp.batches(test, "mri", "pet"),
                    exp.measurement.status_inputs, "real")
    truth = pd.read_csv(Path(exp.cfg.data_dir) / "truth" / "truth.csv").set_index("ID")
    return pd.DataFrame({
        "ID": scores["ID"], "label": scores["label"],
        "discordant": truth.loc[scores["ID"], "discordant"].to_numpy(),
        "PSNR_brain": scores["PSNR_brain"], "SSIM_brain": scores["SSIM_brain"], "SUVR": scores["SUVR"],
        "SUVR_real": real.set_index("ID").loc[scores["ID"], "SUVR"].to_numpy(),
        "p_label": scores["p_label"], "p_status": status_without_pet(exp, scores, cells, row)})


def changed_cells(exp: Experiment, row: Row) -> pd.DataFrame | None:
    """The covariates of a row as text, a row a scan, indexed by ID; None if it has none."""
    cells = read_covariates(exp.cfg.info_folder, [scan.id for scan in exp.cohort.scans], row.covariates)
    rng = np.random.default_rng(derived_seed(exp.cfg.seed, row.change))
    if row.change == "gappy":
        return cells.mask(rng.random(cells.shape) < MISSING, "")
    if row.change == "shuffled":
        parts = [cells.loc[[scan.id for scan in scans]] for scans in (
            exp.cohort.train, exp.cohort.validation, exp.cohort.test)]
        return pd.concat([part.iloc[rng.permutation(len(part))].set_axis(part.index) for part in parts])
    return cells


def status_without_pet(exp: Experiment, test: pd.DataFrame, cells: pd.DataFrame | None,
                       row: Row) -> np.ndarray:
    """Probability of positive status [n] by a status classifier of what the label is predicted from. test:
    list of subjects with pooled MRIs."""
    train, measurement, seed = exp.survey().of(exp.cohort.train), exp.measurement, exp.cfg.seed
    mri = None
    if row.with_mri:
        volumes = np.stack(train["mri"].to_list())[:, None]
        mri = LabelClassifier.fit(volumes, train["label"].to_numpy(), measurement.brain, measurement.pool,
                                  seed)
    if cells is None:
        return mri.of_pooled(np.stack(test["mri"].to_list())[:, None])[:, 1].numpy()
    classifier = CovariateClassifier.fit(with_cells(train, cells), seed, measurement.brain, measurement.pool,
                                         mri)
    return classifier.score(with_cells(test, cells))


# ---------------------------------------------------------------- the study

def cohorts(seeds: list[int] | None, discordance: list[float] | None,
            is_long: bool) -> list[tuple[int, float, bool]]:
    """What measure() is asked for: every seed and share, or those that are named; where nothing is named, the
    first of them with longer training too, at the end."""
    asked = [(seed, share, is_long) for share in discordance or DISCORDANCE for seed in seeds or SEEDS]
    return asked if seeds or discordance or is_long else [*asked, (SEEDS[0], DISCORDANCE[0], True)]


def write_tables() -> None:
    """Write disagree_subjects.csv, disagree.csv and disagree.md of all that is measured. Raises Failed if
    nothing is."""
    paths = sorted(Path("result").glob("disagree*/disagree.csv"))
    if not paths:
        raise Failed(2, "nothing is measured; python main.py study disagree does it")
    subjects = pd.concat([pd.read_csv(path) for path in paths])
    table = make_table(subjects, [row.name for row in ROWS])
    write_csv(FOLDER / "disagree_subjects.csv", subjects)
    write_csv(FOLDER / "disagree.csv", table)
    write_text(FOLDER / "disagree.md", to_markdown(table))
    say("study", f"wrote {FOLDER}/disagree.md, disagree.csv and disagree_subjects.csv (every subject)")


def main(argv: list[str]) -> int:
    """Run the study. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="main.py study disagree", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, help="seeds to run alone")
    parser.add_argument("--discordance", type=float, nargs="+", choices=DISCORDANCE,
                        help="shares of subjects whose atrophy has nothing to do with amyloid, to run alone")
    parser.add_argument("--long", action="store_true",
                        help="four times the updates of stage 2; without all this, once at the end")
    parser.add_argument("--tables", action="store_true",
                        help="run nothing, write the tables of what is finished")
    arguments = parser.parse_args(argv)

    def work() -> None:
        """Measure what is not measured yet, and write the tables."""
        if not arguments.tables:
            for cohort in cohorts(arguments.seeds, arguments.discordance, arguments.long):
                measure(*cohort)
        write_tables()
    return run_study(work)
