"""The command that runs a script: what it prepares before the script's first line."""

from tests.lockstep.groups import start_group

SCRIPT = """
import os
from pathlib import Path

Path(f"order-{os.environ['HOROVOD_RANK']}").write_text(str(hash("distcnn")))
"""


def test_sets_of_strings_have_the_same_order_on_all_ranks(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = ["-m", "distcnn.run", "script.py"]
    started = start_group("horovod", 2, arguments, tmp_path, PYTHONHASHSEED="random")
    assert not any(started.wait(120)), started.output()
    orders = [(tmp_path / f"order-{rank}").read_text() for rank in range(2)]
    assert orders[0] == orders[1]
