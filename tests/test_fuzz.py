"""Hostile input: whatever stands in lists, tables and volumes, the check of the cohort refuses it in a
message or reads it right."""
import gzip
import random
import struct
import sys
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import AFFINE, SHAPE, TINY, arguments, header_that_claims, write_volume
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import main
from cohort.labelling import label_scans
from cohort.prepare_settings import PrepareSettings
from cohort.splitting import draw_lists
from config import Config
from dataset import SPLITS, Cohort, CohortReader, Scan, check_cohort
from imaging.content import OTHER_FORMATS
from imaging.grids import Crop
from imaging.regions import read_labels, read_mask
from imaging.volumes import read_volume
from labels.people import read_demographics
from newscans.scans import read_mri
from runtime.tables import read_table
from utils import InputError

GRID, CROP = (4, 5, 4), Crop((0, 0, 0), (4, 5, 4))
IDS = dict(zip(SPLITS, ("a", "b", "c"), strict=True))      # one subject a list
MOST_BYTES = 30e6                                          # that reading a file of a few kilobytes may take
MOST_LETTERS = 1000                                        # of a line of a message
REPEATABLE = settings(derandomize=True, database=None, deadline=10000,
                      suppress_health_check=list(HealthCheck))

# ---------------------------------------------------------------- what may stand in a file

WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "a",
            "b",
            "c",
            "ID",
            "label",
            "index",
            "name",
            "age",
            "sex",
            "0",
            "1",
            "0.0",
            "1.0",
            "-1",
            "nan",
            "1e999",
            "9" * 5000,
            "2" * 300,
            "../a",
            "/a",
            "a/b",
            "a\\b",
            "..",
            ".",
            "",
            " ",
            "\t",
            "\0",
            "a\0",
            "\r",
            "\x0b",
            "\u2028",
            "\u202ea",
            "\ufeff",
            "\u0661",
            '"',
            '""',
            '"a',
            "'",
            ",",
            ";",
            "#",
            "a.nii",
            "a.nii.gz",
            "a" * 250,
            "CON",
            "~",
            "$HOME",
            "%s",
            "{}",
            "\U0001f9e0",
        ]
    ),
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
ENDS = st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n"])


def encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding, "replace")


def tables(*headers: str) -> st.SearchStrategy[bytes]:
    """CSV of one of the headers or of random ones, with rows of any length and sometimes any bytes."""
    rows = st.lists(st.lists(WORDS, max_size=5).map(",".join), max_size=6)
    header = st.one_of(st.sampled_from(headers), st.lists(WORDS, max_size=5).map(",".join))
    text = st.builds(lambda head, body, end: end.join([head, *body]) + end, header, rows, ENDS)
    return st.one_of(
        st.builds(encode, text, ENCODINGS),
        st.binary(max_size=200),
        st.builds(lambda head, rest: f"{head}\n".encode() + rest, st.sampled_from(headers),
                  st.binary(max_size=100)),
    )


LISTS = st.one_of(
    st.builds(lambda words, end, code: encode(end.join(words), code), st.lists(WORDS, max_size=8), ENDS,
              ENCODINGS),
    st.binary(max_size=200),
)
NUMBERS = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 1.0, -1.0, 8.0, 352.0, 1e-30, 1e30, -1e30, 3e38, 2.0**31, 2.0**62, float("nan"),
         float("inf"), float("-inf")]
    ),
    st.floats(width=32),
)
SHORTS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 7, 8, 16, 64, 128, 512, 1024, 1536, 2304, 32767, -1, -32768, 27307]),
    st.integers(-(2**15), 2**15 - 1),
)


def field(form: str, offset: int, number: int, values: st.SearchStrategy) -> st.SearchStrategy:
    """Where one of the `number` entries of a header's field lies, and bytes for it."""
    places = st.sampled_from(range(offset, offset + number * struct.calcsize(form), struct.calcsize(form)))
    return st.tuples(places, values.map(lambda value: struct.pack(form, value)))


DIM, DATATYPE, CODES = field("<h", 40, 8, SHORTS), field("<h", 70, 2, SHORTS), field("<h", 252, 2, SHORTS)
PIXDIM, VOX_OFFSET, SCALE = (field("<f", 76, 8, NUMBERS), field("<f", 108, 1, NUMBERS),
                             field("<f", 112, 2, NUMBERS))
QFORM_SFORM = field("<f", 256, 18, NUMBERS)
MAGIC = st.tuples(st.just(344), st.sampled_from([b"n+1\0", b"ni1\0", b"n+2\0", b"\0\0\0\0", b"n+1x"]))
ANYWHERE = st.tuples(st.integers(0, 352), st.binary(min_size=1, max_size=8))
PATCHES = st.lists(
    st.one_of(DIM, DIM, DATATYPE, CODES, PIXDIM, VOX_OFFSET, SCALE, QFORM_SFORM, MAGIC, ANYWHERE),
    min_size=1,
    max_size=4,
)


# ---------------------------------------------------------------- the properties

@pytest.fixture
def cohort(tmp_path) -> Path:
    """Three subjects of 80 voxels."""
    info = tmp_path / "data_info"
    info.mkdir()
    for i, (split, scan_id) in enumerate(IDS.items()):
        (info / f"{split}.txt").write_text(f"{scan_id}\n")
        write_volume(tmp_path / "data" / "whole_MRI" / f"{scan_id}.nii.gz",
                     np.random.default_rng(i).random(GRID).astype(np.float32))
        write_volume(tmp_path / "data" / "whole_Abeta" / f"{scan_id}.nii",
                     np.random.default_rng(9 + i).random(GRID).astype(np.float32))
    (info / "data_info.csv").write_text(
        "ID,label,age,sex\n" + "".join(f"{scan_id},1,70,F\n" for scan_id in IDS.values())
    )
    return tmp_path


def check(root: Path) -> Cohort:
    return check_cohort(root / "data", root / "data_info", GRID, 2, Config().subject_pattern)


def outcome(read: Callable[[], object]) -> str:
    """'read' or 'refused'; any exception but an InputError of short lines passes through."""
    try:
        read()
    except InputError as error:
        assert max(map(len, str(error).splitlines())) < MOST_LETTERS
        return "refused"
    return "read"


@contextmanager
def little_memory() -> Iterator[None]:
    """Fails if the block takes more than MOST_BYTES at any time."""
    tracemalloc.start()
    try:
        yield
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < MOST_BYTES


def draw(strategy: st.SearchStrategy, n: int, try_one: Callable[[object], str]) -> Counter:
    """How often what came out, over n cases."""
    found = Counter()

    @settings(REPEATABLE, max_examples=n)
    @given(strategy)
    def each(case):
        found[try_one(case)] += 1
    each()
    return found


def summary(what: str, found: Counter) -> str:
    return f"{what}: {found.total()} random cases, " + ", ".join(f"{number} {name}" for name,
                                                                 number in sorted(found.items()))


def test_a_list_of_any_content_is_read_or_refused(cohort, count, record_property):
    path = cohort / "data_info" / "train.txt"

    def try_one(content: bytes) -> str:
        path.write_bytes(content)

        def read():
            assert [scan.id for scan in check(cohort).train] == ["a"]  # nobody else could be in it
        return outcome(read)
    blank = st.text(" \t\r\n\f\u3000", max_size=4)
    right = st.builds(lambda *parts: "".join(parts).encode(), st.sampled_from(["", "\ufeff"]), blank,
                      st.just("a"), blank)
    found = draw(st.one_of(LISTS, right), count(60, 2000), try_one)
    assert set(found) == {"read", "refused"}
    record_property("trust", summary("lists", found))


def test_a_data_info_of_any_content_is_read_or_refused(cohort, count, record_property):
    path = cohort / "data_info" / "data_info.csv"

    def try_one(content: bytes) -> str:
        path.write_bytes(content)

        def read():
            checked = check(cohort)
            scans = checked.train + checked.validation + checked.test
            assert {scan.label for scan in scans} <= {0, 1}
            ages, why_not = read_demographics(cohort / "data_info", [scan.id for scan in scans])
            assert (ages is None) == bool(why_not)
        return outcome(read)
    right = st.lists(WORDS, min_size=2, max_size=2).map(lambda words: "ID,label,age,sex\n" + "".join(
        f"{scan_id},1,{','.join(words)}\n" for scan_id in IDS.values())).map(str.encode)
    found = draw(st.one_of(tables("ID,label", "label,ID,age,sex", "ID,label,label", "ID,ID,label"), right),
                 count(60, 2500), try_one)
    assert set(found) == {"read", "refused"}
    record_property("trust", summary("data_info.csv", found))


def test_the_table_of_an_atlas_of_any_content_is_read_or_refused(tmp_path, count, record_property):
    labels, table = tmp_path / "labels.nii.gz", tmp_path / "table.csv"
    write_volume(labels, np.arange(80).reshape(GRID).astype(np.int16))

    def try_one(content: bytes) -> str:
        table.write_bytes(content)

        def read():
            assert all(mask.sum() == 1 for mask in read_labels(labels, table, AFFINE, CROP).values())
        return outcome(read)
    right = st.lists(st.tuples(st.integers(1, 90), st.sampled_from("abcdef")), max_size=2).map(
        lambda rows: "index,name\n" + "".join(f"{index},{name}\n" for index, name in rows)).map(str.encode)
    found = draw(st.one_of(tables("index,name", "name,index,index"), right), count(60, 1500), try_one)
    assert set(found) == {"read", "refused"}
    record_property("trust", summary("the table of an atlas", found))


# ---------------------------------------------------------------- tables as spreadsheets might write them

CELLS = [
    "",
    "a",
    "b",
    "c",
    "0001",
    "1",
    "0",
    "1.00",
    "1,0",
    "positive",
    "NEG",
    "71,5",
    "71.5",
    "90+",
    ">89",
    "n/a",
    "-4",
    "F",
    "male",
    "2015-03-02",
    "13/5/2015",
    "3/13/2015",
    '"',
    '"a',
    'a"b',
    '""',
    '"x, y"',
    "x;y",
    " a ",
    "\xa0",
    "ü",
    "\x00",
    "\x1a",
    "\u2028",
    "\ufeff",
    "9" * 40,
    "sep=;",
    "é,è",
    "PK\x03\x04",
    "1e999",
    "-0",
]
HEADS = [
    "ID",
    "label",
    "age",
    "sex",
    "date",
    " ID ",
    "Label",
    "id",
    "PTID",
    "CENTILOIDS",
    "TRACER",
    "SITE",
    "",
]
CODES = ["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1"]


PLAUSIBLE = {
    "ID": ["a", "b", "c", "a ", "A", "d"],
    "label": ["0", "1", "1.00", "neg", "positive", "n/a", "2"],
    "age": ["71", "71.5", "90+", "", "old"],
    "sex": ["F", "m", "female", "n/a"],
    "date": ["2015-03-02", "3/2/15", ""],
}


def random_table(rng: random.Random) -> bytes:
    """A table with a header of usual names, any separator, line end and encoding, and sometimes damage."""
    separator = rng.choice([",", ",", ";", "\t", "|", " ", ", "])
    is_plausible = rng.random() < 0.7
    head = rng.sample(list(PLAUSIBLE), k=5) if is_plausible else rng.choices(HEADS, k=rng.randrange(7))
    lines = [head]
    for row in range(rng.randrange(3, 9)):
        if is_plausible and rng.random() < 0.9:
            lines.append(["abc"[row % 3] if name == "ID" else rng.choice(PLAUSIBLE[name][:3 + row])
                          for name in head])
        else:
            lines.append(rng.choices(CELLS, k=rng.randrange(8)))
        if row == 2 and rng.random() < 0.7:
            break
    text = rng.choice(["\n", "\r\n", "\r", "\n\n"]).join(separator.join(line) for line in lines)
    if rng.random() < 0.1:
        text = f"sep={separator}\n{text}"
    content = bytearray(text.encode(rng.choice(CODES), "replace"))
    for _ in range(rng.choice([0, 0, 0, 0, 1, 5])):
        place = rng.randrange(len(content) + 1)
        content[place:place + rng.randrange(3)] = rng.choice([b"", b'"', b"\n", b",", b";", rng.randbytes(2)])
    return bytes(content)


def test_ten_thousand_tables_are_read_or_refused_by_check_and_by_prepare(
    cohort, record_property, monkeypatch
):
    """Whatever is read is what the cells say: labels of the cohort, and ages within their range."""
    monkeypatch.chdir(cohort)
    rng, found = random.Random(0), Counter()
    path, table = cohort / "data_info" / "data_info.csv", cohort / "table.csv"
    scans = [Scan(name, 0, path, path) for name in "abc"]
    settings_of_prepare = PrepareSettings(table="table.csv", demographics="table.csv", scan_dates="table.csv")

    def read_in_check():
        reader = CohortReader(cohort / "data", cohort / "data_info", 2, Config().subject_pattern)
        usable = reader.read()
        assert all(scan.label in (0, 1) for split in usable.values() for scan in split)
        ages, why_not = read_demographics(cohort / "data_info", [scan.id for scan in scans])
        assert (ages is None) == bool(why_not)
        assert ages is None or ages["age"].between(1, 120).all()
        if reader.problems:
            raise InputError("\n".join(reader.problems))

    def read_in_prepare():
        problems, left_out = [], []
        rows, _ = label_scans(settings_of_prepare, ["a", "b", "c"], left_out, problems)
        assert problems or len(rows) + len(left_out) == 3
        if problems:
            raise InputError("\n".join(problems))
        if rows:
            draw_lists(pd.DataFrame(rows), (0.4, 0.3, 0.3), 0)

    def read_alone():
        read = read_table(path, "ID", remarks=[])
        assert all(cell == cell.strip() for cell in read.to_numpy().ravel())

    for i in range(10_000):
        where, read = {0: ("check", read_in_check), 1: ("prepare", read_in_prepare)}.get(
            i % 16, ("alone", read_alone))
        (table if where == "prepare" else path).write_bytes(random_table(rng))
        found[f"{outcome(read)} ({where})"] += 1
    assert len(found) == 6 and min(found.values()) > 50, found
    record_property("trust", summary("tables", found))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_with_any_header_is_read_or_refused_in_little_memory(cohort, suffix, count, record_property):
    """In four places: as a volume, as a mask, as a new MRI, and as a file of the cohort."""
    right = (cohort / "data" / "whole_Abeta" / "a.nii").read_bytes()
    (cohort / "data" / "whole_Abeta" / "a.nii").unlink()
    path = cohort / "data" / "whole_Abeta" / f"a{suffix}"

    def try_one(patches: list[tuple[int, bytes]]) -> str:
        content = bytearray(right)
        for offset, patch in patches:
            content[offset:offset + len(patch)] = patch
        path.write_bytes(gzip.compress(content, 1) if suffix == ".nii.gz" else content)

        def read():
            with little_memory():
                voxels, affine = read_volume(path)
            assert voxels.nbytes <= 4 * len(right)
            assert np.isfinite(affine).all()
        outcome(lambda: read_mask(path, AFFINE, CROP))
        outcome(lambda: read_mri(path, 99.5))
        outcome(lambda: check(cohort))
        return outcome(read)
    found = draw(PATCHES, count(60, 1000), try_one)
    assert set(found) == {"read", "refused"}
    record_property("trust", summary(f"headers of {suffix}", found))


def test_a_nifti_2_with_any_header_is_read_or_refused(tmp_path, count, record_property):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti2Image(np.random.default_rng(0).random(GRID).astype(np.float32), AFFINE), path)
    right = path.read_bytes()

    def try_one(patches: list[tuple[int, bytes]]) -> str:
        content = bytearray(right)
        for offset, patch in patches:
            content[offset:offset + len(patch)] = patch
        path.write_bytes(content)
        return outcome(lambda: read_volume(path))

    anywhere = st.tuples(
        st.integers(0, 540),
        st.one_of(st.binary(min_size=1, max_size=8),
                  st.integers(-(2**63), 2**63 - 1).map(lambda n: struct.pack("<q", n))),
    )
    found = draw(st.lists(anywhere, min_size=1, max_size=4), count(60, 1500), try_one)
    assert set(found) == {"read", "refused"}
    record_property("trust", summary("headers of NIfTI-2", found))


def test_a_pair_with_any_header_is_read_or_refused(tmp_path, count, record_property):
    """Also with voxels that are longer, shorter, packed or none."""
    image = tmp_path / "a.img"
    nib.save(nib.Nifti1Pair(np.random.default_rng(0).random(GRID).astype(np.float32), AFFINE), image)
    header, voxels = image.with_suffix(".hdr").read_bytes(), image.read_bytes()

    def try_one(case: tuple[list[tuple[int, bytes]], bytes]) -> str:
        content = bytearray(header)
        for offset, patch in case[0]:
            content[offset:offset + len(patch)] = patch
        image.with_suffix(".hdr").write_bytes(content)
        image.write_bytes(case[1])
        with little_memory():
            return outcome(lambda: read_volume(image))
    contents = st.one_of(st.sampled_from([voxels, voxels, gzip.compress(voxels), voxels[:-1]]),
                         st.binary(max_size=400))
    patches = st.lists(st.one_of(DIM, SCALE, VOX_OFFSET, QFORM_SFORM, MAGIC), max_size=2)
    found = draw(st.tuples(patches, contents), count(60, 1000), try_one)
    assert set(found) == {"read", "refused"}
    record_property("trust", summary("headers of pairs", found))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_that_starts_like_another_format_is_refused_in_a_message(tmp_path, suffix, count,
                                                                        record_property):
    path, starts = tmp_path / f"a{suffix}", [magic for _, magic, _ in OTHER_FORMATS]
    starts += [b"version https://git-lfs.github.com/spec/", b"<html>", b"/annex/objects/", b"\0\0\0\1",
               b"\x5c\1\0\0"]

    def try_one(case: tuple[int, bytes, bytes]) -> str:
        packings, start, rest = case
        content = start + rest
        for _ in range(packings):
            content = gzip.compress(content)
        path.write_bytes(content)
        with little_memory():
            return outcome(lambda: read_volume(path))
    cases = st.tuples(st.integers(0, 3), st.sampled_from(starts), st.binary(max_size=600))
    found = draw(cases, count(60, 1000), try_one)
    assert set(found) == {"refused"}
    record_property("trust", summary(f"other formats as {suffix}", found))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_of_any_bytes_is_no_volume(tmp_path, suffix, count, record_property):
    path = tmp_path / f"a{suffix}"
    write_volume(path, np.random.default_rng(0).random(GRID).astype(np.float32))
    start = path.read_bytes()

    def try_one(case: tuple[int, bytes]) -> str:
        path.write_bytes(start[:case[0]] + case[1])        # the beginning of a right one, then anything
        return outcome(lambda: read_volume(path))
    found = draw(st.tuples(st.integers(0, 340), st.binary(max_size=100)), count(40, 500), try_one)
    assert set(found) == {"refused"}
    record_property("trust", summary(f"contents of {suffix}", found))


# ---------------------------------------------------------------- attacks that random cases do not find

def write_bomb(path: Path, shape: tuple[int, int, int], behind: int) -> None:
    """A .nii.gz whose header claims that shape, and that unpacks to so many zeros behind it; it is itself a
    thousandth as long."""
    with path.open("wb") as file:
        pack = zlib.compressobj(9, wbits=31)
        file.write(pack.compress(header_that_claims(shape, np.float32).binaryblock + bytes(4)))
        for _ in range(behind // 2 ** 20):
            file.write(pack.compress(bytes(2 ** 20)))
        file.write(pack.flush())


@pytest.mark.parametrize(
    ("shape", "behind", "expected"),
    [((30000,) * 3, 2**20, "header claims 30000x30000x30000 voxels"),
     ((800, 800, 800), 2**20, "claims voxels in the bytes 352 to 2048000352"),
     (SHAPE, 2**28, "unpacks to more than 1048576 bytes behind")],
)
def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path, shape, behind, expected):
    path = tmp_path / "a.nii.gz"
    write_bomb(path, shape, behind)
    assert path.stat().st_size < 2 ** 19
    with little_memory(), pytest.raises(InputError, match=expected):
        read_volume(path)


OPENED: list[str] | None = None


def _watch(event: str, details: tuple) -> None:
    if event == "open" and OPENED is not None:
        OPENED.append(str(details[0]))


sys.addaudithook(_watch)  # cannot be taken away again, therefore OPENED says when it counts


@pytest.mark.parametrize("attack", ["ID with folders", "link of a folder in an ID"])
def test_nothing_outside_the_data_is_opened_or_changed(root, tmp_path_factory, capsys, monkeypatch, attack):
    """Through main: exit code 2, a message, and no file beside the project is touched."""
    outside = tmp_path_factory.mktemp("outside") / "secret.nii"
    write_volume(outside, np.random.default_rng(0).random(SHAPE).astype(np.float32))
    before, train = outside.read_bytes(), root / "data_info" / "train.txt"
    if attack == "ID with folders":
        train.write_text(f"../../../{outside.parent.name}/secret\n{outside.with_suffix('')}\n")
    else:
        (root / "data" / "whole_MRI" / "x").symlink_to(outside.parent)
        train.write_text("x/secret\n")
    monkeypatch.setattr(sys.modules[__name__], "OPENED", [])
    assert main.main(arguments(TINY) + ["--stages", "check"]) == 2
    assert OPENED
    assert not [name for name in OPENED if "secret" in name or outside.parent.name in name]
    assert "is not an ID" in capsys.readouterr().err
    assert outside.read_bytes() == before
    assert list(outside.parent.iterdir()) == [outside]
