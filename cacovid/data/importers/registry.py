"""All importers, by the name that the command line takes."""

from cacovid.data.importers.egoschema import EgoSchema
from cacovid.data.importers.longvideobench import LongVideoBench
from cacovid.data.importers.mlvu import MLVU
from cacovid.data.importers.mvbench import MVBench
from cacovid.data.importers.protocol import Importer
from cacovid.data.importers.tempcompass import TempCompass
from cacovid.data.importers.video_mme import VideoMME
from cacovid.data.importers.video_r1 import VideoR1
from cacovid.errors import UserError

IMPORTERS: dict[str, type[Importer]] = {
    importer.kind: importer for importer in (VideoR1, VideoMME, MLVU, LongVideoBench, MVBench, EgoSchema, TempCompass)
}


def importer_of(kind: str) -> type[Importer]:
    """The importer of that name; raises UserError where there is none."""
    if kind not in IMPORTERS:
        raise UserError(f"collection {kind!r} is unknown: choose one of {', '.join(IMPORTERS)}")
    return IMPORTERS[kind]
