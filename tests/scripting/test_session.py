"""What a session does beside training, on two processes that open it from Python."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from typing_extensions import override

from tests.lockstep.groups import start_group

SCRIPT = """
import os, sys
from pathlib import Path

import keras
import numpy as np

import distcnn

rank = int(os.environ["HOROVOD_RANK"])
with distcnn.session() as run:
    path = keras.utils.get_file("numbers.txt", origin=sys.argv[1])
    keras.utils.set_random_seed(rank)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    own = model.layers[0].kernel.numpy()
    predictions = model.predict(np.eye(3), batch_size=2, verbose=0)
    np.savez(f"rank-{rank}.npz", text=Path(path).read_text(), own=own, predictions=predictions)
"""


@pytest.fixture
def server():
    """Serves a file slowly; yields its address and the list of requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            time.sleep(1.0)
            self.send_response(200)
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"123")

        @override
        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}/numbers.txt", requests
        serving.shutdown()
        thread.join()


def test_files_are_downloaded_once_weights_are_rank_0s_and_random_hashes_are_told(server, tmp_path):
    address, requests = server
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {"KERAS_HOME": str(tmp_path / "home"), "PYTHONHASHSEED": "random"}
    group = start_group("horovod", 2, ["script.py", address], tmp_path, **environment)
    assert group.wait(200) == [0], group.output()
    ranks = [np.load(tmp_path / f"rank-{rank}.npz") for rank in range(2)]
    assert requests == ["/numbers.txt"]
    assert [str(found["text"]) for found in ranks] == ["123", "123"]
    assert np.abs(ranks[0]["own"] - ranks[1]["own"]).max() > 0.1
    for found in ranks:
        np.testing.assert_allclose(found["predictions"], ranks[0]["own"], rtol=1e-6)
    assert group.output().count("sets of strings have another order on each rank") == 1
