"""The page about a run: what it says, what it draws, and what a real browser makes of it."""

import dataclasses
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import moco
from moco import recipe_file
from moco.cli import main
from moco.recipe import InBatch, TiedKeys
from moco.recipes import RECIPES, get
from moco.report.charts import Chart, Line, number, thin, ticks
from moco.report.command import command
from moco.report.facts import charts, read_facts
from moco.report.page import _duration, write_report
from tiny import save_arrays, tiny_recipe

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    data = save_arrays(folder)
    recipe = dataclasses.replace(tiny_recipe(), name='<b>"tiny" & co</b>')
    moco.pretrain(recipe, data=data, out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def other(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report-other")
    recipe = dataclasses.replace(tiny_recipe(), seed=1, keys=moco.recipe.MomentumKeys(momentum=0.5))
    data = read_facts(run).run["data"]
    moco.pretrain(recipe, data=data, out=folder / "other")
    return folder / "other"


def test_a_finished_run_has_its_page(run):
    text = (run / "report.html").read_text()
    assert len(text) < 5 * 2**20
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/\S*", "", text)
    assert "<b>" not in text.replace("<b>loss", "").split("<main", 1)[0]
    for part in 'id="good"', 'id="curves"', 'id="views"', 'id="neighbours"', 'id="map"', 'id="odd"':
        assert part in text
    assert "guessing: ln(1 + 40)" in text
    assert "queue filled" in text
    assert "moco pretrain --from" in text


def test_the_page_says_what_the_run_says(run):
    facts, text = read_facts(run), (run / "report.html").read_text()
    table = facts.result["knn"]
    for name in "trained_trunk", "trained_output", "untrained_trunk", "raw_pixels":
        assert f"{table[name]:.1f}" in text
    drawn = {chart.name: chart for chart in charts([facts])}
    assert list(drawn)[:4] == ["loss", "pretext accuracy", "kNN accuracy", "spread of the queries"]
    rows = [row for row in facts.rows if "loss" in row]
    assert drawn["loss"].lines[0].points == [(row["epoch"], row["loss"]) for row in rows]
    assert drawn["loss"].levels == [("guessing: ln(1 + 40)", math.log(41))]
    assert drawn["loss"].moments[0][1] == pytest.approx(3 / 6)  # 40 keys in batches of 16, 6 steps per epoch
    assert [line.name for line in drawn["kNN accuracy"].lines] == ["trunk", "output"]


def test_diagnostics_and_verdict_are_shown_when_they_are_there(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    extra = {"alignment": 0.4, "rankme": 12.5, "retrieval": 61.0, "surprise": 3.0}
    rows.append({"step": rows[-1]["step"], "epoch": rows[-1]["epoch"], **extra})
    (tmp_path / "run/journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    verdict = {"sentence": "It helped: worth 3.1 times the labels.", "evidence": ["measured <twice>"]}
    (tmp_path / "run/verdict.json").write_text(json.dumps(verdict))
    Image.new("RGB", (30, 20), "red").save(tmp_path / "run/verdict.png")
    text = write_report([tmp_path / "run"], images=20).read_text()
    assert "It helped: worth 3.1 times the labels." in text
    assert "measured &lt;twice&gt;" in text
    for words in "alignment", "RankMe", "two-view retrieval", "surprise", 'alt="verdict"', "61.0 %":
        assert words.replace(" %", "\u00a0%") in text or words in text


def test_runs_are_compared_in_the_same_charts(run, other, tmp_path):
    path = write_report([run, other], tmp_path / "both.html")
    text = path.read_text()
    drawn = charts([read_facts(run), read_facts(other)])
    assert [line.name for line in drawn[0].lines] == ["run", "other"]
    assert [line.colour for line in drawn[0].lines] == [0, 1]
    assert "keys.momentum" in text
    assert "<td>0.9</td><td>0.5</td>" in text
    assert 'id="map"' not in text
    assert not (run / "both.html").exists()


def test_a_comparison_leaves_the_page_of_a_run_alone(run, other, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    page = (tmp_path / "run/report.html").read_bytes()
    assert write_report([tmp_path / "run", other]) == tmp_path / "run/comparison.html"
    assert (tmp_path / "run/report.html").read_bytes() == page


def test_times_and_numbers_read_as_words(run, tmp_path):
    assert [_duration(seconds) for seconds in (11.4, 75, 7500)] == ["11 s", "1 min 15 s", "2 h 05 min"]
    shutil.copytree(run, tmp_path / "run")
    result = json.loads((run / "result.json").read_text()) | {"seconds": 61}
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    text = write_report([tmp_path / "run"], images=20).read_text()
    assert "the last call took 1 min 1 s" in text  # a resumed run took longer in all


def test_a_page_without_its_images_says_so(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    toml = (run / "recipe.toml").read_text()
    (tmp_path / "run/recipe.toml").write_text(re.sub(r'data = ".*"', 'data = "/nowhere/x.npz"', toml))
    text = write_report([tmp_path / "run"]).read_text()
    assert "Neighbours, map and clusters are left out: there is no /nowhere/x.npz" in text
    assert 'id="map"' not in text


def test_unfinished_runs_are_shown_too(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for name in "result.json", "views.png", "backbone.safetensors":
        (tmp_path / "run" / name).unlink()
    text = write_report([tmp_path / "run"], images=20).read_text()
    assert re.search(r"The run has not ended\. After [\d.]+ epochs, a vote of the", text)
    with open(tmp_path / "run/journal.jsonl", "a") as journal:
        journal.write('{"step": 18, "unreadable": "x.png", "reason": "no image"}\n')
    assert "queue filled" in write_report([tmp_path / "run"], images=20).read_text()
    (tmp_path / "run/journal.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no row in its journal yet"):
        write_report([tmp_path / "run"])


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_is_the_recipe(name):
    """What the page says to type is parsed back to the very values."""
    import shlex

    import tyro

    from moco.cli.pretrain import Pretrain
    from moco.cli.show import FLAGS

    base = get(name)
    values = dataclasses.replace(
        base, batch=64, encoder=dataclasses.replace(base.encoder, bn_group=8), seed=7
    )
    values = dataclasses.replace(values, views=dataclasses.replace(values.views, scale=(0.3, 0.9)))
    words = shlex.split(command(values, {"data": "a b/c", "quarantine": "q 1"}, Path("runs/x y")))
    assert words[:3] == ["moco", "pretrain", name]
    default = Pretrain(recipe=base, data=tyro.MISSING, out=tyro.MISSING)
    call = tyro.cli(Pretrain, default=default, args=words[3:], config=FLAGS)
    assert call.recipe == values
    assert (call.data, call.out, call.quarantine) == (
        "a b/c",
        Path("runs/x y"),
        Path("runs/x y/left-out.jsonl"),
    )


def test_what_was_found_from_the_images_is_no_flag():
    base = get("cpu")
    views = dataclasses.replace(base.views, range=(0.0, 255.0), mean=(0.5,) * 3, std=(0.2,) * 3)
    values = dataclasses.replace(base, views=views, precision="float32")
    assert command(values, {"data": "d"}, Path("r")) == "moco pretrain cpu --data d --out r"


def test_the_command_of_other_kinds_is_a_file():
    values = dataclasses.replace(get("cpu"), keys=TiedKeys(), dictionary=InBatch())
    assert command(values, {"data": "d"}, Path("r")) == "moco pretrain --from r/recipe.toml --data d --out r"


def test_ticks_are_round_and_inside():
    for low, high in (0, 1), (3.97, 8.4), (-2.5, 0.1), (0, 123456), (1e-5, 3e-4):
        found = ticks(low, high)
        assert 3 <= len(found) <= 8
        assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
        steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in itertools.pairwise(found)}
        assert steps == {1.0}
    assert number(0.25) == "0.25"
    assert number(12000) == "12,000"
    assert [number(value) for value in (1e-4, 1.5e-4, 2e-6, 1.2e-5, 250_000)] == [
        "0.0001", "0.00015", "2e-6", "1.2e-5", "2.5e5",
    ]  # fmt: skip


def test_long_lines_keep_their_ends():
    points = [(float(i), float(i % 7)) for i in range(10_000)]
    kept = thin(points)
    assert len(kept) == 400
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_charts_speak():
    chart = Chart("loss", "nats", "", [Line("a", [(0.5, 3.0), (2.0, 1.0)])], levels=[("guess <x>", 4.0)])
    assert chart.summary() == "loss (nats): a from 3 to 1 over 2 epochs; guess <x> at 4"
    one = Chart("learning rate", "per step", "", [Line("lr", [(0.5, 3.0), (1.0, 1.0)])])
    assert one.summary() == "learning rate (per step): lr from 3 to 1 over 1 epoch"
    assert "guess &lt;x&gt;" in chart.svg()
    assert "<x>" not in chart.svg()


def test_the_commands_words(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(run), "--out", str(tmp_path / "x.html"), "--images", "20", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"file": str(tmp_path / "x.html"), "bytes": (tmp_path / "x.html").stat().st_size}
    for words, message in (
        (["report"], "takes one run folder or several"),
        (["report", str(tmp_path / "none")], "holds no run"),
        (["report", str(run), "--images", "3"], "--images must be at least 10, got 3"),
        (["report", str(run), "--data", str(tmp_path / "none")], "there is no"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened_page(browser, path, width=1400, scheme="light"):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, trouble = context.new_page(), []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("requestfailed", lambda request: trouble.append(request.url[:80]))
    page.goto(f"file://{path}")
    return page, trouble


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_it_fits_and_nothing_fails(browser, run, width, scheme):
    page, trouble = opened_page(browser, run / "report.html", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".chart svg").count() >= 6
    assert page.locator(".t").count() > 50
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    assert dark == (scheme == "dark")
    page.locator("#scheme").click()
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)") != dark
    drawn = page.evaluate("document.querySelector('#canvas').toDataURL().length")
    assert drawn > 2000
    assert trouble == []


def test_in_a_browser_keys_do_what_the_pointer_does(browser, run):
    page, trouble = opened_page(browser, run / "report.html")
    chart = page.locator(".chart").first
    chart.locator("svg").hover()
    assert "nats" in chart.locator(".tip").inner_text()
    chart.focus()
    page.keyboard.press("End")
    last = [row for row in read_facts(run).rows if "loss" in row][-1]
    assert f"{last['loss']:.5g}" in chart.locator(".tip").inner_text()
    page.locator("#canvas").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#chosen").inner_text()
    assert "cluster" in first
    page.keyboard.press("Enter")
    assert page.locator("#chosen").inner_text() != first
    page.keyboard.press("Escape")
    assert "No image is chosen" in page.locator("#chosen").inner_text()
    page.locator("#colour").select_option("cluster")
    assert "cluster 1" in page.locator("#key").inner_text()
    page.locator("#pictures").check()
    page.locator("#in").click()
    named = "[...document.querySelectorAll('button, select, input, canvas, img, .t, svg')]"
    nameless = (
        f"{named}.filter(e => !(e.ariaLabel || e.alt || e.textContent.trim() || e.closest('label'))).length"
    )
    assert page.evaluate(nameless) == 0
    assert trouble == []


def test_in_a_browser_comparisons_work_too(browser, run, other, tmp_path):
    page, trouble = opened_page(browser, write_report([run, other], tmp_path / "both.html"), 400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator(".chart path.line").count() >= 12
    assert trouble == []
    assert recipe_file.read(run / "recipe.toml")[1]["data"] in page.locator("pre").first.inner_text()
