"""How the command ends: as a process, interrupted, with its reader gone."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from superscaler import __version__
from superscaler.cli import main
from superscaler.cli.outcome import execute, kind_of
from superscaler.errors import CheckError, UsageError
from superscaler.ir.check.fault import fault
from tests.cli.conftest import Command

MODULE = [sys.executable, "-m", "superscaler"]


def test_the_version() -> None:
    found = subprocess.run([*MODULE, "--version"], capture_output=True, text=True, check=True)
    assert found.stdout == f"superscaler {__version__}\n"


@pytest.mark.parametrize("program", ["superscaler", "compile-plan"])
def test_the_installed_commands_say_how_they_are_used(program: str) -> None:
    command = Path(sys.executable).parent / program
    if not command.exists():
        pytest.skip("superscaler is not installed into this environment")
    found = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert "Usage" in found.stdout


def test_nothing_asked_is_wrong_usage_and_shows_the_help(superscaler: Command) -> None:
    said = superscaler()
    assert said.code == 2
    assert "compile-plan" in said.out


def test_every_option_of_every_command_has_a_help_text(superscaler: Command) -> None:
    import typer

    from superscaler.cli.app import superscaler_app

    group = typer.main.get_command(superscaler_app())
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", "") or parameter.name == "help", f"{name} {parameter.name}"


def test_a_fault_is_reported_as_what_it_is_in_the_tree() -> None:
    assert kind_of(fault("deadlock", "workers wait for each other")) == CheckError.__name__
    assert kind_of(UsageError("x")) == "UsageError"


def test_interrupted_while_running(tiny_plan: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the command at once, with code 130, without a traceback."""
    running = subprocess.Popen(
        [*MODULE, "run", str(tiny_plan), "--backend", "inline", "--steps", "100000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert running.stdout is not None
    assert running.stdout.readline().startswith("step ")
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.strip() == "interrupted"


def test_interrupted_before_anything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    app = typer.Typer()

    @app.command()
    def stop() -> None:
        raise KeyboardInterrupt

    assert execute(app, [], program="p") == 130
    capsys.readouterr()

    class Interrupt:
        """While modules are read."""

        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "superscaler.cli.app":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "meta_path", [Interrupt, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "superscaler.cli.app")
    with pytest.raises(SystemExit) as ended:
        main(["ops"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_closing_the_terminal_is_an_interrupt() -> None:
    """What was started is ended then, too; unless ``nohup`` asked for the opposite."""
    before = signal.getsignal(signal.SIGHUP)
    try:
        for given, then in ((signal.SIG_DFL, signal.default_int_handler), (signal.SIG_IGN, signal.SIG_IGN)):
            signal.signal(signal.SIGHUP, given)
            with pytest.raises(SystemExit):
                main(["--version"])
            assert signal.getsignal(signal.SIGHUP) is then
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nowhere_to_print_to() -> None:
    found = subprocess.run(["sh", "-c", f"{sys.executable} -m superscaler plans >&- 2>&-"], check=False)
    assert found.returncode == 0


def test_an_output_that_cannot_say_everything() -> None:
    command = [*MODULE, "schedule", "--stages", "2", "--microbatches", "2", "--order", "1f1b"]
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert "?" in found.stdout


def test_no_space_for_what_is_printed() -> None:
    with Path("/dev/full").open("w") as full:
        found = subprocess.run([*MODULE, "ops"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.splitlines()[1:] == ["  try: a place that may be written, with enough space"]


def test_a_reader_that_goes_away_is_no_error() -> None:
    writer = subprocess.Popen([*MODULE, "ops"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    said = writer.stderr.read()
    writer.wait(timeout=60)
    assert b"Traceback" not in said
    assert b"Error" not in said


def test_json_alone_stands_on_standard_output(tiny_plan: Path) -> None:
    found = subprocess.run([*MODULE, "simulate", str(tiny_plan), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)
    assert found.stderr == ""


def test_progress_is_shown_only_on_a_terminal_and_only_when_it_takes_long() -> None:
    script = (
        "import time\n"
        "from superscaler.cli import console\n"
        "console.PATIENCE = 0.3\n"
        "with console.Progress() as p:\n"
        "    p('solving the riddle')\n"
        "    time.sleep(SECONDS)\n"
    )
    assert b"riddle" in _on_a_terminal(script.replace("SECONDS", "1.2"))
    assert b"riddle" not in _on_a_terminal(script.replace("SECONDS", "0"))
    piped = subprocess.run(
        [sys.executable, "-c", script.replace("SECONDS", "1.2")], capture_output=True, text=True, check=True
    )
    assert piped.stderr == ""


def _on_a_terminal(script: str) -> bytes:
    """What a script writes to a terminal."""
    reader, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=terminal, stdout=terminal, env={**os.environ, "TERM": "xterm"}
    )
    os.close(terminal)
    said = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            found = os.read(reader, 4096)
        except OSError:  # the other end is closed
            break
        if not found:
            break
        said += found
    process.wait(timeout=60)
    os.close(reader)
    return said
