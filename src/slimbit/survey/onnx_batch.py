"""Multiply-accumulates of the nodes of an ONNX graph for one image: the batch is what the graph makes of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto

from slimbit.records.errors import InputError
from slimbit.survey.batch import check_batch
from slimbit.survey.onnx_graph import OnnxGraph, node_name, operand, operator
from slimbit.survey.onnx_macs import PRODUCTS, images_of, macs_of, operands_of
from slimbit.survey.onnx_shapes import Shapes, Sizes, input_sizes, open_inputs

Macs = Mapping[int, int]
_LENGTHS = ("seq", "len", "time", "frame", "width", "height", "token", "sample")


@dataclass(frozen=True)
class Counted:
    """A graph with shapes, and what its nodes multiply for one image.

    Attributes:
        graph: With the shapes of its values.
        macs: Multiply-accumulates by the place of the node.
        notes: What was assumed of the batch.
    """

    graph: OnnxGraph
    macs: Macs
    notes: tuple[str, ...] = ()


def counted(
    graph: OnnxGraph, given: Mapping[str, Sequence[int]] | Sequence[int] | None, *, batch: int | None = None
) -> Counted:
    """Shapes and multiply-accumulates of a graph for one image.

    A first dimension is the batch if every node does twice the work, or the same, on twice as much of it. Where the
    file fixes its size, the outputs decide, with a note.

    Args:
        graph: The file.
        given: Sizes of inputs that the file leaves open.
        batch: How many images the inputs hold; None = to be found out.

    Raises:
        InputError: A dimension stays open, a shape is unknown, or the batch does not divide the work of a layer.
    """
    check_batch(batch)
    sizes = input_sizes(graph, given)
    shapes = Shapes(graph)
    graph, macs = _measured(graph, shapes, sizes)
    weights = {operand(node, p.right) for node in graph.nodes if (p := PRODUCTS.get(operator(node))) is not None}
    rows = {name: shape[0] for name, shape in sizes.items() if shape and name not in weights}
    notes = _open_lengths(graph)
    candidates = [size for size in dict.fromkeys(rows.values()) if batch in (None, size)]
    if batch == 1 or (batch is None and set(candidates) <= {1}):
        return Counted(graph, macs, notes)
    found = []
    for size in candidates:
        doubled = {name: (2 * size, *shape[1:]) if rows.get(name) == size else shape for name, shape in sizes.items()}
        more = _grown(graph, macs, shapes, doubled)
        if more is not None:
            found.append((sum(more.values()), size, more))
    if found:
        _, size, more = max(found, key=lambda entry: entry[:2])
        return Counted(
            graph, {place: n if more[place] == n else _share(n, size, place, graph) for place, n in macs.items()}, notes
        )
    if batch is None:
        size, note = _from_outputs(graph, sizes, rows)
        notes = (*notes, *filter(None, [note]))
    else:
        size = batch
    return Counted(graph, {place: _share(n, size, place, graph) for place, n in macs.items()}, notes)


def _measured(graph: OnnxGraph, shapes: Shapes, sizes: Sizes) -> tuple[OnnxGraph, Macs]:
    needed = [value for node in graph.nodes for value in operands_of(node)]
    found, types, why = shapes.infer(sizes, needed)
    graph = replace(graph, shapes=found, types=types)
    multiplying = [place for place, node in enumerate(graph.nodes) if next(operands_of(node), "")]
    return graph, {place: macs_of(graph.nodes[place], found, why) for place in multiplying}


def _grown(graph: OnnxGraph, macs: Macs, shapes: Shapes, sizes: Sizes) -> Macs | None:
    """Work on twice the images; None where some node does neither twice as much nor the same."""
    try:
        larger, more = _measured(graph, shapes, sizes)
    except InputError:
        return None
    if macs.keys() != more.keys() or all(more[place] == n for place, n in macs.items()):
        return None
    if not all(_fits(node, larger.shapes) for node in graph.nodes if node.op_type == "Reshape"):
        return None
    for place, n in macs.items():
        before, after = images_of(graph.nodes[place], graph.shapes), images_of(larger.nodes[place], larger.shapes)
        factor = 1 if before is None or after is None else after / before
        if more[place] not in ({n, 2 * n} if before is None else {factor * n}) or factor not in (1, 2):
            return None
    return more


def _fits(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a reshape holds as many entries as it is given, which inference does not check."""
    before, after = shapes.get(operand(node, 0)), shapes.get(node.output[0])
    return before is None or after is None or math.prod(before) == math.prod(after)


def _share(macs: int, batch: int, place: int, graph: OnnxGraph) -> int:
    if macs % batch:
        raise InputError(f"batch must divide the {macs} MACs of {node_name(graph.nodes[place])!r}, got {batch}")
    return macs // batch


def _from_outputs(graph: OnnxGraph, sizes: Sizes, rows: Mapping[str, int]) -> tuple[int, str]:
    """The batch that inputs, outputs and convolutions have in common, or else 1, and the note that says so."""
    largest = max((shape for shape in sizes.values() if shape), key=math.prod)
    if largest[0] == 1:
        return 1, ""
    images = [n for node in graph.nodes if (n := images_of(node, graph.shapes)) is not None]
    first = [shape[0] for shape in graph.outputs if shape]
    for name, size in rows.items():
        if size > 1 and set(first) == {size} and not any(n % size for n in images):
            return size, (
                f"The first dimension of input {name!r}, {size}, is counted as the batch, because every output has it: "
                "say how many images there are (batch) if it is not."
            )
    shown = ", ".join(f"{name!r} {'x'.join(map(str, shape))}" for name, shape in graph.inputs.items())
    return 1, (
        f"No dimension of the inputs ({shown}) was found to be the batch, so the counts are those of the whole input: "
        "say how many images it holds (batch)."
    )


def _open_lengths(graph: OnnxGraph) -> tuple[str, ...]:
    """Open first dimensions that were counted as 1 although their name says that they are no batch."""
    return tuple(
        f"Dimension {entry.dims[0]!r} of input {entry.name!r} is open and counted as 1."
        for entry in open_inputs(graph)
        if entry.dims and isinstance(entry.dims[0], str) and any(word in entry.dims[0].lower() for word in _LENGTHS)
        if graph.shapes.get(entry.name, (0,))[0] == 1
    )
