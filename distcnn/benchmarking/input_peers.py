"""The speed of random resized crops of photographs, beside what others read them with.

    python -m distcnn.benchmarking.input_peers DIR --make 3000
    python -m distcnn.benchmarking.input_peers DIR --torch PYTHON

The first command writes the images. The second measures, in turn: distcnn's pipeline; the bare
decoder, which decodes whole images from memory and does nothing else; TensorFlow's operations for
such crops of full size, from memory too; a plain `tf.data` map; and, with an interpreter that has
it, torchvision's `ImageFolder` and `DataLoader`. Each has as many threads or worker processes as
there are cores.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from distcnn.benchmarking.photographs import make_photographs
from distcnn.cli.command import run_command, write_json
from distcnn.cli.parser import Parser
from distcnn.config import AugmentConfig, DataConfig
from distcnn.data.dataset import load_dataset
from distcnn.data.decode_plan import WINDOW, plan_batch, read_headers
from distcnn.data.framing import RANDOM_CROP_DRAWS, random_crop
from distcnn.data.pipeline import BatchSharding, EpochSampler, training_dataset
from distcnn.data.resize import resize_image
from distcnn.data.sources import open_source
from distcnn.errors import DistcnnError

Read = Callable[[float], tuple[float, float]]
"""Reads for a number of seconds; returns images per second, and seconds of CPU time per image."""

_WARM_UP_BATCHES = 12
_AUGMENT = AugmentConfig(random_resized_crop=True, flip=True)
_TORCH_PROGRAM = Path(__file__).with_name("torch_input.py")


def main(arguments: Sequence[str]) -> int:
    """Measures the pipelines in turn, and prints a table."""
    parser = Parser("distcnn.benchmarking.input_peers", "Compares input pipelines of photographs.")
    parser.add_argument("dir", help="Folder of the images, DIR/train/<class>/*.jpg.")
    parser.add_argument("--make", type=int, help="Write this many images, and measure nothing.")
    parser.add_argument("--torch", help="Python interpreter that has torchvision.")
    parser.add_argument("--side", type=int, default=224, help="Height and width of the crops.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images in a batch.")
    parser.add_argument("--rounds", type=int, default=9, help="Measurements of each pipeline.")
    parser.add_argument("--seconds", type=float, default=3.0, help="Seconds of a measurement.")
    parser.add_argument("--json", help="JSON file for the results.")
    options = parser.parse_args(list(arguments))
    folder = Path(options.dir)
    if options.make is not None:
        size = make_photographs(folder, options.make)
        print(f"{options.make} images in {folder}, {size / 1000:.1f} KB each")
        return 0
    with contextlib.ExitStack() as stack:
        readers = {
            "distcnn": _distcnn(folder, options.side, options.batch_size),
            "bare decoder": _bare_decoder(folder, options.batch_size),
            "crops alone": _crops_alone(folder, options.side, options.batch_size),
            "plain tf.data": _plain_map(folder, options.side, options.batch_size),
        }
        if options.torch is not None:
            numbers = (options.side, options.batch_size, os.cpu_count())
            program = [
                options.torch,
                str(_TORCH_PROGRAM),
                str(folder / "train"),
                *map(str, numbers),
            ]
            readers["torchvision"] = stack.enter_context(_program(program))
        results = _measure(readers, options.rounds, options.seconds)
    _print_table(results)
    write_json(options.json, {"cores": os.cpu_count(), "pipelines": results})
    return 0


def _measure(
    readers: dict[str, Read], rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Measures all in turn, so that a disturbance of the machine meets each of them.

    The order changes, as a pipeline goes on filling its buffers while the next one is measured.
    """
    results: dict[str, dict[str, list[float]]] = {
        name: {"images_per_second": [], "cpu_seconds_per_image": []} for name in readers
    }
    names, random = list(readers), np.random.default_rng(0)
    for _ in range(rounds):
        for name in random.permutation(names):
            for values, value in zip(results[name].values(), readers[name](seconds), strict=True):
                values.append(value)
    return results


def _print_table(results: dict[str, dict[str, list[float]]]) -> None:
    """Prints the better quartiles, as disturbances only ever slow a pipeline down."""
    rate = {k: float(np.quantile(v["images_per_second"], 0.75)) for k, v in results.items()}
    cpu = {k: float(np.quantile(v["cpu_seconds_per_image"], 0.25)) for k, v in results.items()}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':14} {'images/s':>9} {'distcnn':>8} {'CPU ms/image':>13} {'distcnn':>8}")
    for name in results:
        faster, cheaper = rate["distcnn"] / rate[name], cpu[name] / cpu["distcnn"]
        print(
            f"{name:14} {rate[name]:9.0f} {faster:7.2f}x {1000 * cpu[name]:13.3f} {cheaper:7.2f}x"
        )


def _distcnn(folder: Path, side: int, batch: int) -> Read:
    config = DataConfig(
        name="folder", dir=str(folder), image_size=side, validation="none", augment=_AUGMENT
    )
    dataset = load_dataset(config, open_source(config), (side, side, 3), 0)
    sampler = EpochSampler(len(dataset.train), batch, 0)
    batches = training_dataset(
        dataset.train,
        len(dataset.classes),
        sampler,
        _AUGMENT,
        BatchSharding(),
        first_step=0,
        last_step=1000 * sampler.steps_per_epoch,
    )
    return _reading(batches)


def _bare_decoder(folder: Path, batch: int) -> Read:
    images = tf.data.Dataset.from_tensor_slices(_files(folder)).repeat()
    sizes = images.map(
        lambda contents: tf.size(tf.io.decode_jpeg(contents, 3)), num_parallel_calls=os.cpu_count()
    )
    return _reading(sizes.batch(batch).map(lambda sizes: (sizes,)).prefetch(2))


def _crops_alone(folder: Path, side: int, batch: int) -> Read:
    files = tf.constant(_files(folder))
    shape = (side, side, 3)
    crop = random_crop(_AUGMENT, reduced=False)  # else windows are those of reduced images
    assert crop is not None
    draws = tf.random.stateless_uniform([len(files), RANDOM_CROP_DRAWS + 1], seed=(0, 0))
    windows = plan_batch(read_headers(files), crop, shape, draws)[:, WINDOW]

    def cut(contents: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        pixels = tf.raw_ops.DecodeAndCropJpeg(contents=contents, crop_window=window, channels=3)
        return resize_image(pixels, tf.constant(shape[:2]), 3, antialias=False, few_pixels=True)

    images = tf.data.Dataset.from_tensor_slices((files, windows)).repeat()
    images = images.map(cut, num_parallel_calls=os.cpu_count()).batch(batch)
    return _reading(images.map(lambda images: (images,)).prefetch(2))


def _files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("train/*/*.jpg"))]


def _plain_map(folder: Path, side: int, batch: int) -> Read:
    """Returns the pipeline one would write without distcnn."""
    paths = [str(path) for path in sorted(folder.glob("train/*/*.jpg"))]

    def load(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(tf.io.read_file(path), 3)
        whole = tf.zeros([1, 0, 4])
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image), whole, area_range=(0.08, 1), use_image_if_no_bounding_boxes=True
        )
        image = tf.image.resize(tf.slice(image, begin, size), (side, side))
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    images = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    images = images.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(batch)
    # Not to a depth that TensorFlow chooses: it would go on reading while others are measured.
    return _reading(images.map(lambda images: (images,)).prefetch(2))


def _reading(batches: tf.data.Dataset) -> Read:
    iterator = iter(batches)

    def read(seconds: float) -> tuple[float, float]:
        for _ in range(_WARM_UP_BATCHES):  # what was read before the clock starts must not count
            next(iterator)
        images, start, used = 0, time.perf_counter(), time.process_time()
        while (elapsed := time.perf_counter() - start) < seconds:
            images += next(iterator)[0].shape[0]
        return images / elapsed, (time.process_time() - used) / images

    return read


@contextlib.contextmanager
def _program(command: list[str]) -> Iterator[Read]:
    """Starts a program that measures on request, as `torch_input` does."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout
        if not answers.readline():
            raise DistcnnError(f"{command[0]} has ended; expected a Python with torch, torchvision")

        def read(seconds: float) -> tuple[float, float]:
            requests.write(f"{seconds}\n")
            requests.flush()
            rate, cpu = map(float, answers.readline().split())
            return rate, cpu

        yield read
        requests.close()


if __name__ == "__main__":
    run_command(main)
