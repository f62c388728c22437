"""The command `python -m distcnn.records`: writes a data set as TFRecord shards."""

from collections.abc import Sequence
from pathlib import Path

from distcnn.cli.command import require_at_least_one, run_command, write_json
from distcnn.cli.parser import Parser
from distcnn.cli.startup import import_tensorflow
from distcnn.config import DataConfig, TrainConfig
from distcnn.data.sources import open_source, require_fitting_dir


def main(arguments: Sequence[str]) -> int:
    """Writes the shards and prints what each split holds."""
    parser = Parser("distcnn.records", "Writes a data set as TFRecord shards.")
    parser.add_argument("--out", required=True, help="Folder to write; must be new or empty.")
    parser.add_argument(
        "--shards", type=int, default=8, help="Shards per split, at most one per image."
    )
    parser.add_argument("--json", help="JSON file for the summary.")
    parser.add_argument(
        "--seed", type=int, default=TrainConfig.seed, help="Seed of data.test_split: train.seed."
    )
    parser.add_data_arguments(
        *("name", "dir", "test_split", "on_error", "synthetic_examples", "labels", "task"),
        *("path_column", "label_column", "split_column"),
    )
    options = parser.parse_args(list(arguments))
    require_at_least_one(options, "shards")
    data = DataConfig(**options.data.as_dict())
    require_fitting_dir(data)

    import_tensorflow()
    from distcnn.data.tfrecord_writer import write_records

    summary = write_records(open_source(data, options.seed), Path(options.out), options.shards)
    write_json(options.json, summary)
    for split, content in summary["splits"].items():
        print(f"{split:12} {content}")
    return 0


if __name__ == "__main__":
    run_command(main)
