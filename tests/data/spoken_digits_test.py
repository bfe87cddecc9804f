"""Pairs of written and spoken digits, from files as a user has them."""

import pathlib
import subprocess
import sys
import wave

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "spoken_digits.py"
NUM_IMAGES = 40


def _hertz(digit):
    return 200 * (digit + 1)


def _record(path, digit, rate=8000):
    seconds = np.arange(rate // 2) / rate
    tone = 8000 * np.sin(2 * np.pi * _hertz(digit) * seconds)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(tone.astype("<i2").tobytes())


@pytest.fixture
def folder(tmp_path):
    """Recordings 3 to 6 of each digit, of which 3 and 4 are for the test; images."""
    (tmp_path / "recordings").mkdir()
    for digit in range(10):
        for index in range(3, 7):
            _record(tmp_path / "recordings" / f"{digit}_ada_{index}.wav", digit)
    _record(tmp_path / "recordings" / "a_b_c.wav", 0)  # No recording of the set.
    labels = np.tile(np.arange(10, dtype=np.int32), NUM_IMAGES // 10)
    images = np.zeros((NUM_IMAGES, 28, 28, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = labels, np.arange(NUM_IMAGES)
    arrays = {f"{x}_images": images for x in ("train", "test")}
    arrays |= {f"{x}_labels": labels for x in ("train", "test")}
    np.savez(tmp_path / "mnist.npz", **arrays)
    return tmp_path


def _run(folder, *flags):
    return subprocess.run(
        [
            *(sys.executable, SCRIPT, f"--recordings={folder / 'recordings'}"),
            *(f"--mnist={folder / 'mnist.npz'}", f"--out={folder / 'pairs.npz'}"),
            *flags,
        ],
        capture_output=True,
        text=True,
    )


def _loudest_hertz(spectrogram):
    """The middle of the band that sounds, by the inverse of the mel scale."""
    band = 27 - spectrogram.astype(int).sum(axis=1).argmax()
    mel = (band + 1) / 29 * 2595 * np.log10(1 + 4000 / 700)
    return 700 * (10 ** (mel / 2595) - 1)


def test_every_sound_comes_with_images_of_its_digit(folder):
    done = _run(folder, "--images=2")
    assert done.returncode == 0, done.stderr
    with np.load(folder / "pairs.npz") as pairs:
        for split, number in (("train", 40), ("test", 20)):
            images, labels = pairs[f"{split}_images"], pairs[f"{split}_labels"]
            assert images.shape == (number, 28, 56, 1)
            np.testing.assert_array_equal(np.bincount(labels), [number // 10] * 10)
            # What is written, and that no image comes twice.
            np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
            assert len(set(images[:, 0, 1, 0])) == number
            for image, digit in zip(images, labels, strict=True):
                heard = _loudest_hertz(image[:, 28:, 0])
                assert abs(heard - _hertz(digit)) < 100, digit


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (lambda f: None, ["--images=5"], "Expected 10 images of the digit 0, got 4"),
        (
            lambda f: _record(f / "recordings" / "0_ada_3.wav", 0, rate=16000),
            [],
            "0_ada_3.wav with 1 channel of 2 bytes at 8000 Hz, got 1 of 2 at 16000",
        ),
        (
            lambda f: (f / "recordings" / "0_ada_3.wav").write_bytes(b"RIFF"),
            [],
            "0_ada_3.wav to be a WAV file",
        ),
        (
            lambda f: [x.unlink() for x in (f / "recordings").iterdir()],
            [],
            "Expected recordings such as 7_jackson_32.wav",
        ),
        (lambda f: (f / "mnist.npz").unlink(), [], "mnist.npz"),
        (
            lambda f: np.savez(f / "mnist.npz", images=np.zeros(3)),
            [],
            "mnist.npz as benchmarks/fetch_data.py mnist writes it",
        ),
        (
            lambda f: (f / "mnist.npz").write_text("no archive"),
            [],
            "mnist.npz as benchmarks/fetch_data.py mnist writes it",
        ),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_written(
    folder, change, flags, message
):
    change(folder)
    done = _run(folder, *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "pairs.npz").exists()
