"""BIDS names and datasets."""
import pytest

from cohort.bids_names import dataset_root, join_name, parse_name


def test_a_name_is_taken_apart_and_put_together_again():
    name = "sub-01_ses-2_trc-18FAV45_rec-acdyn_run-1_pet"
    entities, suffix = parse_name(name)
    assert entities == {"sub": "01", "ses": "2", "trc": "18FAV45", "rec": "acdyn", "run": "1"}
    assert suffix == "pet" and join_name(entities, suffix) == name


def test_entities_are_joined_in_the_order_of_the_standard():
    entities = {"desc": "ilcldm", "space": "MNI152NLin2009aSym", "sub": "01", "trc": "18FAV45", "res": "1mm"}
    joined = "sub-01_trc-18FAV45_space-MNI152NLin2009aSym_res-1mm_desc-ilcldm_pet"
    assert join_name(entities, "pet") == joined


@pytest.mark.parametrize("name", ["phantom001", "sub-", "sub-01__T1w", "ses-1_T1w", "sub-01_T1-w-3"])
def test_a_name_that_is_not_one_of_bids_is_refused(name):
    with pytest.raises(ValueError, match="no BIDS name"):
        parse_name(name)


def test_the_dataset_of_a_file_is_the_nearest_folder_that_describes_itself(tmp_path):
    inner = tmp_path / "raw/derivatives/own/sub-01"
    inner.mkdir(parents=True)
    assert dataset_root(inner) is None
    (tmp_path / "raw/dataset_description.json").write_text("{}")
    assert dataset_root(inner / "a.nii.gz") == tmp_path / "raw"
    (tmp_path / "raw/derivatives/own/dataset_description.json").write_text("{}")
    assert dataset_root(inner) == tmp_path / "raw/derivatives/own"
