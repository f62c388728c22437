"""Lets another user of the machine reach for what a run makes, and prepare traps for it.

    python -m tests.faults.another_user [--case NAME] [--points N] [--seed S] [--folder DIR]

The other user is nobody, whom the campaign becomes in forks, which takes root. Nobody may change
anything that a run made, or make it write elsewhere; what the user's umask lets others read, they
may read.
"""

import json
import os
import pwd
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distcnn.records import main as records
from distcnn.train import main as train
from distcnn.training import trainer  # noqa: F401 - imported before the forks
from tests.faults.campaign import Campaign, Case, Skipped, in_fork, main
from tests.faults.commands import Ended, run
from tests.faults.damage import write_images
from tests.runs import flags, small_config

SECRET = b"what the user had there before"


def _as_nobody(function: Callable[[], Any], folder: Path) -> Any:
    """Calls a function as nobody, and returns what it returned."""
    entry = pwd.getpwnam("nobody")

    def act() -> Any:
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        return function()

    # The result is written by root: the fork can no longer.
    reading, writing = os.pipe()

    def send() -> None:
        os.write(writing, json.dumps(act()).encode())
        os._exit(0)

    status = in_fork(send, folder / "unused")
    os.close(writing)
    with os.fdopen(reading) as file:
        content = file.read()
    assert status == 0, f"nobody ended with {status}"
    return json.loads(content)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise Skipped("it takes root")


def _work(campaign: Campaign) -> dict[str, Ended]:
    """Trains from record shards with a cache on disk, as a user with the usual umask."""
    os.umask(0o022)
    for folder in (campaign.folder, *campaign.folder.parents):
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    os.environ["XDG_CACHE_HOME"] = str(campaign.folder / "home" / ".cache")
    write_images(campaign.folder / "images")
    place = f"--data.dir={campaign.folder / 'images'}"
    out = campaign.folder / "records"
    shards = run(
        records, "--data.name=folder", place, f"--out={out}", "--shards=2", folder=campaign.folder
    )
    config = small_config(
        campaign.folder / "run",
        data__name="tfrecord",
        data__dir=str(out),
        data__cache="disk",
        data__validation="none",
        data__image_size=16,
        data__augment__crop=0,
        train__batch_size=4,
        logging__tensorboard=True,
    )
    return {"records": shards, "run": run(train, *flags(config), folder=campaign.folder)}


def writing(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Nobody tries to write, to replace and to delete everything that a run made."""
    _require_root()
    for name, ended in _work(campaign).items():
        assert ended.code == 0, (name, ended.errors)
    made = [
        path
        for name in ("run", "records", "home")
        for path in sorted((campaign.folder / name).rglob("*"))
    ]

    def attack() -> list[list[str]]:
        done = []
        for path in made:
            for kind, act in (
                ("written", lambda path=path: os.open(path, os.O_WRONLY)),
                ("renamed", lambda path=path: path.rename(f"{path}.gone")),
                ("created in", lambda path=path: (path / "new").touch()),
                ("changed in mode", lambda path=path: path.chmod(0o777)),
            ):
                try:
                    act()
                    done.append([str(path), kind])
                except OSError:
                    pass
        return done

    found = _as_nobody(attack, campaign.folder)
    for path in made:
        kinds = [kind for name, kind in found if name == str(path)]
        modes = stat.S_IMODE(path.lstat().st_mode) if path.exists() else 0
        loose = " and anybody may write it" if modes & 0o022 and not path.is_symlink() else ""
        shown = path.relative_to(campaign.folder)
        yield str(shown), f"{', '.join(kinds)}{loose}" if kinds or loose else None


TRAPS: dict[str, str] = {
    "run/.partial-config.yaml": "run",
    "run/.partial-environment.json": "run",
    "run/.lock": "run",
    "run/.partial-metrics.jsonl": "run",
    "home/.cache/distcnn/decoded/.partial-KEY.npy": "home/.cache/distcnn/decoded",
    "home/.cache/distcnn/decoded/.partial-KEY.json": "home/.cache/distcnn/decoded",
}
"""Links planted by nobody in a folder that anybody may write, and the folder."""


def links(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Nobody plants links to a file of the user in folders that are open to everybody."""
    _require_root()
    _work(campaign)
    keys = [p.stem for p in (campaign.folder / "home/.cache/distcnn/decoded").glob("*.npy")]
    victim = campaign.folder / "victim"
    for trap, name in TRAPS.items():
        for place in ("run", "home", "records"):
            shutil.rmtree(campaign.folder / place, ignore_errors=True)
        shutil.rmtree(campaign.folder / "images", ignore_errors=True)
        folder = campaign.folder / name
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        victim.write_bytes(SECRET)
        paths = [campaign.folder / trap.replace("KEY", key) for key in keys]

        def plant(paths: list[Path] = paths) -> None:
            for path in set(paths):
                path.symlink_to(victim)

        _as_nobody(plant, campaign.folder)
        ended = _work(campaign)["run"]
        reason = None if victim.read_bytes() == SECRET else f"the user's file has changed ({ended})"
        if reason is None and ended.code not in (0, 1):
            reason = f"the run ended with {ended.code}"
        yield trap, reason


def temporary(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """A run leaves nothing in the folders that all users share."""
    _require_root()
    shared = [Path("/tmp"), Path("/dev/shm"), Path("/var/tmp")]

    def content() -> set[str]:
        return {
            str(path)
            for folder in shared
            if folder.exists()
            for path in folder.iterdir()
            if "distcnn" in path.name or path.name == ".keras"
        }

    before = content()
    ended = _work(campaign)["run"]
    assert ended.code == 0, ended.errors
    left = sorted(path for path in content() - before if str(campaign.folder) not in path)
    yield "what is left in shared folders", f"left {', '.join(left)}" if left else None


CASES: dict[str, Case] = {"writing": writing, "links": links, "temporary": temporary}

if __name__ == "__main__":
    sys.exit(main(__doc__, CASES))
