"""Writes variables as a checkpoint of TensorFlow 1's saver: `write_tensorflow.py VARIABLES.npz PREFIX SHARDS`."""

import sys

import numpy as np
import tensorflow as tf


def main(source: str, prefix: str, shards: int) -> None:
    with np.load(source, allow_pickle=False) as archive:
        variables = dict(archive)
    names = sorted(variables)
    parts = [f"{prefix}_temp/part-{shard:05d}-of-{shards:05d}" for shard in range(shards)]
    for shard, part in enumerate(parts):
        chosen = names[shard::shards]
        tf.raw_ops.SaveV2(
            prefix=part,
            tensor_names=chosen,
            shape_and_slices=[""] * len(chosen),
            tensors=[tf.constant(variables[name]) for name in chosen],
        )
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=prefix)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
