"""The picture of the confusion matrix that trackers get."""

from pathlib import Path

from distcnn.inference.evaluation import evaluate_split
from distcnn.inference.plots import confusion_figure, to_png
from distcnn.training.setup import TrainingSetup


def draw_confusion(setup: TrainingSetup, folder: Path) -> None:
    """Draws the confusion matrix on the validation images, or on the test images without any.

    Args:
        setup: A run whose model has its final weights.
        folder: The run directory; the file has the name that `distcnn.evaluate` gives it.
    """
    dataset = setup.dataset
    name = "test" if dataset.validation is None else "validation"
    images = dataset.test if dataset.validation is None else dataset.validation
    if images is None:
        return
    result = evaluate_split(
        setup.evaluation.predict,
        images,
        dataset.classes,
        logits=setup.objective.logits,
        batch_size=setup.config.train.eval_batch_size,
    )
    figure = confusion_figure(result.confusion(), dataset.classes)
    (folder / f"confusion_{name}.png").write_bytes(to_png(figure))
