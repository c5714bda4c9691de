"""Notebook and adapter in one zip."""

from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZipFile, is_zipfile

from peft_helpers.submission.checklist import check_submission, find_adapter

COMMENT = b"A submission packed by peft_helpers"
KINDS = {".json", ".md", ".txt", ".model", ".jinja"}  # what an adapter is saved with, beside its weights


def package_submission(
    notebook: str | Path, adapter_dir: str | Path, zip_path: str | Path | None = None, allow_incomplete: bool = False
) -> Path:
    """Write the notebook and what loads its adapter to a zip, by default beside the notebook; return its path.

    Raises:
        FileExistsError: the zip's path is another file.
        FileNotFoundError: there is no such notebook, or no folder for the zip.
        ValueError: there are no weights or, unless ``allow_incomplete``, something else that refuses a zip is missing.
    """
    notebook, (folder, _, weights) = Path(notebook), find_adapter(Path(adapter_dir).resolve())
    path = Path(zip_path or notebook.with_suffix(".zip"))
    missing = [f"{row.requirement}: {row.to_do}" for row in check_submission(notebook, folder) if row.refuses]
    if (missing and not allow_incomplete) or not weights:
        raise ValueError(f"No zip was written. Missing: {'; '.join(missing)}.")
    if path.exists() and not (is_zipfile(path) and ZipFile(path).comment == COMMENT):
        raise FileExistsError(f"{str(path)!r} is not an earlier zip of a submission. Choose another zip_path.")
    files = [file for file in sorted(folder.glob("[!.]*")) if file == weights or file.suffix in KINDS]
    with TemporaryDirectory(prefix=".", dir=path.parent) as part:  # a failure leaves an earlier zip as it was
        with ZipFile(Path(part, path.name), "w", ZIP_DEFLATED, strict_timestamps=False) as archive:
            archive.comment = COMMENT
            archive.write(notebook, notebook.name)
            for file in [file for file in files if file.is_file() and not file.is_symlink()]:
                archive.write(file, f"{folder.name}/{file.name}")
        return Path(archive.filename).replace(path)
