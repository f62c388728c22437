"""What a step without the reduction leaves out."""

import tensorflow as tf

from distcnn.benchmarking.step_timing import without_reduction
from distcnn.distribute.tensorflow import OneDevice


class Doubling(OneDevice):
    def reduce_sum(self, tensors, *, compressible=0):
        return [2 * tensor for tensor in tensors]

    def gather_rows(self, tensors, *, equal=False):
        return [tf.concat([tensor, tensor], 0) for tensor in tensors]


def test_nothing_is_sent_without_the_reduction():
    backend, own = Doubling(), tf.ones([2])
    with without_reduction(backend):
        assert [t.numpy().tolist() for t in backend.reduce_sum([own])] == [[1, 1]]
        assert [t.numpy().tolist() for t in backend.gather_rows([own])] == [[1, 1]]
    assert backend.reduce_sum([own])[0].numpy().tolist() == [2, 2]
    assert backend.gather_rows([own])[0].numpy().tolist() == [1, 1, 1, 1]
