"""A made-up BIDS dataset of phantoms, with tables in ADNI's form: no row is a real person's.

    python tests/made_up_bids.py FOLDER         writes what the commands of docs/bids.md take
    python tests/made_up_bids.py FOLDER large   500 subjects with two sessions and no voxel, and in how many
                                                seconds they are understood

Its images lie in MNI space, as PETPrep leaves them, so that no registration is needed.
"""
import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.ndimage import binary_dilation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cohort.bids import read_dataset  # noqa: E402
from cohort.raw_scans import Choices  # noqa: E402
from phantom.cohort import build_phantom  # noqa: E402
from tests.made_up import amyloid_table  # noqa: E402

SUBJECTS = (15, 4, 4)                                      # simulated; one of them becomes the new scan
SPACE = "space-MNI152NLin2009aSym"
WHOLE = {"TracerName": "florbetapir", "TimeZero": "10:00:00", "InjectionStart": 0, "Units": "Bq/mL"}
DYNAMIC = WHOLE | {"FrameTimesStart": [0, 600, 1800, 3000, 3300, 3600, 3900],
                   "FrameDuration": [600, 1200, 1200, 300, 300, 300, 300]}
LATE = {"TracerName": "Florbetaben (18F)", "TimeZero": "11:30:00", "InjectionStart": -5400, "Units": "Bq/mL",
        "FrameTimesStart": [0, 300, 600, 900], "FrameDuration": [300, 300, 300, 300]}


@dataclass(frozen=True)
class Visit:
    """How one visit of the dataset is written. frames: of the PET, None for a static one; sidecar: of it."""
    trc: str = "18FAV45"
    frames: int | None = None
    sidecar: dict | None = None
    others: tuple[str, ...] = ()                           # tracers of further PETs, which show no amyloid
    t1_in: str = "ses-M000"
    parts: tuple[str, ...] = field(default=("T1w", "pet"))


# By the number of the subject; all others are plain: a static PET without sidecar.
VISITS = {0: Visit(frames=7, sidecar=DYNAMIC), 1: Visit("18FFBB", 4, LATE), 2: Visit(frames=4),
          3: Visit(others=("18FFDG",)), 4: Visit(others=("18FAV1451", "18FFDG")), 5: Visit(t1_in="ses-M003"),
          6: Visit("11CPIB", sidecar={"TracerName": "PiB"}), 7: Visit(parts=("T1w",)),
          8: Visit(parts=("pet",))}
LINKED, LOST = 9, 10                                       # whose volumes are links, the latter to nothing


def write_bids(folder: Path, voxel_mm: int = 4) -> None:
    """Write bids/, amyloid_table.csv, cortex.nii.gz and cerebellum.nii.gz, and new/ with one more MRI."""
    build_phantom(folder / "simulated", SUBJECTS, voxel_mm, 0.6, seed=7)
    labels = pd.read_csv(folder / "simulated/data_info/data_info.csv").set_index("ID")["label"]
    negative, positive = (sorted(labels.index[labels == label]) for label in (0, 1))
    scans = [scan for pair in zip(negative, positive, strict=False) for scan in pair]
    ptids = [f"{2 + i % 5:03d}_S_{6000 + i}" for i in range(len(scans))]
    table = amyloid_table(ptids[:-1], seed=0).drop(columns="TRACER")   # the names of the PETs say it
    table.to_csv(folder / "amyloid_table.csv", index=False)
    days = table.groupby("PTID")["SCANDATE"].min()
    people = []
    for i, (scan, ptid) in enumerate(zip(scans[:-1], ptids[:-1], strict=True)):
        subject = f"sub-ADNI{ptid.replace('_', '')}"
        write_subject(folder, i, scan, subject, np.datetime64(days[ptid]))
        people.append({"participant_id": subject, "age": 60 + i, "sex": "MF"[i // 2 % 2]})
    (folder / "bids/dataset_description.json").write_text(json.dumps(
        {"Name": "made up, of phantoms", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
         "GeneratedBy": [{"Name": "made_up_bids.py"}]}))
    pd.DataFrame(people).to_csv(folder / "bids/participants.tsv", sep="\t", index=False)
    write_new(folder, scans[-1])
    for name in ("cortex", "cerebellum"):
        shutil.copy(folder / f"simulated/truth/{name}.nii.gz", folder)
    shutil.rmtree(folder / "simulated")


def read(folder: Path, modality: str, scan: str) -> nib.Nifti1Image:
    """A simulated volume."""
    [path] = (folder / "simulated" / modality).glob(f"{scan}.nii*")
    return nib.load(path)


def write_subject(folder: Path, number: int, scan: str, subject: str, day: np.datetime64) -> None:
    """Write T1 and PETs of a subject, as VISITS says, with the date of each session."""
    visit, home = VISITS.get(number, Visit()), folder / "bids" / subject
    mri, pet = read(folder, "whole_MRI", scan), read(folder, "whole_Abeta", scan)
    t1 = home / visit.t1_in / "anat" / f"{subject}_{visit.t1_in}_{SPACE}_desc-preproc_T1w.nii.gz"
    name = f"{subject}_ses-M000"
    if "T1w" in visit.parts:
        save(t1, 900 * mri.get_fdata(), mri.affine)
    if "pet" in visit.parts:
        path = home / "ses-M000/pet" / f"{name}_trc-{visit.trc}_{SPACE}_desc-preproc_pet.nii.gz"
        voxels = 20_000 * pet.get_fdata()
        save(path, frames_of(voxels, visit) if visit.frames else voxels, pet.affine)
        if visit.sidecar:
            path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(visit.sidecar))
        for trc in visit.others:
            save(path.with_name(path.name.replace(visit.trc, trc)), voxels[::-1], pet.affine)
        if number in (LINKED, LOST):
            link(folder, t1, True)
            link(folder, path, number == LINKED)
    dates = [{"session_id": "ses-M000", "acq_time": f"{day}T10:00:00"}]
    if visit.t1_in != "ses-M000":
        dates.append({"session_id": visit.t1_in, "acq_time": f"{day + 70}T09:30:00"})
    pd.DataFrame(dates).to_csv(home / f"{subject}_sessions.tsv", sep="\t", index=False)


def frames_of(voxels: np.ndarray, visit: Visit) -> np.ndarray:
    """Frames whose mean by duration over those in the tracer's window is the PET; the early ones are flat."""
    late = np.array([0.7, 0.9, 1.1, 1.3])                  # four of equal durations
    early = [(voxels > 0) * voxels.max() for _ in range(visit.frames - 4)]
    return np.stack([*early, *(share * voxels for share in late)], axis=-1)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume as float32, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), path)


def link(folder: Path, path: Path, is_there: bool) -> None:
    """Put a link as git-annex makes them in the place of a file; its content may not be fetched."""
    place = folder / "bids/.git/annex/objects" / path.name
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)
    path.symlink_to(place.resolve())
    if not is_there:
        place.unlink()


def write_new(folder: Path, scan: str) -> None:
    """Write new/, outputs of fMRIPrep for one MRI: the whole head in MNI space, and the mask of its brain."""
    mri = read(folder, "whole_MRI", scan)
    voxels = mri.get_fdata()
    brain = voxels > 0
    skull = binary_dilation(brain, iterations=2) & ~brain
    stem = folder / "new/sub-NEW01/ses-1/anat" / f"sub-NEW01_ses-1_{SPACE}"
    save(Path(f"{stem}_desc-preproc_T1w.nii.gz"), 900 * np.where(skull, 1.2, voxels), mri.affine)
    save(Path(f"{stem}_desc-brain_mask.nii.gz"), brain, mri.affine)
    (folder / "new/dataset_description.json").write_text(json.dumps(
        {"Name": "made up, of a phantom", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
         "GeneratedBy": [{"Name": "made_up_bids.py"}]}))


def write_large(root: Path, subjects: int) -> None:
    """Write a dataset of two sessions a subject, two years apart, with a T1, a PET of amyloid and one of FDG,
    a sidecar and a table of dates each. Its images are empty files."""
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "made up", "BIDSVersion": "1.10.0"}')
    people = "".join(f"sub-{i:04d}\t{60 + i % 30}\t{'MF'[i % 2]}\n" for i in range(subjects))
    (root / "participants.tsv").write_text(f"participant_id\tage\tsex\n{people}")
    for i in range(subjects):
        for session, day in (("M000", "2012-03-05"), ("M024", "2014-03-07")):
            home, name = root / f"sub-{i:04d}" / f"ses-{session}", f"sub-{i:04d}_ses-{session}"
            images = [f"anat/{name}_T1w.nii.gz", f"pet/{name}_trc-18FAV45_pet.nii.gz",
                      f"pet/{name}_trc-18FFDG_pet.nii.gz"]
            for image in images:
                (home / image).parent.mkdir(parents=True, exist_ok=True)
                (home / image).touch()
            (home / images[1].replace(".nii.gz", ".json")).write_text(json.dumps(WHOLE))
            dates = "".join(f"{image}\t{day}T10:00:00\n" for image in images)
            (home / f"{name}_scans.tsv").write_text(f"filename\tacq_time\n{dates}")


def main() -> None:
    """Write the dataset that the command line asks for."""
    folder = Path(sys.argv[1])
    if sys.argv[2:] != ["large"]:
        write_bids(folder)
        return
    write_large(folder, 500)
    start = time.perf_counter()
    scans = read_dataset(folder, Choices()).scans
    print(f"{len(scans)} scans with T1 and amyloid PET, understood in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
