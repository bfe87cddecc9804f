"""The model card: what the files beside it are, and where they come from."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdjax.report.quantities import number, si
from kdjax.report.table import Table

ROLES = {"teacher": "Teacher", "student": "Student", "student_qat": "QAT student"}
NOT_STATED = "not stated"


@dataclasses.dataclass(frozen=True)
class Story:
    """How the models came about.

    Attributes:
      trained: by role, sentences on how.
      data: sentences on the data.
      citation: BibTeX of the methods.
    """

    trained: Mapping[str, Sequence[str]]
    data: Sequence[str]
    citation: str


def text(made: Mapping[str, Any], story: Story, table: Table, figure: str) -> str:
    """The card, in Markdown."""
    about = made["about"]
    parts = [
        f"# {about['name']}",
        "Models distilled by [kdjax](https://pypi.org/project/kdjax/), exported by",
        f"```sh\n{about['command']}\n```",
        "## Files",
        _markdown(table),
        table.note,
        _deviations(made),
        figure,
        *_beyond(made),
        "## Inputs and outputs",
        *_signatures(made),
        "## How to load them",
        *(_code(made)),
        "## How they were trained",
        *_trained(made, story),
        "## Data",
        *story.data,
        "## Licence",
        f"* Of these weights: {NOT_STATED}.\n* Of the data: {NOT_STATED}; who "
        f"distributes it says.\n* Of a teacher that was imported: {NOT_STATED}; where "
        "it comes from says.\n* Of kdjax: Apache-2.0.",
        "## Limits",
        "Accuracy was measured on the test split named above and says nothing of other "
        "images or texts. Latency is that of the machine named above. Bias and safety "
        f"of the models were {NOT_STATED.replace('stated', 'examined')}.",
        "## Citation",
        f"```bibtex\n{story.citation}\n```",
        "## Versions",
        "\n".join(f"* {name} {x}" for name, x in about["versions"].items())
        + f"\n* commit {about['commit'] or NOT_STATED}",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    rows = [[cell.text for cell in row] for row in table.rows]
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    lines = [table.columns, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _deviations(made: Mapping[str, Any]) -> str:
    found = ", ".join(
        f"`{one['file']}` {one['max_deviation']:.1g}" for one in made["files"]
    )
    largest = max(one["max_logit"] for one in made["files"])
    return (
        f"The largest difference of a logit from that of the model in JAX (the largest "
        f"logit is {largest:.3g}): {found}. The mean negative log-likelihood of the "
        f"labels, in nats: {_likelihoods(made)}."
    )


def _likelihoods(made: Mapping[str, Any]) -> str:
    in_jax = [
        f"{ROLES[role]} in JAX {made['models'][role]['nll']:.4f}"
        for role in _roles(made)
    ]
    return ", ".join(
        in_jax + [f"`{one['file']}` {one['nll']:.4f}" for one in made["files"]]
    )


def _beyond(made: Mapping[str, Any]) -> Iterator[str]:
    for one in made["files"]:
        if not one["within"]:
            yield (
                f"**`{one['file']}` is not as accurate as its model**: off by "
                f"{abs(one['accuracy_difference']):.2f} points, where "
                f"{one['allowed_difference']:g} are allowed."
            )


def _roles(made: Mapping[str, Any]) -> list[str]:
    """In the order of the files: JSON forgets that of its keys."""
    return list(dict.fromkeys(one["role"] for one in made["files"]))


def _signatures(made: Mapping[str, Any]) -> Iterator[str]:
    for role in _roles(made):
        model = made["models"][role]
        unit = " a token" if "tokens" in model["inputs"] else ""
        inputs = ", ".join(
            f"`{name}` {dtype} `[{', '.join(str(size) for size in shape)}]`"
            for name, (shape, dtype) in model["inputs"].items()
        )
        yield (
            f"{ROLES[role]}, {model['network']}: {inputs} to `logits` float32, "
            f"{_about_outputs(model)}. {_about_inputs(model)} "
            f"{si(model['parameters'])} parameters"
            + (f", {si(model['flops'])} FLOPs{unit}" if model["flops"] else "")
            + f", accuracy {number(model['accuracy'])} % in JAX."
        )


def _about_outputs(model: Mapping[str, Any]) -> str:
    names = model["class_names"]
    if not names:
        return "at each place one for each token of `tokenizer.json` that may follow"
    return f"one for each of {len(names)} classes: {', '.join(names)}"


def _about_inputs(model: Mapping[str, Any]) -> str:
    if "images" not in model["inputs"]:
        return "`mask` is False where `tokens` are padding."
    return (
        "Pixels are raw, 0 to 255; scaling to [0, 1] and normalisation by channel "
        f"({json.dumps(model['preprocessing'])}) are inside the file."
    )


def _trained(made: Mapping[str, Any], story: Story) -> Iterator[str]:
    for role in _roles(made):
        sentences = "\n".join(f"* {one}" for one in story.trained[role])
        yield f"### {ROLES[role]}\n\n{sentences}"


def _code(made: Mapping[str, Any]) -> Iterator[str]:
    """A block for each format, of the last role: the student's."""
    role = _roles(made)[-1]
    arrays = _arrays(made["models"][role]["inputs"])
    for one in made["files"]:
        if one["role"] == role:
            lines = _LOADING[one["format"]]
            block = "\n".join(lines).format(
                file=one["file"],
                arrays=arrays,
                feed=", ".join(f'"{x}": {x}' for x in made["models"][role]["inputs"]),
                names=", ".join(made["models"][role]["inputs"]),
            )
            yield f"```python\n{block}\n```"


def _arrays(inputs: Mapping[str, Any]) -> str:
    """Code that makes inputs of the right shape."""
    lines = []
    for name, (shape, dtype) in inputs.items():
        sizes = {"batch": 1, "length": 16}
        concrete = tuple(sizes.get(size, size) for size in shape)
        fill = "ones" if dtype == "bool" else "zeros"
        lines.append(f'{name} = np.{fill}({concrete}, "{dtype}")')
    return "\n".join(lines)


_ONNX = (
    "import numpy as np",
    "import onnxruntime",
    "",
    "{arrays}",
    'session = onnxruntime.InferenceSession("{file}")',
    '(logits,) = session.run(["logits"], {{{feed}}})',
)
_LOADING: Mapping[str, Sequence[str]] = {
    "safetensors": (
        "# In kdjax: --config.teacher.pretrained={file}, for a teacher, say.",
        "from safetensors.numpy import load_file",
        "",
        'tensors = load_file("{file}")  # By names such as params/Dense_0/kernel.',
    ),
    "stablehlo": (
        "import jax",
        "import numpy as np",
        "from jax import export",
        "",
        "{arrays}",
        'with open("{file}", "rb") as file:',
        "    model = export.deserialize(bytearray(file.read()))",
        "logits = jax.jit(model.call)({names})",
    ),
    "onnx": _ONNX,
    "onnx_int8": _ONNX,
}
