"""A run's encoder in a folder of its own, for other programs: its files, and a model card."""

import os
from pathlib import Path

from rayssl.pipeline.base.errors import MissingError, UserError
from rayssl.pipeline.base.files import listed, replacing
from rayssl.pipeline.evaluation.records import read_evaluation
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.models.export_formats import Exported, export_as
from rayssl.pipeline.models.identity import read_manifest as read_export
from rayssl.pipeline.report.model_card import model_card
from rayssl.pipeline.run.folder import own_data

CARD = "README.md"


def export_run(run: Path, name: str, out: Path) -> Exported:
    """Write the encoder in the format of that name (see export_formats.FORMATS), compared with the run's own.

    Raises UserError, with nothing written, for a folder that holds something, and for an encoder that cannot be had so.
    """
    if os.path.lexists(out) and (not out.is_dir() or listed(out)):
        raise UserError(f"--out {out} is there already: give a folder that is new or empty")
    exported = export_as(load_encoder(run), name)
    card = _card(run, name, exported)
    for file, content in {**exported.files, CARD: card.encode()}.items():
        with replacing(out / file, noted=False) as temporary:
            temporary.write_bytes(content)
    return exported


def _card(run: Path, name: str, exported: Exported) -> str:
    data = own_data(run)
    try:
        records = read_evaluation(run)["records"]
    except MissingError:
        records = []
    how = {
        "title": f"{data['name']}, as {name}",
        "code": exported.code,
        "files": list(exported.files),
        "difference": exported.difference,
    }
    return model_card(read_export(run), data, records, how)
