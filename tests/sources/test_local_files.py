from pathlib import Path

import pytest

from peft_helpers.sources.local_files import check_model_folder, extension, find_data_files


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()


@pytest.mark.parametrize(("name", "expected"), [("rows.csv", ".csv"), ("rows.jsonl.gz", ".jsonl"), ("a.b/rows", "")])
def test_the_extension_is_that_before_gz(name, expected):
    assert extension(Path(name)) == expected


def test_a_name_that_is_no_path_is_left_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_data_files("stanfordnlp/sst2") is None
    check_model_folder("gpt2")


def test_a_folder_has_a_file_a_split(tmp_path):
    files = [tmp_path / name for name in ("dev.csv", "notes.txt", "train-0.csv", "train-1.csv")]
    touch(*files)
    assert find_data_files(str(tmp_path)) == {"validation": files[:1], "train": files[2:]}


def test_a_whole_model_passes(tiny_model_dir):
    check_model_folder(tiny_model_dir)


@pytest.mark.parametrize("found", ["", "config.json", "config.json pytorch_model.bin", "model.safetensors"])
def test_a_model_without_weights_or_configuration_is_named(tmp_path, found):
    touch(*(tmp_path / name for name in found.split()))
    with pytest.raises(FileNotFoundError, match=f"found {', '.join(found.split()) or 'nothing'}"):
        check_model_folder(str(tmp_path))
