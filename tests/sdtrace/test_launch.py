# SPDX-License-Identifier: Apache-2.0
"""`sdrun` becomes the program: what the program and its parent can see is what they see without it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.guestbuild import Guests
from tests.harness import ROOT, SDRUN

Env = dict[str, str]


def run(env: Env, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run sdrun with `words`; output as text."""
    return subprocess.run([SDRUN, *words], env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("status", [0, 1, 42, 255])
@pytest.mark.parametrize("options", [[], ["--report"]], ids=["plain", "report"])
def test_exit_status(sd_env: Env, tmp_path: Path, status: int, options: list[str]) -> None:
    words = [*options, *([str(tmp_path / "r.json")] if options else [])]
    assert run(sd_env, *words, "--", "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_death_by_signal(sd_env: Env, number: signal.Signals) -> None:
    done = run(sd_env, "sh", "-c", f"kill -{number.value} $$")
    assert done.returncode == -number


ONE_LINE = [
    (["no-such-command-here"], 127, "no-such-command-here: command not found"),
    (["/no/such/file"], 127, "/no/such/file: command not found"),
    (["/etc/passwd"], 126, "/etc/passwd: cannot execute"),
    (["/etc"], 126, "/etc: cannot execute"),
    (["--no-such-option", "true"], 2, "--no-such-option"),
    (["--explain=yes", "true"], 2, "takes no value"),
    (["--report"], 2, "needs a value"),
    (["--report", "/no/such/dir/r.json", "true"], 2, "/no/such/dir/r.json"),
    (["--report=", "true"], 2, "empty value"),
    ([], 2, "no command given"),
    (["--"], 2, "no command given"),
    (["--set", "nonsense=1", "true"], 2, "nonsense"),
    (["--set", "spin_us=much", "true"], 2, "spin_us"),
    (["--policy", "/no/such/policy.yaml", "true"], 2, "/no/such/policy.yaml"),
]


@pytest.mark.parametrize(("words", "status", "text"), ONE_LINE, ids=[" ".join(case[0]) or "none" for case in ONE_LINE])
def test_what_is_wrong_is_one_line(sd_env: Env, words: list[str], status: int, text: str) -> None:
    done = run(sd_env, *words)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.startswith("sdrun: ") and done.stderr.count("\n") == 1
    assert text in done.stderr


def test_wrong_policy_file_starts_nothing(sd_env: Env, tmp_path: Path) -> None:
    policy, witness = tmp_path / "policy.yaml", tmp_path / "witness"
    policy.write_text("version: 1\napps:\n  - match: {program: redis-server}\n    acton: kernel\n")
    done = run(sd_env, "--policy", policy, "touch", witness)
    assert done.returncode == 2
    assert f"{policy}:4:" in done.stderr and done.stderr.count("\n") == 1
    assert not witness.exists()


def test_wrong_policy_file_in_the_users_configuration(sd_env: Env, tmp_path: Path) -> None:
    folder = tmp_path / "socksdirect"
    folder.mkdir()
    (folder / "mine.yaml").write_text("version: 7\n")
    done = run({**sd_env, "XDG_CONFIG_HOME": str(tmp_path)}, "true")
    assert done.returncode == 2 and "mine.yaml:1:" in done.stderr


def run_words(words: list[str], env: Env) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=env, text=True, capture_output=True, timeout=60, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody who may not read")
def test_configuration_that_may_not_be_read(sd_env: Env) -> None:
    """A folder of policies that is closed to the user is refused; one in another user's closed home is not its own."""
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(SDRUN)]
    with tempfile.TemporaryDirectory(prefix="sdhome-") as home:
        folder = Path(home) / "socksdirect"
        folder.mkdir(mode=0o700)
        for mode, status, what in ((0o755, 2, "Permission denied"), (0o700, 0, "")):
            os.chmod(home, mode)
            env = {**sd_env, "XDG_CONFIG_HOME": home}
            done = run_words([*as_nobody, "true"], env)
            assert done.returncode == status and what in done.stderr, done.stderr
        done = run_words([*as_nobody, "--check"], env)
        assert done.returncode == 0 and f"{folder}: note: not looked into" in done.stdout


def test_good_options_start_the_command(sd_env: Env, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\n")
    done = run(sd_env, f"--policy={policy}", "--set", "upgrade=eager", "--set=spin_us=0", "--no-accel", "echo", "on")
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")


def test_help_and_version(sd_env: Env) -> None:
    shown = run(sd_env, "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: sdrun") and shown.stderr == ""
    project = (ROOT / "pyproject.toml").read_text()
    version = run(sd_env, "--version").stdout.split()
    assert version[0] == "sdrun" and f'version = "{version[1]}"' in project


def test_text_without_interpreter_line_runs_in_sh(sd_env: Env, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo $0 $1; exit 5\n")
    script.chmod(0o755)
    done = run(sd_env, script, "word")
    assert (done.returncode, done.stdout) == (5, f"{script} word\n")


@pytest.mark.parametrize("flavour", ["glibc", "musl-static"])
def test_inherits_the_same(sd_env: Env, guests: Guests, tmp_path: Path, flavour: str) -> None:
    """Arguments, environment, descriptors, masks, dispositions, limits: from inside, nothing tells."""
    guest = guests("inherit", flavour)
    script = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL); signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGCHLD])\n"
        "os.set_inheritable(os.dup2(0, 17), True); os.umask(0o027); os.close(0)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    outputs = []
    for before in ([], [str(SDRUN), "--"]):
        command = [*before, str(guest), str(os.getpid()), "two words", ""]
        done = subprocess.run([sys.executable, "-c", script, *command], env=sd_env, cwd=tmp_path, capture_output=True,
                              text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert "SigBlk" in outputs[0] and "fd 17" in outputs[0]


def test_same_pid_parent_and_group(sd_env: Env) -> None:
    show = "import os; print(os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0))"
    child = subprocess.Popen([SDRUN, sys.executable, "-c", show], env=sd_env, stdout=subprocess.PIPE, text=True)
    wanted = (child.pid, os.getpid(), os.getpgrp(), os.getsid(0))
    assert child.communicate(timeout=60)[0].split() == list(map(str, wanted))


def test_terminal_is_the_controlling_one(sd_env: Env) -> None:
    """Foreground group, Ctrl-C by the terminal, and nobody else left on the terminal."""
    pid, master = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background ignores it
        script = 'test -t 0 && echo "ready $(ps -o tpgid= -p $$) $$"; exec sleep 60'
        os.execve(SDRUN, ["sdrun", "sh", "-c", script], sd_env)
    try:
        text = b""
        while b"\n" not in text:
            text += os.read(master, 1000)
        word, foreground, own = text.split()[:3]
        assert (word, foreground) == (b"ready", own) and int(own) == pid
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":  # a shell has its own ways with SIGINT
            time.sleep(0.01)
        os.write(master, b"\x03")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) in (-signal.SIGINT, 128 + signal.SIGINT)
    finally:
        os.close(master)


def test_stop_and_continue(sd_env: Env) -> None:
    child = subprocess.Popen([SDRUN, "sleep", "60"], env=sd_env)
    time.sleep(0.3)
    child.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    child.send_signal(signal.SIGCONT)
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM


def test_output_pipe_ends_with_the_program(sd_env: Env) -> None:
    """The keeper and the supervisor hold nothing open: `sdrun CMD | cat` ends when CMD does, daemons or not."""
    done = run(sd_env, "sh", "-c", "sleep 100 >/dev/null 2>&1 & echo $!")
    os.kill(int(done.stdout), signal.SIGKILL)  # ProcessLookupError if it had been waited for


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_works_without_privilege(sd_env: Env) -> None:
    """As nobody: the filter comes with no_new_privs, and a user may trace and inject what is his own."""
    with tempfile.TemporaryDirectory(prefix="sdtest-") as name:
        os.chown(name, 65534, 65534)
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        if subprocess.run([*as_nobody, "test", "-r", SDRUN.parent / "python3"], check=False).returncode:
            pytest.skip("the checkout lies where nobody may read")
        report = Path(name) / "r.json"
        done = subprocess.run([*as_nobody, SDRUN, "--report", report, "python3", "-c", "__import__('socket').socket()"],
                              env={**sd_env, "XDG_RUNTIME_DIR": name, "XDG_CONFIG_HOME": name}, timeout=60, check=False)
        assert done.returncode == 0
        assert json.loads(report.read_text())["processes"][0]["injected"]


def test_nested_runs_under_the_outer(sd_env: Env, tmp_path: Path) -> None:
    quiet = run(sd_env, SDRUN, "--", "sh", "-c", "exit 9")
    assert (quiet.returncode, quiet.stderr) == (9, "")
    told = run(sd_env, SDRUN, "--report", tmp_path / "inner.json", "true")
    assert told.returncode == 0 and "outer sdrun" in told.stderr and told.stderr.count("\n") == 1


def test_program_without_sockets_costs_no_interpreter(sd_env: Env, tmp_path: Path) -> None:
    """Nothing but the launcher runs, for a few hundred system calls; the program makes the same ones as natively."""
    def calls(*command: str | Path) -> list[list[str]]:
        """Those of all its processes: [pid, call]; a call that strace has cut in two counts twice."""
        log = tmp_path / "strace"
        subprocess.run(["strace", "-f", "-qq", "-o", log, *command], env=sd_env, check=True)
        return [line.split(maxsplit=1) for line in log.read_text().splitlines()]

    native, watched = calls("true"), calls(SDRUN, "--", "true")
    assert len(watched) < 500
    started = [call for _, call in watched if call.startswith("execve(") and "ENOENT" not in call]
    assert len(started) == 2, started
    at = max(number for number, (_, call) in enumerate(watched) if call.startswith("execve("))
    own = [call for pid, call in watched[at:] if pid == watched[at][0] and "resumed>" not in call and "(" in call]
    assert [call.split("(")[0] for call in own] == [call.split("(")[0] for _, call in native if "(" in call]
