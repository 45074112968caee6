import logging
import os
import re
import subprocess
import sys
import time

import pytest
import typer

from diffsight.cli import app, output

SYNTHESIS = ("synthesize", "train", "export", "diversity", "gaussian", "distil")
COMMANDS = ("classify", "evaluate", "compare", "rescore", "report", "ls", "validate", "convert", "doctor", *SYNTHESIS)
HEAVY = ["torch", "numpy", "scipy", "sklearn", "PIL", "pyarrow", "yaml", "tqdm", "huggingface_hub", "rich"]


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


def parameters(command):
    return [p for p in typer.main.get_command(app).commands[command].params if p.name not in ("help",)]


def test_help_imports_nothing_heavy():
    code = f"""
import sys
from diffsight.cli import main
codes = [main(arguments) for arguments in ([], ["--help"], ["--version"], *([c, "--help"] for c in {COMMANDS}))]
print(codes, [m for m in {HEAVY} if m in sys.modules], file=sys.stderr)
"""
    assert python(code).stderr.strip() == f"{[0] * (3 + len(COMMANDS))} []"


def test_help_names_every_command(run):
    shown = run("--help")
    assert all(command in shown.out for command in COMMANDS)
    assert shown.err == ""
    assert "--help" in run("-h").out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text_with_its_default(run, command):
    text = " ".join(run(command, "--help").out.split())
    for parameter in parameters(command):
        assert parameter.help, parameter.name
        assert " ".join(parameter.help.split())[:30] in text
        if parameter.param_type_name == "option" and not parameter.required:
            assert "default" in parameter.help or parameter.default is not None, parameter.name


def test_help_names_what_there_is():
    from diffsight.diffusion.weighting import BY_NAME
    from diffsight.scoring.policies import POLICIES
    from diffsight.scoring.scorer import LOSSES
    from diffsight.zero_shot.settings import ENSEMBLES, Settings

    for command in ("classify", "evaluate", "rescore"):
        helps = {parameter.name: parameter.help for parameter in parameters(command)}
        for option, names in {"policy": POLICIES, "loss": LOSSES, "weighting": BY_NAME, "ensemble": ENSEMBLES}.items():
            assert all(name in helps[option] for name in names)
    helps = {parameter.name: parameter.help for parameter in parameters("classify")}
    usual = Settings()
    for option, name in {"policy": usual.policy.name, "loss": usual.loss, "weighting": usual.weighting}.items():
        assert f"(default: {name})" in helps[option]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clasify"], ["clasify", "classify"]),
        (["classify", "--modle", "x"], ["--modle", "--model", "diffsight classify --help"]),
        (["classify", "x.png", "--limit", "-1"], ["--limit", "1"]),
        (["classify", "x.png", "--top", "0"], ["--top"]),
        (["classify", "x.png", "--draws", "many"], ["--draws"]),
        (["evaluate"], ["--task"]),
        (["rescore"], ["RUN"]),
        (["ls", "cats"], ["models"]),
    ],
)
def test_wrong_usage_is_one_line(run, arguments, words):
    refused = run(*arguments)
    assert refused.code == 2
    assert refused.out == ""
    assert refused.err.startswith("diffsight: ")
    assert refused.err.count("\n") == 1
    assert all(word in refused.err for word in words)


def test_a_reader_that_stops_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from diffsight.cli import main; sys.exit(main(['--version']))"
    stopped = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (stopped.returncode, stopped.stderr) == (0, b"")


def test_the_log_is_as_it_was_afterwards(run):
    ours = logging.getLogger("diffsight")
    before = (ours.level, list(ours.handlers))
    run("--version")
    assert (ours.level, ours.handlers) == before


def test_table_lines_up_and_is_safe():
    text = output.table(
        [["a", "p", "x"], ["long\nname\x1b[31m", "0.5", ""], ["b", "a remark that is long"]], align="<>"
    )
    first, second, third = text.splitlines()
    assert second == r"long\nname\x1b[31m  0.5"
    assert first == "a".ljust(18) + "    p  x"
    assert third == "b".ljust(18) + "  a remark that is long"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59, "59.0 s"), (245, "4 min 05 s"), (12000, "3 h 20 min")]
)
def test_durations(seconds, text):
    assert output.duration(seconds) == text


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr(output, "SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO, logger="diffsight")
    with output.progress(10) as report:
        report(4, 100)
        report(4, 300)
        report(6, 5000)
        report(10, 5500)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("4 of 10 images, 300 calls")
    assert "time left not known" in first
    assert second.startswith("6 of 10 images, 5,000 calls")
    assert second.endswith("s left")


def test_progress_of_work_without_denoiser_calls_tells_the_time_left_too(monkeypatch, caplog):
    monkeypatch.setattr(output, "SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO, logger="diffsight")
    with output.progress(10, "images of the set") as report:
        for done in (0, 4, 10):
            report(done, 0)
    (line,) = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(r"4 of 10 images of the set, [\d,.]+/s, [\d.]+ s left", line)


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with output.progress(10) as report:
        report(0, 0)
        time.sleep(0.15)  # tqdm draws ten times a second
        report(5, 500)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "calls/s" in shown.err
