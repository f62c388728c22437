"""A worker that writes which GPUs it uses: `python -m tests.gpu.placement FOLDER`."""

import json
import sys
from pathlib import Path

from distcnn.cli.startup import import_tensorflow

if __name__ == "__main__":
    import_tensorflow()
    import tensorflow as tf

    from distcnn.config import Config
    from distcnn.distribute.context import join_run

    backend = join_run(Config()).backend
    folder = Path(sys.argv[1])
    backend.run_on_chief(lambda: folder.mkdir(exist_ok=True))
    visible = [device.name for device in tf.config.get_visible_devices("GPU")]
    (folder / f"{backend.rank}.json").write_text(json.dumps(visible))
    backend.barrier()
    backend.close()
