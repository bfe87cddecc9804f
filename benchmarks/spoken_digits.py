r"""Spoken digits beside written ones: pairs for transfer from sight to sound.

Reads the recordings of the Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0:
3,000 of six speakers at 8 kHz, of which 0 to 4 of each digit and speaker are its test
split) and MNIST, and writes images of 28x56 pixels: on the left a written digit, on the
right what is heard, a spectrogram of someone saying it. Every recording of the
training split comes with several images of its digit, and every image once; a recording
of the test split comes with one, of MNIST's test split.

A spectrogram has 28 windows of 32 ms, spread evenly over the recording, and 28 mel
bands up to 4 kHz, the low ones at the bottom; decibels below the loudest, from -80 on.

Run:
  git clone https://github.com/Jakobovski/free-spoken-digit-dataset
  python benchmarks/fetch_data.py --out=data mnist
  python benchmarks/spoken_digits.py --recordings=free-spoken-digit-dataset/recordings \
    --mnist=data/mnist.npz --out=data/spoken_mnist.npz
"""

import argparse
import functools
import pathlib
import re
import wave
import zipfile

import numpy as np
from packages import FetchError

RATE = 8000  # Samples a second.
WINDOW = 256  # Samples: 32 ms.
SIZE = 28  # Windows, mel bands, and pixels of MNIST.
FLOOR = -80.0  # Decibels below the loudest.
TEST = 5  # Recordings of a digit by a speaker that are for the test.
NAME = re.compile(r"(?P<digit>\d)_[^_]+_(?P<index>\d+)\.wav")


def read(path: pathlib.Path) -> np.ndarray:
    """The samples of a WAV file as int16."""
    try:
        with wave.open(str(path)) as file:
            form = file.getnchannels(), file.getsampwidth(), file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
    except (wave.Error, EOFError) as error:
        raise FetchError(f"Expected {path} to be a WAV file: {error}.") from error
    if form != (1, 2, RATE):
        raise FetchError(
            f"Expected {path} with 1 channel of 2 bytes at {RATE} Hz, got {form[0]} "
            f"of {form[1]} at {form[2]}."
        )
    return samples.view("<i2")


@functools.cache
def mel_bands() -> np.ndarray:
    """Triangles on the mel scale, `[bands, frequencies]`, of O'Shaughnessy 1987."""

    def mel(hertz):
        return 2595 * np.log10(1 + hertz / 700)

    frequencies = mel(np.fft.rfftfreq(WINDOW, 1 / RATE))
    edges = np.linspace(mel(0), mel(RATE / 2), SIZE + 2)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling))


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """What is heard over time, `[28, 28]` uint8: 255 is the loudest."""
    padded = np.pad(samples / 32768, (0, max(0, WINDOW - len(samples))))
    starts = np.linspace(0, len(padded) - WINDOW, SIZE).round().astype(int)
    windows = padded[starts[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(windows)) ** 2 @ mel_bands().T
    decibels = 10 * np.log10(np.maximum(power, 1e-12))
    loudness = np.clip((decibels - decibels.max()) / -FLOOR + 1, 0, 1)
    return np.round(255 * loudness).astype(np.uint8).T[::-1]


def sounds(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Spectrograms and digits of each split, from files as `7_jackson_32.wav`."""
    found: dict[str, list] = {"train": [], "test": []}
    for path in sorted(folder.glob("*.wav")):
        if name := NAME.fullmatch(path.name):
            split = "test" if int(name["index"]) < TEST else "train"
            found[split].append((spectrogram(read(path)), int(name["digit"])))
    if not all(found.values()):
        raise FetchError(
            f"Expected recordings such as 7_jackson_32.wav in {folder}, got "
            f"{len(found['train'])} for training and {len(found['test'])} for the "
            "test: clone the Free Spoken Digit Dataset, and name its recordings."
        )
    return {
        split: (np.stack([x for x, _ in rows]), np.asarray([k for _, k in rows]))
        for split, rows in found.items()
    }


def written(path: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each split of `mnist.npz`."""
    try:
        with np.load(path) as mnist:
            return {
                x: (mnist[f"{x}_images"], mnist[f"{x}_labels"])
                for x in ("train", "test")
            }
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise FetchError(
            f"Expected {path} as benchmarks/fetch_data.py mnist writes it: {error}."
        ) from error


def pair(
    seen: tuple[np.ndarray, np.ndarray],
    heard: tuple[np.ndarray, np.ndarray],
    times: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Every sound with so many images of its digit, in order of chance."""
    images, labels = [], []
    for digit in range(10):
        spectra = np.repeat(heard[0][heard[1] == digit], times, axis=0)
        digits = seen[0][seen[1] == digit][..., 0]
        if len(digits) < len(spectra):
            raise FetchError(
                f"Expected {len(spectra)} images of the digit {digit}, got "
                f"{len(digits)}: lower --images."
            )
        chosen = digits[rng.permutation(len(digits))[: len(spectra)]]
        images.append(np.concatenate([chosen, spectra], axis=2)[..., None])
        labels.append(np.full(len(spectra), digit, np.int32))
    order = rng.permutation(sum(map(len, labels)))
    return np.concatenate(images)[order], np.concatenate(labels)[order]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--recordings", type=pathlib.Path, required=True, help="the folder of WAVs")
    add("--mnist", type=pathlib.Path, required=True, help="mnist.npz")
    add("--out", type=pathlib.Path, required=True, help="the .npz to write")
    add("--images", type=int, default=4, help="written digits to each training sound")
    flags = parser.parse_args()
    try:
        heard = sounds(flags.recordings)
        seen = written(flags.mnist)
        rng = np.random.default_rng(0)
        arrays = {"class_names": np.asarray([str(digit) for digit in range(10)])}
        for split, times in (("train", flags.images), ("test", 1)):
            images, labels = pair(seen[split], heard[split], times, rng)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    except (FetchError, OSError) as error:
        parser.exit(2, f"{error}\n")
    temporary = flags.out.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(flags.out)
    counts = len(arrays["train_labels"]), len(arrays["test_labels"])
    print(f"{flags.out}: {counts[0]:,} pairs, {counts[1]:,} for the test")


if __name__ == "__main__":
    main()
