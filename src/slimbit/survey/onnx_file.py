"""Survey of an ONNX file, quantized ones included."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from slimbit.records.errors import MissingExtraError
from slimbit.survey.collect import with_clear_errors
from slimbit.survey.files import existing_file, reading
from slimbit.survey.result import Survey


def survey_onnx(
    path: str | Path,
    *,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
) -> Survey:
    """Layers of an ONNX file, from its graph and the shapes of its values.

    Convolutions and matrix products whose weight stored tensors alone make are layers; those of two
    activations, and recurrent operators, are other work. Weights that the file stores as integers, or quantizes from
    floats, come as levels: QuantizeLinear / DequantizeLinear (QDQ, also with Clip), integers that are cast and scaled,
    QLinear and Integer operators, QONNX ``Quant`` on the mid-tread grid, ``BipolarQuant`` as one bit on the mid-rise
    grid. Steps that are neither one per layer nor one per filter (blocks) leave the weights as floats, with a note.

    Shapes are inferred. Where they cannot be, the graph is run once by ONNX Runtime, on zeros instead of images and
    weights. Counts are per image: a first dimension is the batch if the graph does twice the work on twice as much of
    it (`slimbit.survey.onnx_batch`), and an open one counts as 1.

    Args:
        path: The file. External data is read from its own folder only.
        input_shape: Shape of the first input, or of inputs by name, with or without the first dimension, where the
            file leaves it open.
        batch: How many images the inputs hold; default: found out.

    Returns:
        The survey; a declared width of a layer's input is in ``activation_bits``.

    Raises:
        MissingExtraError: onnx is not installed.
        InputError: The file is missing, damaged or of another format, its weights lie elsewhere, a shape is
            unknown, the batch does not divide the work, or a layer has no weights.

    Example:
        >>> import onnx.parser, tempfile
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
        ... net (float[N, 2] x) => (float[N, 3] y)
        ... <float[2, 3] weight = {1, 2, 3, 4, 5, 6}> { y = MatMul (x, weight) }''')
        >>> file = tempfile.mkdtemp() + "/net.onnx"
        >>> onnx.save(model, file)
        >>> survey = survey_onnx(file)
        >>> layer = survey.spec.layers[0]
        >>> layer.name, layer.shape, layer.positions, survey.weight(layer).tolist()
        ('weight', (3, 2), 1, [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]])
    """
    if find_spec("onnx") is None:
        raise MissingExtraError("onnx", "onnx", "reading an ONNX file")
    from slimbit.survey.onnx_batch import counted
    from slimbit.survey.onnx_graph import open_graph
    from slimbit.survey.onnx_layers import NodeReader

    file = existing_file(path, "ONNX")
    with reading(file, "ONNX"):
        survey = NodeReader(counted(open_graph(file), input_shape, batch=batch)).survey(file.stem)
    return with_clear_errors(survey, file, "ONNX")
