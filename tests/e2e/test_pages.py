"""The README and the other pages: their commands, code, tables and file names work as printed."""

import re
import shlex
import subprocess
import sys

import pytest
import torch

import args
import models
from models.constraints import constrain
from tests.originals import original, write
from tests.pages import (
    BLOCK,
    EXCEPTIONS,
    PAGES,
    ROOT,
    STARTS,
    as_run,
    blocks,
    commands,
    inline_commands,
    lines,
    prepare,
    run,
)
from trainers import build, load_trained
from trainers.checkpoint_sources import read_network
from utils.records import checkpoints

SHOWN = {command: page for page in PAGES for command in commands(page)}
TRAINED = [
    command for command in SHOWN if re.match(r"python main.py --config (?!.*(runs/|pictures|plugin|tracker))", command)
]
RUN = {"bash", "python", "yaml"}  # kinds of blocks
INLINE = {command: page for page in PAGES for command in inline_commands(page)}


def test_every_command_of_the_pages_is_of_a_kind_that_these_tests_run():
    assert len(SHOWN) >= 50 and [command for command in SHOWN if not command.startswith(STARTS)] == []


@pytest.mark.parametrize("command", TRAINED)
def test_main_accepts_every_training_command(program, monkeypatch, command):
    monkeypatch.chdir(ROOT)
    code, out, err = program(*shlex.split(command)[2:], "--check")
    assert (code, err) == (0, "") and "weights kept" in out


def test_every_exception_is_needed_and_states_its_reason():
    unused = [pattern for pattern in EXCEPTIONS if not any(re.search(pattern, command) for command in SHOWN)]
    assert unused == [] and all(reason for _, reason in EXCEPTIONS.values())


@pytest.mark.parametrize("command", [c for c in SHOWN if re.search(r"sweep\.py(?!.*plugin)|mpt_cifar", c)])
def test_dry_runs_of_the_sweeps_print_every_cell(command, tmp_path):
    options = [word.split() for word in re.findall(r"--(?:prune-rate|seed) ([\d. ]+)", command)]
    cells = (
        4 * 2 * 6 * 3 if "mpt_cifar" in command else len([*options[0]]) * len([*options[-1]] if options[1:] else [0])
    )
    dry = command if "--dry-run" in command else f"{command.replace(' --table', '')} --dry-run"
    prepare_links(tmp_path)
    assert len(run(tmp_path, dry).splitlines()) == cells


def prepare_links(folder):
    for name in ("scripts", "configs", "main.py"):
        (folder / name).symlink_to(ROOT / name)


@pytest.fixture(scope="module")
def help_texts():
    """Function that returns the --help of a program of the project."""
    texts = {}

    def of(program):
        if program not in texts:
            kind = "bash" if program.endswith(".sh") else sys.executable
            words = [kind, ROOT / program, "--help"]
            texts[program] = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100).stdout
        return texts[program]

    return of


@pytest.mark.parametrize("command", INLINE)
def test_commands_within_sentences_name_programs_and_options_that_exist(command, help_texts):
    program, *words = shlex.split(command.replace("…", ""))[1:]
    flags = [word for word in words if word.startswith("--")]
    text = help_texts(program)
    assert [flag for flag in flags if flag not in text] == []


@pytest.fixture
def biprop_network(tmp_path):
    """A network stored as BIPROP's model_best.pth in `tmp_path`, as the pages' commands name it."""
    model = constrain(
        models.build("cResNet18", num_classes=10, in_shape=(3, 32, 32), bn_type="NonAffineBatchNorm"),
        "SubnetConv",
        density=0.2,
    )
    write(original(model, arch="cResNet18", prune_rate=0.2), tmp_path / "model_best.pth", legacy=True)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if {kind for kind, _ in blocks(page)} & RUN])
def test_commands_and_code_of_a_page_run_in_order(page, tmp_path, biprop_network):
    """Type what a reader would type, from the top of the page to its end, in one folder."""
    prepare(tmp_path)
    for kind, text in blocks(page):
        if kind == "bash":
            for command in lines(text):
                run(tmp_path, as_run(command))
        elif kind == "python":
            name = re.match(r"# (\w+\.py)\n|", text)[1] or "page.py"
            (tmp_path / name).write_text(text)
            run(tmp_path, f"python {name}")
        elif kind == "yaml":
            (tmp_path / "page.yml").write_text(text)
            run(tmp_path, "python main.py --config page.yml --check")


def test_the_conversion_keeps_every_tensor(tmp_path, biprop_network):
    prepare_links(tmp_path)
    (command,) = (c for c in SHOWN if "convert" in c)
    run(tmp_path, command)
    state = checkpoints.read(tmp_path / "ours.pt")["model"]
    assert state.keys() == biprop_network.state_dict().keys()
    assert all(torch.equal(value, biprop_network.state_dict()[key]) for key, value in state.items())


def test_the_pretrained_command_loads_the_same_network(tmp_path, biprop_network, monkeypatch):
    """Build the network of the command with --pretrained, without CIFAR-10, and compare its logits to the bit."""
    (command,) = (words for words in SHOWN if "--pretrained model_best.pth" in words)
    options = args.parse(shlex.split(command.replace("configs/", f"{ROOT}/configs/"))[2:])
    net, _ = build.build(options.replace(seed=1))
    monkeypatch.chdir(tmp_path)
    stored = read_network(str(options.run.pretrained))
    load_trained.check_declared(stored, options)
    load_trained.load_weights(stored, net, whole=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert options.run.evaluate and torch.equal(net.eval()(x), biprop_network(x))


@pytest.mark.parametrize("script", ["readme", "scaling"])
def test_the_generated_parts_of_the_pages_are_up_to_date(script, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = __import__(script)
    assert module.main(["--check"]) == 0, f"run python scripts/{script}.py"
    sys.modules.pop(script)


@pytest.mark.parametrize("page", PAGES)
def test_files_named_on_a_page_exist(page):
    text = BLOCK.sub("", (ROOT / page).read_text())
    code = re.findall(r"`((?:configs|data|docs|models|scripts|tests|trainers|utils)/[\w./-]*)`", text)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = {path for path in code if "NAME" not in path and not (ROOT / path).exists()}
    assert missing | {link for link in links if not (ROOT / page).parent.joinpath(link).exists()} == set()


def test_the_readme_has_at_most_150_lines_of_at_most_132_characters_outside_tables():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and [line for line in lines if len(line) > 132 and line[0] not in "|-!"] == []
