"""The page in a real browser: images open, clusters are named, merged and split, and nothing is lost or sent away."""

import importlib.resources
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from selfcluster.commands.report import apply_rows
from selfcluster.data.sources import open_source
from selfcluster.evaluation.comparison import Cell, Column, Comparison, Row
from selfcluster.reporting.comparison import write_comparison
from selfcluster.reporting.page import render_report, write_report
from selfcluster.runs.curation import append_rows, read_rows
from selfcluster.runs.groups import read_groups
from selfcluster.runs.tables import read_clusters, read_embeddings
from selfcluster.serve.curation import CurationServer
from tests.reporting.folders import make_run, write_clusters, write_vectors

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)

AXE = importlib.resources.files("axe_playwright_python") / "axe.min.js"  # a Python package that carries axe-core
MOBILE = {"height": 900, "deviceScaleFactor": 1, "mobile": False}
HOSTILE = "<img src=x onerror=alert(1)>.png"
NAMES = [f"photo {n:02}.png" for n in range(23)] + [HOSTILE]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    words = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
    words += ("--force-prefers-reduced-motion",)  # a page that scrolls smoothly moves under the pointer
    for word in (*words, "--window-size=1400,1000"):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path_factory.mktemp("downloads"))})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    made.downloads = options.experimental_options["prefs"]["download.default_directory"]  # pyright: ignore[reportAttributeAccessIssue]
    yield made
    made.quit()


@pytest.fixture
def run(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(NAMES):
        shade = np.full((40, 60, 3), 10 * number, np.uint8)
        Image.fromarray(shade).save(tmp_path / "photos" / name)
    return make_run(tmp_path / "runs" / "run", sorted(NAMES))


@pytest.fixture
def page(browser, run):
    path = write_report(run, open_source(str(run.parents[1] / "photos")))
    browser.get(path.as_uri())
    yield browser
    assert not browser.get_log("browser")  # no error, nothing refused by the page's policy


@pytest.fixture
def served(browser, run):
    source = open_source(str(run.parents[1] / "photos"))
    with CurationServer(run, source, lambda token: render_report(run, source, token=token)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        browser.get(server.address)
        yield server
        server.shutdown()
        thread.join()


def one(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def texts(browser, selector):
    return [found.text for found in browser.find_elements(By.CSS_SELECTOR, selector) if found.is_displayed()]


def wait(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "nothing happened for ten seconds"
        time.sleep(0.02)


def click(browser, selector):
    """Click what is there now: a list that a window's new size draws again replaces its elements in between."""

    def clicked():
        try:
            one(browser, selector).click()
        except StaleElementReferenceException:
            return False
        return True

    wait(clicked)


def open_cluster(browser, number):
    browser.execute_script("document.querySelector(`#cluster-${arguments[0]} .all`).click()", number)


def rename(browser, name):
    field = one(browser, "#browser [name=name]")
    field.clear()
    field.send_keys(name, Keys.ENTER)


def tick_first(browser, count):
    for _ in range(count):
        browser.execute_script("document.querySelector('#browser .cell input:not(:checked)').click()")


def test_an_image_opens_large_with_its_neighbors(page):
    browser = page
    browser.execute_script("document.querySelector('#cluster-1 .thumb').click()")
    picture = one(browser, "#viewer img")
    wait(picture.is_displayed)
    assert browser.execute_script("return arguments[0].naturalWidth", picture) == 60
    first = one(browser, "#viewer h2").text
    assert len(browser.find_elements(By.CSS_SELECTOR, "#viewer .near button")) == 20
    assert one(browser, "#viewer .facts-line").text.startswith("1 of 8 · distance")
    one(browser, "#viewer [data-do=next]").send_keys(Keys.ARROW_RIGHT)
    assert one(browser, "#viewer h2").text != first
    assert one(browser, "#viewer .facts-line").text.startswith("2 of 8")
    click(browser, "#viewer .near button")
    assert one(browser, "#viewer .facts-line").text.startswith("1 of 20")
    one(browser, "#viewer").send_keys(Keys.ESCAPE)
    assert not one(browser, "#viewer").is_displayed()


def test_the_nearest_images_are_those_of_the_embeddings(page, run):
    table = read_embeddings(run / "embeddings.parquet")
    unit = table.vectors / np.linalg.norm(table.vectors, axis=1, keepdims=True)
    page.execute_script("document.querySelector('#cluster-0 .thumb').click()")
    wait(lambda: one(page, "#viewer h2").text)
    opened = table.ids.index(one(page, "#viewer h2").text)
    order = np.argsort(((unit - unit[opened]) ** 2).sum(axis=1))[1:21]
    shown = [button.get_attribute("title") for button in page.find_elements(By.CSS_SELECTOR, "#viewer .near button")]
    assert len(set(shown[:7]) & {table.ids[i] for i in order[:7]}) >= 6  # 8-bit vectors


def test_all_images_of_a_cluster_in_three_orders(page):
    open_cluster(page, 2)
    nearest = [tile.get_attribute("title") for tile in page.find_elements(By.CSS_SELECTOR, "#browser .tile")]
    assert len(nearest) == 8
    assert "8 images" in one(page, "#browser .count").text
    click(page, "[data-order-by=farthest]")
    farthest = [tile.get_attribute("title") for tile in page.find_elements(By.CSS_SELECTOR, "#browser .tile")]
    assert farthest == nearest[::-1]
    click(page, "[data-order-by=random]")
    random = [tile.get_attribute("title") for tile in page.find_elements(By.CSS_SELECTOR, "#browser .tile")]
    assert sorted(random) == sorted(nearest)


def test_names_merges_splits_and_undo_survive_a_reload_and_become_the_runs(page, run):
    open_cluster(page, 0)
    rename(page, "  shoes <b>  ")
    assert one(page, "#browser h2").text == "shoes <b>"
    tick_first(page, 2)
    click(page, "[data-do=split]")
    assert "6 images" in one(page, "#browser .count").text
    click(page, "#browser [data-do=close]")
    open_cluster(page, 1)
    page.execute_script(
        "const s = document.querySelector('[name=into]'); s.value = '2'; s.dispatchEvent(new Event('change'))"
    )
    assert "16 images" in one(page, "#browser .count").text
    click(page, "#browser [data-do=rubbish]")
    click(page, "#browser [data-do=undo]")
    click(page, "#browser [data-do=close]")
    page.refresh()
    assert texts(page, ".card h3") == ["shoes <b>", "Cluster 2"]
    assert texts(page, "#uncarded button") == ["Cluster 3 · 2"]
    assert texts(page, "#desk [data-do=ticked]") == ["Show 2 ticked"]
    click(page, "#desk [data-do=download]")
    file = run.parent / "curation.jsonl"
    downloaded = Path(page.downloads) / "curation.jsonl"
    wait(lambda: downloaded.exists() and downloaded.stat().st_size)  # an empty file holds its name at first
    downloaded.replace(file)
    assert apply_rows(run, file) == 7
    assert apply_rows(run, file) == 0
    groups = read_groups(run)
    assert sorted(np.bincount(groups.clusters[groups.clusters >= 0]).tolist()) == [0, 2, 6, 16]
    assert groups.names == {0: "shoes <b>"}
    assert len(groups.selected) == 2
    assert not groups.rubbish


def test_a_page_starts_from_the_runs_own_rows_and_two_tabs_lose_none(browser, run):
    rename = {"action": "rename", "cluster": 0, "name": "<b>boots"}
    append_rows(run, [rename, {"action": "rubbish", "cluster": 2}], read_clusters(run / "clusters.parquet").by_id())
    path = write_report(run, open_source(str(run.parents[1] / "photos")))
    browser.get(path.as_uri())
    assert texts(browser, ".card h3")[0] == "<b>boots"
    assert "rubbish" in one(browser, "#cluster-2").get_attribute("class")
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    try:
        browser.get(path.as_uri())
        open_cluster(browser, 1)
        tick_first(browser, 1)
    finally:
        browser.close()
        browser.switch_to.window(first)
    open_cluster(browser, 0)
    tick_first(browser, 1)
    click(browser, "#browser [data-do=close]")
    assert texts(browser, "#desk [data-do=ticked]") == ["Show 2 ticked"]
    kept = browser.execute_script("return Object.values(localStorage).find((v) => v.includes('<b>boots'))")
    assert [row["action"] for row in json.loads(kept)] == ["rename", "rubbish", "select", "select"]
    assert not browser.get_log("browser")


def test_an_image_and_a_cluster_are_found_by_name(page):
    field = one(page, "#search input")
    field.send_keys("PHOTO 1", Keys.ENTER)
    assert "10 images" in one(page, "#browser .count").text
    click(page, "#browser [data-do=close]")
    field.clear()
    field.send_keys("cluster 2", Keys.ENTER)
    assert one(page, "#browser h2").text == "Cluster 2"


def test_strange_names_are_text_and_no_request_leaves_the_page(page):
    page.get_log("performance")
    field = one(page, "#search input")
    field.send_keys("onerror", Keys.ENTER)
    click(page, "#browser .tile")
    assert one(page, "#viewer h2").text == HOSTILE
    wait(one(page, "#viewer img").is_displayed)
    assert not page.execute_script("return document.querySelectorAll('#viewer h2 *').length")
    asked = [json.loads(row["message"])["message"] for row in page.get_log("performance")]
    addresses = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert all(address.startswith(("file:", "blob:", "data:")) for address in addresses)


@pytest.mark.parametrize("mode", ["dots", "pictures"])
def test_the_picture_under_the_pointer_is_the_one_in_the_tip(page, mode):
    page.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
    click(page, f"[data-mode={mode}]")
    canvas = one(page, "canvas.plane")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    width, height = canvas.size["width"], canvas.size["height"]
    album = json.loads(page.execute_script("return document.getElementById('album').textContent"))
    under = """
        const [canvas, x, y, done] = arguments, width = canvas.clientWidth;
        const side = Math.round(Math.max(26, Math.min(48, width / 24))), dense = devicePixelRatio;
        const middle = (at) => (Math.floor(at / side) * side + side / 2) * dense;
        setTimeout(() => {
            const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            pen.drawImage(canvas, middle(x), middle(y), 1, 1, 0, 0, 1, 1);
            done(pen.getImageData(0, 0, 1, 1).data[0]);
        }, 300);
    """
    for i in range(0, 24, 5):
        x, y = (26 + album[axis][i] / 1e4 * (side - 52) for axis, side in (("x", width), ("y", height)))
        ActionChains(page).move_to_element_with_offset(canvas, round(x - width / 2), round(y - height / 2)).perform()
        shown = one(page, ".tip span").text
        if mode == "dots":
            assert shown == album["ids"][i]
        else:  # the shade of an image tells its number
            assert abs(page.execute_async_script(under, canvas, x, y) - 10 * NAMES.index(shown)) <= 3


def test_suspects_open_large_and_as_a_list(page):
    click(page, "#again .suspect .tile")
    assert one(page, "#viewer").is_displayed()
    click(page, "#viewer [data-do=close]")
    titles = texts(page, "#again h3")
    assert "Farthest of all" in titles
    page.find_elements(By.CSS_SELECTOR, "#again .head .link")[titles.index("Farthest of all")].click()
    assert "24 images" in one(page, "#browser .count").text
    assert one(page, "#browser h2").text == "Farthest of all"


def test_a_lasso_ticks_the_images_inside_and_the_map_follows_a_merge(page):
    page.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
    page.execute_script("localStorage.clear()")  # pages of other tests have kept theirs
    canvas = one(page, "canvas.plane")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    album = json.loads(page.execute_script("return document.getElementById('album').textContent"))
    width, height = canvas.size["width"], canvas.size["height"]
    left = sorted(name for name, x in zip(album["ids"], album["x"], strict=True) if x <= 5_000)
    click(page, "#lasso")
    moves = ActionChains(page).move_to_element_with_offset(canvas, 20 - width // 2, 20 - height // 2).click_and_hold()
    for x, y in ((0, 20 - height // 2), (0, height // 2 - 20), (20 - width // 2, height // 2 - 20)):
        moves = moves.move_to_element_with_offset(canvas, x, y)
    moves.release().perform()
    assert f"{len(left)} image" in one(page, "#said").text
    rows = json.loads(page.execute_script("return Object.values(localStorage).find((v) => v.includes('select'))"))
    assert [row["action"] for row in rows] == ["select"]
    assert sorted(rows[0]["images"]) == left
    click(page, "#lasso")
    page.execute_script("document.querySelector('#cluster-1 .find').click()")
    assert "Cluster 1: 8 images on the map." in one(page, "#said").text


def test_by_the_keyboard_alone(page):
    def press(*keys):
        for key in keys:
            ActionChains(page).send_keys(key).perform()

    page.execute_script("document.querySelector('#cluster-0 .all').focus()")
    press(Keys.ENTER)
    wait(one(page, "#browser").is_displayed)
    for _ in range(30):  # to the first picture
        if "tile" in page.switch_to.active_element.get_attribute("class"):
            break
        press(Keys.TAB)
    press(Keys.ENTER)
    wait(one(page, "#viewer").is_displayed)
    press(Keys.ARROW_RIGHT, "t")
    assert one(page, "#viewer .facts-line").text.startswith("2 of 8")
    assert one(page, "#viewer [data-do=tick]").text == "Untick"
    press(Keys.ESCAPE)
    wait(lambda: not one(page, "#viewer").is_displayed())
    assert "1 ticked" in one(page, "#browser .count").text
    press(Keys.ESCAPE)
    wait(lambda: not one(page, "#browser").is_displayed())
    assert "1 change" in one(page, "#desk .done").text


@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_is_wider_than_the_window_and_every_control_has_a_name(page, width):
    page.set_window_size(width, 1000)
    nameless = (
        "return [...document.querySelectorAll('button, input, select, [role=button]')].filter((e) => "
        "!(e.ariaLabel || e.textContent.trim() || e.title)).map((e) => e.outerHTML.slice(0, 80))"
    )
    wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    try:
        assert not page.execute_script(wide)
        open_cluster(page, 0)
        assert not page.execute_script(nameless)
        box = "const b = document.getElementById('browser'); return b.scrollWidth > b.clientWidth"
        assert not page.execute_script(box)
        click(page, "#browser .tile")
        assert not page.execute_script(box.replace("browser", "viewer"))
        assert not page.execute_script(nameless)
    finally:
        page.set_window_size(1400, 1000)


@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_of_a_comparison_breaks_long_paths_and_keeps_numbers_whole(browser, tmp_path, width):
    long = "../photographs/" + "folder-of-a-data-set/" * 4 + "trainval.txt"
    columns = [Column(f"protocol{n}", "top1", {"train": long, "k": 20}) for n in range(9)]
    rows = (Row("swav", ("swav",), (Cell(0.78, None, 1, untrained=0.479, start=0.772),) * 9),)
    file = write_comparison(Comparison(tuple(columns), rows), tmp_path / "comparison.html")
    browser.set_window_size(width, 1000)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, **MOBILE})
    try:
        browser.get(file.as_uri())
        assert not browser.execute_script("return document.documentElement.scrollWidth > innerWidth")
        heights = browser.execute_script(
            "return [...document.querySelectorAll('td.n small')].map((e) => e.getClientRects().length)"
        )
        assert heights == [1] * 18  # "untrained 0.479" on one line
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.set_window_size(1400, 1000)


def test_on_a_narrow_screen_the_tools_are_folded_and_work(page):
    top = "return document.querySelector('#browser .list').getBoundingClientRect().top"
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(MOBILE, width=420))
    try:
        open_cluster(page, 0)
        assert page.execute_script(top) < 0.2 * MOBILE["height"]
        assert not one(page, "#browser [name=name]").is_displayed()
        assert one(page, "#browser [data-do=tools]").get_attribute("ariaExpanded") == "false"
        click(page, "#browser [data-do=tools]")
        assert one(page, "#browser [data-do=tools]").get_attribute("ariaExpanded") == "true"
        rename(page, "boots")
        assert one(page, "#browser h2").text == "boots"
        click(page, "#browser [data-do=tools]")
        assert not one(page, "#browser [name=name]").is_displayed()
        click(page, "#browser [data-do=undo]")
        assert one(page, "#browser h2").text == "Cluster 0"
        tick_first(page, 1)
        click(page, "#browser [data-do=close]")
        assert one(page, "#desk").size["height"] < 100
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    open_cluster(page, 0)
    assert one(page, "#browser [name=name]").is_displayed()
    assert not one(page, "#browser [data-do=tools]").is_displayed()


def test_a_list_that_just_fits_its_window_is_drawn_once(page):
    # without room kept for it, the scroll bar made the pictures smaller, which took the bar away, and so on for ever
    count = """
        const [over, done] = arguments, inner = document.querySelector("#browser .inner"), list = inner.parentElement;
        list.style.flex = "none";
        list.style.height = inner.offsetHeight + over + "px";
        setTimeout(() => {
            let drawn = 0;
            new MutationObserver(() => drawn++).observe(inner, { childList: true });
            setTimeout(() => done(drawn), 300);
        }, 200);
    """
    open_cluster(page, 0)
    for over in (-4, -1, 0, 1):
        assert page.execute_async_script(count, over) == 0


def test_clusters_are_sorted_by_stability_and_by_agreement_with_a_column(browser, run):
    table = read_clusters(run / "clusters.parquet")
    cluster = table.clusters.copy()  # 0, 1, 2, 0, 1, 2, ...: the groups of the embeddings
    cluster[[0, 3, 6, 9]], cluster[[1, 4, 7, 10]] = 1, 0  # half of either group: another seed has 4 of 12 together
    write_clusters(run / "clusters.parquet", table.ids, cluster, table.distances)
    hostile = "<b>day"
    shades = ["dark" if c == 2 or (c == 1 and n % 2) else f"light {c}" for n, c in enumerate(cluster)]
    rows = [f"{name},{shade},{n}" for n, (name, shade) in enumerate(zip(table.ids, shades, strict=True))]
    file = run.parent / "known.csv"
    file.write_text("\n".join([f"id,{hostile},number", *rows]) + "\n")
    path = write_report(run, open_source(str(run.parents[1] / "photos")), metadata=file)
    browser.get(path.as_uri())
    browser.execute_script("localStorage.clear()")

    def order():
        return [int(card.get_attribute("data-cluster")) for card in browser.find_elements(By.CSS_SELECTOR, ".card")]

    notes = texts(browser, ".card .notes")
    assert sum("stability 100%" in note for note in notes) == 1
    assert sum("stability 33%" in note for note in notes) == 2
    click(browser, "[data-sort=stability]")
    assert order()[0] == 2
    assert one(browser, "[data-sort=stability]").get_attribute("aria-pressed") == "true"
    options = [option.text for option in browser.find_elements(By.CSS_SELECTOR, "#agreement option")]
    assert options == ["Agreement with…", hostile]  # a column of numbers that are all different groups nothing
    purest = {c: max(shades_of(shades, cluster, c)) for c in range(3)}
    click(browser, "[data-sort=spread]")
    browser.execute_script(
        "const s = document.getElementById('agreement'); s.value = 'values0'; s.dispatchEvent(new Event('change'))"
    )
    assert [purest[c] for c in order()] == sorted(purest.values(), reverse=True)
    assert order()[-1] == 1
    assert f"{hostile}: 50% “dark”" in texts(browser, ".card .notes")[-1]
    assert not browser.find_elements(By.CSS_SELECTOR, "#agreement b, .notes b")
    assert one(browser, "[data-sort=spread]").get_attribute("aria-pressed") == "false"
    assert not browser.get_log("browser")


def shades_of(shades, cluster, number):
    own = [shade for shade, c in zip(shades, cluster, strict=True) if c == number]
    return [own.count(shade) / len(own) for shade in own]


def choose_groups(browser, count):
    choice = "const s = document.querySelector('[name=groups]'); s.value = arguments[0];"
    browser.execute_script(f"{choice} s.dispatchEvent(new Event('change'))", str(count))


def titles_by_group(browser):
    """The titles of the pictures below each head, by the text of the head, from top to bottom."""
    found = {}
    parts = browser.execute_script("""
        return [...document.querySelectorAll("#browser .inner > *")].map((e) => [parseFloat(e.style.top),
            e.tagName, e.tagName === "H3" ? e.textContent.trim() : e.querySelector(".tile").title]);
    """)
    for _, kind, text in sorted(parts, key=lambda part: part[0]):
        if kind == "H3":
            found[text] = []
        else:
            list(found.values())[-1].append(text)
    return found


def test_a_cluster_falls_into_the_groups_of_its_embeddings_and_a_group_becomes_a_cluster(browser, run):
    table = read_clusters(run / "clusters.parquet")
    write_clusters(run / "clusters.parquet", table.ids, np.zeros(24, int), table.distances)  # of three far groups
    browser.get(write_report(run, open_source(str(run.parents[1] / "photos"))).as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    open_cluster(browser, 0)
    assert not texts(browser, "#browser .group")
    choose_groups(browser, 3)
    groups = titles_by_group(browser)
    assert [text.split(" · ")[1] for text in groups] == ["8 images"] * 3
    assert {frozenset(names) for names in groups.values()} == {frozenset(table.ids[n::3]) for n in range(3)}
    near = dict(zip(table.ids, table.distances.tolist(), strict=True))
    assert all([*map(near.get, names)] == sorted(map(near.get, names)) for names in groups.values())

    second = list(groups.values())[1]
    browser.find_elements(By.CSS_SELECTOR, "#browser .group input")[1].click()  # by the pointer, head and all
    assert "24 images, 8 ticked" in one(browser, "#browser .count").text
    assert list(titles_by_group(browser))[1] == "Group 2 · 8 images, 8 ticked"
    assert browser.switch_to.active_element.get_attribute("data-place") == "group1"  # drawn again, still in focus
    click(browser, "[data-do=split]")
    left = titles_by_group(browser)
    assert [text.split(" · ")[0] for text in left] == ["Group 1", "Group 3"]  # the others stay as they are
    assert list(left.values()) == [names for n, names in enumerate(groups.values()) if n != 1]
    click(browser, "#browser [data-do=undo]")
    assert [*titles_by_group(browser).values()] == [*groups.values()]
    click(browser, "#browser .group input")
    tick_first(browser, 1)  # of group 3
    boxes = browser.find_elements(By.CSS_SELECTOR, "#browser .group input")
    assert [box.get_property("checked") for box in boxes] == [True, True, False]
    assert [box.get_property("indeterminate") for box in boxes] == [False, False, True]
    click(browser, "#browser .group input")  # unticks the first group
    assert "24 images, 9 ticked" in one(browser, "#browser .count").text
    assert [*titles_by_group(browser).values()][1] == second
    click(browser, "#browser .tile")  # the first picture of the first group opens, among all
    assert one(browser, "#viewer h2").text == next(iter(groups.values()))[0]
    assert one(browser, "#viewer .facts-line").text.startswith("1 of 24")
    click(browser, "#viewer [data-do=close]")
    click(browser, "#browser [data-do=close]")
    assert [row["action"] for row in kept_rows(browser)][:3] == ["select", "split", "undo"]
    open_cluster(browser, 0)
    choose_groups(browser, 1)
    assert not texts(browser, "#browser .group")
    assert not browser.get_log("browser")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The page of 9,000 images without pictures in one cluster, in four groups of 128 numbers, and one more cluster."""
    run = tmp_path_factory.mktemp("large") / "run"
    ids = [f"{n:04}.png" for n in range(9_000)]
    make_run(run, ids[:30])
    rng = np.random.default_rng(0)
    cluster = np.where(np.arange(9_000) < 8_900, 0, 1)
    center = np.where(cluster == 0, np.arange(9_000) % 4, 4)
    vectors = 3 * rng.standard_normal((5, 128))[center] + rng.standard_normal((9_000, 128))
    write_vectors(run / "embeddings.parquet", ids, vectors.astype(np.float32))
    write_clusters(run / "clusters.parquet", ids, cluster, np.linspace(0, 1, 9_000))
    return write_report(run, None, landmarks=60)


def test_groups_of_many_images_are_made_while_the_page_goes_on(browser, large):
    browser.get(large.as_uri())
    open_cluster(browser, 0)
    seen = browser.execute_async_script("""
        const done = arguments[0], list = document.querySelector("#browser .list"), seen = [];
        const words = document.querySelector("#browser .working");
        const choice = document.querySelector("[name=groups]");
        choice.value = "8";
        choice.dispatchEvent(new Event("change"));
        const look = () => { // a turn of the page
            if (document.querySelector("#browser .group")) return done(seen);
            seen.push([words.textContent, list.ariaBusy, list.querySelectorAll(".tile").length]);
            setTimeout(look);
        };
        look();
    """)
    words = list(dict.fromkeys(text for text, *_ in seen))
    assert len(words) > 3
    assert words[0] == "Making 8 groups, 0%"
    shares = [int(text.removeprefix("Making 8 groups, ").removesuffix("%")) for text in words]
    assert all(0 <= share <= 100 for share in shares)
    assert all(busy == "true" and tiles for _, busy, tiles in seen)  # the images are there meanwhile
    assert one(browser, "#browser .working").text == ""
    assert one(browser, "#browser .list").get_attribute("aria-busy") == "false"
    assert {int(name[:4]) % 4 for name in next(iter(titles_by_group(browser).values()))} in ({0}, {1}, {2}, {3})
    assert not browser.get_log("browser")


def test_groups_that_are_not_wanted_any_more_are_given_up(browser, large):
    browser.get(large.as_uri())
    open_cluster(browser, 0)
    start = """
        const choose = (n) => {
            const choice = document.querySelector("[name=groups]");
            choice.value = String(n);
            choice.dispatchEvent(new Event("change"));
        };
        choose(8);
        const busy = document.querySelector("#browser .working").textContent;
    """
    then = "setTimeout(() => arguments[0]([busy, document.querySelector('#browser .working').textContent]), 50);"
    assert browser.execute_async_script(start + "choose(1);" + then) == ["Making 8 groups, 0%", ""]
    close = "document.querySelector('#browser [data-do=close]').click();"
    assert browser.execute_async_script(start + close + then)[0] == "Making 8 groups, 0%"
    open_cluster(browser, 0)
    assert one(browser, "#browser [name=groups]").get_attribute("value") == "1"
    assert one(browser, "#browser .working").text == ""
    assert browser.execute_async_script(start + "choose(4);" + then)[0] == "Making 8 groups, 0%"
    wait(lambda: texts(browser, "#browser .group"))
    assert [text.split(" · ")[1] for text in titles_by_group(browser)] == [
        "2,225 images"
    ]  # those of four, not of eight
    time.sleep(0.5)
    assert [text.split(" · ")[1] for text in titles_by_group(browser)] == ["2,225 images"]
    other = start + "document.querySelector('#cluster-1 .all').click();" + then
    browser.execute_script("document.querySelector('#browser').close()")
    open_cluster(browser, 0)
    assert browser.execute_async_script(other)[1] == ""
    assert "100 images" in one(browser, "#browser .count").text
    assert not texts(browser, "#browser .group")
    assert not browser.get_log("browser")


def test_the_map_of_many_images_has_the_clusters_colors_and_follows_merges_and_moves(browser, large):
    browser.get(large.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    canvas = one(browser, "canvas.plane")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    album = json.loads(browser.execute_script("return document.getElementById('album').textContent"))
    colors = {int(n): tuple(int(text[k : k + 2], 16) for k in (1, 3, 5)) for n, text in album["colors"].items()}
    members = [i for i, cluster in enumerate(album["cluster"]) if cluster == 1]
    middle = [float(np.median([album[axis][i] for i in members])) for axis in ("x", "y")]
    away = [abs(album["x"][i] - middle[0]) + abs(album["y"][i] - middle[1]) for i in members]
    own = members[int(np.argmax(away))]  # the cluster's name stands elsewhere
    sides = canvas.size["width"], canvas.size["height"]
    places = [26 + album[axis][own] / 1e4 * (side - 52) for axis, side in zip("xy", sides, strict=True)]
    read = """
        const [canvas, x, y, done] = arguments, dense = devicePixelRatio;
        requestAnimationFrame(() => requestAnimationFrame(() => {
            const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            pen.drawImage(canvas, -Math.round(x * dense), -Math.round(y * dense));
            done([...pen.getImageData(0, 0, 1, 1).data]);
        }));
    """

    def cluster_at(x, y):
        """The cluster whose color a place has; None where there is no dot."""
        *found, alpha = browser.execute_async_script(read, canvas, x, y)
        return next((n for n, c in colors.items() if alpha > 200 and max(map(abs, np.subtract(found, c))) <= 2), None)

    assert cluster_at(*places) == 1
    assert cluster_at(2, 2) is None
    open_cluster(browser, 1)
    browser.execute_script(
        "const s = document.querySelector('[name=into]'); s.value = '0'; s.dispatchEvent(new Event('change'))"
    )
    click(browser, "#browser [data-do=close]")
    assert cluster_at(*places) == 0
    click(browser, "#desk [data-do=undo]")
    assert cluster_at(*places) == 1
    wheel = """
        const [canvas, x, y] = arguments, box = canvas.getBoundingClientRect();
        const at = { clientX: box.left + x, clientY: box.top + y };
        canvas.dispatchEvent(new WheelEvent("wheel", { ...at, ctrlKey: true, deltaY: -200, cancelable: true }));
    """
    browser.execute_script(wheel, canvas, *places)  # zooms by e around the place, which stays
    assert cluster_at(*places) == 1
    ActionChains(browser).move_to_element(canvas).click_and_hold().move_by_offset(40, -30).release().perform()
    assert cluster_at(places[0] + 40, places[1] - 30) == 1
    click(browser, "[data-zoom='0']")
    assert cluster_at(*places) == 1
    browser.execute_script("localStorage.clear()")
    assert not browser.get_log("browser")


def kept_rows(browser):
    return json.loads(browser.execute_script("return Object.values(localStorage).find((v) => v.includes('select'))"))


def test_an_image_without_an_embedding_stands_in_a_section_of_its_own(browser, run):
    vectors = read_embeddings(run / "embeddings.parquet")
    table = read_clusters(run / "clusters.parquet")
    write_clusters(run / "clusters.parquet", table.ids, np.zeros(24, int), table.distances)
    write_vectors(run / "embeddings.parquet", vectors.ids[1:], vectors.vectors[1:])
    browser.get(write_report(run, open_source(str(run.parents[1] / "photos"))).as_uri())
    open_cluster(browser, 0)
    choose_groups(browser, 2)
    groups = titles_by_group(browser)
    assert groups["Without an embedding · 1 image"] == [vectors.ids[0]]
    assert sorted(name for names in groups.values() for name in names) == sorted(table.ids)
    assert not browser.get_log("browser")


def test_one_value_of_the_loss_is_words_and_no_drawing(browser, run):
    (run / "metrics.jsonl").write_text(json.dumps({"step": 7, "loss": 1.25}) + "\n")
    browser.get(write_report(run, open_source(str(run.parents[1] / "photos"))).as_uri())
    assert not browser.find_elements(By.CSS_SELECTOR, "#curves svg")
    words = "1.25 at step 7 is the only value that was logged, so there is no curve"
    assert words in one(browser, "#curves figure").text


@pytest.mark.parametrize("width", [420, 340])
def test_the_viewer_fits_before_its_picture_is_there_and_after(page, width):
    measure = """
        const box = document.getElementById("viewer"), part = box.querySelector(arguments[0]).getBoundingClientRect();
        const left = box.getBoundingClientRect().left + box.clientLeft;
        const fits = part.left >= left && part.right <= left + box.clientWidth;
        return [box.querySelector("img").hidden, box.scrollWidth - box.clientWidth, fits, part.width];
    """
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(MOBILE, width=width))
    try:
        # in one script, so that no picture can be loaded in between
        opened = "document.querySelector('#cluster-0 .thumb').click();" + measure
        *found, wide = page.execute_script(opened, ".large")
        assert found == [True, 0, True]
        assert wide > 200
        wait(one(page, "#viewer img").is_displayed)
        assert page.execute_script(measure, "img")[:3] == [False, 0, True]
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_small_picture_follows_the_size_of_the_window(page):
    page.execute_script("document.querySelector('#cluster-0 .thumb').click()")
    off = """
        const small = document.querySelector("#viewer .large"), size = parseFloat(small.style.backgroundSize);
        return Math.abs(size - JSON.parse(document.getElementById("album").textContent).columns * small.clientWidth);
    """
    wide = page.execute_script("return document.querySelector('#viewer .large').clientWidth")
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(MOBILE, width=340))
    try:
        small = "return document.querySelector('#viewer .large').clientWidth"
        wait(lambda: page.execute_script(small) < wide)
        wait(lambda: page.execute_script(off) < 1)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def serious(browser):
    """What axe-core finds serious or critical: the rules and the elements."""
    audit = """
        const done = arguments[0], bad = (v) => ["serious", "critical"].includes(v.impact);
        const words = (node) => node.html.slice(0, 120) + " " + node.any.map((check) => check.message).join("; ");
        axe.run(document).then((r) => done(r.violations.filter(bad).map((v) => [v.id, ...v.nodes.map(words)])));
    """
    if not browser.execute_script("return Boolean(window.axe)"):
        browser.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text("utf-8")})
    return browser.execute_async_script(audit)


@pytest.fixture(params=[(1400, "light"), (1400, "dark"), (420, "light"), (420, "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def looks(request, browser):
    """A width and a color scheme."""
    width, scheme = request.param
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(MOBILE, width=width))
    yield width
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_axe_sees_what_is_wrong(page):
    """A button without a name, and gray words on gray: the check below can fail."""
    page.execute_script("""
        document.querySelector("#clusters .bar button").textContent = "";
        document.querySelector("#clusters .lead").style.cssText = "color: #999; background: #aaa";
    """)
    assert {rule for rule, *_ in serious(page)} == {"button-name", "color-contrast"}


def test_axe_finds_nothing_serious_in_any_state_of_the_page(browser, looks, run):
    table = read_clusters(run / "clusters.parquet")
    file = run.parent / "known.csv"
    file.write_text("id,shop\n" + "".join(f"{name},{n % 2}\n" for n, name in enumerate(table.ids)))
    browser.get(write_report(run, open_source(str(run.parents[1] / "photos")), metadata=file).as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    assert serious(browser) == []
    click(browser, "[data-sort=stability]")
    assert serious(browser) == []
    browser.execute_script(
        "const s = document.getElementById('agreement'); s.value = 'values0'; s.dispatchEvent(new Event('change'))"
    )
    assert serious(browser) == []
    click(browser, "[data-mode=pictures]")
    browser.execute_script("document.querySelector('#cluster-1 .find').click()")
    click(browser, "#lasso")
    assert serious(browser) == []  # of the map: pictures, a cluster that is followed, and its words
    open_cluster(browser, 0)
    assert serious(browser) == []
    if looks == 420:
        click(browser, "#browser [data-do=tools]")
    rename(browser, "boots")
    tick_first(browser, 1)
    choose_groups(browser, 2)
    wait(lambda: texts(browser, "#browser .group"))
    assert serious(browser) == []  # of the tools, ticks and groups
    click(browser, "#browser [data-do=split]")
    click(browser, "#browser [data-do=rubbish]")
    click(browser, "#browser .tile")
    assert serious(browser) == []  # of an image that is open over the list
    click(browser, "#viewer [data-do=close]")
    click(browser, "#browser [data-do=close]")
    assert texts(browser, "#uncarded button")
    assert serious(browser) == []  # of the bar of actions, a new cluster and one that is rubbish
    open_cluster(browser, 1)
    browser.execute_script("document.querySelector('#browser .working').textContent = 'Making 8 groups, 40%'")
    assert serious(browser) == []


def test_axe_finds_nothing_serious_on_a_served_page(browser, looks, run):
    from selfcluster.models.backbones import make_backbone, save_backbone

    save_backbone(
        run, make_backbone("vit_tiny_patch4_32", channels=3, image_size=32, depth=1), (0.5,) * 3, (0.25,) * 3, 32
    )
    source = open_source(str(run.parents[1] / "photos"))
    rows = [{"action": "rename", "cluster": 0, "name": "boots"}, {"action": "select", "images": [NAMES[3]]}]
    with CurationServer(run, source, lambda token: render_report(run, source, token=token)) as server:
        server.append(rows)  # as `report --apply` adds those of a file
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            browser.get(server.address)
            wait(lambda: "boots" in texts(browser, ".card h3"))
            assert serious(browser) == []
            browser.execute_script("document.querySelector('#cluster-1 .thumb').click()")
            click(browser, "#viewer [data-do=attention]")
            wait(one(browser, "#viewer img").is_displayed)
            assert serious(browser) == []
            click(browser, "#viewer [data-do=close]")
            click(browser, "#desk [data-do=ticked]")
            assert serious(browser) == []  # of the list of ticked images
        finally:
            server.shutdown()
            thread.join()


def test_on_a_served_page_every_action_is_in_the_run(browser, served, run):
    open_cluster(browser, 0)
    rename(browser, "boots")
    wait(
        lambda: "saved in the run" in browser.execute_script("return document.querySelector('#desk .done').textContent")
    )
    assert [row["action"] for row in read_rows(run)] == ["rename"]
    browser.refresh()
    wait(lambda: "boots" in texts(browser, ".card h3"))
    browser.execute_script("document.querySelector('#cluster-0 .thumb').click()")
    wait(one(browser, "#viewer img").is_displayed)
    assert one(browser, "#viewer img").get_attribute("src").startswith(served.address + "images/")
    assert not browser.get_log("browser")


def test_the_viewer_of_a_served_page_shows_what_a_vision_transformer_looks_at(browser, run):
    from selfcluster.models.backbones import make_backbone, save_backbone

    module = make_backbone("vit_tiny_patch4_32", channels=3, image_size=32, depth=1)
    save_backbone(run, module, (0.5,) * 3, (0.25,) * 3, 32)
    source = open_source(str(run.parents[1] / "photos"))
    with CurationServer(run, source, lambda token: render_report(run, source, token=token)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            browser.get(server.address)
            browser.execute_script("document.querySelector('#cluster-1 .thumb').click()")
            picture, button = one(browser, "#viewer img"), one(browser, "#viewer [data-do=attention]")
            wait(picture.is_displayed)
            button.click()
            wait(picture.is_displayed)
            assert picture.get_attribute("src").startswith(server.address + "attention/")
            size = "return [arguments[0].naturalWidth, arguments[0].naturalHeight]"
            wait(lambda: browser.execute_script(size, picture) == [224, 224])
            assert picture.get_attribute("alt").startswith("What the network looks at in photo")
            colors = """
                const pen = new OffscreenCanvas(224, 224).getContext("2d");
                pen.drawImage(arguments[0], 0, 0);
                return new Set(pen.getImageData(0, 0, 224, 224).data).size;
            """
            assert browser.execute_script(colors, picture) > 20  # the photograph itself is of one shade
            one(browser, "#viewer [data-do=next]").click()  # the next image shows its map, too
            wait(picture.is_displayed)
            assert "/attention/" in picture.get_attribute("src")
            button.click()
            wait(lambda: "/images/" in picture.get_attribute("src"))
            assert not browser.get_log("browser")
        finally:
            server.shutdown()
            thread.join()
    path = write_report(run, source)  # a file cannot ask a network
    browser.get(path.as_uri())
    assert not browser.find_elements(By.CSS_SELECTOR, "[data-do=attention]")


def test_two_tabs_see_each_others_actions(browser, served, run):
    open_cluster(browser, 0)
    rename(browser, "first")
    wait(lambda: len(read_rows(run)) == 1)
    served.append([{"action": "rename", "cluster": 1, "name": "from another tab"}])
    rename(browser, "second")
    wait(lambda: len(read_rows(run)) == 3)
    wait(lambda: "from another tab" in browser.execute_script("return document.body.textContent"))


def test_an_action_that_is_refused_is_told_and_one_without_a_server_waits(browser, served, run, monkeypatch):
    from http import HTTPStatus

    from selfcluster.serve.curation import Refused

    trouble = "return document.querySelector('#desk .trouble').textContent"
    real = served.append

    def refuse(status):
        def append(rows):
            raise Refused(status, "the disk is full")

        return append

    open_cluster(browser, 0)
    monkeypatch.setattr(served, "append", refuse(HTTPStatus.INSUFFICIENT_STORAGE))
    rename(browser, "kept")
    wait(lambda: "the disk is full" in browser.execute_script(trouble))
    assert "not saved yet" in browser.execute_script("return document.querySelector('#desk .done').textContent")
    browser.refresh()  # what is not saved waits in the browser
    monkeypatch.setattr(served, "append", real)
    browser.refresh()
    wait(lambda: [row["name"] for row in read_rows(run)] == ["kept"])
    monkeypatch.setattr(served, "append", refuse(HTTPStatus.CONFLICT))
    open_cluster(browser, 1)
    rename(browser, "never")
    wait(lambda: "the disk is full" in browser.execute_script(trouble))
    wait(lambda: "never" not in browser.execute_script("return document.querySelector('#browser h2').textContent"))
    browser.get_log("browser")  # the refused requests


def test_an_action_whose_answer_is_lost_is_kept_once(browser, served, run, monkeypatch):
    real = served.append

    def keep_and_break_off(rows):
        real(rows)
        raise ConnectionError

    monkeypatch.setattr(served, "append", keep_and_break_off)
    open_cluster(browser, 0)
    rename(browser, "once")
    wait(lambda: browser.execute_script("return document.querySelector('#desk .trouble').textContent"))
    assert [row["name"] for row in read_rows(run)] == ["once"]
    monkeypatch.setattr(served, "append", real)
    rename(browser, "twice")  # sends the first row again, then this one
    wait(lambda: [row["name"] for row in read_rows(run)] == ["once", "twice"])
    saved = "saved in the run"
    wait(lambda: saved in browser.execute_script("return document.querySelector('#desk .done').textContent"))
    assert "2 changes" in one(browser, "#desk .done").get_attribute("textContent")
    browser.get_log("browser")  # the request without an answer
