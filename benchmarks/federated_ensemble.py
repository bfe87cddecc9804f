r"""Who knows more after a round: the clients' ensemble, or their average?

FedDF teaches the average what the ensemble knows. All clients train in every round, as
FedAvg's; on the test split, of the round's clients: the accuracy of their mean
probabilities and of their mean logits, weighed by their examples, and that of the
average of their weights, which is where the next round begins.

Run:
  python benchmarks/fetch_data.py --out=data fashion_mnist
  python benchmarks/federated_ensemble.py --data=data/fashion_mnist.npz --rounds=8 \
    --out=benchmarks/results/ways/federated_ensemble.json
"""

import argparse
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import federation, losses, measure, members
from kdjax.builders import federated

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "federated.py"


def rounds(experiment, seed, count):
    """Accuracies in % of each round."""
    level, number = experiment.levels[0], experiment.num_clients
    test = experiment.splits.test.take(np.arange(len(experiment.splits.test)))
    apply = experiment.network.apply

    @jax.jit
    def predict(variables):
        return apply(variables, test["image"], train=False)[0].logits

    def accuracy(logits):
        return 100 * float(np.mean(np.asarray(logits).argmax(-1) == test["label"]))

    work = [experiment.client("fedavg", level, seed, k) for k in range(number)]
    serve, state = experiment.serve("fedavg"), experiment.server("fedavg", seed)
    for index in range(count):
        message = federation.broadcast(state)
        uploads = [client(message, index) for client in work]
        logits = jnp.stack([predict(upload.variables) for upload in uploads])
        weights = jnp.asarray([x.num_examples for x in uploads], jnp.float32)
        state = serve(state, members.stack(uploads), weights)
        yield {
            "mean_probs": accuracy(losses.average_probs(logits, weights=weights)),
            "mean_logits": accuracy(losses.average_logits(logits, weights=weights)),
            "mean_weights": experiment.accuracy(state.variables),
        }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="fashion_mnist.npz")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2, help="of a client in a round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=pathlib.Path, help="a .json")
    flags = parser.parse_args()
    config = runpy.run_path(str(CONFIG))["get_config"]("mlp")
    config.dataset.path, config.seeds = flags.data, tuple(flags.seeds)
    config.dataset.validation = 10_000  # What a FedDF of the same clients distils on.
    config.teacher.train.num_epochs = flags.epochs
    config.federated.update(methods=("fedavg",), levels=(0.1,), participation=1.0)
    experiment = federated.build(config)
    found = {}
    for seed in flags.seeds:
        found[seed] = []
        for index, row in enumerate(rounds(experiment, seed, flags.rounds), start=1):
            found[seed].append(row)
            shown = ", ".join(f"{name} {value:.2f}" for name, value in row.items())
            print(f"seed {seed}, round {index}: {shown}", flush=True)
    if flags.out:
        about = {
            "epochs": flags.epochs,
            "hardware": measure.hardware(),
            "commit": measure.commit(),
            "accuracies": found,
        }
        flags.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
