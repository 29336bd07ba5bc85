"""What a command cannot do it refuses in words: no traceback, an exit code that says why, nothing half written."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from epsc import cli, launch

EXAMPLE = Path(__file__).parents[2] / "examples" / "mixtral_8x7b.eps"
DONE, INPUT, COMMAND_LINE = 0, 1, 2


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, with the example as `m.eps`, a plain file `plain` and bytes that are no text."""
    monkeypatch.chdir(tmp_path)
    Path("m.eps").write_text(EXAMPLE.read_text())
    Path("plain").touch()
    Path("bytes.eps").write_bytes(b"\xff\xfe\x00")


def epsc(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of a command. Whatever else it raises fails the test: users would see a traceback."""
    monkeypatch.setattr(sys, "argv", ["epsc", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return DONE


@pytest.mark.parametrize("command", ["check", "compile", "inspect", "explain"])
@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("into groups", "into 0"),
        ("into groups", "into 2.5"),
        ("into groups", "into gruops"),
        ("reserve 16 sms", "reserve 99999999999 sms"),
        ("mean_rows < 2048", "mean_rows < 0.5"),
    ],
)
def test_a_number_that_a_schedule_cannot_take(
    command: str, said: str, wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` looks at schedules together with the file, all others when one is planned: both must tell."""
    Path("bad.eps").write_text(Path("m.eps").read_text().replace(said, wrong))
    assert epsc(monkeypatch, command, "bad.eps") == INPUT
    assert wrong in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "compile", "inspect", "fmt", "run"])
@pytest.mark.parametrize("file", ["missing.eps", "bytes.eps", ".", "plain/m.eps", "n" * 300])
def test_files_that_cannot_be_read(command: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert epsc(monkeypatch, command, file) == INPUT


@pytest.mark.parametrize("output", ["plain", "plain/in/it", "n" * 300, "n" * 252 + ".py", "/proc/none"])
def test_places_that_cannot_be_written(
    output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert epsc(monkeypatch, "compile", "m.eps", "-o", output) == INPUT
    assert "cannot write" in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


def test_a_kept_program_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "gpus", lambda: 0)
    assert epsc(monkeypatch, "run", "m.eps", "--preset", "small", "--nproc", "2", "--keep", "plain") == INPUT


@pytest.mark.parametrize(
    "define",
    [
        "",
        "=",
        "x",
        "tokens=",
        "tokens=-1",
        "tokens=1.5",
        "tokens=1e30",
        "ep=0",
        "ep=3",
        "ep=99999999999999999999",
        "sms=0",
        "sms=16",
        "device=toaster",
        "hidden=0",
        "hidden=nan",
        "hidden=1e999",
        f"hidden={10**400}",
        "nope=1",
    ],
)
def test_numbers_that_make_no_sense(define: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert epsc(monkeypatch, "check", "m.eps", "-D", define) == INPUT


@pytest.mark.parametrize(
    "passes",
    [
        "nope",
        ",",
        "chunk{",
        "chunk{n=4}}",
        "chunk{n=4};fuse",
        "chunk{n}",
        "chunk{n=x}",
        "chunk{m=4}",
        "chunk{axis=peer}",
        "chunk{n=-1}",
        "chunk{axis=tokens,n=9999}",
        "chunk{n=2},chunk{n=4}",
        "order{prefetch=-1}",
        "place{overlap=2}",
        "choose{experts=foo}",
    ],
)
def test_options_of_passes_that_make_no_sense(passes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert epsc(monkeypatch, "check", "m.eps", "-p", passes) == INPUT


@pytest.mark.parametrize(
    "line",
    [
        "nope",
        "check",
        "check m.eps --nope",
        "check m.eps --print-after nope",
        "inspect m.eps --width 1",
        "inspect m.eps --json --dot",
        "inspect m.eps --svg --dot",
        "inspect m.eps --plan --gantt",
        "run m.eps --nproc 0",
    ],
)
def test_wrong_command_lines(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert epsc(monkeypatch, *line.split()) == COMMAND_LINE


@pytest.mark.parametrize("line", ["-s nope", "--layer nope", "--cluster nope", "--preset nope"])
def test_names_that_are_not_there(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert epsc(monkeypatch, "compile", "m.eps", *line.split()) == INPUT
    assert not list(Path().glob("*.py"))


@pytest.mark.parametrize("tokens", ["0", "1", str(2**31 - 1)])
def test_the_largest_and_the_smallest_load_have_a_picture(tokens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert epsc(monkeypatch, "inspect", "m.eps", "--gantt", "-D", f"tokens={tokens}") == DONE


@pytest.mark.parametrize(
    ("given", "options", "code"),
    [
        (b"let a=1", [], DONE),
        (b"let a=1", ["--check"], INPUT),
        (b"let a = 1\n", ["--check"], DONE),
        (b"let a=", [], INPUT),
        (b"# \xff", [], INPUT),
    ],
)
def test_fmt_of_standard_input(given: bytes, options: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert epsc(monkeypatch, "fmt", "-", *options) == code


@pytest.mark.parametrize("command", ["passes", "inspect m.eps --json", "check m.eps --print-after all"])
def test_a_reader_that_leaves_early_is_no_fault(command: str) -> None:
    """`epsc ... | head -1`: no words, and not the exit code of wrong input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "epsc", *command.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == DONE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        line = [sys.executable, "-m", "epsc", "passes"]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == INPUT
    assert done.stderr.startswith("error: cannot print")
    assert "Traceback" not in done.stderr


def test_what_auto_chose_is_printed_after_a_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "inspect m.eps -s best --plan --print-after buffers --preset small"
    assert epsc(monkeypatch, *line.split()) == DONE
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first == "# after buffers"
    half = len(rest.strip()) // 2
    assert rest.strip()[:half].strip() == rest.strip()[half:].strip()


@pytest.mark.parametrize(("gpus", "preset", "told"), [(0, [], True), (0, ["--preset", "small"], False), (2, [], False)])
def test_true_size_on_cpu_ranks_is_spoken_of(
    gpus: int, preset: list[str], told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "gpus", lambda: gpus)
    monkeypatch.setattr(launch, "run", lambda *_: 0)
    assert epsc(monkeypatch, "run", "m.eps", "--nproc", "2", *preset) == DONE
    assert ("--preset small is smaller" in capsys.readouterr().err) is told


@pytest.mark.parametrize("command", ["bench", "tune"])
def test_so_it_is_by_what_measures(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Begun(Exception):
        pass

    def begin(*_: object, **__: object) -> None:
        raise Begun

    monkeypatch.setattr("epsc.commands.tune.tune_layer", begin)
    monkeypatch.setattr("epsc.bench.programs.compile_all", begin)
    with pytest.raises(Begun):
        cli.cli.main([command, "m.eps", "--nproc", "2"], standalone_mode=False)
    assert "--preset small is smaller" in capsys.readouterr().err


def test_a_file_whose_layer_cannot_be_read_is_not_said_to_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut_off.eps").write_text("layer x(\n")
    assert epsc(monkeypatch, "check", str(tmp_path / "cut_off.eps")) != DONE
    told = capsys.readouterr().err
    assert told.count("error: ") == 1 and "expected a name or `)` after `(`" in told


def test_too_many_groups_are_told_with_the_define_that_makes_fewer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    many = ["check", "m.eps", "-D", "groups=5", "-D", "ep=2"]
    assert epsc(monkeypatch, *many) == INPUT
    assert "use at most 4: -D groups=4" in capsys.readouterr().err
    assert epsc(monkeypatch, *many[:-3], "groups=4", *many[-2:]) == DONE


@pytest.mark.parametrize("option", ["chunk{n=x}", "chunk{z=1}", "chunk{n}", "place{overlap=yes}"])
def test_what_is_wrong_with_an_option_of_a_pass_says_which(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert epsc(monkeypatch, "check", "m.eps", "-p", f"buffers{{share=false}},{option}") == INPUT
    assert option in capsys.readouterr().err
