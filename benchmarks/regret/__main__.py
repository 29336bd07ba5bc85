"""How good `schedule best = auto` is: what it picks, against the best of all plans that are worth measuring.

Three steps, from the root of the repository. Here, where the compiler is (CPU, about two minutes):

    python -m benchmarks.regret compile -o build/regret

writes for each example layer a folder of programs: serial, and of every way for rows to travel those predicted best at
some load. Then on a machine with two GPUs, which needs torch, that folder and this repository, and no more:

    python -m benchmarks.regret measure build/regret --out build/regret/results --budget 540

fills `results` with a file for each layer. Called again it goes on where it ended (exit code 4: something is left), so
several calls of a few minutes will do; `--layers` takes some of them only. Back here:

    python -m benchmarks.regret report build/regret --results build/regret/results \\
        --keep benchmarks/regret/h200x2.json --page docs/regret.md --svg docs/predicted.svg

keeps what was measured (in the place of what was kept of the same layers before), and predicts and chooses with the
compiler and the profile as they are then, so that it can be said again after a change without GPUs: `python -m
benchmarks.regret report`, which reads what was kept.

The whole thing at tiny sizes on CPU ranks: `--preset small --loads 16 48` for `compile`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.regret.measure import measure
from benchmarks.regret.plans import LOADS, Case, with_plans, worth
from benchmarks.regret.plot import svg
from benchmarks.regret.report import collect, page, rows_of, summary, table
from epsc import driver
from epsc.bench.programs import Wanted, compile_all
from epsc.grammar import format_spec
from epsc.ir.errors import EpsError
from epsc.ir.spec import ScheduleDecl, Spec

KEPT = Path(__file__).parent / "h200x2.json"
AGAIN = 4
"""Exit code: something is left to measure."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    step = steps.add_parser("compile", help="write programs of the plans that are worth measuring")
    step.add_argument("files", type=Path, nargs="*", help="layers; the examples if none")
    step.add_argument("-o", "--output", type=Path, default=Path("build/regret"))
    step.add_argument("--loads", type=int, nargs="+", default=LOADS, help="tokens per rank")
    step.add_argument("--ranks", type=int, default=2)
    step.add_argument("--preset")
    step.add_argument("--near", type=int, default=3, help="plans that are taken at each load")
    step.set_defaults(call=_compile)
    step = steps.add_parser("measure", help="measure them; needs torch, and no compiler")
    step.add_argument("folder", type=Path, help="what compile wrote")
    step.add_argument("--out", type=Path, default=Path("build/regret/results"))
    step.add_argument("--budget", type=float, default=540, help="seconds after which nothing is begun")
    step.add_argument("--layers", nargs="+", default=[])
    step.add_argument("--rounds", type=int, default=4)
    step.add_argument("--runs", type=int, default=2)
    step.set_defaults(call=_measure)
    step = steps.add_parser("report", help="regret and errors of predictions")
    step.add_argument("folder", type=Path, nargs="?", help="what compile wrote; else what was kept")
    step.add_argument("--results", type=Path, help="what measure wrote; results in the folder")
    step.add_argument("--keep", type=Path, help="write what was measured to this file")
    step.add_argument("--page", type=Path, help="write a page of the docs")
    step.add_argument("--svg", type=Path, help="write predicted against measured")
    step.add_argument("--profile", help="predict with this cluster profile")
    step.set_defaults(call=_report)
    given = parser.parse_args()
    try:
        given.call(given)
    except EpsError as error:
        raise SystemExit(str(error)) from None


def _compile(given: argparse.Namespace) -> None:
    files = given.files or sorted(Path("examples").glob("*.eps"))
    most = max(given.loads)
    index: dict[str, object] = {"ranks": given.ranks, "preset": given.preset, "loads": given.loads, "most": most}
    layers: dict[str, object] = {}

    def refused(name: str, error: EpsError) -> None:
        print(f"{name} is left out:\n{error}", file=sys.stderr)

    for file in files:
        cases = [Case(file, tokens, given.ranks, given.preset) for tokens in given.loads]
        plans = {"serial": ScheduleDecl("serial"), **worth(cases, given.near)}
        options = driver.Options({"tokens": str(most)}, preset=given.preset)
        wanted = [Wanted.parse(name) for name in plans]
        new = {name: decl for name, decl in plans.items() if name != "serial"}
        source = with_plans(driver.read(file), new)
        made = compile_all(source, options, wanted, [given.ranks], given.output / file.stem, refused)
        texts = {p["name"]: format_spec(Spec((plans[p["name"]],))) for p in made}
        layers[file.stem] = {"file": str(file), "plans": texts}
        print(f"{file.stem}: {', '.join(texts)}", flush=True)
    driver.save(given.output / "plans.json", json.dumps({**index, "layers": layers}, indent=1) + "\n")


def _measure(given: argparse.Namespace) -> None:
    given.out.mkdir(parents=True, exist_ok=True)
    whole = measure(given.folder, given.out, given.budget, given.layers, given.rounds, given.runs)
    if not whole:
        print("something is left: call this again to go on", file=sys.stderr)
        sys.exit(AGAIN)


def _report(given: argparse.Namespace) -> None:
    if given.folder:
        before = given.keep and given.keep.exists()
        earlier = json.loads(given.keep.read_text(encoding="utf-8")) if before else {}
        kept = collect(given.folder, given.results or given.folder / "results", earlier.get("layers", {}))
    else:
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
    rows = list(rows_of(kept, given.profile))
    if not rows:
        raise SystemExit("nothing was measured")
    if given.keep:
        driver.save(given.keep, json.dumps(kept, indent=1) + "\n")
    if given.page:
        command = "python -m benchmarks.regret report --page docs/regret.md --svg docs/predicted.svg"
        driver.save(given.page, page(kept, rows, command))
    if given.svg:
        driver.save(given.svg, svg(rows))
    print("\n".join([*table(rows), "", *summary(rows)]))


if __name__ == "__main__":
    main()
