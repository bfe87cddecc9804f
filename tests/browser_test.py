"""The page in Chromium: real strokes and pictures, answers as of onnxruntime here."""

import contextlib
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy.special
from PIL import Image

from kdjax.data import _images

ROOT = pathlib.Path(__file__).parents[1]
CLASSES = [str(digit) for digit in range(10)]

spec = importlib.util.spec_from_file_location(
    "serve", ROOT / "examples" / "browser" / "serve.py"
)
serve = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serve)

# Points of a digit in units of the pad, from its upper left corner.
STROKES = {
    1: [[(0.5, 0.15), (0.5, 0.5), (0.5, 0.85)]],
    2: [[(0.3, 0.3), (0.5, 0.15), (0.7, 0.35), (0.45, 0.65), (0.3, 0.8), (0.72, 0.8)]],
    4: [[(0.6, 0.15), (0.28, 0.6), (0.75, 0.6)], [(0.6, 0.15), (0.6, 0.88)]],
    7: [[(0.28, 0.2), (0.72, 0.2), (0.52, 0.62), (0.44, 0.85)]],
}
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --window-size=1100,1000"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="pip install 'kdjax[browser]'"
    )
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('user')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def runtime():
    try:
        return serve.fetch_runtime(serve.CACHE / "kdjax")
    except serve.PageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Digits, trained and exported by the command of the README."""
    run = tmp_path_factory.mktemp("run") / "digits_kd"
    stages = "teacher,cache,student,baseline,report,export"
    subprocess.run(
        [
            sys.executable,
            *("-m", "kdjax.main", "--config=configs/digits_kd.py:smoke"),
            *(f"--workdir={run}", f"--stages={stages}"),
        ],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    return run


@contextlib.contextmanager
def _served(folder):
    with serve.server(folder, "localhost", 0) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{made.server_port}/"
        finally:
            made.shutdown()
            thread.join()


class Page:
    """The page, as one who looks at it and touches it."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get_log("browser")  # What earlier pages left.
        driver.get(url)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.find(selector).get_attribute("textContent").strip()

    def wait(self, condition, seconds=60):
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, seconds, 0.05).until(lambda _: condition())

    def wait_for_start(self):
        self.wait(lambda: self.find("#main").is_displayed())

    def wait_for_answers(self):
        cells = ("#teacher .latency", "#student .latency", "#verdict")
        self.wait(lambda: all(self.text(cell) for cell in cells))

    def wait_for_error(self):
        self.wait(lambda: self.find("#status").get_attribute("class") == "error")
        return self.text("#status")

    def draw(self, strokes):
        from selenium.webdriver import ActionChains

        pad = self.find("#pad")
        size = np.asarray([pad.size["width"], pad.size["height"]])
        for first, *rest in strokes:
            actions = ActionChains(self.driver, duration=10)
            places = [np.round((np.asarray(x) - 0.5) * size) for x in (first, *rest)]
            actions.move_to_element_with_offset(pad, *map(int, places[0]))
            actions.click_and_hold()
            for place in places[1:]:
                actions.move_to_element_with_offset(pad, *map(int, place))
            actions.release().perform()

    def drop(self, path, media_type):
        content = list(path.read_bytes())
        self.driver.execute_script(
            """
            const [content, name, type] = arguments;
            const file = new File([Uint8Array.from(content)], name, { type });
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(file);
            const how = { dataTransfer, cancelable: true };
            const pad = document.getElementById("pad");
            for (const kind of ["dragenter", "dragover", "drop"]) {
              pad.dispatchEvent(new DragEvent(kind, how));
            }
            """,
            content,
            path.name,
            media_type,
        )

    def pixels(self, channels):
        """What the models get."""
        height, width, rgba = self.driver.execute_script(
            """
            const { width, height } = document.getElementById("pixels");
            const context = document.getElementById("pixels").getContext("2d");
            const { data } = context.getImageData(0, 0, width, height);
            return [height, width, Array.from(data)];
            """
        )
        shape = (height, width, 4)
        return np.asarray(rgba, np.uint8).reshape(shape)[..., :channels]

    def set_slider(self, value):
        self.driver.execute_script(
            """
            const slider = document.getElementById("temperature");
            slider.value = arguments[0];
            slider.dispatchEvent(new Event("input"));
            """,
            value,
        )
        return 20 ** (value / 100)

    def chart(self):
        """By class, what is written beside the two bars."""
        rows = self.driver.find_elements("css selector", "#chart tbody tr")
        cells = [row.get_attribute("innerText").split("\t") for row in rows]
        return {name.strip(): (a.strip(), b.strip()) for a, name, b in cells}


def _probabilities(path, pixels, temperature=1.0):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    (logits,) = session.run(None, {name: pixels[None]})
    return scipy.special.softmax(logits[0].astype(np.float64) / temperature)


def _check_chart(page, teacher, student, pixels, temperature=1.0, slack=0.1):
    """The chart against onnxruntime here, in %; it shows one digit after the point."""
    chart = page.chart()
    pairs = [_probabilities(x, pixels, temperature) for x in (teacher, student)]
    assert list(chart) == CLASSES
    for shown, expected in zip(zip(*chart.values(), strict=True), pairs, strict=True):
        percents = [float(x.removesuffix("%")) for x in shown]
        np.testing.assert_allclose(percents, 100 * expected, atol=slack)
    return [CLASSES[int(np.argmax(x))] for x in pairs]


@pytest.fixture(scope="module")
def url(runtime, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    serve.assemble(folder, serve.of_run(run), runtime)
    with _served(folder) as url:
        yield url


@pytest.fixture
def page(browser, url):
    page = Page(browser, url)
    page.wait_for_start()
    yield page
    assert browser.get_log("browser") == []


@pytest.fixture
def files(run):
    return [run / "export" / role / "model.onnx" for role in ("teacher", "student")]


@pytest.mark.slow
@pytest.mark.parametrize("digit", STROKES)
def test_drawn_digits_are_answered_as_by_onnxruntime(page, files, digit):
    page.draw(STROKES[digit])
    page.wait_for_answers()
    pixels = page.pixels(1)
    assert pixels.shape == (8, 8, 1)
    assert pixels.max() > 100  # The pen may cover halves of two pixels.
    answers = _check_chart(page, *files, pixels)
    for role, answer in zip(("teacher", "student"), answers, strict=True):
        assert page.text(f"#{role} .answer").startswith(answer)
        assert page.text(f"#{role} .latency").endswith(" ms")
    agree = "They agree" if answers[0] == answers[1] else "They differ"
    assert page.text("#verdict").startswith(agree)
    temperature = page.set_slider(46)
    _check_chart(page, *files, pixels, temperature)
    page.find("#clear").click()
    assert page.text("#verdict") == ""
    assert not page.pixels(1).any()


@pytest.mark.slow
def test_drawn_digits_lie_as_in_the_data(page):
    """However large one draws, and wherever."""
    seen = []
    for scale, shift in ((1.0, 0.0), (0.5, 0.3), (0.5, 0.1)):
        page.draw([[(scale * x + shift, scale * y) for x, y in STROKES[2][0]]])
        page.wait_for_answers()
        seen.append(page.pixels(1).astype(int))
        page.find("#clear").click()
    assert seen[0][0].any()  # From the first row to the last.
    assert seen[0][-1].any()
    for other in seen[1:]:
        assert np.abs(other - seen[0]).mean() < 8  # Points are whole pixels.


@pytest.mark.slow
def test_a_dropped_picture_is_prepared_as_in_training(page, files, tmp_path):
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 256, (30, 41), np.uint8)
    picture[[0, -1]] = picture[:, [0, -1]] = 255
    Image.fromarray(picture).save(tmp_path / "light.png")
    page.drop(tmp_path / "light.png", "image/png")
    page.wait_for_answers()
    fitted = _images.fit(picture[..., None], (8, 8, 1), True, "light.png")
    border = np.concatenate([*fitted[[0, -1]], *fitted[1:-1, [0, -1]]]).mean()
    expected = fitted if border < 128 else 255 - fitted
    assert np.array_equal(page.pixels(1), expected)
    _check_chart(page, *files, expected)


@pytest.mark.slow
def test_an_example_is_a_test_image_as_it_is(page, files):
    page.find("#thumbnails button").click()
    page.wait_for_answers()
    _check_chart(page, *files, page.pixels(1))


@pytest.mark.slow
def test_another_file_of_a_role_can_be_chosen(page, run, files):
    page.draw(STROKES[2])
    page.wait_for_answers()
    option = page.find("#student select option:last-of-type")
    assert option.text.endswith("onnx_int8")
    option.click()
    page.wait(lambda: page.text("#student .size") == "5.6 kB")
    page.wait_for_answers()
    int8 = run / "export" / "student" / "model.int8.onnx"
    # Kernels of other processors round other halves.
    _check_chart(page, files[0], int8, page.pixels(1), slack=3.0)


@pytest.mark.slow
def test_what_is_no_picture_is_one_sentence(page, tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    page.find("#file").send_keys(str(tmp_path / "notes.txt"))
    assert "notes.txt of type text/plain: choose a PNG" in page.wait_for_error()
    page.draw(STROKES[1])  # The page goes on.
    page.wait_for_answers()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("models.json", "serve.py --run=DIR"),
        ("models/0-model.onnx", "run the stage export"),
        ("ort/ort.wasm.min.mjs", "serve this page by examples/browser/serve.py"),
        ("ort/ort-wasm-simd-threaded.wasm", "Expected a model that onnxruntime-web"),
        ("worker.js", "Expected worker.js beside this page"),
    ],
)
def test_what_is_missing_is_one_sentence(
    browser, runtime, run, tmp_path, missing, expected
):
    serve.assemble(tmp_path, serve.of_run(run), runtime)
    (tmp_path / missing).unlink()
    with _served(tmp_path) as url:
        assert expected in Page(browser, url).wait_for_error()


@pytest.mark.slow
def test_of_a_thousand_classes_of_colour_twelve_are_shown(browser, runtime, tmp_path):
    onnx = pytest.importorskip("onnx")
    for seed, role in enumerate(("teacher", "student")):
        weights = np.random.default_rng(seed).normal(size=(3, 1000)) / 16
        _save_model(onnx, 16, weights.astype(np.float32), tmp_path / f"{role}.onnx")
    names = [f"class{i}" for i in range(1000)]
    files = [str(tmp_path / f"{role}.onnx") for role in ("teacher", "student")]
    (tmp_path / "site").mkdir()
    serve.assemble(tmp_path / "site", serve.of_files(*files, ",".join(names)), runtime)
    picture = np.random.default_rng(4).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "colour.png")
    with _served(tmp_path / "site") as url:
        page = Page(browser, url)
        page.wait_for_start()
        page.find("#file").send_keys(str(tmp_path / "colour.png"))
        page.wait_for_answers()
        expected = _images.fit(picture, (16, 16, 3), True, "colour.png")
        assert np.array_equal(page.pixels(3), expected)
        both = [_probabilities(x, expected) for x in files]
        likeliest = np.argsort(np.max(both, axis=0))[::-1][:12]
        assert list(page.chart()) == [names[i] for i in likeliest]
        assert browser.get_log("browser") == []


@pytest.mark.slow
def test_a_digit_is_centred_by_its_mass_in_a_box_of_twenty(browser, runtime, tmp_path):
    onnx = pytest.importorskip("onnx")
    _save_model(onnx, 28, np.ones((1, 10), np.float32), tmp_path / "same.onnx")
    files = [str(tmp_path / "same.onnx")] * 2
    (tmp_path / "site").mkdir()
    page = serve.of_files(*files, ",".join(CLASSES))
    serve.assemble(tmp_path / "site", page, runtime)
    with _served(tmp_path / "site") as url:
        page = Page(browser, url)
        page.wait_for_start()
        page.draw([[(0.2, 0.2), (0.2, 0.8), (0.6, 0.8)]])  # More of it below, at left.
        page.wait_for_answers()
        ink = page.pixels(1)[..., 0].astype(float)
    rows, columns = (ink.sum(axis=axis) for axis in (1, 0))
    assert 20 <= np.ptp(np.flatnonzero(rows)) + 1 <= 21
    for sums in (rows, columns):
        centre = sums @ np.arange(28) / sums.sum()
        assert abs(centre - 14) <= 0.5
    box = np.flatnonzero(columns)
    assert abs(box.mean() - 13.5) > 1  # The centre of the box is elsewhere.


def _save_model(onnx, side, weights, path):
    """Logits of the mean colour of square images."""
    channels, classes = weights.shape
    shape = [1, side, side, channels]
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    image = helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, shape)
    logits = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, classes])
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    constants = [array(np.asarray([1, 2], np.int64), "axes"), array(weights, "w")]
    graph = helper.make_graph(nodes, "colour", [image], [logits], constants)
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
