r"""A page on which an exported teacher and student answer what you draw or drop.

Gathers the page, the models that `--stages=export` left in a work directory and
onnxruntime-web in one folder, and serves it on this machine. The folder is a static
site: any web server can hand it out, to a phone too.

Run:
  python -m kdjax.main --config=configs/mnist_kd.py --stages=export
  python examples/browser/serve.py --run=runs/mnist_kd
Or any two ONNX models that take images [batch, height, width, channels] of 0 to 255:
  python examples/browser/serve.py --teacher=a.onnx --student=b.onnx --classes=cat,dog
"""

import argparse
import functools
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
from typing import Any

PAGE = pathlib.Path(__file__).parent
PAGE_SUFFIXES = (".html", ".css", ".js")
ROLES = ("teacher", "student")
RUNTIME = "1.30.0"  # Of onnxruntime-web, from npm.
RUNTIME_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()


class PageError(Exception):
    """Something that the page needs is not there, or not what it should be."""


def assemble(folder: pathlib.Path, page: dict[str, Any], runtime: pathlib.Path) -> None:
    """Fills a folder with the page, the models, and onnxruntime-web."""
    for source in PAGE.iterdir():
        if source.suffix in PAGE_SUFFIXES:
            shutil.copy(source, folder)
    (folder / "models").mkdir(exist_ok=True)
    for i, model in enumerate(page["models"]):
        source = model.pop("path")
        model["file"] = f"models/{i}-{source.name}"
        model["bytes"] = source.stat().st_size
        shutil.copy(source, folder / model["file"])
    (folder / "models.json").write_text(json.dumps({"runtime": RUNTIME} | page))
    (folder / "ort").mkdir(exist_ok=True)
    with tarfile.open(runtime) as archive:
        for name in RUNTIME_FILES:
            file = archive.extractfile(f"package/dist/{name}")
            if file is None:
                raise PageError(f"Expected {name} in {runtime}, but it is missing.")
            (folder / "ort" / name).write_bytes(file.read())


def fetch_runtime(cache: pathlib.Path) -> pathlib.Path:
    """The package onnxruntime-web, brought by npm if need be, and checked."""
    path = cache / f"onnxruntime-web-{RUNTIME}.tgz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        client = ["npm", "pack", f"onnxruntime-web@{RUNTIME}", "--silent"]
        print(f"$ {' '.join(client)}", flush=True)
        try:
            subprocess.run(client, cwd=cache, check=True, stdout=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise PageError(
                f"Expected npm, which comes with Node.js: install it, or put "
                f"onnxruntime-web-{RUNTIME}.tgz into {cache}."
            ) from error
        except subprocess.CalledProcessError as error:
            raise PageError(
                f"Expected npm to bring onnxruntime-web {RUNTIME}, but it failed: put "
                f"onnxruntime-web-{RUNTIME}.tgz into {cache}."
            ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != RUNTIME_SHA256:
        raise PageError(
            f"Expected {path} with the SHA-256 {RUNTIME_SHA256}, got {digest}: remove "
            "the file to have it fetched anew."
        )
    return path


def of_run(run: pathlib.Path) -> dict[str, Any]:
    """What the page shows of a work directory: the models of its stage `export`."""
    export = read_json(run / "export" / "export.json")
    if export is None:
        raise PageError(
            f"Expected exported models in {run}/export, but there is no export.json: "
            f"run python -m kdjax.main with --workdir={run} and --stages=export first."
        )
    models = [
        {
            "role": file["role"],
            "name": f"{export['models'][file['role']]['network']}, {file['format']}",
            "path": run / "export" / file["file"],
            "accuracy": file["accuracy"],
        }
        for file in export["files"]
        if file["file"].endswith(".onnx")
    ]
    if {model["role"] for model in models} != set(ROLES):
        raise PageError(
            f"Expected ONNX files of a teacher and a student in {run}/export, got "
            f"{', '.join(str(m['path']) for m in models) or 'none'}: export both, with "
            "onnx in export.formats."
        )
    report = read_json(run / "report" / "report.json") or {"examples": []}
    return {
        "title": f"{run.resolve().name}: teacher and student",
        "class_names": export["models"]["teacher"]["class_names"],
        "examples": [
            {
                "image": f"data:image/png;base64,{example['image_png']}",
                "label": example["label_name"],
            }
            for example in report["examples"]
        ],
        "models": models,
    }


def read_json(path: pathlib.Path) -> Any | None:
    return json.loads(path.read_text()) if path.exists() else None


def of_files(teacher: str, student: str, classes: str) -> dict[str, Any]:
    """What the page shows of two files."""
    paths = {"teacher": pathlib.Path(teacher), "student": pathlib.Path(student)}
    for path in paths.values():
        if not path.is_file():
            raise PageError(f"Expected an ONNX file at {path}, but there is none.")
    return {
        "title": "Teacher and student",
        "class_names": classes.split(","),
        "examples": [],
        "models": [
            {"role": role, "name": path.stem, "path": path}
            for role, path in paths.items()
        ],
    }


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder, never kept by the browser, its clock exact to 5 us."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        pass


def server(folder: pathlib.Path, host: str, port: int) -> http.server.HTTPServer:
    """A server of a folder, bound to a port; 0 takes a free one."""
    handler = functools.partial(Handler, directory=str(folder))
    return http.server.ThreadingHTTPServer((host, port), handler)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=pathlib.Path, help="a work directory")
    parser.add_argument("--teacher", help="an ONNX file, in place of --run")
    parser.add_argument("--student", help="likewise")
    digits = ",".join("0123456789")
    parser.add_argument("--classes", default=digits, help="names, commas between")
    parser.add_argument("--out", type=pathlib.Path, help="keeps the folder, and ends")
    parser.add_argument("--cache", type=pathlib.Path, default=CACHE / "kdjax")
    parser.add_argument("--host", default="localhost", help="0.0.0.0: the network too")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    if bool(arguments.run) == bool(arguments.teacher and arguments.student):
        parser.error("Expected either --run, or both --teacher and --student.")
    try:
        if arguments.run:
            page = of_run(arguments.run)
        else:
            page = of_files(arguments.teacher, arguments.student, arguments.classes)
        runtime = fetch_runtime(arguments.cache)
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            assemble(arguments.out, page, runtime)
            print(f"{arguments.out}/index.html, for any web server")
            return
        with tempfile.TemporaryDirectory() as folder:
            assemble(pathlib.Path(folder), page, runtime)
            serve(pathlib.Path(folder), arguments.host, arguments.port)
    except PageError as error:
        parser.exit(2, f"{error}\n")


def serve(folder: pathlib.Path, host: str, port: int) -> None:
    try:
        made = server(folder, host, port)
    except OSError as error:
        raise PageError(
            f"Expected port {port} of {host} to be free, but: {error.strerror}. Choose "
            "another --port."
        ) from error
    with made:
        print(f"http://{host}:{made.server_port}/  (Ctrl-C ends it)", flush=True)
        try:
            made.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
