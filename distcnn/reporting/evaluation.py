"""The sections on what the trained classifier does right and wrong."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from distcnn.inference.details.curves import Rankings
from distcnn.inference.details.details import Calibrated, Details
from distcnn.inference.details.mistakes import Mistake, Mistakes
from distcnn.inference.details.pictures import overlay
from distcnn.inference.evaluation import AnyEvaluation, Evaluation, SplitName
from distcnn.inference.number_evaluation import NumberEvaluation
from distcnn.inference.plots import confusion_figure, to_png
from distcnn.reporting.charts import Line, line_chart, reliability_chart
from distcnn.reporting.markup import embedded, image, number, section, table, text
from distcnn.reporting.training import Tile

_MOST_CELLS, _MOST_PAIRS = 25, 10


@dataclass(frozen=True)
class Assessment:
    """The evaluation of a run.

    Attributes:
        split: Which images.
        result: The scores.
        details: The rest.
        scores: The scores as JSON holds them.
    """

    split: SplitName
    result: AnyEvaluation
    details: Details
    scores: dict[str, Any]


def evaluation_tiles(found: Assessment) -> list[Tile]:
    """Returns the key figures of the evaluation."""
    remark = f"{len(found.result.labels):,} {found.split} images"
    names = {
        "accuracy": f"{found.split} accuracy",
        "mAP": f"{found.split} mAP",
        "f1": "macro F1",
        "exact": "exact match",
        "top_k_accuracy": f"top-{found.scores.get('top_k')} accuracy",
        "mse": "mean squared error",
        "mae": "mean absolute error",
        "loss": "cross-entropy",
    }
    tiles = [
        (title, number(found.scores[name]), remark if index == 0 else "")
        for index, (name, title) in enumerate(
            (name, title) for name, title in names.items() if found.scores.get(name) is not None
        )
    ]
    reliability, calibrated = found.details.reliability, found.details.calibrated
    if reliability is not None:
        after = f"{calibrated.reliability.ece:.4f} with temperature" if calibrated else ""
        tiles.append(("calibration error", number(reliability.ece), after))
    if found.details.rankings is not None and found.details.rankings.macro_auc is not None:
        tiles.append(("AUC, macro", number(found.details.rankings.macro_auc), "one-vs-rest"))
    return tiles


def evaluation_sections(found: Assessment) -> list[str]:
    """Returns the sections on an evaluation."""
    parts = [_classes_section(found)]
    if isinstance(found.result, Evaluation):
        parts.append(_confusion_section(found.result))
    if isinstance(found.result, NumberEvaluation):
        parts.append(_numbers_section(found.result))
    parts += [_calibration_section(found.details), _curves_section(found.details.rankings)]
    parts.append(_mistakes_section(found.details.mistakes, found.result))
    return parts


def _classes_section(found: Assessment) -> str:
    rows = [dict(row) for row in found.scores["classes"]]
    if isinstance(found.result, Evaluation) and found.details.rankings is not None:
        for row, ranking in zip(rows, found.details.rankings.by_class, strict=True):
            row |= {"AUC": ranking.auc, "average precision": ranking.average_precision}
    if found.details.thresholds is not None:
        for row, best in zip(rows, found.details.thresholds.rows, strict=True):
            row |= {"threshold": best["threshold"], "F1 with it": best["f1"]}
    keys = [key for key in rows[0] if key not in ("class", "images")]
    headings = {"f1": "F1", "average_precision": "average precision"}
    content = [
        [text(row["class"]), *(number(row[key]) for key in keys), number(row["images"])]
        for row in rows
    ]
    titles = ["class", *(headings.get(key, key) for key in keys), "images"]
    note = ""
    if found.details.thresholds is not None:
        note = (
            '<p class="soft">Thresholds of the largest F1, chosen on the validation images; '
            f"with them, macro F1 is {number(found.details.thresholds.f1)}.</p>"
        )
    return section("classes", "Scores by class", note, table(titles, content))


def _confusion_section(result: Evaluation) -> str:
    matrix = result.confusion()
    if len(result.classes) > _MOST_CELLS:
        figure = to_png(confusion_figure(matrix, result.classes))
        drawn = embedded(figure, "png", "confusion matrix", "wide")
    else:
        drawn = _confusion_table(matrix, result.classes)
    return section("confusion", "Confusion matrix", drawn, _confused_pairs(matrix, result.classes))


def _confusion_table(matrix: np.ndarray, classes: tuple[str, ...]) -> str:
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    head = "".join(f"<th><span>{text(name)}</span></th>" for name in classes)
    rows = []
    for name, counts, shades in zip(classes, matrix, fractions, strict=True):
        cells = "".join(
            f'<td{" class=full" if shade > 0.7 else ""} style="--f:{shade:.3f}">{count or ""}</td>'
            for count, shade in zip(counts.tolist(), shades.tolist(), strict=True)
        )
        rows.append(f"<tr><th>{text(name)}</th>{cells}</tr>")
    caption = "Rows are true classes, columns are predicted ones."
    return (
        f'<div class="scroll confusion"><table><caption>{caption}</caption>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _confused_pairs(matrix: np.ndarray, classes: tuple[str, ...]) -> str:
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    rows = [
        (
            text(classes[true]),
            text(classes[said]),
            number(int(wrong[true, said])),
            number(float(wrong[true, said] / matrix[true].sum())),
        )
        for true, said in places
        if wrong[true, said]
    ]
    if not rows:
        return "<p>No image is classified wrong.</p>"
    headings = ("true class", "predicted", "images", "fraction of the class")
    return f"<h3>Confused most often</h3>{table(headings, rows, texts=2)}"


def _calibration_section(details: Details) -> str:
    before, calibrated = details.reliability, details.calibrated
    if before is None:
        return ""
    charts = reliability_chart(f"As trained: ECE {before.ece:.4f}", before)
    if calibrated is not None:
        title = (
            f"With temperature {calibrated.temperature:.3f}: ECE {calibrated.reliability.ece:.4f}"
        )
        charts += reliability_chart(title, calibrated.reliability)
    note = "The expected calibration error (ECE) is the mean gap between confidence and accuracy."
    return section(
        "calibration",
        "Calibration",
        f'<p class="soft">{note} {_about_temperature(calibrated)}</p>',
        f'<div class="charts">{charts}</div>',
    )


def _about_temperature(calibrated: Calibrated | None) -> str:
    if calibrated is None:
        return ""
    kind = "less" if calibrated.temperature > 1 else "more"
    return (
        f"Logits divided by {calibrated.temperature:.3f}, as fitted on the "
        f"{calibrated.fitted_on} images, make the classifier {kind} sure of itself; the classes "
        f"that it predicts stay the same. The cross-entropy is then {calibrated.loss:.4f}."
    )


def _curves_section(rankings: Rankings | None) -> str:
    if rankings is None:
        return ""
    charts = []
    for kind, area, names in (
        ("roc", "auc", ("ROC", "false positive rate", "true positive rate")),
        ("precision_recall", "average_precision", ("Precision-recall", "recall", "precision")),
    ):
        lines = [
            Line(
                f"{each.name[:30]} {number(getattr(each, area), 3)}",
                getattr(each, kind).x.tolist(),
                getattr(each, kind).y.tolist(),
                "strong" if each is rankings.micro else "",
            )
            for each in (*rankings.by_class, rankings.micro)
            if getattr(each, kind) is not None
        ]
        title, x_name, y_name = names
        charts.append(line_chart(title, lines, x_name, unit=True, y_name=y_name))
    areas = (
        f"macro AUC {number(rankings.macro_auc)}, micro AUC {number(rankings.micro.auc)}, "
        f"macro average precision {number(rankings.macro_average_precision)}, micro average "
        f"precision {number(rankings.micro.average_precision)}"
    )
    note = f'<p class="soft">Each class against the others (one-vs-rest): {areas}.</p>'
    return section("curves", "ROC and precision-recall", note, _charts(charts))


def _numbers_section(result: NumberEvaluation) -> str:
    charts = []
    for index, name in enumerate(result.classes[:9]):
        order = np.argsort(result.labels[:, index], kind="stable")
        truth, found = result.labels[order, index], result.values[order, index]
        lines = [
            Line("predicted", truth.tolist(), found.tolist(), "dots"),
            Line("ideal", truth[[0, -1]].tolist(), truth[[0, -1]].tolist(), "dashed"),
        ]
        charts.append(line_chart(name, lines, "true", y_name="predicted"))
    return section("numbers", "Predicted and true numbers", _charts(charts))


def _charts(charts: list[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _mistakes_section(mistakes: Mistakes, result: AnyEvaluation) -> str:
    parts = []
    for name, count, worst in mistakes.groups():
        of = "" if isinstance(result, NumberEvaluation) else f" ({count:,} wrong)"
        shown = "".join(map(_figure, worst))
        parts.append(f'<h3>{text(name)}{of}</h3><div class="mistakes">{shown}</div>')
    if not parts:
        return ""
    note = text(mistakes.note) or (
        "Beside each image Grad-CAM: bright is what speaks for the class that is predicted."
    )
    if not mistakes.note and not isinstance(result, Evaluation):
        note = "Beside each image Grad-CAM: bright is what speaks for the label or larger number."
    left_out = len(mistakes.counts) - len(parts)
    if left_out:
        which = "One class" if left_out == 1 else f"{left_out} classes"
        are = "is" if left_out == 1 else "are"
        note += f" {which} with fewer or no mistakes {are} left out."
    return section("mistakes", "Worst mistakes", f'<p class="soft">{note}</p>', *parts)


def _figure(mistake: Mistake) -> str:
    assert mistake.image is not None
    pictures = image(mistake.image, f"{mistake.label}, {mistake.said}")
    if mistake.heat is not None:
        pictures += image(overlay(mistake.image, mistake.heat), "Grad-CAM")
    name = text(mistake.name)
    return (
        f"<figure><div>{pictures}</div><figcaption>{text(mistake.said)}"
        f'<small title="{name}">{name}</small></figcaption></figure>'
    )
