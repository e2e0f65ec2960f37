"""One small folder for every kind of file that Slimbit reads, and the calls that read it."""

import hashlib
import io
import json
import pickle
import shutil
import sqlite3
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

from isolated import BAIT, MARK
from mutations import TEXTS, by_name, of_bytes, of_pickle, of_place, of_safetensors

QUICK = ("--points", "1", "--no-baselines", "--calibration-images", "8", "--evaluate-images", "20")
SHORT = ("--epochs", "1", "--batch-size", "32", "--train-images", "64", "--validation-images", "10")
BAIT_SOURCE = f'open("{MARK}", "w").close()\n\ndef build():\n    raise SystemExit("ran")\n\ndata = build\n'


@dataclass(frozen=True)
class Kind:
    """One kind of file, or of folder.

    Attributes:
        make: Writes the undamaged folder.
        calls: What reads it: arguments of ``slimbit``, or ``data SPEC`` and ``load FOLDER`` for calls of Python.
        files: Patterns of the files that are damaged.
        share: How often it is chosen.
        damage: Other ways to damage it than by file.
        slow: Calls that compute for seconds where nothing refuses the file; one case in twelve.
    """

    make: Callable[[Path], object]
    calls: tuple[str, ...]
    files: tuple[str, ...]
    share: int = 1
    damage: Callable[[Random, Path], str] | None = None
    slow: tuple[str, ...] = ()


def slimbit(*arguments: str) -> None:
    """The command line, in this process."""
    from slimbit.__main__ import main

    sys.argv = ["slimbit", *arguments]
    main()


def call(words: str) -> None:
    """One of `Kind.calls`."""
    first, *rest = words.split()
    if first not in ("data", "load"):
        slimbit(first, *rest)
        return
    from slimbit.records.errors import SlimbitError

    try:
        if first == "load":
            import torch

            from slimbit import load

            model = load(rest[0])
            model.model(torch.zeros(1, 1, 8, 8))
        else:
            _use_data(rest[0])
    except SlimbitError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def _use_data(spec: str) -> None:
    from slimbit import open_data

    data = open_data(spec)
    data.normalization  # noqa: B018 - read
    list(data.calibration(4))
    evaluator = data.evaluator(2)
    evaluator.digest  # noqa: B018 - reads every picture
    from torch import nn

    class Zeros(nn.Module):
        def forward(self, x: "object") -> "object":
            return x.new_zeros(len(x), data.classes)  # type: ignore[attr-defined]

    evaluator(Zeros())


def _made(*arguments: str) -> None:
    """A command that must succeed, and others come after it."""
    try:
        slimbit(*arguments)
    except SystemExit as end:
        if end.code:
            raise


def _run(folder: Path) -> None:
    _made("frontier", "digits_resnet", "--data", "digits", *QUICK, "--widths", "1,0.5", "--out", str(folder / "run"))


def _artifact(folder: Path) -> None:
    _run(folder)
    _made("pick", str(folder / "run"), "--budget", "esn_digital=1G", "--no-score", "--out", str(folder / "art"))
    shutil.rmtree(folder / "run")


def _integers(folder: Path) -> None:
    out = str(folder / "run")
    _made("frontier", "digits_resnet", "--data", "digits", *QUICK, "--activation-bits", "8", "--out", out)
    _made("pick", out, "--budget", "esn_digital=1G", "--no-score", "--out", str(folder / "art"))
    shutil.rmtree(folder / "run")
    _made("export", str(folder / "art"), "--out", str(folder / "net.onnx"), "--no-verify")


def _pruned(folder: Path) -> None:
    _made("prune", "digits_resnet", "--data", "digits", "--calibration-images", "8", "--evaluate-images", "20",
            "--out", str(folder / "slim"))  # fmt: skip


def _trained(folder: Path) -> None:
    _made("train", "digits_resnet@0.25", "--data", "digits", *SHORT, "--out", str(folder / "trained"))


def _weights(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from slimbit.zoo import shipped_weights

    state, card = load_file(shipped_weights("digits_resnet")), {"network": "digits_resnet", "data": "digits"}
    save_file(state, folder / "w.safetensors", {"slimbit": json.dumps(card)})
    torch.save({"epoch": 3, "state_dict": state}, folder / "zip.pth")
    torch.save({"epoch": 3, "state_dict": state}, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "zip.pth.card.json").write_text(
        json.dumps(card | {"normalize": {"mean": [0.3], "std": [0.5]}, "classes": 10})
    )


def _digits(folder: Path) -> dict[str, "object"]:
    import numpy as np

    generator = np.random.default_rng(0)
    parts = {"train": 20, "test": 10}
    images = {f"{n}_images": generator.random((k, 1, 8, 8), np.float32) for n, k in parts.items()}
    return images | {f"{name}_labels": np.arange(count) % 10 for name, count in parts.items()}


def _arrays(folder: Path) -> None:
    import numpy as np

    np.savez(folder / "d.npz", **_digits(folder))
    np.savez_compressed(folder / "e.npz", images=np.zeros((12, 6, 6, 3), np.uint8), labels=np.arange(12) % 3)


def _pictures(folder: Path) -> None:
    from PIL import Image

    for part in ("train", "val"):
        for label, suffix in (("a", "png"), ("b", "jpg"), ("c", "bmp")):
            place = folder / "pictures" / part / label
            place.mkdir(parents=True)
            for number in range(3):
                Image.effect_noise((8, 8), 60).convert("RGB").save(place / f"{number}.{suffix}")


def _cifar(folder: Path) -> None:
    import numpy as np

    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    (folder / "binary").mkdir()
    (folder / "python").mkdir()
    for name in names:
        pixels = np.random.default_rng(0).integers(0, 256, (2, 3073), np.uint8)
        pixels[:, 0] = (3, 4)
        pixels.tofile(folder / "binary" / f"{name}.bin")
        content = {b"data": pixels[:, 1:].copy(), b"labels": [3, 4], b"batch_label": name.encode()}
        (folder / "python" / name).write_bytes(pickle.dumps(content, protocol=2))


TRAIN = """epochs = 1
batch_size = 32
seed = 3
train_images = 64
validation_images = 10
network = "digits_resnet@0.25"
data = "digits"
[optimizer]
learning_rate = 0.1
momentum = 0.9
[schedule]
name = "step"
milestones = [1]
[augment]
crop = 1
flip = false
"""
FRONTIER = """network = "digits_resnet"
data = "digits,normalize=none"
input = "1x8x8"
metric = "esn_digital"
points = 1
baselines = false
keep_ratios = [1.0]
seed = 0
calibration_images = 8
evaluate_images = 20
near = {accuracy = 50.0}
[quant]
grid = "midrise"
skip = ["linear"]
statistics = "paired"
activation_range = "mse"
"""
HARDWARE = """name = "npu"
unit = "cycles"
source = "data sheet"
skips_zeros = true
zero_overhead = 0.75
[[mode]]
weight_bits = 32
activation_bits = 32
weight_slice_bits = 8
activation_slice_bits = 8
cost_per_mac = 0.0625
picojoules_per_mac = 0.3
"""


def _settings(folder: Path) -> None:
    (folder / "t.toml").write_text(TRAIN)
    (folder / "f.toml").write_text(FRONTIER)


def _hardware(folder: Path) -> None:
    (folder / "h.toml").write_text(HARDWARE)


def _onnx(folder: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def node(kind: str, inputs: str, output: str, domain: str = "", **more: object) -> onnx.NodeProto:
        return helper.make_node(kind, inputs.split(), [output], domain=domain, **more)

    generator = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    tensors = {
        "w": floats(4, 3, 3, 3), "q": generator.integers(-7, 8, (6, 4, 1, 1)).astype(np.int8), "s": np.float32(0.1),
        "z": np.int8(0), "one": np.float32(1), "zero": np.float32(0), "four": np.float32(4), "fc": floats(6, 2),
        "shape": np.array([-1, 6], np.int64), "b": floats(2),
    }  # fmt: skip
    nodes = [
        node("Quant", "w one zero four", "wq", "qonnx.custom_op.general", signed=1, narrow=1, rounding_mode="ROUND"),
        node("Conv", "x wq", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "a", "r"), node("DequantizeLinear", "q s z", "v"), node("Conv", "r v", "c"),
        node("GlobalAveragePool", "c", "p"), node("Reshape", "p shape", "f"), node("Gemm", "f fc b", "y"),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "net", [value("x", TensorProto.FLOAT, ("N", 3, 8, 8))], [value("y", TensorProto.FLOAT, ("N", 2))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("qonnx.custom_op.general", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), folder / "a.onnx")
    function = helper.make_function(
        "own", "Twice", ["u"], ["t"], [node("Add", "u u", "t")], [helper.make_opsetid("", 21)]
    )
    loop = helper.make_graph(
        [node("Identity", "i_cond", "o_cond"), node("Conv", "i_x w5", "o_x")], "body",
        [value("i", TensorProto.INT64, ()), value("i_cond", TensorProto.BOOL, ()), value("i_x", TensorProto.FLOAT, None)],
        [value("o_cond", TensorProto.BOOL, ()), value("o_x", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [node("Twice", "x", "x2", "own"), node("Loop", "n yes x2", "y"), node("Conv", "y w5", "y3")], "loop",
        [value("x", TensorProto.FLOAT, (1, 3, 8, 8))], [value("y3", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(floats(3, 3, 1, 1), "w5"), numpy_helper.from_array(np.array(3), "n"),
         numpy_helper.from_array(np.array(True), "yes")],
    )  # fmt: skip
    other.node[1].attribute.append(helper.make_attribute("body", loop))
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(other, opset_imports=imports, functions=[function], ir_version=10), folder / "b.onnx")


def _program(folder: Path) -> None:
    import torch
    from torch import nn

    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    torch.export.save(torch.export.export(network, (torch.zeros(1, 2, 4, 4),)), folder / "net.pt2")


def seal_artifact(rng: Random, folder: Path) -> str:
    """A file of an artifact changed, and every hash made right, as an attacker would."""
    art = folder / "art"
    manifest = json.loads((art / "slimbit.json").read_text())
    del manifest["digest"]
    name = rng.choice(("slimbit.json", "slimbit.json", *manifest["files"]))
    if name == "slimbit.json":
        try:
            manifest = json.loads(by_name(name)(rng, json.dumps(manifest).encode()))
        except (ValueError, RecursionError):
            return "manifest left as it is"
    else:
        content = by_name(name)(rng, (art / name).read_bytes())
        (art / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    sealed = {**manifest, "digest": digest} if isinstance(manifest, dict) else manifest
    (art / "slimbit.json").write_text(json.dumps(sealed))
    return f"sealed {name}"


def seal_run(rng: Random, folder: Path) -> str:
    """An object of a run changed, kept under its new hash, and every reference to it made right."""
    run = folder / "run"
    file = rng.choice(sorted((run / "objects").rglob("*.*")))
    content = by_name(file.name if file.suffix != ".safetensors" else "x.safetensors")(rng, file.read_bytes())
    new = hashlib.sha256(content).hexdigest()
    place = run / "objects" / new[:2]
    place.mkdir(exist_ok=True)
    (place / f"{new}{file.suffix}").write_bytes(content)
    with closing(sqlite3.connect(run / "study.db")) as connection:
        for table in ("trial_user_attributes", "study_user_attributes"):
            connection.execute(f"UPDATE {table} SET value_json = replace(value_json, ?, ?)", (file.stem, new))
        if rng.random() < 0.5:  # so that something is left to do
            connection.execute("DELETE FROM trials WHERE number = 0")
        connection.commit()
    return f"sealed {file.name[:8]}{file.suffix}"


def odd_words(rng: Random, folder: Path) -> str:
    """Nothing in the folder changes: the command's arguments do, see `words_of`."""
    return "arguments"


KINDS: Mapping[str, Kind] = {
    "weights": Kind(
        _weights,
        ("cost digits_resnet --weights w.safetensors", "cost w.safetensors --per parameter", "cost digits_resnet --weights zip.pth",
         "cost digits_resnet --weights old.pth"),
        ("w.safetensors", "*.pth", "*.card.json"), share=6,
        slow=(f"frontier --weights w.safetensors {' '.join(QUICK)} --out new", f"frontier --weights zip.pth {' '.join(QUICK)} --out new"),
    ),
    "arrays": Kind(_arrays, ("data npz:d.npz", "data npz:e.npz", "data npz:e.npz,layout=nhwc"), ("*.npz",), share=4),
    "pictures": Kind(_pictures, ("data images:pictures,normalize=none,size=8", "data images:pictures,normalize=none"),
                     ("pictures/*/*/*",), share=4),
    "cifar": Kind(_cifar, ("data cifar10:binary,normalize=none", "data cifar10:python,normalize=none"),
                  ("binary/*", "python/*"), share=4),
    "run": Kind(
        _run,
        ("points run", "points run --json", "report run", "pick run --budget esn_digital=1G --no-score --out new"),
        ("run/run.json", "run/study.db", "run/study.db", "run/objects/*/*", "run/stages/*/*"), share=8, damage=seal_run,
        slow=("pick run --max-drop 50 --out new", f"frontier digits_resnet --data digits {' '.join(QUICK)} --widths 1,0.5 --out run"),
    ),
    "artifact": Kind(
        _artifact, ("load art", "load art", "export art --float --no-verify --out new.onnx"), ("art/*",), share=5,
        damage=seal_artifact,
    ),
    "integers": Kind(
        _integers, ("load art", "export art --no-verify --out new.onnx", "verify net.onnx art --images 2",
                    "cost net.onnx", "latency net.onnx --seconds 0.01 --threads 1"),
        ("art/*", "net.onnx", "net.onnx"), share=5, damage=seal_artifact,
    ),
    "pruned": Kind(_pruned, ("load slim", "cost slim", "export slim --float --no-verify --out new.onnx"), ("slim/*",), share=4),
    "trained": Kind(
        _trained,
        ("signal trained --json", "signal trained"),
        ("trained/*.json*", "trained/*.json*", "trained/checkpoint.safetensors"), share=5,
        slow=(f"train digits_resnet@0.25 --data digits {' '.join(SHORT)} --out trained",
         ("prune digits_resnet@0.25 --weights trained/model.safetensors --data digits --by signal --signal trained "
         "--calibration-images 8 --evaluate-images 20 --out new")),
    ),
    "settings": Kind(_settings, ("frontier --config f.toml --out new", "train --config t.toml --out new"), ("*.toml",), share=4),
    "hardware": Kind(_hardware, ("cost digits_resnet --hardware h.toml", "cost digits_resnet --bits 4 --hardware h.toml --json"),
                     ("h.toml",), share=3),
    "onnx": Kind(_onnx, ("cost a.onnx", "cost b.onnx", "cost a.onnx --json --per parameter", "latency b.onnx --seconds 0.01 --threads 1"),
                 ("*.onnx",), share=6),
    "program": Kind(_program, ("cost net.pt2 --allow-code", "cost net.pt2 --allow-code", "cost net.pt2"), ("net.pt2",), share=3),
    "words": Kind(
        _weights, ("cost digits_resnet --weights w.safetensors --bits 4 --per mac --hardware loom", "points run", "cost w.safetensors",
                   "load art", "data digits",
                   "report run --storage sqlite:///x.db"),
        (), share=3, damage=odd_words, slow=(f"frontier digits_resnet --data digits {' '.join(QUICK)} --out new",),
    ),
}  # fmt: skip


def damage(rng: Random, kind: Kind, folder: Path) -> str:
    """Damage one file, rarely two; says what was done."""
    if kind.damage is not None and (not kind.files or rng.random() < 0.4):
        return kind.damage(rng, folder)
    said = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        files = sorted(
            file for file in folder.glob(rng.choice(kind.files)) if file.is_file() and file.stat().st_size < 1 << 26
        )
        if not files:
            continue
        file = rng.choice(files)
        name = str(file.relative_to(folder))
        if rng.random() < 0.06:
            said.append(f"{name}: {of_place(rng, file)}")
            continue
        mutation = by_name(name)
        if file.parent.name == "python" or name == "old.pth":
            mutation = of_pickle
        elif file.suffix == ".bin" or rng.random() < 0.1:
            mutation = of_bytes
        elif rng.random() < 0.02:
            mutation = of_safetensors if len(file.read_bytes()) > 100 else of_bytes
        content = file.read_bytes()
        try:
            file.write_bytes(mutation(rng, content))
        except Exception:
            file.write_bytes(of_bytes(rng, content))
        said.append(f"{name}: {mutation.__name__}")
    return ", ".join(said)


def words_of(rng: Random, kind: Kind) -> str:
    """One of the calls; for the kind of arguments with one of them replaced."""
    words = rng.choice(kind.slow if kind.slow and rng.random() < 1 / 12 else kind.calls)
    if kind.files:
        return words
    parts = words.split()
    place = rng.randrange(1, len(parts))
    odd = [text for text in TEXTS if text and not set(text) & set(" \n\0") and text.encode(errors="ignore") != b""]
    parts[place] = rng.choice(odd)
    return " ".join(parts)


def whole(stream: io.BytesIO) -> bytes:
    """Everything in a stream."""
    return stream.getvalue()


def with_bait(folder: Path) -> Path:
    """The folder with a module that leaves a trace when it is imported."""
    (folder / f"{BAIT}.py").write_text(BAIT_SOURCE)
    return folder
