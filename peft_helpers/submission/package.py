"""Notebook and adapter in one zip."""

import os
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, is_zipfile

from peft_helpers.submission.checklist import check_submission, find_weights

COMMENT = b"A submission packed by peft_helpers"
KINDS = {".json", ".md", ".txt", ".model", ".jinja"}


def package_submission(
    notebook: str | Path, adapter_dir: str | Path, zip_path: str | Path | None = None, allow_incomplete: bool = False
) -> Path:
    """Write the notebook and what loads its adapter to a zip, by default beside the notebook; return its path.

    Raises:
        FileNotFoundError: there is no such notebook, or no folder to write the zip to.
        ValueError: the file is not a notebook, the adapter has no weights, or something else that is needed is surely
            missing (unless ``allow_incomplete``).
        FileExistsError: ``zip_path`` is a file that this function has not written.
    """
    notebook, folder = Path(notebook), Path(adapter_dir).resolve()
    path, weights = Path(zip_path or notebook.with_suffix(".zip")), find_weights(folder)
    missing = [f"{row.requirement}: {row.to_do}" for row in check_submission(notebook, folder) if row.refuses]
    if (missing and not allow_incomplete) or not weights:
        raise ValueError(f"No zip was written. Missing: {'; '.join(missing)}.")
    if os.path.lexists(path) and not (is_zipfile(path) and ZipFile(path).comment == COMMENT):
        raise FileExistsError(f"{str(path)!r} is not an earlier zip of a submission. Choose another zip_path.")
    files = [path for path in sorted(folder.glob("[!.]*")) if path.suffix in KINDS and path.stem != "trainer_state"]
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # a failure leaves an earlier zip as it was
    try:
        with ZipFile(part, "w", ZIP_DEFLATED, strict_timestamps=False) as archive:
            archive.comment = COMMENT
            archive.write(notebook, notebook.name)
            for file in [weights, *(file for file in files if file.is_file() and not file.is_symlink())]:
                archive.write(file, f"{folder.name}/{file.name}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
