"""What the serving benchmark says of its cells: the README's short form, goals and a section put in place."""

from benchmarks.serving_report import (
    Cell,
    Results,
    ServerFacts,
    goals,
    markdown,
    readme,
)


def cell(server: str, way: str, clients: int, per_s: float, p50_ms: float) -> Cell:
    return Cell(server, way, "digits", clients, per_s, per_s, per_s, p50_ms, 9.0, 100, 0)


RESULTS = Results(
    machine="a machine",
    versions={"muster": "1"},
    rounds=1,
    seconds=1.0,
    load_average=(0.1, 0.2),
    models=(("digits", "tiny", "digits classifier"),),
    cells=(
        cell("muster", "gRPC", 1, 5000.0, 0.2),
        cell("muster", "gRPC", 8, 9000.0, 0.9),
        cell("mlserver", "gRPC", 8, 3000.0, 2.0),
        cell("direct", "session.run", 2, 90000.0, 0.01),
    ),
    servers=(ServerFacts("muster", "digits", 80.0, 0.5),),
    left_out={"mlflow": "it did not start"},
)


def test_the_readme_shows_what_was_measured_and_a_dash_for_what_was_not() -> None:
    text = readme(RESULTS)
    assert "| Muster | gRPC | 9,000 | 0.20 ms | 80 MB |" in text
    assert "| MLServer | gRPC | 3,000 | – | – |" in text
    assert "| MLflow | REST JSON | – | – | – |" in text
    assert "| `session.run` | on two threads, one | 90,000 | – | – |" in text
    assert "tiny: digits classifier. Measured on a machine." in text


def test_a_goal_is_met_missed_or_not_measured() -> None:
    found = {goal.what: goal for goal in goals(RESULTS)}
    assert found["gRPC against MLServer's, tiny, 8 clients"].met
    assert found["gRPC against MLServer's, tiny, 1 client"].met is None
    assert "it did not start" in markdown(RESULTS)
