import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peerformer import __version__
from peerformer.errors import ConfigError, Interrupted, SwarmError
from peerformer.interface import cli
from peerformer.interface.options import ConfigOptions, expand_settings, resolve_options

ROOT = Path(__file__).resolve().parents[2]


def run_python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def stand_in(monkeypatch, failure):
    """Make the program fail as a command would."""

    def fail(tokens):
        raise failure

    monkeypatch.setattr(cli, "_run", fail)


def test_neither_the_package_nor_its_help_imports_torch_or_any_command():
    script = (
        "import sys, peerformer, peerformer.settings, peerformer.events\n"
        "from peerformer.interface.cli import main\n"
        "assert main(['--help']) == 0\n"
        "assert main(['peer', '--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'transformers'} & set(sys.modules)\n"
        "loaded = [m for m in sys.modules if m.startswith('peerformer.interface.commands.')]\n"
        "assert not heavy and not loaded, (heavy, loaded)\n"
    )
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr
    for name in [*cli.COMMANDS, *cli.GROUPS]:
        assert name in done.stdout


def test_what_is_typed_beside_a_running_swarm_answers_before_torch_is_loaded(tmp_path):
    script = (
        "import os, sys\n"
        "from peerformer.interface.cli import main\n"
        "os.chdir(sys.argv[1])\n"
        "for words in (['status'], ['log'], ['peer', 'kill', 'x'], ['invite'], ['recover', 'x']):\n"
        "    assert main(words) in (3, 4), words\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = run_python("-c", script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == 5


def test_the_module_runs_as_the_command_does():
    done = run_python("-m", "peerformer", "--version")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, __version__, "")


EVERY_COMMAND = [
    *([name] for name in cli.COMMANDS),
    *([group, name] for group, (_, commands) in cli.GROUPS.items() for name in commands),
]


@pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)
def test_every_command_of_the_table_exists_and_explains_itself(capsys, words):
    assert cli.main([*words, "--help"]) == 0
    assert f"Usage: peerformer {' '.join(words)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "peerformer train"),
        (["config", "chek"], "peerformer config check"),
        (["peer", "kil"], "peerformer peer kill"),
        (["node", "--guest", "--run", "nowhere-yet"], "--bootstrap HOST:PORT joins one"),
        (["config", "show", "--nope"], "peerformer config show --help"),
        (["config", "check"], "peerformer config check --help"),
        (["config", "show", "--training.steps"], "--training.steps VALUE"),
        (["config", "show", "--set", "training.steps"], "--set training.steps=VALUE"),
        (["config", "show", "--size", "tinny"], "did you mean tiny?"),
        (["config", "show", "--trainig.steps", "5"], "did you mean training.steps?"),
    ],
)
def test_a_wrong_command_line_exits_2_and_says_what_to_type(capsys, arguments, hint):
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ")
    assert f"  try: {hint}" in shown.err and "Traceback" not in shown.err


def test_results_go_to_stdout_and_origins_are_marked(capsys, tmp_path, monkeypatch):
    file = tmp_path / "run.json"
    file.write_text('{"optimizer": {"name": "adamw"}}')
    monkeypatch.setenv("PEERFORMER_TRAINING__SEED", "9")
    arguments = ["config", "show", "--config", str(file), "--size", "nano", "--training.steps=50"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr()
    rows = {line.split()[0]: line for line in shown.out.splitlines()}
    assert shown.err == ""
    assert '"adamw"' in rows["optimizer.name"] and str(file) in rows["optimizer.name"]
    assert " 50 " in rows["training.steps"] and "command line" in rows["training.steps"]
    assert "size nano" in rows["model.hidden_size"]
    assert "environment PEERFORMER_TRAINING__SEED" in rows["training.seed"]


def test_config_show_as_json_is_a_file_that_config_check_accepts(capsys, tmp_path):
    assert cli.main(["config", "show", "--json", "--training.steps", "5"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["training"]["steps"] == 5
    file = tmp_path / "run.json"
    file.write_text(text)
    assert cli.main(["config", "check", str(file)]) == 0
    assert cli.main(["config", "schema"]) == 0


def test_a_failure_of_the_user_is_its_template_and_its_exit_code(capsys, monkeypatch):
    stand_in(monkeypatch, SwarmError("no peer answered", where="10.0.0.1:8888", hint="doctor"))
    assert cli.main(["train"]) == 4
    assert capsys.readouterr().err == (
        "error: no peer answered.\n  where: 10.0.0.1:8888\n  try: doctor\n"
    )


def test_stopping_is_no_error(capsys, monkeypatch):
    stand_in(monkeypatch, Interrupted("Stopped after step 7", hint="peerformer train --run x"))
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "Stopped after step 7.\n  try: peerformer train --run x\n"
    stand_in(monkeypatch, KeyboardInterrupt())
    assert cli.main(["train"]) == 130


def test_a_bug_is_one_line_and_shows_its_traceback_only_on_demand(capsys, monkeypatch):
    stand_in(monkeypatch, ValueError("boom"))
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == (
        "error: ValueError: boom.\n  try: re-run with --debug for the traceback\n"
    )
    assert cli.main(["train", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    assert cli.main(["train"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_causes_no_complaint():
    script = f"{sys.executable} -m peerformer config schema | head -n 1"
    done = subprocess.run(script, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_dotted_flags_become_settings_and_what_follows_two_dashes_stays():
    tokens = ["train", "--a.b", "1", "--c.d=x=y", "--steps", "5", "--", "--e.f", "2"]
    assert expand_settings(tokens) == [
        *("train", "--set=a.b=1", "--set=c.d=x=y", "--steps", "5", "--", "--e.f", "2")
    ]


def test_a_flag_of_the_command_overrules_set_and_none_means_not_given(monkeypatch):
    monkeypatch.delenv("PEERFORMER_TRAINING__SEED", raising=False)
    options = ConfigOptions(settings=("training.steps=5", "training.seed=3"))
    resolved = resolve_options(options, {"training.steps": 6, "training.seed": None})
    assert resolved.config.training.steps == 6 and resolved.config.training.seed == 3
    with pytest.raises(ConfigError):
        resolve_options(ConfigOptions(files=(Path("nowhere.json"),)))
