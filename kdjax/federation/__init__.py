"""Federations: clients that keep their examples, and a server that never sees them.

Clients are the first axis of every array, mapped over by `jax.vmap` and split over the
devices. What a client does is a function of what was broadcast and of its own shard;
what the server does is a function of what was uploaded. What crosses is a `Broadcast`
or an `Upload` (parameters), or `PublicLogits` (predictions on public examples), whose
content is checked whenever a step is compiled.
"""

from kdjax.federation.clients import (
    ClientsState,
    LocalUpdate,
    Shard,
    make_local_step,
    make_local_update,
    run_epochs,
)
from kdjax.federation.consensus import (
    Epochs,
    Group,
    PeersState,
    make_consensus_step,
    make_start_step,
)
from kdjax.federation.messages import (
    Broadcast,
    PublicLogits,
    Upload,
    check,
    num_bytes,
)
from kdjax.federation.rounds import (
    SERVER,
    ServerState,
    broadcast,
    init_server,
    make_round_step,
    serve,
    work,
)
from kdjax.federation.selection import arrivals, participants
from kdjax.federation.server import Fuse, average, make_distilled_average, read_clients

__all__ = [
    "SERVER",
    "Broadcast",
    "ClientsState",
    "Epochs",
    "Fuse",
    "Group",
    "LocalUpdate",
    "PeersState",
    "PublicLogits",
    "ServerState",
    "Shard",
    "Upload",
    "arrivals",
    "average",
    "broadcast",
    "check",
    "init_server",
    "make_consensus_step",
    "make_distilled_average",
    "make_local_step",
    "make_local_update",
    "make_round_step",
    "make_start_step",
    "num_bytes",
    "participants",
    "read_clients",
    "run_epochs",
    "serve",
    "work",
]
