"""Survey of a program of ``torch.export``: its graph is read, never run."""

import io
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import ExportedProgram

from slimbit.records.containers import check_inflation
from slimbit.records.errors import InputError
from slimbit.records.files import read_regular
from slimbit.survey.batch import check_batch
from slimbit.survey.collect import with_clear_errors
from slimbit.survey.exported_graph import GraphReader
from slimbit.survey.files import existing_file, reading
from slimbit.survey.result import Survey

_KIND = "torch.export (.pt2)"
_PROGRAM_FILES = ("models/model.json", "serialized_exported_program.json")
LARGEST_PROGRAM = 1 << 34
"""Bytes of a program's file."""
ALWAYS_FINE = 1 << 26
"""Bytes that an archive may hold whatever its own size."""
_LOUD = ("torch.export", "torch.export.pt2_archive._package", "torch._export.serde.serialize")


def survey_exported(
    path_or_program: str | Path | ExportedProgram, *, batch: int | None = None, allow_code: bool = False
) -> Survey:
    """Layers of a ``torch.export`` program, from the shapes that the graph carries.

    A weight is what a convolution, linear layer or matrix product multiplies and that depends on parameters
    only, so transposed, sliced and weight-normalized parameters are found. Products of two activations
    (attention scores) are listed as other work. Counts are per image: a first dimension that inputs and outputs have
    in common is the batch, with a note where it is not 1, and a dynamic one counts as 1.

    Warning:
        ``torch.export.load`` unpickles parts of the file and evaluates expressions in it: **a file from an
        untrusted source can run any code.** A checksum test before loading refuses accidental damage, not
        malice. For files of strangers use ONNX or safetensors.

    Args:
        path_or_program: A ``.pt2`` file written by ``torch.export.save``, or the program itself.
        batch: How many images the inputs hold; default: found out.
        allow_code: Whether a file may be opened although that can run code in it.

    Returns:
        The survey; weights are read from the loaded program.

    Raises:
        InputError: The file is missing, damaged, of another kind or not trusted, a dimension other than the batch is
            dynamic, or a layer has no weights.

    Example:
        >>> nn = torch.nn
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))
        >>> survey = survey_exported(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)))
        >>> [(layer.name, layer.positions, layer.macs) for layer in survey.spec.layers]
        [('0', 36, 7776), ('2', 1, 2880)]
    """
    check_batch(batch)
    if isinstance(path_or_program, ExportedProgram):
        with reading("the exported program", "torch.export"):
            survey = GraphReader(path_or_program, batch=batch).survey("exported program")
        return with_clear_errors(survey, "the exported program", "torch.export")
    file = existing_file(path_or_program, _KIND)
    if not allow_code:
        raise InputError(
            f"{_KIND} file must be trusted, since opening it can run code in it, got {file}: allow that with "
            "allow_code=True, or export to ONNX"
        )
    with reading(file, _KIND), _quiet():
        survey = GraphReader(_load(file), batch=batch).survey(file.stem)
    return with_clear_errors(survey, file, _KIND)


def _load(file: Path) -> ExportedProgram:
    content = read_regular(file, f"the {_KIND} file", limit=LARGEST_PROGRAM)
    # torch stores weights as they are; only its small texts are compressed
    check_inflation(io.BytesIO(content), len(content), f"the {_KIND} file {file}", times=4, always=ALWAYS_FINE)
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise InputError(f"{file} must be a {_KIND} file, got something that is no zip archive")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # Damage must be found here: the loader unpickles what it is given, checksums or not.
        broken = archive.testzip()
        if broken is not None:
            raise InputError(f"{file} must be an undamaged {_KIND} file, got a bad checksum in {broken}")
        if not any(name.endswith(_PROGRAM_FILES) for name in archive.namelist()):
            raise InputError(
                f"{file} must be a {_KIND} file, got a zip archive without a program; "
                "write one with torch.export.save, not torch.save or torch.jit.save"
            )
    return torch.export.load(io.BytesIO(content))


class _Swallow(logging.Filter):
    """Drops log records and keeps the error that the last one carried."""

    cause: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            self.cause = record.exc_info[1]
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """The loader logs why it failed, traceback and all, and raises something else; here the why is raised."""
    swallow = _Swallow()
    loggers = [logging.getLogger(name) for name in _LOUD]
    for logger in loggers:
        logger.addFilter(swallow)
    try:
        yield
    except RuntimeError as error:
        raise swallow.cause or error from error
    finally:
        for logger in loggers:
            logger.removeFilter(swallow)
