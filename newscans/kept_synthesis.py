"""Synthesis of a list whose PETs may be there already: those made from the same MRI in the same way are read,
and the others made."""
import json
from pathlib import Path

import numpy as np
import torch

from dataset import Scan
from evaluation.scores import Prediction
from experiment.scoring import ScanSynthesis
from imaging.volumes import read_in_range
from newscans.outputs import as_named_now
from newscans.scans import sha256
from runtime.files import write_text
from utils import InputError


class KeptSynthesis:
    """ScanSynthesis for evaluate that reads the PETs of a batch if all of them are there.

    A batch of which one is missing is synthesized whole, so that every PET comes from a batch with the same
    others as ever and is the same to the last bit. Beside each PET stands <ID>.json: what it was made from,
    its own checksum, and the further columns of its row.
    made_from: ID -> what makes another PET, as JSON values; the checksum of the MRI is added.
    """

    def __init__(self, synthesis: ScanSynthesis, made_from: dict[str, dict]):
        self.synthesis, self.columns = synthesis, {}       # columns: of the PETs that are there, by ID
        self.made_from = {}
        for name, scan in synthesis.saved.items():
            self.made_from[name] = {"mri": sha256(scan.mri), **made_from[name]}
            found = self._read_note(scan)
            if found is not None:
                self.columns[name] = found

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser that a scan takes (NFE)."""
        return self.synthesis.evaluations

    def __call__(self, batch: dict) -> Prediction:
        """The PETs of a batch {id, mri [B, 1, D, H, W]}."""
        if all(name in self.columns for name in batch["id"]):
            return self._read(batch["id"])
        prediction = self.synthesis(batch)                 # which writes the PETs
        for i, name in enumerate(batch["id"]):
            self._write_note(name, {column: values[i] for column, values in prediction.columns.items()})
        return prediction

    def _read(self, names: list[str]) -> Prediction:
        """The PETs of these scans from their files: [B, 1, D, H, W], and their columns."""
        crop = self.synthesis.crop
        volumes = [read_in_range(self._pet(name))[0][crop.slices()] for name in names]
        columns = {}
        for column in self.columns[names[0]]:
            columns[column] = [self.columns[name][column] for name in names]
        return Prediction(torch.from_numpy(np.stack(volumes))[:, None], columns)

    def _pet(self, name: str) -> Path:
        return self.synthesis.folder / "synthesized" / f"{name}.nii.gz"

    def _note(self, name: str) -> Path:
        return self.synthesis.folder / "synthesized" / f"{name}.json"

    def _read_note(self, scan: Scan) -> dict | None:
        """The columns of a PET that was made from the same MRI in the same way and is as it was written; else
        None."""
        try:
            note = json.loads(self._note(scan.id).read_text())
            is_same = (as_named_now(note["made_from"]) == self.made_from[scan.id]
                       and note["pet"] == sha256(self._pet(scan.id)))
            return dict(note["columns"]) if is_same else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
            return None

    def _write_note(self, name: str, columns: dict[str, float]) -> None:
        note = {"made_from": self.made_from[name], "pet": sha256(self._pet(name)), "columns": columns}
        write_text(self._note(name), json.dumps(note, indent=2) + "\n")
