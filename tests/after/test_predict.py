import json
import os
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from distcnn.errors import DataError, DistcnnError, UsageError
from distcnn.predict import main
from tests.data.samples import encoded, pixels
from tests.tiny import fixed_input


def predict(tmp_path, *arguments):
    out = tmp_path / "result.json"
    assert main([*map(str, arguments), "--json", str(out)]) == 0
    return json.loads(out.read_text())


def probabilities(result):
    """The probabilities of one image in the order of the digits."""
    named = {row["class"]: row["probability"] for row in result["top"]}
    return [named[str(digit)] for digit in range(10)]


@pytest.mark.parametrize(
    ("name", "image_format", "mode"),
    [
        ("a.png", "PNG", "L"),
        ("b.png", "PNG", "RGBA"),
        ("c.JPG", "JPEG", None),
        ("d.webp", "WEBP", None),
        ("e.bmp", "BMP", None),
        ("f.tiff", "TIFF", None),
    ],
)
def test_any_format_is_classified_as_its_pixels_are(
    name, image_format, mode, finished, tmp_path, capsys
):
    array = pixels(32, 32, seed=3)
    options = {"lossless": True} if image_format == "WEBP" else {}
    file = tmp_path / name
    file.write_bytes(encoded(array, image_format, mode, **options))
    (result,) = predict(tmp_path, finished.path, file, "--top", 10)

    with Image.open(file) as image:
        seen = np.asarray(image.convert("RGB"), np.float32)
    if image_format == "JPEG":  # TensorFlow's decoder may round differently from Pillow's
        seen = tf.io.decode_jpeg(file.read_bytes(), channels=3).numpy().astype(np.float32)
    expected = finished.model().predict(seen[np.newaxis] / 127.5 - 1, verbose=0)[0]
    assert result["image"] == str(file)
    assert probabilities(result) == pytest.approx(expected.tolist(), abs=1e-6)
    order = [row["probability"] for row in result["top"]]
    assert order == sorted(order, reverse=True)
    best = result["top"][0]
    assert capsys.readouterr().out.startswith(
        f"{file}  {best['class']} {best['probability']:.4f}  {result['top'][1]['class']} "
    )


def test_folders_are_searched_and_sizes_may_differ(finished, tmp_path):
    folder = tmp_path / "pictures"
    names = ["b/deep/1.png", "a.png", "b/0.png"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(pixels(20 + number, 70 - number, number), "PNG"))
    (folder / ".hidden").write_text("x")
    single = tmp_path / "single.jpg"
    single.write_bytes(encoded(pixels(300, 400), "JPEG"))
    results = predict(tmp_path, finished.path, single, folder, single, "--top", 2)
    found = [folder / name for name in ("a.png", "b/0.png", "b/deep/1.png")]
    assert [r["image"] for r in results] == [str(p) for p in (single, *found, single)]
    assert {len(r["top"]) for r in results} == {2}
    assert results[0] == results[-1]
    small = tf.image.resize(pixels(20, 70, 0)[np.newaxis], (32, 32), antialias=True)
    expected = finished.model().predict(tf.round(small) / 127.5 - 1, verbose=0)[0]
    top = results[3]["top"]
    assert top[0]["probability"] == pytest.approx(expected.max(), abs=1e-5)
    assert top[0]["class"] == str(expected.argmax())


def test_thousands_of_files_stay_in_order(finished, tmp_path, monkeypatch):
    """In several chunks and batches, with bad files between them."""
    monkeypatch.setattr("distcnn.inference.prediction._CHUNK_BYTES", 600 * 32 * 32 * 3)
    folder = tmp_path / "many"
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (2000, 1, 1, 3), dtype=np.uint8)
    for number, colour in enumerate(colours):
        content = b"bad" if number % 500 == 250 else encoded(colour, "PNG")
        (folder / f"{number:04d}.png").write_bytes(content)
    options = ["--top", "10", "--on_error", "skip", "--batch_size", "100"]
    results = predict(tmp_path, finished.path, folder, *options)
    good = [number for number in range(2000) if number % 500 != 250]
    assert [r["image"] for r in results] == [str(folder / f"{n:04d}.png") for n in good]
    seen = np.broadcast_to(colours[good], (len(good), 32, 32, 3)).astype(np.float32)
    expected = finished.model().predict(seen / 127.5 - 1, verbose=0)
    np.testing.assert_allclose([probabilities(r) for r in results], expected, atol=1e-5)


def test_files_that_are_no_images(finished, tmp_path, caplog):
    good, bad, cut = (tmp_path / name for name in ("good.png", "bad.png", "cut.jpg"))
    good.write_bytes(encoded(pixels(8, 8), "PNG"))
    bad.write_text("no image")
    cut.write_bytes(encoded(pixels(80, 80), "JPEG")[:300])
    files = [str(path) for path in (bad, good, cut)]
    with pytest.raises(DataError, match=r"2 of 3 files .*bad.png \(.*cut.jpg \(.*on_error skip"):
        main([str(finished.path), *files])
    (result,) = predict(tmp_path, finished.path, *files, "--on_error", "skip")
    assert result["image"] == str(good)
    assert [str(bad) in caplog.messages[0], str(cut) in caplog.messages[1]] == [True, True]
    assert predict(tmp_path, finished.path, bad, "--on_error", "skip") == []


def test_what_is_no_regular_file_is_named_and_not_opened(finished, tmp_path, caplog):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(pixels(8, 8), "PNG"))
    (folder / "Thumbs.db").write_text("x")
    os.mkfifo(folder / "b.png")
    (folder / "c.png").symlink_to("/dev/zero")
    (folder / "d.png").symlink_to("nothing")
    with pytest.raises(DataError) as caught:
        main([str(finished.path), str(folder)])
    assert str(caught.value).startswith(
        f"3 of 4 files cannot be decoded: {folder}/b.png (a FIFO; expected a regular file), "
        f"{folder}/c.png (a device; expected a regular file), {folder}/d.png (No such file or"
    )
    results = predict(tmp_path, finished.path, folder, "--on_error", "skip")
    assert [result["image"] for result in results] == [str(folder / "a.png")]
    assert len(caplog.messages) == 3
    with pytest.raises(DataError, match=r"b\.png is a FIFO; expected a regular file"):
        main([str(finished.path), str(folder / "b.png")])


def test_many_bad_files_are_all_listed_in_a_file(finished, tmp_path):
    for name in "abcde":
        (tmp_path / name).write_text("no image")
    with pytest.raises(DataError) as caught:
        main([str(finished.path), *(str(tmp_path / name) for name in "abcde")])
    found = re.search(r"5 of 5 files .* \(all are listed in (.*)\); remove them", str(caught.value))
    assert found
    assert Path(found[1]).read_text().count("(not an image of a known format") == 5


def test_names_cannot_control_the_terminal(finished, tmp_path, capsys, caplog):
    good, bad = (tmp_path / name for name in ("\x1b[2J\n.png", "bad\x1b.png"))
    good.write_bytes(encoded(pixels(8, 8), "PNG"))
    bad.write_text("x")
    (result,) = predict(tmp_path, finished.path, good, bad, "--on_error", "skip")
    assert result["image"] == str(good)
    assert capsys.readouterr().out.startswith(f"{tmp_path}/\\x1b[2J\\n.png  ")
    assert f"skipped {tmp_path}/bad\\x1b.png (not" in caplog.text


def test_a_result_file_is_checked_first(finished, tmp_path):
    (tmp_path / "a.png").write_text("no image, which would be found later")
    for name, message in [
        (tmp_path, "is a folder; expected the name of a file"),
        (tmp_path / "none" / "a.json", "in the folder .*none, which does not exist"),
    ]:
        with pytest.raises(UsageError, match=message):
            main([str(finished.path), str(tmp_path / "a.png"), "--json", str(name)])


def test_a_model_of_one_output_is_refused(tmp_path):
    """Its score is that of the second of two classes, or always 1."""
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(1, "sigmoid")]
    keras.Sequential(layers).save("binary.keras")
    (tmp_path / "a.png").write_bytes(encoded(pixels(8, 8), "PNG"))
    with pytest.raises(DistcnnError, match=r"binary.keras has 1 output; expected at least 2"):
        main(["binary.keras", "a.png"])


def test_what_is_not_there_is_refused(finished, tmp_path):
    (tmp_path / "empty").mkdir()
    run = str(finished.path)
    with pytest.raises(DataError, match=r"the image none.png does not exist"):
        main([run, "none.png"])
    with pytest.raises(DataError, match="the folder empty contains no files; expected images"):
        main([run, "empty"])
    with pytest.raises(UsageError, match="top is 0; expected at least 1"):
        main([run, "empty", "--top", "0"])


def test_a_moved_model_keeps_its_class_names(tmp_path, image_folder, capsys):
    from distcnn import train
    from tests.after.conftest import RUN

    data = ["--data.name=folder", f"--data.dir={image_folder}", "--train.epochs=1", "--out=run"]
    assert train.main([*RUN, *data, "--train.batch_size=8", "--logging.tensorboard=false"]) == 0
    shutil.move("run/model.keras", "elsewhere.keras")
    shutil.rmtree("run")
    (result,) = predict(tmp_path, "elsewhere.keras", image_folder / "test/cat/00.png")
    assert {row["class"] for row in result["top"]} == {"cat", "dog"}


def test_a_file_of_plain_keras_has_numbers_for_classes(tmp_path):
    """And its logits become probabilities."""
    fixed_input().save("plain.keras")
    (tmp_path / "a.png").write_bytes(encoded(pixels(8, 8), "PNG"))
    (result,) = predict(tmp_path, "plain.keras", "a.png", "--top", 99)
    assert sum(probabilities(result)) == pytest.approx(1)
