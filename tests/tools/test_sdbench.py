# SPDX-License-Identifier: Apache-2.0
"""sdbench measures what it says, compares like with like and keeps what it has measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tools.sdbench import apps, cli, command, floor, micro, plots, report, targets
from tools.sdbench.machine import PROGRAMS
from tools.sdbench.micro import Plan
from tools.sdbench.results import Results, Row
from tools.sdbench.runner import Case, Runner
from tools.sdbench.stage import BenchError, NotHere, Stage
from tools.sdbench.ways import asked

SHORT = Plan(warm_ms=250, ms=200, sizes=(8,), places={"unpinned": None})


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


def run(stage: Stage, output: Path, cases: list[Case]) -> Results:
    results = Results("micro", {"kernel": "6"}, {})
    Runner(stage, results, 1, output, Console(quiet=True)).run(cases)
    assert Results.load(output) == results
    return results


def test_round_trips_of_everybody(stage: Stage, tmp_path: Path) -> None:
    (row,) = run(stage, tmp_path / "r.json", micro.rtt(SHORT)).rows
    assert row.skipped.keys() <= {"sockmap"}
    assert row.samples.keys() >= {"unix", "pipe", "ring", "sdrun", row.native}
    for name, (sample,) in row.samples.items():
        assert 0 < sample["p50_us"] <= sample["p99_us"] <= sample["p999_us"], name
        assert sample["rate"] * sample["p50_us"] / 1e6 < 1.5, f"{name}: more round trips than fit into the time"
    assert row.on_shm("sdrun") == 1
    assert row.counters["sdrun"]["conns_shm"] == 2
    assert row.on_shm("ring") is None


def test_streams_and_crowds(stage: Stage, tmp_path: Path) -> None:
    place = SHORT.places["unpinned"]
    ways = {"tcp": micro.crowd(micro.natively, 50, 5, place, SHORT),
            "sdrun": micro.crowd(micro.under_sdrun(), 50, 5, place, SHORT)}
    cases = [*micro.batch(SHORT), Case("many", {"connections": "50"}, "rate", ways)]
    stream, many = run(stage, tmp_path / "r.json", cases).rows
    assert all(sample["mib_s"] > 0 and sample["cpu_us"] > 0 for (sample,) in stream.samples.values())
    assert many.counters["sdrun"]["conns_total"] == 100
    assert many.ratio("tcp") is not None and "sdrun" in many.samples


def test_rates(stage: Stage, tmp_path: Path) -> None:
    place = SHORT.places["unpinned"]
    cases = [Case("rates", {"what": what}, "rate", {"native": micro.rate(micro.natively, what, place, SHORT),
                                                    "sdrun": micro.rate(micro.under_sdrun(), what, place, SHORT)})
             for what in ("setup", "short", "fork", "getppid")]
    for row in run(stage, tmp_path / "r.json", cases).rows:
        assert not row.skipped
        assert all(sample["rate"] > 1 for samples in row.samples.values() for sample in samples), row.title


def test_failures_and_gaps_are_said(stage: Stage, tmp_path: Path) -> None:
    def refuses(_: Stage) -> dict[str, float]:
        raise NotHere("no such thing here")

    ways = {"tcp": micro.rate(micro.natively, "getppid", None, SHORT), "gone": refuses,
            "broken": micro.rate(micro.behind("false"), "getppid", None, SHORT)}
    (row,) = run(stage, tmp_path / "r.json", [Case("calls", {}, "ns", ways)]).rows
    assert row.skipped["gone"] == "no such thing here"
    assert row.skipped["broken"].startswith("failed: ")
    assert row.samples.keys() == {"tcp"}


def test_ratios_are_of_the_same_round() -> None:
    row = Row("rtt", {}, "p50_us", "tcp", {"tcp": [{"p50_us": 10}, {"p50_us": 40}, {"p50_us": 20}],
                                           "sdrun": [{"p50_us": 5}, {"p50_us": 10}, {"p50_us": 10}]})
    ratio = row.ratio("sdrun")
    assert ratio and (ratio.median, ratio.low, ratio.high) == (2, 2, 4)
    row.main = "rate"
    assert row.ratio("sdrun") is None


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no benchmark nothing; there are rtt, "):
        cli.micro_cases(cli.parser().parse_args(["micro", "--only", "nothing"]))
    (tmp_path / "other.json").write_text(json.dumps({"version": 0}))
    with pytest.raises(ValueError, match="not a file of this sdbench"):
        Results.load(tmp_path / "other.json")


def test_an_application_in_all_ways(stage: Stage, tmp_path: Path) -> None:
    serve, load = apps.everything(True)["nginx"]["64 KiB, 1 connection"]
    ways = {name: asked(serve, load, way) for name, way in apps.ways(None, 0.3).items()}
    (row,) = run(stage, tmp_path / "r.json", [Case("nginx", {}, "rate", ways)]).rows
    assert row.skipped == {}
    assert row.on_shm("sdrun") == 1
    assert all(sample["rate"] > 100 and sample["cpu_us"] > 1 for (sample,) in row.samples.values())
    (tcp,) = row.samples["tcp"]
    assert 0 < tcp["server_user_us"] + tcp["client_user_us"] < tcp["cpu_us"]


def test_the_floor_of_an_application(stage: Stage, tmp_path: Path) -> None:
    """The same answers, checked by the client, and a server that made no system call for them."""
    what, place = "612 bytes, 1 connection", {"unpinned": None}
    (case,) = (case for case in apps.cases(stage, ["nginx"], True, dict(place)) if case.case["what"] == what)
    case.variants = {name: case.variants[name] for name in ("tcp", "sdrun", floor.FREE)}
    (row,) = run(stage, tmp_path / "r.json", [case]).rows
    assert row.skipped == {}
    (free,) = row.samples[floor.FREE]
    assert free["p50_us"] == pytest.approx(free["server_us"] + free["client_us"])
    assert min(free["server_us"], free["client_us"], free["between_us"]) > 0
    assert case.variants.keys() == row.samples.keys()


def test_floors_are_said_beside_targets() -> None:
    samples = {"tcp": [{"rate": 10.0, "cpu_us": 100.0}], "unix": [{"rate": 20.0}], "sdrun": [{"rate": 15.0}],
               floor.FREE: [{"rate": 100.0, "cpu_us": 10.0, "server_us": 7.0, "client_us": 3.0, "between_us": 10.0}]}
    row = Row("memcached", {"what": "get, 1 connection", "placement": "two cores"}, "rate", "tcp", samples)
    (line,) = targets.lines([row])
    said = "free sockets 5.00 x, and the bare ring's hand-over 2.50 x (server 7.00 µs, client 3.00 µs)"
    assert line.cells() == ["memcached: faster than unix sockets", row.title, "at least 1 x", "**0.75 x**", said]


def test_a_kernel_without_time_is_the_floor_of_the_rest() -> None:
    """Where there are no free sockets; one after the other, or the busier end."""
    samples = {"tcp": [{"rate": 100.0, "server_user_us": 4000.0, "client_user_us": 1000.0}], "unix": [{"rate": 160.0}],
               "sdrun": [{"rate": 120.0}]}
    for what, placement, best in (("1 connection", "two cores", 200), ("32 connections", "one core", 200),
                                  ("32 connections", "two cores", 250)):
        (line,) = targets.lines([Row("go", {"what": what, "placement": placement}, "rate", "tcp", samples)])
        said = f"a kernel that takes no time {best / 160:.2f} x (server 4,000 µs, client 1,000 µs)"
        assert line.cells()[-1] == said


def test_requests_of_several_connections() -> None:
    assert floor.rate(2.0, 3.0, 1, (0, 1)) == floor.rate(2.0, 3.0, 8, (0, 0)) == pytest.approx(1 / 5)
    assert floor.rate(2.0, 3.0, 8, (0, 1)) == pytest.approx(1 / 3)


def test_a_wrong_answer_is_no_answer(stage: Stage) -> None:
    serve, load = apps.http(apps.nginx, "not-there", 1)
    with pytest.raises(BenchError, match=r"unexpected answer: HTTP/1\.1 404"):
        asked(serve, load, apps.ways(None, 0.1)["tcp"])(stage)


def made(folder: Path) -> Path:
    rounds = [{"rate": 10.0, "cpu_us": 2.0}, {"rate": 20.0, "cpu_us": 2.0}]
    row = Row("redis", {"what": "a <b> | c", "placement": "one core"}, "rate", "tcp",
              {"tcp": rounds, "sdrun": [{"rate": 5.0, "cpu_us": 1.0}, {"rate": 8.0, "cpu_us": 1.0}]},
              {"unix": "not here"}, {"sdrun": {"calls_library": 3000, "calls_kernel": 1000, "parks": 8}})
    sized = [Row(bench, {"size": size, "placement": "one core"}, "rate", "tcp",
                 {name: [{"p50_us": 2.0, "mib_s": 1.0, "rate": 5.0, "cpu_us": cost}] for name in ("tcp", "sdrun")})
             for bench in ("rtt", "stream") for size, cost in (("8 B", 1.0), ("64 KiB", 7.4))]
    Results("apps", {"kernel": "6"}, {"rounds": 2}, [row, *sized]).save(folder / "apps.json")
    return folder / "apps.json"


def test_report(tmp_path: Path) -> None:
    docs = tmp_path / "docs.md"
    docs.write_text(f"head\n{report.BEGIN}\nold\n{report.END}\ntail\n")
    assert report.main([made(tmp_path)], tmp_path / "report", docs) == 0
    page, text = (tmp_path / "report" / "index.html").read_text(), docs.read_text()
    assert "a &lt;b&gt; | c" in page and 'class="worse"' in page
    assert text.startswith("head\n") and text.endswith("tail\n") and "old" not in text
    assert "a <b> \\| c, one core | 15.0 /s | 6.50 /s | 0.45 (0.40 to 0.50) | 2.00x" in text
    assert "| tcp | one core | 1,000 | 100 | 1.00 |" in text
    assert "| redis | a <b> \\| c, one core | 75.0% | 0 | 2.00 |" in text
    assert report.main([made(tmp_path)], tmp_path / "report", docs) == 0
    assert docs.read_text() == text
    assert report.main([], tmp_path / "report", None) == 1


@pytest.mark.skipif(not plots.possible(), reason="matplotlib is not installed")
def test_plots(tmp_path: Path) -> None:
    files = plots.draw(Results.load(made(tmp_path)).rows, tmp_path)
    assert files.keys() == {"redis", "Round trips", "Streams, read message by message"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in files.values())


def test_own_command(stage: Stage, tmp_path: Path) -> None:
    job = command.Job([str(PROGRAMS / "pair"), "tcp", "rtt", "8", "-t", "100", "-w", "300"], 2, ["spin_us=20"])
    row = command.measure(stage, job, Console(quiet=True))
    assert {name: len(samples) for name, samples in row.samples.items()} == {"native": 2, "sdrun": 2}
    lines = command.verdict(row)
    assert "2 of 2 ends of connections on shared memory" in lines
    assert lines[-1].startswith("verdict: ")
    with pytest.raises(BenchError, match="ended with status 3: oh dear"):
        command.measure(stage, command.Job(["sh", "-c", "echo oh dear; exit 3"], 1, []), Console(quiet=True))


def test_verdicts() -> None:
    def said(under: list[float]) -> str:
        samples = {"native": [{"s": 1.0, "cpu_s": 1.0}] * len(under),
                   "sdrun": [{"s": took, "cpu_s": 1.0} for took in under]}
        return command.verdict(Row("command", {}, "s", "native", samples))[-1]

    assert said([0.5, 0.25]) == "verdict: faster under sdrun, 3.00 times"
    assert said([2.0, 2.0]) == "verdict: slower under sdrun, 2.00 times"
    assert said([0.9, 1.1]).startswith("verdict: no clear difference")


def test_command_lines() -> None:
    assert cli.split(["micro", "--quick"]) == (["micro", "--quick"], [])
    assert cli.split(["--rounds", "2", "--", "ls", "--", "-l"]) == (["command", "--rounds", "2"], ["ls", "--", "-l"])
