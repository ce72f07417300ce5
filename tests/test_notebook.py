"""The notebook among the examples runs from top to bottom."""

import shutil

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "examples" / "first_growth.ipynb"


def test_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="runs notebooks (extra: test)")
    pytest.importorskip("ipykernel", reason="runs notebooks (extra: test)")
    import nbformat

    shutil.copy(ROOT / "examples" / "digits_cnn.py", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # the kernel reads these, and writes its files in a folder of its own
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without outputs
    client = nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    shown = [
        output["data"].get("text/html", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "data" in output
    ]
    assert len(shown) == 3  # inspection, votes, growth
    assert all(html.startswith("<div>") and "stem.0" in html for html in shown)
    assert (tmp_path / "growth.html").read_text(encoding="utf-8").startswith("<!doctype html>")
