"""The volumes of preprocess as a BIDS derivative dataset: where they lie in it, and what their sidecars say.

    <data_dir>/sub-01/ses-2/anat/sub-01_ses-2_space-MNI152NLin2009aSym_res-1mm_desc-preproc_T1w.nii.gz
    <data_dir>/sub-01/ses-2/pet/sub-01_ses-2_trc-18FAV45_space-MNI152NLin2009aSym_res-1mm_desc-suvr_pet.nii.gz

are the same files as whole_MRI/<ID>.nii.gz and whole_Abeta/<ID>.nii.gz: hard links, where the disk has them.
"""
import json
import os
import re
import shutil
from pathlib import Path

from cohort.bids_names import join_name, parse_name
from cohort.derivative import derived_entities, home_of, resolution, shared_keys, write_if_new
from runtime.files import atomic, brief, make_folder
from utils import InputError

TITLE = "T1 MRI and amyloid PET preprocessed for IL-CLDM"
README = """# T1 MRI and amyloid PET, preprocessed for IL-CLDM

Brains in the space and on the grid of the MNI152 template, without skull, with values in [0, 1]. The PETs are
SUVRs divided by a constant, which their JSON files name. `whole_MRI` and `whole_Abeta` hold the same volumes,
as the training reads them; `preprocess` has a page to look at for each subject. Not for clinical use.
"""
LONGEST_NAME = 200       # characters; file systems allow 255, tracer, voxel size and suffix need some
KINDS = {"mri": ("anat", "preproc", "T1w"), "pet": ("pet", "suvr", "pet")}   # folder, desc and suffix


def dataset_file(data_dir: Path, kind: str, scan_id: str, tracer: str, space: str, voxel_mm: int) -> Path:
    """Path of a subject's volume 'mri' or 'pet' in the dataset.

    tracer: of the PET; empty: not known. space: MNI space in which the raw scan lay already; empty: that of
    the template to which it was registered.
    """
    folder, desc, suffix = KINDS[kind]
    entities = {"res": resolution([voxel_mm] * 3)[0]} | derived_entities(scan_id, folder, desc)
    label = re.sub(r"[^A-Za-z0-9]", "", tracer)
    if kind == "pet" and label:
        entities["trc"] = label
    if space:
        entities["space"] = space
    return home_of(data_dir, entities, folder) / f"{join_name(entities, suffix)}.nii.gz"


def refuse_names(ids: list[str]) -> None:
    """Raise InputError that lists the IDs from which no BIDS name can be made, or one that another has."""
    by_name: dict[str, list[str]] = {}
    problems = []
    for scan_id in ids:
        entities = derived_entities(scan_id, "pet", "suvr")                  # keeps fewer of them than a T1
        name = join_name(entities, "pet")
        by_name.setdefault(name.lower(), []).append(scan_id)                 # some disks ignore case
        if not entities["sub"]:
            problems.append(f"{scan_id} has no letter or digit to be named by")
        if len(name) > LONGEST_NAME:
            problems.append(f"{brief(scan_id)} is too long")
    for alike in by_name.values():
        if len(alike) > 1:
            problems.append(f"{', '.join(alike)} would have one name, of which BIDS keeps letters and digits")
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s) with the IDs of the raw scans; rename the "
                                      "files:", *problems]))


def write_sidecar(path: Path, content: dict, voxel_mm: int, sources: list[Path], data_dir: Path) -> None:
    """Write the sidecar of a volume of the dataset, and its folder. content: what is said beside the keys
    that the standard asks for. sources: raw files."""
    entities, _ = parse_name(path.name.removesuffix(".nii.gz"))
    make_folder(path.parent)
    keys = content | shared_keys(entities, [voxel_mm] * 3, sources, data_dir)
    write_if_new(path.with_name(path.name.replace(".nii.gz", ".json")), json.dumps(keys, indent=2) + "\n")


def describe(kind: str, registration: str, max_suvr: float, fwhm: float) -> dict:
    """What the sidecar of a volume says of it."""
    registered = {"affine": "registered affinely to MNI152",
                  "syn": "registered affinely and then nonlinearly (SyN) to MNI152",
                  "none": "in MNI space already, brought to this grid through its affine alone"}[registration]
    if kind == "mri":
        return {"Description": f"T1 MRI of the brain, {registered}; divided by the 99.5th percentile of the "
                               "brain, clipped to [0, 1], 0 outside the brain."}
    moved = registered if registration == "none" else f"to the T1 MRI rigidly, with it {registered}"
    return {"Description": f"Amyloid PET as SUVR divided by {max_suvr:g}, clipped to [0, 1], 0 outside the "
                           f"brain; times {max_suvr:g} it is the SUVR; {moved}.",
            "Units": f"SUVR divided by {max_suvr:g}", "LargestSUVR": max_suvr, "SmoothingFWHM": fwhm}


def link_file(source: Path, target: Path) -> None:
    """Give a file a second place: as a hard link, or as a copy where the disk has none."""
    make_folder(target.parent)
    if target.exists() and target.samefile(source):
        return
    with atomic(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
