"""The teacher's logits, computed once and read again by (view, example id).

`write` fills a cache, resuming where it was stopped; `open` reads one, and refuses what
was made from another teacher, data set or augmentation. An `Encoding` says what is
stored of the logits: all of them in float32 or float16, or the top k and an exact tail.
A `Record` stores features with them.

Examples:
  >>> import numpy as np
  >>> from kdjax import teacher_cache
  >>> manifest = teacher_cache.Manifest(
  ...     num_examples=10, num_views=2, encoding=teacher_cache.Float32(num_classes=3),
  ...     shard_size=4, teacher_fingerprint="a", dataset_fingerprint="b",
  ...     augmentation={}, preprocessing={}, seed=0)
  >>> def compute(ids, view):
  ...     return np.stack([ids, ids + view, -ids], axis=-1)
  >>> teacher_cache.write("memory://doc/cache", manifest, compute, batch_size=4)
  6
  >>> cache = teacher_cache.open("memory://doc/cache", manifest)
  >>> print(cache.read(1, np.array([7, 2]))["teacher_logits"])
  [[ 7.  8. -7.]
   [ 2.  3. -2.]]
"""

from kdjax.teacher_cache.encoding import Encoding
from kdjax.teacher_cache.encodings import Float16, Float32, Record, TopK
from kdjax.teacher_cache.manifest import Manifest, Shard
from kdjax.teacher_cache.processes import Processes
from kdjax.teacher_cache.reading import Cache, open, repair
from kdjax.teacher_cache.tokens import DrawnTokens, TopTokens
from kdjax.teacher_cache.verifying import VerifyReport, verify
from kdjax.teacher_cache.writing import write

__all__ = [
    "Cache",
    "DrawnTokens",
    "Encoding",
    "Float16",
    "Float32",
    "Manifest",
    "Processes",
    "Record",
    "Shard",
    "TopK",
    "TopTokens",
    "VerifyReport",
    "open",
    "repair",
    "verify",
    "write",
]
