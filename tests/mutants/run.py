"""Which faults do the tests let pass? One line of the source is changed at a time, and its nearest tests are run.

    make mutants
    python tests/mutants/run.py ridge stretch     # only those whose name holds one of these words

Not a gate: it takes minutes. A mutant that survives is a missing test. Prints a line per mutant and the survivors;
exits with 1 if there are any, with 2 if a line to change is not there (then the table below is out of date).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PASS = "tests/reference/test_posttraining_reference.py"
KINDS = "tests/conformance/test_quantize_conformance.py"
ROUNDING = "tests/reference/test_rounding_reference.py"
PRUNING = "tests/integration/test_pruning.py"
SURFACE = "tests/integration/test_surface.py"
SPACING = "tests/property/test_spread.py"


@dataclass(frozen=True)
class Mutant:
    """A fault: ``old`` becomes ``new``, at the one place where ``old`` stands.

    Attributes:
        only: Expression for pytest's ``-k``; "" = all tests of the files.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    only: str = ""


MUTANTS = (
    # faults that once went unnoticed
    Mutant("statistics are not restored before they are re-estimated", "apply/reestimate.py",
           "        _restore(network, source, plan)\n", "", (PRUNING,), "reestimation or statistics"),
    Mutant("every channel counts as a constant", "apply/constants.py",
           "TOLERANCE, INTERIOR = 1e-3, 0.6", "TOLERANCE, INTERIOR = 1e-3, 0.0", (PRUNING,), "no_constant"),
    Mutant("compensation factors without the share of the mean", "apply/compensation.py",
           "max(spread * compensation_factor(", "max(compensation_factor(", (PASS,), "ESN_d"),
    Mutant("no mean is free", "apply/layerwise.py",
           'return absorbs and self.plan.config.statistics != "stored"', "return False", (PASS,), "ESN_d"),
    Mutant("pruning what pays forgets what levels cost", "plan/steps.py",
           "0.5 * s * error + charge * cost <", "0.5 * s * error <", (PASS, KINDS), "rise and not zero"),
    Mutant("no sweeps of coordinate descent", "apply/quantize.py", "SWEEPS = 2", "SWEEPS = 0", (PASS,), "ESN_d"),
    Mutant("ridge 1.0", "apply/quantize.py", "RIDGE = 0.1", "RIDGE = 1.0", (PASS,), "ESN_d"),
    Mutant("stretch 1.0", "plan/steps.py", "STRETCH = 1.25", "STRETCH = 1.0", (PASS,), "ESN'_d"),
    Mutant("no clamp of a refitted step", "numerics/rounding.py",
           ", 0.0).clamp(min=0)", ", 0.0)", (ROUNDING,), "refit"),
    Mutant("sampled positions rounded down", "numerics/moments.py",
           "* (total / samples)).long()", "* (total // samples)).long()", (ROUNDING,), "position"),
    Mutant("h in place of h^2 in the spacing of points", "frontier/spacing.py",
           "faults = [h * h * max(", "faults = [h * max(", (SPACING,)),
    # wiring of the pass
    Mutant("quantized weights are not stored for the layers behind", "apply/layerwise.py",
           "        bound.store(self.done[name].weights())\n", "", (PASS,), "ESN_d"),
    Mutant("a corrected bias does not reach the layers behind", "apply/layerwise.py",
           "            return correct_bias(bias,", "            correct_bias(bias,", (PASS,), "ESN_d"),
    Mutant("biases are not corrected layer by layer", "apply/layerwise.py",
           '*(("bias", "batchnorm") if', '*(("batchnorm",) if', (PASS,), "ESN_d"),
    Mutant("paired statistics where absolute ones are asked for", "apply/layerwise.py",
           'form="absolute" if absolute else "paired"', 'form="paired"', (PASS,), "absolute"),
    Mutant("compensation towards the weights only", "apply/layerwise.py",
           'outputs=self.plan.config.target == "outputs"', "outputs=False", (PASS,), "ESN_d"),
    Mutant("a mask is forgotten in the pass", "apply/layerwise.py", "mask=bound.mask()", "mask=None", (KINDS,), "mask"),
    Mutant("factors with another column order than compensation", "numerics/rounding.py",
           "_upper_factor(moment, column_order(moment)).diagonal",
           "_upper_factor(moment, column_order(moment).flip(1)).diagonal", (PASS,), "ESN_d"),
    Mutant("sensitivity of another image count", "measure/sensitivity.py",
           "            images += count_of(piece)\n", "            images += 1\n", (PASS,), "ESN_d"),
    Mutant("integers of quantized activations are not bounded", "plan/steps.py",
           "        plan = _as_integers(plan, weights, config)\n", "", ("tests/unit/test_integer_plans.py",)),
    Mutant("layers that share a tensor do not add up", "plan/inputs.py",
           " + sum(other.multiplicity(per) for other in sharing)", "", ("tests/reference/test_rounding_reference.py",
           "tests/integration/test_compress.py", PASS), "shar or tied"),
    # wiring of what is kept and chosen
    Mutant("the cost of a masked network counts its masked weights", "compress/prepared.py",
           "CostConfig(per=plan.config.per), keep=lambda layer: self.masks.get(layer.name))",
           "CostConfig(per=plan.config.per))", (KINDS, SURFACE), "mask"),
    Mutant("an earlier pruning is forgotten", "compress/prune.py",
           "keep=stage.plan if before is None else before.compose(stage.plan)", "keep=stage.plan", (SURFACE,)),
    Mutant("a budget of one metric is enough", "compress/quantize.py",
           "return plan if all(_amount(", "return plan if any(_amount(", (SURFACE,), "budget"),
    Mutant("a point within one of the budgets is enough", "frontier/select.py",
           "if all(_cost(p, metric) <= amount", "if any(_cost(p, metric) <= amount", (SURFACE,
           "tests/unit/test_frontier_parts.py"), "within or budget"),
    Mutant("hits per image are not kept", "frontier/points.py",
           'hits=score.hits if isinstance(score, Accuracy) else ""', 'hits=""', ("tests/integration/test_frontier.py",),
           "hits or images"),
    Mutant("normalization is not saved", "compress/model.py",
           "            normalization=self.origin.normalization,\n            provenance", "            provenance",
           ("tests/integration/test_pick.py", SURFACE), "artifact or saved"),
)  # fmt: skip


def main() -> int:
    """Run the mutants whose name holds one of the words that were given; all without any."""
    words = sys.argv[1:]
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    for mutant in chosen:
        found = (ROOT / "src/slimbit" / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if found != 1:
            print(f"{mutant.name}: {mutant.old!r} must stand once in {mutant.file}, got {found} times")
            return 2
    survivors, sound = [], {}
    with tempfile.TemporaryDirectory(prefix="slimbit-mutants-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for mutant in chosen:
            tests = mutant.tests, mutant.only
            if tests not in sound:  # tests that fail by themselves kill nothing
                sound[tests] = _failing(mutant, source)
            verdict = _verdict(mutant, source) if sound[tests] == 0 else "TESTS FAIL"
            survivors += [mutant.name] if verdict != "killed" else []
            print(f"{verdict:>10}  {mutant.name}", flush=True)
    print(f"{len(survivors)} of {len(chosen)} survive" + "".join(f"\n  {name}" for name in survivors))
    return 1 if survivors else 0


def _verdict(mutant: Mutant, source: Path) -> str:
    """Whether the nearest tests fail with the fault in place."""
    file = source / "slimbit" / mutant.file
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return "killed" if _failing(mutant, source) else "SURVIVES"
    finally:
        file.write_text(whole, encoding="utf-8")


def _failing(mutant: Mutant, source: Path) -> int:
    """Exit status of the nearest tests: 0 where all pass, 5 where there are none."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests]
    command += ["-k", mutant.only] if mutant.only else []
    # bytecode of another mutant of the same size and second must not be taken for this one's
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
