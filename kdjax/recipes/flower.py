"""The same clients and server, each in a process of its own, by Flower.

    pip install 'kdjax[flower]'

A `ClientApp` is one client of a federation of `kdjax.recipes.federated`, a `ServerApp`
its server: the functions, the messages and the keys are those of the recipe, so that
both come to the same model. Here a client's process reads nothing but its own examples
from a config that every machine has; `flower/` in the repository is the Flower app.

Names of arrays are those of `kdjax.pretrained`, `params/Dense_0/kernel`. Flower's own
run config says which experiment it is:

    config = "configs/federated.py"  # And a variant after a colon.
    method = "fedavg"                # Or 'feddf', 'fedgkd'.
    level = "dirichlet_0.1"
    seed = 0
    workdir = "runs/flower"          # The server's.
"""

import functools
import pathlib
import runpy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from kdjax import federation, members
from kdjax.builders.federated import Experiment, build
from kdjax.federation import Broadcast, ServerState, Upload
from kdjax.recipes import stages as common
from kdjax.types import UserError, Variables
from kdjax.workdir import write_json

WAIT_SECONDS = 600.0  # For all clients to be there.


def client_app() -> Any:
    """A `flwr.clientapp.ClientApp`: the client that the node config numbers.

    A SuperNode is started with `--node-config 'partition-id=3'`.
    """
    flwr = _flower()
    app = flwr.clientapp.ClientApp()

    @app.query()
    def number(message: Any, context: Any) -> Any:
        record = flwr.app.ConfigRecord({"client": _client(context)})
        content = flwr.app.RecordDict({"about": record})
        return flwr.app.Message(content, reply_to=message)

    @app.train()
    def work(message: Any, context: Any) -> Any:
        settings = _settings(context)
        client = build(_load(settings["config"])).client(
            settings["method"], settings["level"], settings["seed"], _client(context)
        )
        sent = message.content
        upload = client(
            Broadcast(_tree(sent["variables"]), _tree(sent["teacher"])),
            sent["round"]["index"],
        )
        content = flwr.app.RecordDict(
            {
                "variables": _record(upload.variables),
                "size": flwr.app.MetricRecord(
                    {"num_examples": float(upload.num_examples)}
                ),
            }
        )
        return flwr.app.Message(content, reply_to=message)

    return app


def server_app() -> Any:
    """A `flwr.serverapp.ServerApp`: all rounds, then the global model's accuracy.

    The server leaves `variables.safetensors` and `result.json` in its work directory.
    Whoever does not answer has no weight in the round.
    """
    app = _flower().serverapp.ServerApp()

    @app.main()
    def run(grid: Any, context: Any) -> None:
        settings = _settings(context)
        experiment = build(_load(settings["config"]))
        nodes = _find_clients(grid, experiment.num_clients)
        state = experiment.server(settings["method"], settings["seed"])
        serve, arrived = experiment.serve(settings["method"]), []
        for _ in range(experiment.rounds):
            uploads = _round(grid, experiment, state, nodes)
            arrived.append(sum(upload is not None for upload in uploads))
            state = serve(state, *_stack(uploads, state))
        workdir = pathlib.Path(settings["workdir"])
        workdir.mkdir(parents=True, exist_ok=True)
        common.keep_variables(workdir, state.variables)
        accuracy = experiment.accuracy(state.variables)
        result = {"accuracy": accuracy, "arrived": arrived}
        write_json(workdir / "result.json", result)

    return app


def _find_clients(grid: Any, count: int) -> dict[int, int]:
    """The node of each client, once all are there."""
    flwr = _flower()
    deadline = time.monotonic() + WAIT_SECONDS
    while len(nodes := [*grid.get_node_ids()]) < count:
        if time.monotonic() > deadline:
            raise UserError(
                f"Expected {count} SuperNodes, as federated.num_clients says, got "
                f"{len(nodes)} within {WAIT_SECONDS:.0f} s: start the others."
            )
        time.sleep(1.0)
    replies = grid.send_and_receive(
        [
            flwr.app.Message(flwr.app.RecordDict(), node, flwr.app.MessageType.QUERY)
            for node in nodes
        ]
    )
    found = {
        int(reply.content["about"]["client"]): reply.metadata.src_node_id
        for reply in replies
        if not reply.has_error()
    }
    missing = sorted(set(range(count)) - found.keys())
    if missing:
        raise UserError(
            f"Expected a SuperNode for each of {count} clients, got none for "
            f"{missing}: start one with --node-config 'partition-id={missing[0]}'."
        )
    return found


def _round(
    grid: Any, experiment: Experiment, state: ServerState, nodes: Mapping[int, int]
) -> list[Upload | None]:
    """The uploads of this round's participants, `None` for whoever did not answer."""
    flwr = _flower()
    chosen = federation.participants(
        state.rng, state.step, experiment.num_clients, experiment.participants
    )
    message = federation.broadcast(state)
    content = flwr.app.RecordDict(
        {
            "variables": _record(message.variables),
            "teacher": _record(message.teacher),
            "round": flwr.app.ConfigRecord({"index": int(state.step)}),
        }
    )
    replies = grid.send_and_receive(
        [
            flwr.app.Message(content, nodes[client], flwr.app.MessageType.TRAIN)
            for client in chosen.tolist()
        ]
    )
    by_node = {
        reply.metadata.src_node_id: reply.content
        for reply in replies
        if not reply.has_error()
    }
    return [
        _upload(by_node[nodes[client]], message) if nodes[client] in by_node else None
        for client in chosen.tolist()
    ]


def _upload(content: Any, message: Broadcast) -> Upload:
    size = jnp.float32(content["size"]["num_examples"])
    upload = Upload(_tree(content["variables"]), size)
    federation.check(upload, Upload(message.variables, size))
    return upload


def _stack(
    uploads: Sequence[Upload | None], state: ServerState
) -> tuple[Upload, np.ndarray]:
    """Uploads along a first axis, and their weights; nothing for who is missing."""
    nothing = Upload(state.variables, jnp.float32(0))
    each = [nothing if upload is None else upload for upload in uploads]
    stacked = members.stack(each)
    return stacked, np.asarray(stacked.num_examples)


def _record(variables: Variables) -> Any:
    """An ArrayRecord of a tree."""
    app = _flower().app
    flat = flax.traverse_util.flatten_dict(jax.device_get(dict(variables)), sep="/")
    return app.ArrayRecord({name: app.Array(np.asarray(x)) for name, x in flat.items()})


def _tree(record: Any) -> Variables:
    """The tree of an ArrayRecord."""
    flat = {name: jnp.asarray(array.numpy()) for name, array in record.items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _load(config: str) -> Any:
    """The config of a file, and of a variant after a colon."""
    path, _, variant = config.partition(":")
    if not pathlib.Path(path).exists():
        raise UserError(
            f"Expected a config at {path}, but there is nothing: set `config` of the "
            "run config to a path that every machine has."
        )
    return runpy.run_path(path)["get_config"](variant)


def _settings(context: Any) -> Mapping[str, Any]:
    return context.run_config


def _client(context: Any) -> int:
    if "partition-id" not in context.node_config:
        raise UserError(
            "Expected the number of a client, got none: start the SuperNode with "
            "--node-config 'partition-id=0', and so on."
        )
    return int(context.node_config["partition-id"])


@functools.cache
def _flower() -> Any:
    try:
        import flwr.app
        import flwr.clientapp
        import flwr.serverapp
    except ImportError as error:
        raise UserError(
            "Expected Flower, which is not installed: pip install 'kdjax[flower]'."
        ) from error
    return flwr
