"""Recipes for schedulers, tested as far as a machine without them allows."""

import ast
import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import types

import pytest

from dynchoice.run import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("recipes") / "s"
    assert cli.main(["init", str(target), "--recipes", "--quiet"]) == 0
    return target


def test_every_recipe_is_there_and_whole(folder):
    names = {p.name for p in (folder / "recipes").iterdir()}
    assert names == {"README.md", "crontab", "dynchoice.service", "dynchoice.timer",
                     "airflow_dag.py", "Containerfile"}  # fmt: skip
    for path in (folder / "recipes").iterdir():
        assert not re.search(r"@[A-Z]+@", path.read_text()), path


@pytest.mark.parametrize("name", ["crontab", "dynchoice.service", "airflow_dag.py"])
def test_commands_of_recipes_are_understood(folder, name):
    text = (folder / "recipes" / name).read_text()
    lines = [x for x in text.splitlines() if str(folder / "run.toml") in x]
    assert lines
    for line in lines:
        found = re.search(r"dynchoice ((?:forecast|backtest|check) .*?)\"?,?\)?$", line)
        if found is None:
            assert "current/report.html" in line
            continue
        words = found[1].replace("'", "").split()
        assert cli.parser().parse_args(words).run == str(folder / "run.toml")


def test_the_command_of_the_recipes_runs_without_an_environment(folder):
    line = (folder / "recipes" / "dynchoice.service").read_text()
    start = re.search(r"ExecStart=(.*) forecast", line)[1].split()
    path = os.environ.get("PYTHONPATH")
    done = subprocess.run(
        [*start, "--version"], capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin:/bin"} | ({"PYTHONPATH": path} if path else {}), cwd="/",
    )  # fmt: skip
    assert done.stdout.startswith("dynchoice ")


def test_units_of_systemd(folder, tmp_path):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(folder / "recipes" / "dynchoice.service")
    assert unit["Service"]["Type"] == "oneshot"
    assert unit["Service"]["SuccessExitStatus"].split() == ["75", "99"]
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd on this machine")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(folder / "recipes" / "dynchoice.service"),
         str(folder / "recipes" / "dynchoice.timer")],
        capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_crontab_has_five_fields_and_a_command(folder):
    lines = (folder / "recipes" / "crontab").read_text().splitlines()
    jobs = [x for x in lines if re.match(r"[\d*]", x)]
    assert len(jobs) == 2
    for job in jobs:
        fields = job.split(maxsplit=5)
        assert all(re.fullmatch(r"\*|\d+(/\d+)?", f) for f in fields[:5])
        assert "%" not in fields[5]  # cron ends a command at a percent sign
    if shutil.which("crontab"):
        subprocess.run(["crontab", "-T", str(folder / "recipes" / "crontab")], check=True)


def test_the_dag_is_built_as_airflow_would(folder, monkeypatch):
    """Stand-ins record what it says; validation/unattended/README.md has a run of the real one."""
    made = {}

    class Operator:
        def __init__(self, **options):
            made[options["task_id"]] = options
            self.after = []

        def __rshift__(self, other):
            self.after.append(other)
            return other

    class Dag:
        def __init__(self, **options):
            made["dag"] = options

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

    airflow = types.ModuleType("airflow")
    airflow.DAG = Dag
    names = "airflow.providers.standard.operators.bash"
    for i in range(1, len(names.split("."))):
        name = ".".join(names.split(".")[: i + 1])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "airflow", airflow)
    sys.modules[names].BashOperator = Operator
    text = (folder / "recipes" / "airflow_dag.py").read_text()
    ast.parse(text)
    exec(compile(text, "airflow_dag.py", "exec"), {})
    assert made["dag"]["max_active_runs"] == 1 and made["dag"]["catchup"] is False
    assert made["forecast"]["skip_on_exit_code"] == 99
    assert "--exit-code-unchanged 99" in made["forecast"]["bash_command"]


def test_the_container_file(folder):
    text = (folder / "recipes" / "Containerfile").read_text()
    steps = re.findall(r"^([A-Z]+) ", text, re.MULTILINE)
    assert steps == ["FROM", "ENV", "RUN", "VOLUME", "USER", "ENTRYPOINT", "CMD"]
    command = ast.literal_eval(re.search(r"^CMD (.*)$", text, re.MULTILINE)[1])
    assert cli.parser().parse_args(command).log == "json"
    assert "warm-up" in text and "DYNCHOICE_CACHE" in text


def test_paths_with_blanks_and_signs(tmp_path):
    target = tmp_path / 'my run\'s 100% "best"'
    assert cli.main(["init", str(target), "--recipes", "--quiet"]) == 0
    run = str(target / "run.toml")
    lines = (target / "recipes" / "crontab").read_text().splitlines()
    job = next(x for x in lines if " forecast " in x).split(maxsplit=5)[5]
    words = shlex.split(job.replace("\\%", "%"))
    assert cli.parser().parse_args(words[words.index("forecast") :]).run == run
    text = (target / "recipes" / "airflow_dag.py").read_text()
    found = [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)]
    bash = next(x for x in found if isinstance(x, str) and "--exit-code-unchanged" in x)
    words = shlex.split(bash)
    assert cli.parser().parse_args(words[words.index("forecast") :]).run == run
    unit = (target / "recipes" / "dynchoice.service").read_text()
    start = re.search(r"ExecStart=(.*)", unit)[1].replace("%%", "%")
    words = shlex.split(start)
    assert cli.parser().parse_args(words[words.index("forecast") :]).run == run
