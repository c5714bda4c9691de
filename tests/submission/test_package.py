import errno
import os
from pathlib import Path
from zipfile import ZipFile

import pytest
from make_notebooks import make_adapter, write_notebook

from peft_helpers.submission.checklist import package_submission

KEPT = ["gpt-lora/README.md", "gpt-lora/adapter_config.json", "gpt-lora/adapter_model.safetensors", "n.ipynb"]


@pytest.fixture
def notebook(tmp_path, adapter):
    return write_notebook(tmp_path / "n.ipynb")


@pytest.fixture
def adapter(tmp_path):
    return make_adapter(tmp_path / "gpt-lora")


def names(path) -> list[str]:
    with ZipFile(path) as archive:
        assert archive.testzip() is None
        return sorted(archive.namelist())


def test_the_zip_has_notebook_and_adapter(notebook, adapter, tmp_path):
    path = package_submission(notebook, adapter)
    assert path == tmp_path / "n.zip"
    assert names(path) == KEPT
    with ZipFile(path) as archive:
        for name in KEPT:
            assert archive.read(name) == (tmp_path / name).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_only_what_loads_the_adapter_is_taken(notebook, adapter, tmp_path):
    make_adapter(adapter / "checkpoint-500")
    (tmp_path / "secret.json").write_text("{}")
    (adapter / "secret.json").symlink_to(tmp_path / "secret.json")
    (adapter / "folder.json").mkdir()
    others = [
        "training_args.bin",
        "adapter_model.bin",
        "model.safetensors",
        "optimizer.pt",
        ".x.json",
    ]
    for name in others:
        (adapter / name).touch()
    assert names(package_submission(notebook, adapter)) == KEPT


def test_the_pickled_weights_of_an_old_peft_are_packed(notebook, adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "gpt-lora/adapter_model.bin" in names(package_submission(notebook, adapter))


def test_a_folder_elsewhere_is_packed_under_its_name(notebook, tmp_path, monkeypatch):
    make_adapter(tmp_path / "models" / "gpt-lora")
    assert names(package_submission(notebook, tmp_path / "models" / "gpt-lora")) == KEPT
    monkeypatch.chdir(tmp_path / "models" / "gpt-lora")
    assert names(package_submission(notebook, ".")) == KEPT


def test_what_is_only_advised_does_not_refuse_the_zip(adapter, tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", {"untuned": ("x = 1", ""), "comparison": None})
    assert names(package_submission(notebook, adapter)) == KEPT


@pytest.mark.reliability("bad input")
def test_what_is_surely_missing_refuses_the_zip(adapter, tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", {"more": ("1 / 0", ZeroDivisionError)})
    with pytest.raises(
        ValueError, match=r"No zip was written. Missing: no cell ended in an error: correct these cells"
    ):
        package_submission(notebook, adapter)
    assert not (tmp_path / "n.zip").exists()


@pytest.mark.reliability("bad input")
def test_no_zip_is_ever_made_without_weights(notebook, adapter, tmp_path):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"the folder has the adapter's configuration and its weights: call save_pretrained"
    ):
        package_submission(notebook, adapter)
    assert not (tmp_path / "n.zip").exists()


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("make", [Path.touch, lambda path: ZipFile(path, "w").close(), Path.mkdir])
def test_a_file_of_the_users_is_not_replaced(make, notebook, adapter, tmp_path):
    make(tmp_path / "thesis.zip")
    before = (tmp_path / "thesis.zip").stat().st_mtime_ns, sorted(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match=r"is not an earlier zip of a submission. Choose another zip_path"):
        package_submission(notebook, adapter, tmp_path / "thesis.zip")
    assert ((tmp_path / "thesis.zip").stat().st_mtime_ns, sorted(tmp_path.iterdir())) == before


def test_an_earlier_zip_is_replaced(notebook, adapter, tmp_path):
    package_submission(notebook, adapter)
    (adapter / "README.md").write_text("# Another card")
    package_submission(notebook, adapter)
    with ZipFile(tmp_path / "n.zip") as archive:
        assert archive.read("gpt-lora/README.md") == b"# Another card"


@pytest.mark.reliability("bad input")
def test_a_folder_for_the_zip_that_does_not_exist(notebook, adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        package_submission(notebook, adapter, tmp_path / "none" / "a.zip")


@pytest.mark.reliability("fault")
def test_a_full_disk_leaves_the_earlier_zip_whole(notebook, adapter, tmp_path, monkeypatch):
    package_submission(notebook, adapter)
    before = (tmp_path / "n.zip").read_bytes()
    write = ZipFile.write

    def fail(archive, path, *arguments):
        if Path(path).suffix == ".json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(archive, path, *arguments)

    monkeypatch.setattr(ZipFile, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        package_submission(notebook, adapter)
    assert (tmp_path / "n.zip").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"gpt-lora", "n.ipynb", "n.zip"}
