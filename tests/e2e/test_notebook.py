"""The notebook of docs/ runs from its first cell to its last, and is stored without outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs/first_ticket.ipynb"


def test_the_notebook_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert len(cells) >= 10


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    reason = "the notebook is not run: {} is not installed, see requirements-dev.txt"
    nbformat = pytest.importorskip("nbformat", reason=reason.format("nbformat"))
    client = pytest.importorskip("nbclient", reason=reason.format("nbclient"))
    pytest.importorskip("ipykernel", reason=reason.format("ipykernel"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.chdir(tmp_path)  # where the notebook writes its runs
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert "% of the test images are right" in text and "epoch 5/5" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert [output for output in outputs if output.get("name") == "stderr" and "Warning" in output["text"]] == []
    (tmp_path / "executed.ipynb").write_text(nbformat.writes(notebook))
    assert len(list((tmp_path / "runs").rglob("config.yaml"))) == 5
