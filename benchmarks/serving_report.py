"""What the serving benchmark found, as tables and against the goals. Values in, text out.

A goal that was missed says so beside what was measured; one that could not be measured says that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Cell", "Goal", "Results", "ServerFacts", "goals", "markdown", "readme"]

NAMES: Final = {
    "muster": "Muster",
    "mlserver": "MLServer",
    "mlflow": "MLflow",
    "direct": "onnxruntime itself",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """Medians over the rounds, the extremes of the throughput, and sums of requests and failures."""

    server: str
    way: str
    model: str
    clients: int
    per_s: float
    least_per_s: float
    most_per_s: float
    p50_ms: float
    p99_ms: float
    requests: int
    failed: int


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Medians: memory after the first answer and a second of rest (PSS of all its processes), and start to answer."""

    server: str
    model: str
    idle_pss_mb: float
    start_s: float


@dataclass(frozen=True, slots=True)
class Goal:
    """``met`` None: it could not be measured."""

    what: str
    wanted: str
    measured: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Results:
    """One run of the benchmark."""

    machine: str
    versions: Mapping[str, str]
    rounds: int
    seconds: float
    load_average: tuple[float, float]
    models: Sequence[tuple[str, str, str]]
    cells: Sequence[Cell]
    servers: Sequence[ServerFacts]
    left_out: Mapping[str, str]

    def cell(self, server: str, way: str, model: str, clients: int) -> Cell | None:
        """The cell, or None when it was not measured."""
        key = (server, way, model, clients)
        return next((c for c in self.cells if (c.server, c.way, c.model, c.clients) == key), None)

    def fact(self, server: str, model: str) -> ServerFacts | None:
        """Memory and start, or None."""
        return next((f for f in self.servers if (f.server, f.model) == (server, model)), None)

    def ways(self) -> Sequence[tuple[str, str]]:
        """Every server and way that was measured, in order of their first appearance by server."""
        seen = dict.fromkeys((c.server, c.way) for c in self.cells)
        order = list(NAMES)
        return sorted(seen, key=lambda one: order.index(one[0]))


def goals(results: Results) -> Sequence[Goal]:
    """What was wanted, and what came out."""
    return [
        *_grpc_goals(results),
        *_rest_goals(results),
        *_medium_goals(results),
        *_process_goals(results),
    ]


def _grpc_goals(results: Results) -> Iterator[Goal]:
    for model, size, _ in results.models:
        for clients in (1, 8):
            what = f"gRPC against MLServer's, {size}, {_clients(clients)}"
            ours = results.cell("muster", "gRPC", model, clients)
            theirs = results.cell("mlserver", "gRPC", model, clients)
            wanted = "≥ 2x (the aim: 5x)" if size != "medium" else "≥ 2x"
            yield _ratio(what, wanted, 2.0, ours, theirs)
    tiny = next((model for model, size, _ in results.models if size == "tiny"), "")
    ours = results.cell("muster", "gRPC, tritonclient", tiny, 1)
    yield _at_most("p50 through tritonclient, tiny, 1 client", ours and ours.p50_ms, 0.3, "ms")


def _rest_goals(results: Results) -> Iterator[Goal]:
    for model, size, _ in results.models:
        ours = {n: results.cell("muster", "REST binary", model, n) for n in (1, 8)}
        if size != "medium":
            for clients in (1, 8):
                theirs = results.cell("mlserver", "REST JSON", model, clients)
                what = f"REST binary against MLServer's REST, {size}, {_clients(clients)}"
                yield _ratio(what, "≥ 5x", 5.0, ours[clients], theirs)
        direct = results.cell("direct", "session.run", model, 1)
        one = ours[1]
        above = None if one is None or direct is None else one.p50_ms - direct.p50_ms
        what = f"REST binary p50 above the direct run, {size}, 1 client"
        yield _at_most(what, above, 0.12, "ms")


def _medium_goals(results: Results) -> Iterator[Goal]:
    for model, size, _ in results.models:
        if size != "medium":
            continue
        direct = results.cell("direct", "session.run", model, 2)
        for way in ("gRPC", "REST binary"):
            ours = results.cell("muster", way, model, 8)
            what = f"{way} throughput of the direct run's on two threads, {size}, 8 clients"
            if ours is None or direct is None:
                yield Goal(what, "≥ 85 %", "not measured", None)
                continue
            share = ours.per_s / direct.per_s
            yield Goal(what, "≥ 85 %", f"{share:.0%}", share >= 0.85)


def _process_goals(results: Results) -> Iterator[Goal]:
    small = next((model for model, size, _ in results.models if size == "small"), "")
    fact = results.fact("muster", small)
    yield _at_most(
        "idle model server, small model, no supervisor to share with",
        fact and fact.idle_pss_mb,
        85.0,
        "MB PSS",
    )
    yield _at_most("cold start to the first answer", fact and fact.start_s, 1.5, "s")


def _ratio(what: str, wanted: str, least: float, ours: Cell | None, theirs: Cell | None) -> Goal:
    if ours is None or theirs is None or not theirs.per_s:
        return Goal(what, wanted, "not measured", None)
    ratio = ours.per_s / theirs.per_s
    return Goal(what, wanted, f"{ratio:.1f}x", ratio >= least)


def _at_most(what: str, value: float | None, limit: float, unit: str) -> Goal:
    wanted = f"≤ {limit:g} {unit}"
    if value is None:
        return Goal(what, wanted, "not measured", None)
    return Goal(what, wanted, f"{value:.3g} {unit}", value <= limit)


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


# --- text -----------------------------------------------------------------------------------------


def markdown(results: Results, plot_name: str = "") -> str:
    """Everything, for results.md or a terminal."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    low, high = results.load_average
    parts = [
        "## Model servers side by side",
        "",
        "`python -m benchmarks.serving --publish`",
        "",
        f"Measured on: {results.machine}. Load average during the run (the benchmark's own load included): "
        f"{low:g} to {high:g}. {versions}.",
        f"Medians of {results.rounds} rounds, {results.seconds:g} s a cell; servers interleaved and started anew each "
        "round; one model a server; MLServer in one process, MLflow with one worker, onnxruntime with one thread "
        "inside an operator everywhere. The load generator (nghttp2's h2load) sends prepared requests and "
        "shares the machine with the server.",
        "",
    ]
    if plot_name:
        parts += [f"![requests a second, by server and model]({plot_name})", ""]
    for model, size, what in results.models:
        parts += _model_table(results, model, f"{size}: {what}")
    parts += _process_table(results)
    parts += _goal_table(results)
    if results.left_out:
        parts += ["Left out:", ""]
        parts += [f"- {where}: {reason}" for where, reason in results.left_out.items()]
        parts += [""]
    return "\n".join(parts)


README_ROWS: Final = (
    ("Muster", "muster", "gRPC"),
    ("MLServer", "mlserver", "gRPC"),
    ("Muster", "muster", "REST binary"),
    ("Muster", "muster", "REST JSON"),
    ("MLServer", "mlserver", "REST JSON"),
    ("MLflow", "mlflow", "REST JSON"),
    ("`session.run`", "direct", "session.run"),
)


def readme(results: Results) -> str:
    """The short form for the README: requests a second with eight clients, p50 with one."""
    sizes = [size for _, size, _ in results.models]
    head = " | ".join(f"{size}, 8 clients | p50, 1 client" for size in sizes)
    lines = [
        "Requests a second with 8 clients and median latency with one, servers side by side on the same two cores as "
        "the load; goals and the whole table in [benchmarks/results.md](benchmarks/results.md), made by "
        "`python -m benchmarks.serving --publish`:",
        "",
        f"| | | {head} | idle memory |",
        "|---|---|" + "---|---|" * len(sizes) + "---|",
    ]
    for name, server, way in README_ROWS:
        most = 2 if server == "direct" else 8  # threads of the direct run
        fields = []
        for model, _, _ in results.models:
            busy = results.cell(server, way, model, most)
            alone = results.cell(server, way, model, 1)
            fields.append("–" if busy is None else f"{busy.per_s:,.0f}")
            fields.append("–" if alone is None else f"{alone.p50_ms:.2f} ms")
        fact = results.fact(server, results.models[0][0])
        memory = "–" if fact is None else f"{fact.idle_pss_mb:.0f} MB"
        shown = "on two threads, one" if server == "direct" else way
        lines.append(f"| {name} | {shown} | {' | '.join(fields)} | {memory} |")
    models = "; ".join(f"{size}: {what}" for _, size, what in results.models)
    lines += ["", f"{models}. Measured on {results.machine}."]
    return "\n".join(
        [*lines, "", "![requests a second, by server and model](benchmarks/serving.svg)"]
    )


def _model_table(results: Results, model: str, title: str) -> list[str]:
    lines = [
        f"### {title}",
        "",
        "| server | way | clients | requests a second (least to most) | p50 ms | p99 ms | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for server, way in results.ways():
        cells = [c for c in results.cells if (c.server, c.way, c.model) == (server, way, model)]
        for cell in sorted(cells, key=lambda one: one.clients):
            clients = f"{cell.clients} threads" if server == "direct" else str(cell.clients)
            clients = clients.replace("1 threads", "1 thread")
            lines.append(
                f"| {NAMES[server]} | {way} | {clients} | "
                f"{cell.per_s:,.0f} ({cell.least_per_s:,.0f} to {cell.most_per_s:,.0f}) | "
                f"{cell.p50_ms:.3f} | {cell.p99_ms:.3f} | {cell.failed:,} of {cell.requests:,} |"
            )
    return [*lines, ""]


def _process_table(results: Results) -> list[str]:
    lines = [
        "### Memory and start",
        "",
        "PSS of all processes of the server as if they were alone on the machine, idle with one "
        "model after its first answers; seconds from the start of "
        "the process to the first answer over gRPC (MLflow: REST). Muster's is the model server, without its "
        "supervisor: `python -m benchmarks.idle_memory` has both.",
        "",
        "| server | model | idle PSS | start |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {NAMES[fact.server]} | {fact.model} | {fact.idle_pss_mb:.0f} MB | {fact.start_s:.2f} s |"
        for fact in sorted(results.servers, key=lambda one: list(NAMES).index(one.server))
    ]
    return [*lines, ""]


def _goal_table(results: Results) -> list[str]:
    verdict = {True: "met", False: "**missed**", None: "–"}
    lines = ["### Against the goals", "", "| what | goal | measured | |", "|---|---|---|---|"]
    lines += [
        f"| {goal.what} | {goal.wanted} | {goal.measured} | {verdict[goal.met]} |"
        for goal in goals(results)
    ]
    return [*lines, ""]
