"""A phantom through every stage: its figures, and its report as a real browser shows it."""
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, arguments
from matplotlib import colormaps
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

import main
from evaluation import figures, volume_figures
from evaluation.results import MADE_FROM_THEM, forget_run, load_run
from evaluation.scores import SHOWN_SUBJECTS

DRAWS = True
EXP = "ph"
PHANTOM = {
    "exp": EXP,
    "regions": "auto",
    "phantom_subjects": (8, 4, 6),
    "phantom_voxel": 8,
    "data_dir": "data/ph",
}
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--window-size=1200,1400")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project folder in which a tiny phantom has gone through every stage."""
    root, before = tmp_path_factory.mktemp("report"), os.getcwd()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        assert main.main(arguments(TINY | PHANTOM)) == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture(scope="module")
def browser(project, tmp_path_factory):
    """Headless Chromium with the report open."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    browsers, driver = [path for path in found if path], shutil.which("chromedriver")
    if not (browsers and driver):
        pytest.fail("these tests open the report in a browser: apt-get install chromium chromium-driver "
                    "(or: pytest -k 'not browser')")
    options = webdriver.ChromeOptions()
    options.binary_location = browsers[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.get("about:blank")
    chrome.get_log("performance")                          # what Chromium itself does at its start
    chrome.get((project / "result" / EXP / "report.html").as_uri())
    WebDriverWait(chrome, 30).until(lambda c: c.find_element(By.TAG_NAME, "body").get_attribute("data-drawn"))
    yield chrome
    chrome.quit()


def text(browser, selector: str) -> list[str]:
    """The texts of the elements that a CSS selector picks."""
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def test_the_modules_need_no_package_that_only_draws_or_writes_tables():
    root = Path(main.__file__).parent
    modules = [f"evaluation.{path.stem}" for path in (root / "evaluation").glob("*.py")]
    assert {"evaluation.figures", "evaluation.volume_figures"} <= set(modules)
    hidden = ["matplotlib", "jinja2", "markupsafe", "tabulate", "statsmodels", "nilearn"]
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
    code += "\n".join(f"import {module}" for module in modules)
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_every_figure_is_there_as_png_of_150_dpi_and_pdf(project):
    folder = project / "result" / EXP / "figures"
    names = {"volumes", "failure_cases", "roc", "calibration", "suvr", "bland_altman", "curves"}
    files = {f"{name}.png" for name in names} | {f"{name}.pdf" for name in names}
    assert {path.name for path in folder.iterdir()} == files
    for name in names:
        picture = Image.open(folder / f"{name}.png")
        assert picture.info["dpi"][0] == pytest.approx(150, abs=0.1)
        assert np.asarray(picture.convert("L")).std() > 10                    # something is drawn
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_all_of_a_figure_is_on_it_and_nothing_covers_its_notice(project, tmp_path, monkeypatch):
    run, drawn = load_run(project / "result" / EXP), []
    notice = run.metadata["notice"]
    monkeypatch.setattr(figures.pyplot(), "close", drawn.append)
    one = run.predictions.query("classifier == 'pet' and method == 'il_cldm'")
    every = []                                             # status classifier of a run with all baselines
    for classifier, method in figures.STATUS_CLASSIFIERS:
        every.append(one.assign(classifier=classifier, method=method))
    rng, label = np.random.default_rng(0), np.arange(9) % 2
    figures.plot_roc(tmp_path / "roc", pd.concat(every), notice)
    figures.plot_calibration(tmp_path / "calibration", pd.concat(every), notice)
    figures.plot_suvr(tmp_path / "suvr", *rng.normal(1.2, 0.1, (2, 9)), label, notice)
    figures.plot_bland_altman(tmp_path / "ba", *rng.normal(1.2, 0.1, (2, 9)), label, notice)
    assert len(drawn) == 4
    for figure in drawn:
        figure.draw_without_rendering()
        axis, page = figure.axes[0], figure.bbox
        artists = (*figure.texts, *figure.legends, axis.title, axis.xaxis.label)
        boxes = [artist.get_window_extent() for artist in artists]
        assert len(boxes) == 4
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        for box in boxes:
            assert page.x0 <= box.x0
            assert box.x1 <= page.x1
            assert page.y0 <= box.y0


def test_nothing_covers_anything_in_the_figures_of_systems(tmp_path, monkeypatch):
    notice, drawn = "digital phantom, not patient data; research only, not for clinical use", []
    rng, label = np.random.default_rng(0), np.arange(20) % 2
    monkeypatch.setattr(figures.pyplot(), "close", drawn.append)
    classifiers = [*figures.STATUS_CLASSIFIERS, *(("pet", method) for method in figures.SYSTEM_TITLES)]
    predictions = []
    for classifier, method in classifiers:
        predictions.append(pd.DataFrame({"classifier": classifier, "method": method, "ID": range(20),
                                         "label": label, "score": rng.normal(size=20)}))
    figures.plot_roc(tmp_path / "roc", pd.concat(predictions), notice)
    pairs = {}
    for method in ("il_cldm", *figures.SYSTEM_TITLES):
        real, synthetic = rng.normal(1.2, 0.1, (2, 20))
        pairs[method] = pd.DataFrame({"real": real, "synthetic": synthetic, "label": label})
    figures.plot_bland_altman_systems(tmp_path / "ba", pairs, notice)
    figures.plot_bland_altman_systems(tmp_path / "ba", dict(list(pairs.items())[:2]), notice)
    titles = [f"sub-ADNI037S604{i}\nlabel 1\nMAE of IL-CLDM\nin the brain: 0.0200" for i in range(8)]
    for names in (list(figures.METHOD_TITLES), ["real", "il_cldm", "ddpm", "mean_pet"]):
        slices = {method: list(rng.random((8, 10, 12))) for method in names}
        volume_figures.plot_methods(tmp_path / "comparison.png", titles, slices, "axial slices at z = 20 mm",
                                    notice)
    assert len(drawn) == 5
    for figure in drawn:
        figure.draw_without_rendering()
        artists = [*figure.texts, *figure.legends]
        for axis in figure.axes:
            artists += [axis.title, axis.xaxis.label, axis.yaxis.label, axis.get_legend()]
        artists = [artist for artist in artists if artist and artist.get_visible()]
        boxes = [artist.get_window_extent() for artist in artists]
        boxes = [box for box in boxes if box.width and box.height]
        assert len(boxes) > 4
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        for box in boxes:
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0
            assert box.y1 <= figure.bbox.y1


def test_uptake_of_the_real_pet_is_the_one_that_the_phantom_drew(project):
    truth = pd.read_csv(project / "data" / "ph" / "truth" / "truth.csv").set_index("ID")["suvr"]
    uptake = pd.read_csv(project / "result" / EXP / "uptake.csv")
    real = uptake[uptake["method"] == "real"].set_index("ID")["SUVR"]
    np.testing.assert_allclose(real, truth[real.index], atol=0.03)            # the crop cuts its masks
    assert set(uptake["method"]) == {"real", "aae", "il_cldm", "mean_pet", "oracle"}
    assert uptake[uptake["method"] == "mean_pet"]["SUVR"].nunique() == 1


def test_browser_shows_the_report_without_error_and_asks_nobody_for_anything(browser):
    assert browser.get_log("browser") == []
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [request for request in requests if request["method"] == "Network.requestWillBeSent"]
    urls = [request["params"]["request"]["url"] for request in sent]
    assert urls
    assert all(url.startswith(("file:", "data:")) for url in urls)
    assert sum(url.startswith("file:") for url in urls) == 1
    notice = "digital phantom, not patient data · research only, not for clinical use"
    assert text(browser, "#banner") == [notice]


def test_browser_shows_filled_tables_and_figures(browser, project):
    assert "python main.py" in text(browser, "code")[0]
    headings = text(browser, "h2")
    for heading in (
        "Participants",
        "Viewer",
        "Image quality",
        "Quantification",
        "Amyloid status",
        "Comparisons",
        "Figures",
        "Settings and versions",
        "Methods, as text for a paper",
    ):
        assert heading in headings
    cells = text(browser, "table")
    rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#table_1 tr")]
    assert rows[0].split() == ["train", "validation", "test", "all", "SMD", "validation", "SMD", "test"]
    assert rows[1].split(", n ") == ["scans", "8 4 6 18"]
    assert [row.split()[:6] for row in rows[4:6]] == [
        ["·", "0", "4", "(50.0", "%)", "2"], ["·", "1", "4", "(50.0", "%)", "2"]]
    assert [box.splitlines() for box in text(browser, ".flow .box")] == [
        ["training list", "8 scans of 8 subjects", "label 0: 4", "label 1: 4"],
        ["validation list", "4 scans of 4 subjects", "label 0: 2", "label 1: 2"],
        ["test list", "6 scans of 6 subjects", "label 0: 3", "label 1: 3"]]
    [methods] = text(browser, "#methods_text")
    assert methods.split() == (project / "result" / EXP / "methods.txt").read_text().split()
    psnr = pd.read_csv(project / "result" / EXP / "test.csv").query("method == 'il_cldm'")["PSNR_brain"]
    assert any(f"{psnr.mean():.2f} ± {psnr.std():.2f}" in table for table in cells)
    assert not any(word in " ".join(cells) for word in ("nan", "None", "undefined"))
    script = "return [...document.images].map(i => i.complete && i.naturalWidth > 300 && !!i.alt)"
    loaded = browser.execute_script(script)
    assert loaded == [True] * 7


def test_the_files_of_the_report_are_those_of_the_run_and_old_ones_go(project):
    folder = project / "result" / EXP
    cases = pd.read_csv(folder / "failure_cases.csv")
    suvr = pd.read_csv(folder / "uptake.csv").pivot(index="ID", columns="method", values="SUVR")
    error = (suvr["il_cldm"] - suvr["real"]).abs().sort_values()
    assert cases["ID"].tolist() == error.index.tolist()
    np.testing.assert_allclose(cases["error"], error)
    assert set(cases["case"]) == {"all"}
    assert cases["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert cases["age"].between(50, 100).all()
    table = pd.read_csv(folder / "table_1.csv")
    assert {"age (years)", "sex", "label"} <= set(table["variable"])
    assert {path.name for path in folder.iterdir()} >= set(MADE_FROM_THEM)


def test_what_is_made_from_results_goes_with_them(tmp_path):
    for name in MADE_FROM_THEM:
        (tmp_path / name).touch()
    forget_run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_files_of_the_report_come_back_byte_for_byte(project, tmp_path, monkeypatch, sketched):
    monkeypatch.chdir(tmp_path)
    for name in ("data", "result"):
        shutil.copytree(project / name, tmp_path / name)
    names, folder = ("failure_cases.csv", "table_1.csv", "methods.txt"), tmp_path / "result" / EXP
    before = [(folder / name).read_bytes() for name in names]
    for name in names:
        (folder / name).unlink()
    assert main.main([*arguments(TINY | PHANTOM), "--stages", "report"]) == 0
    assert [(folder / name).read_bytes() for name in names] == before


def test_a_report_without_some_synthetic_pets_has_no_picture_of_failure_cases(project, tmp_path, monkeypatch,
                                                                              sketched):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(project / "data", tmp_path / "data")
    shutil.copytree(project / "result", tmp_path / "result")
    folder, test = tmp_path / "result" / EXP, project / "data" / "ph" / "data_info"
    labels = pd.read_csv(test / "data_info.csv").set_index("ID")["label"]
    positive = [subject for subject in (test / "test.txt").read_text().split() if labels[subject] == 1]
    (folder / "synthesized" / f"{positive[SHOWN_SUBJECTS]}.nii.gz").unlink()   # the first after those shown
    (test / "cohort.csv").unlink(missing_ok=True)
    assert main.main([*arguments(TINY | PHANTOM), "--stages", "report"]) == 0
    assert not (folder / "figures" / "failure_cases.png").exists()
    assert len(pd.read_csv(folder / "failure_cases.csv")) == 6


def test_browser_shows_the_flow_of_the_files_of_prepare(project, browser, tmp_path, monkeypatch, sketched):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(project / "data", tmp_path / "data")
    shutil.copytree(project / "result", tmp_path / "result")
    info = tmp_path / "data" / "ph" / "data_info"
    (info / "cohort.csv").write_text("list,subjects,scans\ntrain,8,8\nvalidation,4,4\ntest,6,6\nall,18,18\n")
    (info / "left_out.csv").write_text("ID,reason,found\nx1,no <b>PET</b>,\nx2,grey zone,\nx3,grey zone,\n")
    assert main.main([*arguments(TINY | PHANTOM), "--stages", "report"]) == 0
    report, own = tmp_path / "result" / EXP / "report.html", browser.current_url
    browser.get(report.as_uri())
    boxes = [box.splitlines() for box in text(browser, ".flow .box")]
    browser.get(own)
    WebDriverWait(browser, 30).until(
        lambda c: c.find_element(By.TAG_NAME, "body").get_attribute("data-drawn")
    )
    assert boxes[:3] == [["found, with an MRI or a PET:", "21 scans of 21 subjects"],
                         ["left out: 3 scans of 3 subjects", "grey zone: 2", "no <b>PET</b>: 1"],
                         ["labelled:", "18 scans of 18 subjects"]]
    methods = (tmp_path / "result" / EXP / "methods.txt").read_text()
    assert "3 scans of 3 subjects were left out, and 18 scans of 18 subjects were used" in methods


def shown(browser, name: str) -> np.ndarray:
    """The pixels of a panel of the viewer, [height, width, 3]."""
    script = ("const c = document.getElementById(arguments[0]);"
              "return [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    height, width, *values = browser.execute_script(script, name)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def move(browser, subject: int, plane: int, slice_: int) -> None:
    """Move the viewer to a slice, and wait until that is drawn."""
    Select(browser.find_element(By.ID, "subject")).select_by_index(subject)
    Select(browser.find_element(By.ID, "plane")).select_by_value(str(plane))
    script = ("const s = document.getElementById('slice'); s.value = arguments[0];"
              "s.dispatchEvent(new Event('input'))")
    browser.execute_script(script, slice_)
    body, wanted = browser.find_element(By.TAG_NAME, "body"), f"{subject} {plane} {slice_}"
    WebDriverWait(browser, 30).until(lambda _: body.get_attribute("data-drawn") == wanted)


@pytest.mark.parametrize(("plane", "slice_"), [(2, 5), (2, 9), (1, 12), (0, 8)])
@pytest.mark.parametrize("subject", [0, 3])
def test_browser_viewer_shows_the_voxels_of_the_slice_chosen(browser, project, subject, plane, slice_):
    move(browser, subject, plane, slice_)
    name = text(browser, "#subject option")[subject].split(",")[0]
    crop = tuple(slice(a, a + n) for a, n in zip(TINY["crop_start"], TINY["volume_size"], strict=True))
    files = {"MRI": f"data/ph/whole_MRI/{name}.nii.gz", "real PET": f"data/ph/whole_Abeta/{name}.nii.gz",
             "synthetic PET": f"result/{EXP}/synthesized/{name}.nii.gz"}
    volumes = {title: nib.load(project / file).get_fdata()[crop] for title, file in files.items()}
    top = 0.0
    for option in text(browser, "#subject option"):
        pet = nib.load(project / f"data/ph/whole_Abeta/{option.split(',')[0]}.nii.gz")
        top = max(top, pet.get_fdata()[crop].max())
    for title, volume in volumes.items():
        picture = np.take(volume, slice_, axis=plane).T[::-1]                 # first axis right, second up
        levels = np.clip(picture / (1 if title == "MRI" else top), 0, 1)
        expected = colormaps["gray" if title == "MRI" else "inferno"](levels)[..., :3] * 255
        found = shown(browser, title)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 6             # 256 levels
    difference = np.take(volumes["real PET"] - volumes["synthetic PET"], slice_, axis=plane)
    error = np.abs(difference).T[::-1]
    expected = colormaps["viridis"](np.clip(2 * error / top, 0, 1))[..., :3] * 255            # ends at half
    assert np.abs(shown(browser, "absolute error") - expected).max() <= 12


def test_the_report_of_a_cohort_without_regions_or_two_labels_leaves_that_out(project, tmp_path, monkeypatch,
                                                                              sketched):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(project / "data", tmp_path / "data")
    shutil.copytree(project / "result", tmp_path / "result")
    info = tmp_path / "data" / "ph" / "data_info"
    labels = pd.read_csv(info / "data_info.csv").set_index("ID")["label"]
    test = (info / "test.txt").read_text().split()
    (info / "test.txt").write_text("\n".join(name for name in test if labels[name] == 0))
    (info / "data_info.csv").write_text((info / "data_info.csv").read_text().replace("age", "years"))
    shutil.rmtree(tmp_path / "data" / "ph" / "truth" / "oracle")
    assert main.main([*arguments(TINY | PHANTOM), "--stages", "test"]) == 0   # now without an oracle
    assert "oracle" not in set(pd.read_csv(tmp_path / "result" / EXP / "test.csv")["method"])
    (tmp_path / "data" / "ph" / "phantom.json").unlink()
    own = PHANTOM | {"info_dir": "data/ph/data_info", "exp": "own", "regions": "none",
                     "aae_epochs": 1, "ldm_epochs": 1}
    del own["phantom_subjects"]
    stages = ("check", "aae", "encode", "ldm", "test", "report")
    assert main.main([*arguments(TINY | own), "--stages", *stages]) == 0
    folder = tmp_path / "result" / "own"
    html = (folder / "report.html").read_text()
    assert "digital phantom" not in html
    assert "research only, not for clinical use" in html
    assert "not defined" in html
    assert "Quantification" not in html
    assert {path.stem for path in (folder / "figures").iterdir()} == {"volumes", "curves", "failure_cases"}
    cases = pd.read_csv(folder / "failure_cases.csv")
    assert set(cases["criterion"]) == {"MAE_brain"}
    assert cases["error"].is_monotonic_increasing
    methods = (folder / "methods.txt").read_text()
    assert "To be filled in" in methods
    assert "SUVR" not in methods
    assert not (folder / "uptake.csv").exists()
