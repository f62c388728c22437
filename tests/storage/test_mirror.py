"""A mirror of a run: whole wherever it is cut off, and taken up by a host that has nothing."""

import json
import shutil

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from distcnn.errors import DistcnnError, UsageError
from distcnn.storage.checkpoint import Checkpoints, Progress
from distcnn.storage.mirror import Mirror
from distcnn.training.trainer import Trainer
from tests.runs import SignalAt, parse, rows, small_config, small_run

RUN, OTHER = "0123456789abcdef", "fedcba9876543210"


class CutOffError(Exception):
    """What ends a writer, in place of kill -9."""


class Failing(LocalFileSystem):
    """A store that ends its writer after a number of operations, in the middle of the last one."""

    protocol = "failing"
    left = 10**9
    cachable = False

    def __init__(self, **options):
        super().__init__(auto_mkdir=True, **options)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("failing://"))

    def _spend(self):
        type(self).left -= 1
        return type(self).left < 0

    def pipe_file(self, path, value, **options):
        cut = self._spend()
        super().pipe_file(path, value[: len(value) // 2] if cut else value, **options)
        if cut:
            raise CutOffError

    def put_file(self, lpath, rpath, **options):
        if self._spend():
            super().pipe_file(rpath, b"the beginning")
            raise CutOffError
        super().put_file(lpath, rpath, **options)

    def rm_file(self, path):
        if self._spend():
            raise CutOffError
        super().rm_file(path)


@pytest.fixture
def store(monkeypatch):
    fsspec.register_implementation("failing", Failing, clobber=True)
    monkeypatch.setattr(Failing, "left", 10**9)
    return Failing


def write_run(folder, step):
    """Writes the state of a run at a step, as training does."""
    folder.mkdir(exist_ok=True)
    (folder / "environment.json").write_text(json.dumps({"run_id": RUN}))
    (folder / "config.yaml").write_text("the configuration")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")
    Checkpoints(folder / "checkpoints", keep=1).save({}, Progress(step=step))


def test_the_newest_complete_state_is_there_wherever_the_writer_is_cut_off(store, tmp_path):
    address = f"failing://{tmp_path}/mirror"
    run, operation, cut = tmp_path / "run", 0, True
    while cut:
        shutil.rmtree(tmp_path / "mirror", ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)
        for step in (5, 10):
            write_run(run, step)
            Mirror(address, run)._push(RUN, step)
        store.left = operation
        write_run(run, 15)
        try:
            Mirror(address, run)._push(RUN, 15)
            cut = False
        except CutOffError:
            pass
        store.left = 10**9
        new = tmp_path / f"new-{operation}"
        Mirror(address, new).pull("")
        (newest,) = Checkpoints(new / "checkpoints", keep=1).newest_first()
        found = Checkpoints(new / "checkpoints", keep=1).load_newest()
        assert found is not None
        step = found[1].step
        assert (newest.name, step) in (("step-00000010.npz", 10), ("step-00000015.npz", 15))
        assert [row["step"] for row in rows(new)] == list(range(5, step + 1, 5))
        Mirror(address, run).push(RUN, 15)  # a later one mends it
        Mirror(address, tmp_path / f"later-{operation}").pull("")
        assert rows(tmp_path / f"later-{operation}")[-1]["step"] == 15
        operation += 1
    assert operation > 5
    assert len(list((tmp_path / "mirror").glob("generation-*"))) == 2


def test_the_newer_of_the_directory_and_its_mirror_is_taken(tmp_path):
    run, address = tmp_path / "run", str(tmp_path / "mirror")
    write_run(run, 5)
    shutil.copytree(run, tmp_path / "older")
    for step in (10, 15):
        write_run(run, step)
        if step == 10:
            Mirror(address, run).push(RUN, step)
    Mirror(address, run).pull(RUN)
    assert rows(run)[-1]["step"] == 15
    Mirror(address, tmp_path / "older").pull(RUN)
    assert [row["step"] for row in rows(tmp_path / "older")] == [5, 10]
    found = Checkpoints(tmp_path / "older" / "checkpoints", keep=1).load_newest()
    assert found is not None
    assert found[1].step == 10


def test_a_damaged_object_is_not_taken(tmp_path, caplog):
    run, address = tmp_path / "run", str(tmp_path / "mirror")
    for step in (5, 10):
        write_run(run, step)
        Mirror(address, run).push(RUN, step)
    before = {p.name for p in (tmp_path / "mirror/objects").iterdir()}
    newest = json.loads((tmp_path / "mirror/generation-00000002.json").read_text())
    sha = newest["files"]["checkpoints/step-00000010.npz"]["sha256"]
    assert sha in before
    (tmp_path / "mirror/objects" / sha).write_bytes(b"damaged")
    Mirror(address, tmp_path / "new").pull("")
    assert rows(tmp_path / "new")[-1]["step"] == 5
    assert "generation-00000002.json" in caplog.text
    (tmp_path / "mirror/generation-00000001.json").unlink()
    with pytest.raises(DistcnnError, match="no generation is whole"):
        Mirror(address, tmp_path / "another").pull("")
    assert not list((tmp_path / "another").glob("*"))


def test_names_that_lead_elsewhere_are_not_followed(tmp_path):
    run, address = tmp_path / "run", str(tmp_path / "mirror")
    write_run(run, 5)
    Mirror(address, run).push(RUN, 5)
    path = tmp_path / "mirror/generation-00000001.json"
    content = json.loads(path.read_text())
    content["files"]["../planted"] = content["files"]["config.yaml"]
    path.write_text(json.dumps(content))
    with pytest.raises(DistcnnError, match="no generation is whole"):
        Mirror(address, tmp_path / "new").pull("")
    assert not (tmp_path / "planted").exists()


def test_the_run_goes_on_without_its_directory_and_a_failure_is_a_warning(store, tmp_path, caplog):
    mirror = f"failing://{tmp_path}/mirror"
    run, reference = tmp_path / "run", tmp_path / "reference"
    small_run(reference)
    config = small_config(run, checkpoint__mirror=mirror)
    caplog.set_level("INFO", "distcnn")
    store.left = 3  # the first checkpoint does not arrive
    assert Trainer(config, [SignalAt(10)]).fit() is None
    assert "does not have step 7" in caplog.text
    assert "does not have step 10" in caplog.text
    store.left = 10**9
    assert Trainer(config, [SignalAt(2)]).fit() is None
    shutil.rmtree(run)
    summary = Trainer(config).fit()
    assert "fetched         step 12" in caplog.text
    expected = json.loads((reference / "summary.json").read_text())
    assert summary is not None
    assert summary["weights_sha256"] == expected["weights_sha256"]
    assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(reference)]
    shutil.rmtree(run)
    with pytest.raises(DistcnnError, match="holds a finished run"):
        Trainer(config).fit()
    assert (run / "model.keras").read_bytes()


def test_another_run_is_neither_taken_nor_replaced(tmp_path):
    run, address = tmp_path / "run", str(tmp_path / "mirror")
    write_run(run, 5)
    Mirror(address, run).push(RUN, 5)
    with pytest.raises(DistcnnError, match="has another run than"):
        Mirror(address, run).pull(OTHER)
    with pytest.raises(DistcnnError, match="has a run already"):
        Mirror(address, run).require_empty()


def test_addresses_that_cannot_be_opened_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"none://a, which cannot be opened: .*distcnn\[cloud\]"):
        Mirror("none://a", tmp_path)
    with pytest.raises(UsageError, match="add --out DIR"):
        parse("--checkpoint.mirror", "a")


def test_a_store_that_does_not_answer_begins_no_new_run(store, tmp_path, monkeypatch):
    def ls(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(store, "ls", ls)
    with pytest.raises(DistcnnError, match="cannot be read: no route to host"):
        Trainer(small_config(tmp_path / "run", checkpoint__mirror=f"failing://{tmp_path}/m")).fit()
