"""What goes into a file beside its operations: how its integers are meant, and where it comes from."""

from slimbit.apply.integers import IntegerProgram
from slimbit.records.dataflow import Operation
from slimbit.survey.onnx_contents import Contents


def contents_of(program: IntegerProgram) -> str:
    """The metadata by which the file's integers are read as the artifact's levels."""
    grids, norms = {}, set()
    for integer in program.stages:
        head = integer.stage.head
        if integer.layer is None:
            continue
        if head.kind == "norm":
            norms.add(node_name(integer.stage.value, head))
        else:
            grids[f"{head.name}.weight"] = integer.layer.grid
    return Contents(grids=grids, norms=tuple(norms)).to_text()


def node_name(value: str, head: Operation) -> str:
    """Name of the node that multiplies the weights of a lone norm."""
    return f"{value}/flat_result" if len(head.shape) == 1 else f"{value}/result"
