"""Run a table of a paper, resume it after any interruption, and print it beside the published numbers.

    eql-d2 reproduce list
    eql-d2 reproduce run TABLE [--jobs N] [--gpus-per-job N] [--only ROW ...] [--dry-run]
    eql-d2 reproduce run TABLE --launcher submitit --gpus-per-job 8 --slurm slurm_partition=gpu
    eql-d2 reproduce status TABLE
    eql-d2 reproduce report TABLE --format markdown|csv|latex|html [--baseline ROW] [--output FILE]
    eql-d2 reproduce plot TABLE --output FILE.png [--metrics segm/AP bbox/AP-fixed] [--sort each]
    eql-d2 reproduce coverage [--output docs/coverage.md]

TABLE is a file of configs/tables without its suffix, or the path of a YAML file. docs/reproduce.md describes both.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Optional, Sequence

from eql_d2.errors import InputError
from eql_d2.experiments import reproduce
from eql_d2.experiments.comparison import collect_lines
from eql_d2.experiments.coverage import make_coverage
from eql_d2.experiments.launchers import LocalLauncher, SubmititLauncher
from eql_d2.experiments.plot import EACH, default_metrics, plot_table, rank_correlation
from eql_d2.experiments.spec import load_specification, table_names
from eql_d2.experiments.table_report import FORMATS, format_report
from eql_d2.files import write_whole


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the names of all tables")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("table", metavar="TABLE")
    shared.add_argument("--results", type=Path, default=reproduce.RESULTS, metavar="FILE", help="results (JSON lines)")
    shared.add_argument("--runs", type=Path, default=reproduce.RUNS, metavar="DIR", help="folder of all runs")

    run = commands.add_parser("run", parents=[shared], help="run what has not finished yet")
    run.add_argument("--only", nargs="+", metavar="ROW", help="these rows, and those that they start from")
    run.add_argument("--dry-run", action="store_true", help="print every command and run none")
    run.add_argument("--rerun", action="store_true", help="run again what other code has measured")
    run.add_argument("--tidy", action="store_true", help="delete a run's early checkpoints when it has finished")
    run.add_argument("--launcher", choices=("local", "submitit"), default="local")
    run.add_argument("--jobs", type=int, default=0, metavar="N", help="runs at a time")
    run.add_argument("--gpus-per-job", type=int, default=0, metavar="N", help="GPUs of each run; 0: CPU")
    run.add_argument("--cluster", default="slurm", help="submitit's cluster: slurm, local or debug")
    run.add_argument("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="submitit's parameters")

    commands.add_parser("status", parents=[shared], help="one line for each run")
    report = commands.add_parser("report", parents=[shared], help="print the table")
    report.add_argument("--format", choices=FORMATS, default="markdown")
    report.add_argument("--baseline", metavar="ROW", help="of all rows, in the place of each paper's own")
    report.add_argument("--output", type=Path, metavar="FILE", help="write there instead of printing")
    plot = commands.add_parser("plot", parents=[shared], help="draw the table")
    plot.add_argument("--metrics", nargs="+", metavar="METRIC", help="a panel for each; default: first and last AP")
    plot.add_argument("--sort", metavar="METRIC", help='that rows are sorted by, or "each": each panel by its own')
    plot.add_argument("--baseline", metavar="ROW", help="of all rows, in the place of each paper's own")
    plot.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .png, .svg or .pdf file")
    coverage = commands.add_parser("coverage", help="which tables of the papers can be run, as docs/coverage.md")
    coverage.add_argument("--output", type=Path, metavar="FILE", help="write there instead of printing")
    return parser.parse_args(argv)


def make_launcher(args: argparse.Namespace):
    """Return the launcher that the arguments ask for."""
    if args.launcher == "local":
        return LocalLauncher(args.results, args.jobs, args.gpus_per_job, args.tidy)
    options = {}
    for word in args.slurm:
        key, separator, value = word.partition("=")
        if not separator:
            raise InputError(f"--slurm has {word!r}; it must be KEY=VALUE.")
        options[key] = int(value) if value.lstrip("-").isdigit() else value
    logs = args.runs.parent / "submitit"
    return SubmititLauncher(args.results, logs, args.jobs, args.gpus_per_job, options, args.cluster, args.tidy)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_arguments(argv)
    if args.command == "list":
        for name in table_names():
            print(f"{name}: {load_specification(name).title}")
        return 0
    if args.command == "coverage":
        if args.output is None:
            print(make_coverage(), end="")
        else:
            write_whole(args.output, make_coverage())
        return 0
    table = load_specification(args.table)
    args.results, args.runs = args.results.resolve(), args.runs.resolve()
    if args.command == "status":
        print("\n".join(reproduce.status_lines(table, args.runs, args.results)))
    elif args.command in ("report", "plot"):
        table = table.against(args.baseline) if args.baseline else table
        lines = collect_lines(table, args.results, reproduce.last_errors(table, args.runs))
        if args.command == "plot":
            metrics = args.metrics or default_metrics(table)
            plot_table(table, lines, args.output, metrics, args.sort)
            if args.sort == EACH and len(metrics) > 1:
                print(rank_correlation(lines, metrics))
        elif args.output is None:
            print(format_report(table, lines, args.format), end="")
        else:
            write_whole(args.output, format_report(table, lines, args.format))
    elif args.dry_run:
        print("\n".join(reproduce.dry_run(table, args.runs, args.gpus_per_job, args.only)))
    else:
        # As Ctrl-C does: the trainings are stopped, and the next call goes on at their checkpoints.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
        failed = reproduce.run_table(
            table,
            make_launcher(args),
            args.runs,
            args.results,
            only=args.only,
            rerun=args.rerun,
            report=lambda line: print(line, flush=True),
        )
        return 1 if failed else 0
    return 0
