"""Split rules of ops that no table names, found by executing them on small shards; and rules of users put to the test.

Floats are multiples of 1/64 in float64, so that sums recombine exactly and a contraction is told from a coincidence.
What is found holds for everything that was tried, which is evidence and no proof: such rules are marked, and
``superscaler check --strict`` refuses them.
"""

from superscaler.transforms.discover.lookup import discover as discover
from superscaler.transforms.discover.lookup import discover_missing as discover_missing
from superscaler.transforms.discover.lookup import search as search
from superscaler.transforms.discover.verify import verify as verify
from superscaler.transforms.discover.verify import verify_custom as verify_custom
