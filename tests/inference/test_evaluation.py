"""The scores of a classifier."""

import numpy as np

from distcnn.inference.evaluation import Evaluation


def test_a_perfect_result_has_no_loss():
    result = Evaluation(np.arange(2), np.eye(2, dtype=np.float32), ("a", "b"))
    assert (str(result.loss), result.accuracy, len(result.worst(3))) == ("0.0", 1.0, 0)


def test_the_worst_mistakes_are_the_most_confident():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.99, 0.01], [0.2, 0.8]], np.float32)
    result = Evaluation(np.array([1, 0, 1, 1]), probabilities, ("a", "b"))
    assert result.worst(5).tolist() == [2, 0, 1]
    assert result.worst(1).tolist() == [2]
