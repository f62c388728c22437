"""The command that is launched, and the command line of the launcher."""

import errno
import json
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distcnn.errors import UsageError
from distcnn.launch import main
from distcnn.launching import record
from distcnn.launching.attempt import Attempt
from distcnn.launching.command import holding, keep_command, parse_command, value_of, with_folder
from distcnn.launching.ends import Failure
from distcnn.launching.hosts import Host
from distcnn.launching.output import RankOutput
from distcnn.launching.record import RestartLog, append, read, summarise
from distcnn.launching.space import why_not_writable

PYTHON = shlex.quote(sys.executable)


def line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["--dry-run", *arguments]) == 0
    return capsys.readouterr().out.strip()


def test_train_goes_on_in_one_directory(capsys):
    ranks = f"{PYTHON} -m distcnn.horovodrun --gloo -np 2"
    train = f"{PYTHON} -m distcnn.train --recipe quickstart"
    horovod = "--distribute.strategy horovod"
    words = ("--workers", "2", "train", "--recipe", "quickstart")
    assert line(capsys, *words) == f"{ranks} {train} {horovod} --out runs/quickstart"
    assert line(capsys, *words, "--out", "a b").endswith(f"--out 'a b' {horovod}")
    assert not Path("runs").exists()


def test_a_script_goes_on_in_one_directory(capsys):
    words = ("--workers=2", "run", "--batch", "per_worker", "cats.py", "--resume", "x")
    assert line(capsys, *words).endswith(
        "-m distcnn.run --batch per_worker --distribute.strategy horovod --resume runs/cats "
        "cats.py --resume x"
    )
    assert parse_command(words[1:]).fixed_workers
    assert not parse_command(["run", "cats.py", "--batch", "per_worker"]).fixed_workers
    assert "--resume a cats.py" in line(capsys, "run", "--resume", "a", "cats.py").replace(
        " --distribute.strategy horovod", ""
    )


def test_the_hosts_get_into_the_command_line(capsys, tmp_path):
    ssh = ("--ssh-port", "2222", "--ssh-key", "key", "--nic", "ib0")
    said = line(capsys, "-H", "node-a:2,node-b", *ssh, "--max", "2", "train")
    assert "-np 2 -H node-a:2 --ssh-port 2222 --ssh-identity-file key" in said
    assert "--network-interfaces ib0" in said
    (tmp_path / "hosts").write_text("localhost slots=3\n")
    assert "-np 3 " in line(capsys, "--hostfile", "hosts", "train")
    assert "-np 3 " in line(capsys, "--discover", "echo localhost:3", "train")


def test_the_number_of_workers_divides_that_of_the_virtual_workers(capsys, tmp_path):
    """Given by a flag, or by what a run that has begun says of itself."""
    assert "-np 2 " in line(capsys, "--workers", "3", "train", "--train.virtual_workers=4")
    script = ("run", "--virtual_workers", "9", "cats.py", "--virtual_workers", "8")
    assert "-np 3 " in line(capsys, "--workers", "5", *script)
    begun = ("--workers", "3", "train", "--out", "begun")
    assert "-np 3 " in line(capsys, *begun)
    Path("begun").mkdir()
    Path("begun/environment.json").write_text('{"resolved": {"virtual_workers": 8}}')
    assert "-np 2 " in line(capsys, *begun)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the command to launch is missing; expected train"),
        (["tarin"], "the command to launch is tarin; expected train"),
        (["--workers", "2", "evaluate"], "the command to launch is evaluate"),
        (["run", "cats"], "run has no script"),
        (["--workers", "0", "train"], "workers is 0; expected at least 1"),
        (["--workers", "2", "-H", "a", "train"], "the hosts are given by --workers and -H"),
        (["--min", "3", "--max", "2", "train"], "max is 2; expected at least min, 3"),
        (["--min", "3", "--workers", "2", "train"], "min is 3; expected at most 2, the workers"),
        (["--stall", "-1", "train"], "stall is -1.0; expected at least 0"),
        (["--wrokers", "2", "train"], "unknown argument --wrokers"),
    ],
)
def test_what_cannot_be_launched_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        main(arguments)


def test_the_directory_of_an_unfinished_run_of_the_same_command_is_used_again(tmp_path):
    words = ["train", "--recipe", "quickstart"]
    first = with_folder(parse_command(words))
    assert first.out == Path("runs/quickstart")
    keep_command(first, finished=False)
    assert with_folder(parse_command(words)).out == first.out
    other = with_folder(parse_command([*words, "--train.epochs", "3"]))
    assert other.out == Path("runs/quickstart-2")
    assert other.token != first.token
    keep_command(first, finished=True)
    assert with_folder(parse_command(words)).out == Path("runs/quickstart-2")


def test_the_first_attempts_global_batch_is_kept():
    command = with_folder(parse_command(["train", "--out", "run", "--train.batch_size=8"]))
    assert value_of(command.line(), "--train.global_batch_size") is None
    Path("run").mkdir()
    content = {"resolved": {"global_batch_size": 24}}
    Path("run/environment.json").write_text(json.dumps(content))
    assert value_of(command.line(), "--train.global_batch_size") == "24"


def test_two_launchers_do_not_share_a_directory():
    command = with_folder(parse_command(["train", "--out", "run"]))
    with (
        holding(command),
        pytest.raises(UsageError, match="another launcher runs in run"),
        holding(command),
    ):
        pass
    with holding(command):
        pass


def test_output_is_divided_by_rank(tmp_path):
    files = {name: (tmp_path / name).open("w+b") for name in ("stdout", "stderr", "pipe")}
    text = "[0]<stdout>:one\n[1]<stderr>:oh\n[1]<stderr>:error: no\nProcess 1 exit with 1\n"
    files["pipe"].write(f"{text}[0]<stderr>:50%\r[0]<stderr>:100%\nhosts: no ssh".encode())
    files["pipe"].seek(0)
    output = RankOutput(tmp_path / "logs", {n: files[n] for n in ("stdout", "stderr")})
    output.begin(1, 2)
    output.copy(files["pipe"], "stderr").join()
    output.close()
    shown = {name: (tmp_path / name).read_bytes() for name in ("stdout", "stderr")}
    assert shown == {"stdout": b"one\n", "stderr": b"50%\r100%\nhosts: no ssh"}
    assert output.last_lines(1) == ["oh", "error: no"]
    assert (output.last_line(1), output.last_line(None)) == ("error: no", "hosts: no ssh")
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs["rank-1.log"] == "--- attempt 1\noh\nerror: no\n"
    assert "Process 1 exit" in logs["launcher.log"]
    for file in files.values():
        file.close()


def test_restarts_are_summed_up(tmp_path):
    append(tmp_path, {"cause": "killed", "steps_lost": 3, "seconds": {"total": 9.5}})
    append(tmp_path, {"cause": "killed again"})
    with (tmp_path / "restarts.jsonl").open("a") as file:
        file.write('{"cause": "cut of')
    append(tmp_path, {"cause": "of another launcher", "seconds": {"total": 1}})
    restarts = read(tmp_path)
    assert len(restarts) == 3
    assert summarise(restarts) == {"restarts": 3, "restart_seconds": 10.5, "steps_lost": 3}


def full_disk(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_does_not_stop_the_launcher(tmp_path, monkeypatch):
    logs = tmp_path / "launch"
    logs.mkdir()
    for name in ("rank-0.log", "rank-1.log"):
        (logs / name).symlink_to("/dev/full")
    with (tmp_path / "shown").open("w+b") as shown, (tmp_path / "pipe").open("w+b") as pipe:
        pipe.write(b"[1]<stderr>:oh\n[0]<stdout>:one\n")
        pipe.seek(0)
        output = RankOutput(logs, {"stdout": shown})
        output.begin(1, 2)
        output.copy(pipe, "stdout").join()
        assert (tmp_path / "shown").read_bytes() == b"one\n"
    output.close()
    assert output.last_lines(1) == ["oh"]
    attempt = Attempt.__new__(Attempt)
    attempt.hosts, attempt.ranks = [Host("a", 2)], {}
    restarts = RestartLog(logs)
    restarts.begin(1, attempt, Failure(1, "no space"), 1.0, 2.0)
    with monkeypatch.context() as full:
        full.setattr(record, "append", full_disk)
        restarts.flush()
        assert restarts.add_to_summary(tmp_path)["restarts"] == 1
    restarts.flush()
    assert [(each["cause"], each["time"]) for each in read(logs)] == [("no space", 2.0)]


def test_a_directory_that_cannot_be_written_is_noticed(tmp_path, monkeypatch):
    folder = tmp_path / "launch"
    folder.mkdir()
    assert why_not_writable(folder) == ""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000010.npz").write_bytes(b"123")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2))
    assert why_not_writable(folder).endswith("full: 2 bytes are free, and a checkpoint takes 3")
    monkeypatch.undo()
    (folder / ".probe").symlink_to("/dev/full")
    assert why_not_writable(folder).endswith("cannot be written: No space left on device")
