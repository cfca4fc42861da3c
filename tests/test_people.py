"""people.csv: what is known of the test subjects, and columns that the setting subgroups names."""
import pytest
from conftest import SHAPE

from config import Config
from dataset import check_cohort
from experiment.people import people_of_test_list
from labels.people import find_column, missing_columns, read_people
from utils import InputError

PATTERN = Config().subject_pattern
TABLE = (" label,ID,Age,SEX,Site,TRACER,DX_bl,APOE4,p-tau 217\n"
         "0,s09,71.5,f,003,FBP,CN,1,0.31\n1,s10,90+,Male,-4,FBB,,NA,\n")


def write_info(root, text: str = TABLE) -> list:
    """data_info.csv with these rows and those of the other scans. Returns the scans of the test list."""
    path = root / "data_info" / "data_info.csv"
    scans = check_cohort(root / "data", root / "data_info", SHAPE, 2, PATTERN).test
    path.write_text(text)
    return scans


def test_people_are_all_columns_as_text_without_what_is_missing(root):
    people = read_people(root / "data_info", [scan.id for scan in write_info(root)[::-1]])
    assert people.columns.tolist() == ["ID", "Age", "SEX", "Site", "TRACER", "DX_bl", "APOE4", "p-tau 217"]
    assert people.to_numpy().tolist() == [["s10", "90+", "Male", "-4", "FBB", "", "", ""],
                                          ["s09", "71.5", "f", "003", "FBP", "CN", "1", "0.31"]]


def test_what_is_known_has_one_name_and_one_spelling(root):
    people = people_of_test_list(
        root / "data_info", write_info(root), ("apoe4", "P_TAU217", "site", "dx_bl", "age")
    )
    assert people.to_dict("list") == {
        "ID": ["s09", "s10"], "label": [0, 1], "age": [71.5, 90.0], "sex": ["F", "M"], "site": ["003", ""],
        "tracer": ["FBP", "FBB"], "diagnosis": ["CN", ""], "APOE4": ["1", ""], "p-tau 217": ["0.31", ""]}


@pytest.mark.parametrize(("header", "known"), [
    ("gender,centre", ["sex", "site"]), ("Gender,Site ID", ["sex", "site"]), ("DX", ["diagnosis"]),
    ("Diagnosis,dx", ["diagnosis"]), ("AGE,age", ["age"]), ("education", [])])
def test_a_column_is_known_by_any_of_its_names(root, header, known):
    names = header.count(",") + 1
    scans = write_info(root, f"ID,label,{header}\ns09,0{',70' * names}\ns10,1{',70' * names}\n")
    assert people_of_test_list(root / "data_info", scans, ()).columns.tolist() == ["ID", "label", *known]


def test_a_column_that_is_empty_for_the_test_list_is_not_known(root):
    scans = write_info(root, "ID,label,age,site,x\ns09,0,,NA,1\ns10,1,-4,.,2\ns01,0,70,A,3\n")
    people = people_of_test_list(root / "data_info", scans, ())
    assert people.columns.tolist() == ["ID", "label"]


@pytest.mark.parametrize(("cells", "read"), [(("-4", "3"), ["", "3"]), (("-4", "-3"), ["-4", "-3"]),
                                             (("-1", "AD"), ["", "AD"]), (("-4.0", "-1"), ["", ""]),
                                             (("NA", "0"), ["", "0"]), (("-2", "3"), ["-2", "3"])])
def test_a_code_for_a_missing_value_is_none_where_no_number_is_negative(root, cells, read):
    scans = write_info(root, f"ID,label,x\ns09,0,{cells[0]}\ns10,1,{cells[1]}\n")
    assert people_of_test_list(root / "data_info", scans, ("x",))["x"].tolist() == read


def test_an_age_that_is_none_is_not_known(root):
    scans = write_info(root, "ID,label,age\ns09,0,old\ns10,1,3000\n")
    assert people_of_test_list(root / "data_info", scans, ())["age"].isna().all()


@pytest.mark.parametrize(
    ("columns", "name", "found"),
    [
        (["ID", "APOE4"], "APOE4", "APOE4"),
        (["ID", "APOE4"], "apoe4", "APOE4"),
        (["ID", "apoe 4"], "APOE_4", "apoe 4"),
        (["ID", "x", "X"], "x", "x"),
        (["ID", "x", "X"], "X", "X"),
        (["ID", "x-1", "X_1"], "x1", None),  # either
        (["ID", "apoe4"], "apoe", None),
        (["ID", "--"], "-", None),
        (["ID"], "", None),
    ],
)
def test_a_name_means_one_column(columns, name, found):
    assert find_column(columns, name) == found


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("apo4", "; did you mean APOE4?"),
        ("APOE04", "; did you mean APOE4?"),
        ("sit", "; did you mean Site?"),
        ("education", "; its columns are label, ID, Age"),
        ("tracers", "; did you mean TRACER?"),
        ("", "; its columns are"),
    ],
)
def test_a_column_that_is_not_there_is_a_problem_with_a_hint(root, name, hint):
    write_info(root)
    [problem] = missing_columns(root / "data_info", "subgroups", ("age", name, "dx_bl"))
    assert f"has no column {name!r}, which the setting subgroups names" in problem
    assert hint in problem and problem.endswith("its columns are label, ID, Age, SEX, Site, TRACER, DX_bl, "
                                                "APOE4, p-tau 217")


def test_all_problems_are_named_at_once(root):
    path = root / "data_info" / "data_info.csv"
    path.write_text(path.read_text().replace("s03,", "s99,"))
    with pytest.raises(InputError) as error:
        check_cohort(root / "data", root / "data_info", SHAPE, 2, PATTERN, subgroups=("one", "two"))
    text = str(error.value)
    assert "3 problem(s) in the data" in text and "s03 has no rows" in text
    assert "has no column 'one'" in text and "has no column 'two'" in text


def test_a_table_that_cannot_be_read_is_one_problem_and_not_two(root):
    (root / "data_info" / "data_info.csv").write_text("name,label\ns01,1\n")
    with pytest.raises(InputError) as error:
        check_cohort(root / "data", root / "data_info", SHAPE, 2, PATTERN, subgroups=("one",))
    assert str(error.value).count("data_info.csv") == 1
