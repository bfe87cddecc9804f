"""The page of examples/browser: its server, and its arithmetic as Node computes it."""

import importlib.util
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import scipy.special
from PIL import Image

from kdjax.data import _images

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "examples" / "browser"
CLASSES = [str(digit) for digit in range(10)]

spec = importlib.util.spec_from_file_location("serve", PAGE / "serve.py")
serve = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serve)


def _exported(run, files):
    """A work directory as the stages `export` and `report` leave it."""
    for name in files:
        path = run / "export" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    roles = ("teacher", "student")
    export = {
        "models": {x: {"network": f"{x}_net", "class_names": CLASSES} for x in roles},
        "files": [
            {"role": x.split("/")[0], "format": x[-4:], "file": x, "accuracy": 98.5}
            for x in files
        ],
    }
    (run / "export" / "export.json").write_text(json.dumps(export))
    (run / "report").mkdir()
    examples = [{"image_png": "AAAA", "label_name": "7"}]
    (run / "report" / "report.json").write_text(json.dumps({"examples": examples}))


class TestServe:
    FILES = ("teacher/a.onnx", "teacher/a.safetensors", "student/b.onnx")

    def test_takes_every_onnx_file_and_what_is_known_of_it(self, tmp_path):
        run = tmp_path / "mnist_kd"
        _exported(run, self.FILES)
        page = serve.of_run(run)
        assert page["title"].startswith("mnist_kd")
        assert page["class_names"] == CLASSES
        example = {"image": "data:image/png;base64,AAAA", "label": "7"}
        assert page["examples"] == [example]
        teacher, student = page["models"]
        assert teacher["role"] == "teacher"
        assert student["name"] == "student_net, onnx"
        assert student["path"].read_bytes() == b"student/b.onnx"
        assert student["accuracy"] == 98.5

    def test_works_without_a_report(self, tmp_path):
        _exported(tmp_path, self.FILES)
        shutil.rmtree(tmp_path / "report")
        assert serve.of_run(tmp_path)["examples"] == []

    def test_the_folder_has_every_file_that_the_page_names(self, tmp_path):
        run, site, runtime = (tmp_path / x for x in ("run", "site", "ort.tgz"))
        _exported(run, self.FILES)
        site.mkdir()
        with tarfile.open(runtime, "w:gz") as archive:
            for name in serve.RUNTIME_FILES:
                entry = tarfile.TarInfo(f"package/dist/{name}")
                entry.size = len(name)
                archive.addfile(entry, io.BytesIO(name.encode()))
        serve.assemble(site, serve.of_run(run), runtime)
        code = " ".join(path.read_text() for path in PAGE.glob("*.[hj]*"))
        names = re.findall(r'(?:from|Worker\(|src=|href=|RUNTIME =) ?"([^":]+)"', code)
        assert {"./pad.js", "worker.js", "style.css", "app.js"} < set(names)
        assert not [name for name in names if not (site / name).is_file()]
        page = json.loads((site / "models.json").read_text())
        for model in page["models"]:
            assert (site / model["file"]).stat().st_size == model["bytes"]

    def test_says_that_nothing_is_exported(self, tmp_path):
        with pytest.raises(serve.PageError, match=r"no export.json: .*stages=export"):
            serve.of_run(tmp_path)

    def test_says_which_models_there_are(self, tmp_path):
        _exported(tmp_path, ["teacher/a.onnx"])
        with pytest.raises(serve.PageError, match=r"got .*teacher/a.onnx: export both"):
            serve.of_run(tmp_path)

    def test_refuses_another_runtime(self, tmp_path):
        path = tmp_path / f"onnxruntime-web-{serve.RUNTIME}.tgz"
        path.write_bytes(b"something else")
        with pytest.raises(serve.PageError, match=r"SHA-256 d2228df.*remove the file"):
            serve.fetch_runtime(tmp_path)

    def test_says_that_npm_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(serve.PageError, match=r"Expected npm, .*put onnxruntime"):
            serve.fetch_runtime(tmp_path / "cache")

    def test_a_mistake_is_one_sentence(self, tmp_path):
        command = [sys.executable, str(PAGE / "serve.py"), f"--run={tmp_path}/none"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith("Expected exported models in")
        assert "Traceback" not in done.stderr


def _node(tmp_path, script):
    """What a script prints that may import the page's modules, as JSON."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed: apt-get install nodejs")
    for source in PAGE.glob("*.js"):
        text = source.read_text().replace('.js";', '.mjs";')
        (tmp_path / source.with_suffix(".mjs").name).write_text(text)
    (tmp_path / "main.mjs").write_text(script)
    command = ["node", str(tmp_path / "main.mjs")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


SIZES = ((28, 28), (37, 41), (120, 64), (9, 30), (200, 300))  # Height, width.


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_resized_as_in_training(tmp_path, channels):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*x, channels), np.uint8) for x in SIZES]
    inputs = [
        {"data": x.ravel().tolist(), "height": len(x), "width": x.shape[1]}
        for x in images
    ]
    got = _node(
        tmp_path,
        f"""
        import {{ fit }} from "./pictures.mjs";
        const images = {json.dumps(inputs)};
        const sized = images.map((x) => fit({{ ...x, channels: {channels} }}, 28, 28));
        console.log(JSON.stringify(sized.map(({{ data }}) => Array.from(data))));
        """,
    )
    shape = (28, 28, channels)
    for image, pixels in zip(images, got, strict=True):
        expected = _images.fit(image, shape, True, "test")
        assert np.array_equal(np.reshape(pixels, shape), expected)


def test_grey_is_that_of_pillow_and_light_pictures_are_inverted(tmp_path):
    rgba = np.random.default_rng(1).integers(0, 256, (5, 7, 4), np.uint8)
    grey, dark, light = _node(
        tmp_path,
        f"""
        import {{ fromRGBA, onDark }} from "./pictures.mjs";
        const data = Uint8ClampedArray.from({rgba.ravel().tolist()});
        const grey = fromRGBA({{ data, width: 7, height: 5 }}, 1);
        const of = (border, middle) => ({{ width: 3, height: 3, channels: 1,
          data: Uint8Array.from([...Array(4).fill(border), middle,
            ...Array(4).fill(border)]) }});
        const all = [grey, onDark(of(120, 200)), onDark(of(136, 30))];
        console.log(JSON.stringify(all.map((x) => Array.from(x.data))));
        """,
    )
    expected = np.asarray(Image.fromarray(rgba[..., :3].copy()).convert("L"))
    assert np.array_equal(np.reshape(grey, (5, 7)), expected)
    assert dark == [120] * 4 + [200] + [120] * 4
    assert light == [119] * 4 + [225] + [119] * 4


def test_probabilities_and_divergence_are_those_of_scipy(tmp_path):
    rng = np.random.default_rng(2)
    teacher, student = 8 * rng.normal(size=(2, 10))
    got = _node(
        tmp_path,
        f"""
        import {{ divergence, median, softmax }} from "./answers.mjs";
        const [teacher, student] = [{teacher.tolist()}, {student.tolist()}];
        console.log(JSON.stringify({{ soft: softmax(teacher, 4),
          kl: divergence(teacher, student, 4),
          medians: [median([3, 1, 2]), median([4, 1, 3, 2])] }}));
        """,
    )
    p, q = (scipy.special.softmax(x / 4) for x in (teacher, student))
    np.testing.assert_allclose(got["soft"], p, rtol=1e-12)
    np.testing.assert_allclose(got["kl"], scipy.special.rel_entr(p, q).sum(), rtol=1e-9)
    assert got["medians"] == [2, 2.5]


def test_of_many_classes_the_likeliest_of_both_are_shown(tmp_path):
    teacher, student = np.zeros((2, 1000))
    teacher[[7, 500]] = 0.6, 0.3
    student[[900, 7]] = 0.7, 0.2
    shown, few = _node(
        tmp_path,
        f"""
        import {{ shownClasses }} from "./answers.mjs";
        const [teacher, student] = [{teacher.tolist()}, {student.tolist()}];
        console.log(JSON.stringify([shownClasses(teacher, student, 3),
          shownClasses([0.1, 0.9], [0.5, 0.5], 3)]));
        """,
    )
    assert shown == [900, 7, 500]
    assert few == [0, 1]
