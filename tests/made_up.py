"""Made-up tables and volumes in the form of ADNI's: no row is a real person's, all volumes are phantoms.

    python tests/made_up.py FOLDER    writes data/, its tables and new/ for the commands of docs/data.md
"""
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from phantom.cohort import build_phantom  # noqa: E402

SUBJECTS = (18, 4, 4)                                      # simulated; one of them becomes the new scan


def amyloid_table(subjects: list[str], seed: int) -> pd.DataFrame:
    """A table like ADNI's of amyloid PET, one to five rows a subject about two years apart, in no order.

    subjects: PTIDs such as 037_S_6046. All rows of a subject have one amyloid status and pass the quality
    control (qc_flag 2), so that a scan without a date gets its label too. Status follows the Centiloids; half
    of the subjects are positive.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i, ptid in enumerate(subjects):
        positive, tracer = i % 2, str(rng.choice(["FBP", "FBB"]))
        first = np.datetime64("2011-01-01") + int(rng.integers(0, 1500))
        for visit in range(int(rng.integers(1, 6))):
            level = int(rng.integers(35, 120) if positive else rng.integers(-15, 10))
            rows.append({
                "LONIUID": f"I{rng.integers(10 ** 6)}",
                "RID": int(ptid[-4:]),
                "PTID": ptid,
                "VISCODE": "bl" if not visit else f"m{24 * visit}",
                "SCANDATE": str(first + 730 * visit + int(rng.integers(-40, 40))),
                "SITEID": int(ptid[:3]) % 60,
                "qc_flag": 2,
                "TRACER": tracer,
                "AMYLOID_STATUS": positive,
                "CENTILOIDS": level,
                "SUMMARY_SUVR": round(1 + level / 188, 3)})
    return pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)


def covariate_tables(subjects: list[str], seed: int) -> dict[str, pd.DataFrame]:
    """Tables like ADNI's of genotypes, scores and blood markers: name of the file -> table, in no order.

    Each subject has a genotype, and a visit a year from 2011 to 2020 with one of each else.
    """
    rng = np.random.default_rng(seed)
    genotypes, scores, ratings, plasma = [], [], [], []
    for ptid in subjects:
        who = {"PHASE": "ADNI2", "PTID": ptid, "RID": int(ptid[-4:])}
        genotypes.append({**who, "VISCODE": "sc", "GENOTYPE": str(rng.choice(["2/3", "3/3", "3/4", "4/4"])),
                          "APTESTDT": "2011-01-10", "ID": int(rng.integers(1000))})
        for year in range(2011, 2021):
            day = np.datetime64(f"{year}-06-01") + int(rng.integers(-30, 30))
            boxes = rng.integers(0, 8) / 2
            abeta42, abeta40 = rng.integers(180, 400) / 10, rng.integers(250, 400)
            who |= {"VISCODE": f"m{12 * (year - 2011)}"}
            scores.append({**who, "VISDATE": str(day), "MMSCORE": int(rng.integers(18, 31))})
            ratings.append({**who, "VISDATE": str(day), "CDGLOBAL": min(0.5, boxes), "CDRSB": boxes})
            plasma.append({**who, "EXAMDATE": str(day), "pT217_F": round(float(rng.lognormal(-1.4, 0.5)), 3),
                           "AB42_F": abeta42, "AB40_F": abeta40, "AB42_AB40_F": round(abeta42 / abeta40, 4)})
    rows = {"APOERES.csv": genotypes, "MMSE.csv": scores, "CDR.csv": ratings,
            "UPENN_PLASMA_FUJIREBIO_QUANTERIX.csv": plasma}
    return {name: pd.DataFrame(found).sample(frac=1, random_state=seed) for name, found in rows.items()}


def write_study(folder: Path) -> None:
    """Write data/ of 25 subjects at 4 mm with made-up PTIDs, amyloid_table.csv, tables of covariates, and one
    more MRI in new/."""
    data = folder / "data"
    build_phantom(data, SUBJECTS, 4, 0.6, seed=7)
    labels = pd.read_csv(data / "data_info" / "data_info.csv").set_index("ID")["label"]
    shutil.rmtree(data / "data_info")                      # main.py prepare is to write it
    negative, positive = (sorted(labels.index[labels == label]) for label in (0, 1))
    pairs = zip(negative, positive, strict=False)          # alternating, as in the table
    scans = [scan for pair in pairs for scan in pair]
    names = [f"{2 + i % 5:03d}_S_{6000 + i}" for i in range(len(scans))]
    for modality in ("whole_MRI", "whole_Abeta"):
        (data / modality).rename(data / "simulated")
        (data / modality).mkdir()
        for scan, name in zip(scans, names, strict=True):
            [source] = (data / "simulated").glob(f"{scan}.nii*")
            source.rename(data / modality / source.name.replace(scan, name))
        shutil.rmtree(data / "simulated")
    amyloid_table(names[:-1], seed=0).to_csv(folder / "amyloid_table.csv", index=False)
    for name, table in covariate_tables(names[:-1], seed=0).items():
        table.to_csv(folder / name, index=False)
    move_to_new(data, names[-1], folder / "new")


def move_to_new(data: Path, name: str, folder: Path) -> None:
    """Take a subject out of the cohort and store its MRI in another folder as scanners and converters do.

    Its axes are mirrored (LPS), its voxels whole numbers with a scale factor, its name is one of BIDS.
    """
    [mri], [pet] = ((data / modality).glob(f"{name}.nii*") for modality in ("whole_MRI", "whole_Abeta"))
    image = nib.as_closest_canonical(nib.load(mri)).as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
    image.set_data_dtype(np.int16)
    folder.mkdir()
    nib.save(image, folder / f"sub-{name.replace('_', '')}_T1w.nii.gz")
    mri.unlink()
    pet.unlink()


if __name__ == "__main__":
    write_study(Path(sys.argv[1]))
