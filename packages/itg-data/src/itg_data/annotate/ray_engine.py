"""The same stages on a Ray cluster: the only file of itg-data that imports ray.

Each worker annotates whole videos with decoders and connections of its own, so pictures never
travel between machines; a cluster's machines must all see the folder of videos under the same
path. The ledger stays with the process that was started, behind an actor: who asks, claims the
request there first, so that no two workers ask the same. A worker that dies ends the run, which
goes on from the ledger when it is started again.
"""

from itg_data.annotate.requests import AnnotatorError

try:
    import ray
except ImportError:
    raise AnnotatorError("--engine ray needs Ray: pip install 'itg-data[ray]'") from None
