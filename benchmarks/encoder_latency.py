r"""How much faster is a small encoder than its teacher, one text at a time?

Random weights: latency does not depend on what a network has learnt. The models take
turns in one process; by default the shapes of TinyBERT's paper, BERT-base (12 layers of
768) against 4 layers of 312, at batch size 1, without an embedding of tokens in the
FLOPs, which is a look-up. Prints one JSON line, with the ratios of latency (p50),
parameters and FLOPs.

Run, on a quiet machine:
  python benchmarks/encoder_latency.py
  python benchmarks/encoder_latency.py --length=32 --teacher=minilm_l12
"""

import argparse
import json

import jax
import jax.numpy as jnp

from kdjax import measure, models, networks, timing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="bert_base", help="out of models.ENCODERS")
    parser.add_argument("--student", default="tinybert_4")
    parser.add_argument(
        "--length", type=int, default=128, help="of the text, in tokens"
    )
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--max_seconds", type=float, default=120.0)
    arguments = parser.parse_args()
    shape = arguments.batch_size, arguments.length
    inputs = {"tokens": jnp.ones(shape, jnp.int32), "mask": jnp.ones(shape, bool)}
    names = {"teacher": arguments.teacher, "student": arguments.student}
    costs, programs = {}, {}
    for role, name in names.items():
        costs[role], programs[role] = _prepare(name, inputs)
    seconds = timing.in_turns(programs, arguments.runs, arguments.max_seconds)
    for role, found in seconds.items():
        p50, p95 = timing.quantiles_ms(found)
        costs[role] |= {"p50_ms": p50, "p95_ms": p95, "runs": len(found)}
    ratios = {
        key: costs["teacher"][key] / costs["student"][key]
        for key in ("p50_ms", "parameters", "flops")
    }
    print(
        json.dumps(
            {
                "question": "encoder latency",
                "shape": shape,
                **costs,
                "ratios": ratios,
                "speed_up_over_flops": ratios["p50_ms"] / ratios["flops"],
                "hardware": measure.hardware(),
                "versions": measure.versions(),
            }
        )
    )


def _prepare(name: str, inputs: dict[str, jax.Array]):
    """What a model costs, and a program that runs it once."""
    module = models.create(name, num_classes=2, among=models.ENCODERS)
    network = networks.of_tokens(module, name=name, num_classes=2, vocabulary="")
    variables = network.init(jax.random.key(0))

    def logits(variables, inputs):
        return network.apply(variables, inputs, train=False)[0].logits

    program = jax.jit(logits).lower(variables, inputs).compile()
    costs = {
        "model": name,
        "parameters": measure.count_parameters(variables),
        "flops": measure.count_flops(logits, variables, inputs),
    }
    return costs, lambda: program(variables, inputs)


if __name__ == "__main__":
    main()
