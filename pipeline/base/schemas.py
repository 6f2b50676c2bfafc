"""What stands in every file that a run, a search or a race writes. docs/schemas/ is made from this.

Types are strict, numbers finite and sizes bounded; a key that is not known here is of a newer version, and left alone.
Names out of files become paths: they are plain names, or paths that stay inside the folder.
"""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, WithJsonSchema

VERSION = 1
LONGEST_NAME = 255  # bytes of a file's name
MOST_PIXELS = 65_536  # a side
MOST_CHANNELS = 4_096
MOST_NEIGHBORS = 1_000


def is_plain(name: object) -> bool:
    """Whether a text is the name of something that lies in a folder, and no way out of it."""
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\x00]", name):
        return False
    return len(name.encode(errors="surrogatepass")) <= LONGEST_NAME


def stays_inside(path: object) -> bool:
    """Whether a text is a relative path, written with /, that leads to something below where it starts."""
    return isinstance(path, str) and PurePosixPath(path).as_posix() == path and all(map(is_plain, path.split("/")))


LONGEST_METRIC = 1000  # letters; candidates of a choice are metrics too


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is needed")
    return value


def _name(value: Any) -> str:
    if not is_plain(value):
        raise ValueError("a plain name is needed, without a slash")
    return str(value)


def _metric(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_METRIC:
        raise ValueError(f"a name of at most {LONGEST_METRIC} letters is needed")
    return value


def _inside(value: Any) -> str:
    if not stays_inside(value):
        raise ValueError("a path inside the folder is needed")
    return str(value)


# Names of files may hold what is no UTF-8, which pydantic's own text refuses.
Text = Annotated[str, PlainValidator(_text), WithJsonSchema({"type": "string"})]
Metric = Annotated[str, PlainValidator(_metric), WithJsonSchema({"type": "string", "maxLength": LONGEST_METRIC})]
Name = Annotated[str, PlainValidator(_name), WithJsonSchema({"type": "string", "pattern": r"^[^/\\]+$"})]
Inside = Annotated[str, PlainValidator(_inside), WithJsonSchema({"type": "string", "pattern": "^[^/]"})]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Id = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Channels = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
Interval = Annotated[list[Number], Field(min_length=2, max_length=2)]
Pair = Annotated[list[Text], Field(min_length=2, max_length=2)]


class Part(BaseModel):
    """Part of a file."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, defer_build=True)


class Document(Part):
    """A file that says which version of its schema it has."""

    schema_version: int = Field(alias="schema", ge=VERSION, le=VERSION)


class Sealed(Part):
    """A finished file."""

    size: Count
    sha256: Sha256


class Files(Document):
    """What is finished in a folder: `files` by path. `writing`: what was there before it was written again."""

    files: dict[Inside, Sealed] | None = None
    writing: dict[Inside, Sealed | None] | None = None
    seal: Sha256 | None = None  # of all the rest


class ReportedData(Part):
    """What a report needs of `data` in config.json."""

    path: Text
    image_size: Side | None = None
    channels: Channels | None = None
    limit: Count | None = None
    val_fraction: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    loader: Text | None = None
    processes: Count | None = None
    labels: Text | None = None
    splits: Text | None = None
    key: Text | None = None
    image_column: Text | None = None
    label_column: Text | None = None
    range: Text | None = None
    background: Text | None = None
    classes: list[Text | Whole] | None = None


class ReportedNetwork(Part):
    """What a report needs of `encoder` in config.json."""

    name: Text
    width: Count | None = None


class ReportedTraining(Part):
    """What a report needs of `train` in config.json."""

    seed: Whole


class ReportedAugment(Part):
    """What a report needs of `augment` in config.json."""

    views: list[dict[Text, Any]] | None = None


class ReportedConfig(Document):
    """config.json as far as a report needs it: the rest of it is checked where it is opened to run."""

    data: ReportedData
    encoder: ReportedNetwork
    train: ReportedTraining
    augment: ReportedAugment
    method: dict[Text, Any] | None = None
    recipe: Text | None = None


class Note(Part):
    """Something that was concluded about the images."""

    text: Text
    flag: Text | None = None
    guess: bool | None = None


class Concluded(Part):
    """How the images were read."""

    notes: list[Note] = []
    left_out: dict[Text, Count] = {}


class Data(Part):
    """The images of a run."""

    name: Name | None = None
    path: Text | None = None
    fingerprint: Text | None = None
    train: Count | None = None
    val: Count | None = None
    test: Count | None = None
    image_size: Side | None = None
    channels: Channels | None = None
    classes: list[Text] | None = None
    labelled: Count | None = None
    duplicates: dict[Text, Count] | None = None
    started: dict[Text, Text] = {}
    concluded: Concluded | None = None


class OwnData(Data):
    """The images of a run, of which these must be told."""

    name: Name
    fingerprint: Text
    train: Count
    val: Count
    test: Count
    image_size: Side
    channels: Channels
    classes: list[Text] | None


class OtherReading(Part):
    """How images are to be read that are not the run's own, where that was said."""

    splits: Text = "auto"
    labels: Text = "auto"
    key: Literal["first", "last"] = "first"
    image_column: Text | None = None
    label_column: Text | None = None


class OtherData(Part):
    """Images that a run has embedded beside its own."""

    path: Text
    reading: OtherReading = OtherReading()
    concluded: Concluded | None = None


class Stage(Part):
    """A stage that has ended."""

    key: Text | None = None
    seconds: Number | None = None
    finished: Text | None = None
    warnings: list[Text] = []
    steps: Count | None = None
    precision: Text | None = None
    device: Text | None = None
    vectors: Text | Count | None = None
    score: Number | None = None
    recall: Number | None = None
    parity: Number | None = None


class Manifest(Files):
    """manifest.json of a run."""

    stages: dict[Text, Stage] = {}
    recipe: Text | None = None
    command: Text | list[Text] | None = None
    seed: Whole | None = None
    others: dict[Name, OtherData] = {}
    data: OwnData = None  # type: ignore[assignment]  # it may be missing, not null
    unreadable: list[Pair] = []
    commit: Text | None = None
    versions: dict[Text, Text] = {}
    machine: Text | None = None
    running: Text | None = None  # the stage that has begun and has not ended


class Record(Part):
    """One figure and how it was measured."""

    metric: Metric
    value: Number
    protocol: Text = ""
    data: Text = ""
    split: Text = ""
    checkpoint: Text = ""
    seed: Whole = 0
    n: Count | None = None
    interval: Interval | None = None
    encoder: Text | None = None  # hash of the encoder that it was computed from
    embeddings: dict[Inside, Sha256] | None = None  # path and hash of the embeddings that it was computed from
    seal: Text | None = None  # of all the rest


class Evaluation(Document):
    """evaluation.json of a run."""

    records: list[Record]
    flat: dict[Text, Number]


class Row(Part):
    """A line of metrics.jsonl; the other keys are figures."""

    stage: Text = ""
    step: Count = 0
    epoch: Count | None = None
    __pydantic_extra__: dict[str, float | int | str | bool | None]


class Origin(Part):
    """Whose weights an encoder has learned from."""

    role: Text = ""
    name: Text = ""
    weights: Text = ""
    licence: Text = ""


class EncoderFile(Document):
    """encoder.json beside encoder.safetensors."""

    name: Text
    stem: Text
    channels: Channels
    image_size: Side
    mean: list[Number]
    std: list[Number]
    sha256: Sha256
    dim: Count | None = None
    latent_dim: Annotated[int, Field(ge=1, le=2**20)] | None = None
    depth: Annotated[int, Field(ge=1, le=2**12)] | None = None
    kernel: Annotated[int, Field(ge=1, le=2**12)] | None = None
    width: Annotated[int, Field(ge=1, le=2**10)] | None = None
    epsilon: Number | None = None
    stages: list[Text] = []
    licence: Text = ""
    origin: list[Origin] = []
    load: list[Text] = []
    extra: dict[Text, Any] = {}


class OnnxFile(Document):
    """queries.json beside queries.onnx."""

    encoder: Text  # hash of the encoder that it was made from
    channels: Channels
    image_size: Side
    outputs: Annotated[dict[Text, Annotated[int, Field(ge=1, lt=2**24)]], Field(min_length=1, max_length=64)]
    parity: Number | None = None  # largest difference of searched vectors to torch's
    n: Count = 0  # images that it was measured over
    sha256: Sha256


class DecoderFile(Document):
    """decoder.json beside decoder.safetensors."""

    encoder: Text
    sha256: Sha256


class CheckpointFile(Document):
    """manifest.json of a checkpoint."""

    step: Count | None = None
    sha256: dict[Name, Sha256]


class Guarded(Part):
    """What a guard needs to go on."""

    state: dict[Text, Any] | None = None
    size: Count | None = None


class Facts(Part):
    """What training told its checkpoint."""

    stage: Text = ""
    guard: Guarded | None = None


class CheckpointState(Part):
    """state.json of a checkpoint."""

    step: Count
    optimizer: dict[Text, Any]
    facts: Any = None


class Draws(Part):
    """checkpoints/finetune.json: accuracies of the draws that are finished, by a hash of what they depend on."""

    __pydantic_extra__: dict[str, list[Number]]


class IndexPart(Sealed):
    """A file of an index that its manifest tells of."""

    path: Inside  # in index/<data>


class IndexFile(Document):
    """manifest.json of a generation of an index, or, as older versions wrote it, beside index.faiss."""

    metric: Text = "cosine"
    factory: Text = ""
    whitened: bool = False
    dim: Annotated[int, Field(ge=1, lt=2**31)]
    count: Count
    recall: Number | None = None
    encoder_hash: Text
    data_fingerprint: Text
    sha256: Sha256
    embeddings: dict[Inside, Sha256] | None = None  # that it was built from, by path in the run
    key: Text | None = None  # a hash of all that the base depends on
    base: Name | None = None  # the generation whose index.faiss is searched; None: its own
    parts: dict[Literal["items", "added", "additions", "removed", "columns"], IndexPart] = {}
    class_names: list[Text] | None = None
    data_path: Text = ""  # folder or URL that the items' paths are relative to
    place: Text | None = None  # where that folder is by now
    waiting: list[Text] = []  # folders and files that were added, and are to be embedded again by another encoder


class EmbeddingsFacts(Document):
    """The metadata of embeddings, under `rayssl`."""

    class_names: list[Text] | None
    encoder_hash: Text
    data_fingerprint: Text
    split: Text
    data: Text
    data_path: Text


class MapFacts(Document):
    """What index/<data>/map.parquet tells of itself, in its schema's metadata under `rayssl`."""

    made_of: Text
    fitted: Count


class TagsFile(Document):
    """tags/<data>.json: tags that people gave to images, by id."""

    tags: dict[Annotated[str, Field(pattern="^[0-9]{1,19}$")], Annotated[str, Field(min_length=1, max_length=200)]]


class GraphFacts(Document):
    """The metadata of the graph of neighbours, under `rayssl`."""

    k: Annotated[int, Field(ge=1, le=MOST_NEIGHBORS)]
    exact: bool
    recall: Annotated[Number, Field(ge=0, le=1)]
    embeddings: dict[Inside, Sha256]  # that it was made from, by path in the run


class PartOrigin(Part):
    """Where what a part of the searched vectors is seen by comes from."""

    kind: Text
    size: Side
    read: Side
    version: Count | None = None
    encoder: Annotated[str, PlainValidator(lambda value: value if value == "." else _inside(value)),
                       WithJsonSchema({"type": "string"})] | None = None  # fmt: skip
    name: Text | None = None
    weights: Text | None = None
    hash: Text | None = None


class SearchPart(Part):
    """A part of the searched vectors."""

    source: Text
    what: Text | None
    whitened: bool
    origin: PartOrigin


class Candidate(Part):
    """Vectors that were compared."""

    name: Text
    source: Text
    whitened: bool
    bytes: Count
    flops: Number
    score: Number
    seconds: Number = 0.0


class Shown(Part):
    """What a candidate finds, as ids."""

    name: Text
    queries: list[Id]
    found: list[list[Id]]


class SearchFile(Document):
    """search.json of a run: what it is searched by."""

    name: Text
    dim: Annotated[int, Field(ge=1, lt=2**31)]
    hash: Text
    parts: Annotated[list[SearchPart], Field(min_length=1, max_length=64)]
    candidates: list[Candidate]
    sha256: Sha256
    criterion: Text = ""
    score: Number | None = None
    n: Count = 0
    guess: bool = False
    ties: list[Text] = []
    told: Text = ""
    shown: list[Shown] = []


class Identity(Part):
    """What has to be the same where a search for augmentations goes on."""

    tune: dict[Text, Any]
    space: dict[Text, Any]
    data: Text
    config: dict[Text, Any]


class TunedData(Part):
    """The images of a search for augmentations."""

    name: Text = ""
    path: Text = ""
    fingerprint: Text = ""
    train: Count = 0
    val: Count = 0
    image_size: Side | None = None
    channels: Channels | None = None
    labelled: Any = None
    concluded: Concluded | None = None


class TuneFile(Document):
    """search.json of a search for augmentations."""

    recipe: Text = ""
    objective: Text = ""
    searcher: Text = ""
    scheduler: Text = ""
    trials: Count = 0
    seed: Whole = 0
    steps: Count | None = None
    space: dict[Text, Any] = {}
    data: TunedData | None = None
    config: dict[Text, Any] = {}
    changes: dict[Text, Any] = {}
    identity: Identity | None = None
    command: Text = ""


class TrialFile(Part):
    """trials/<number>.json of a search for augmentations."""

    number: Count
    state: Text
    parameters: dict[Text, Any]
    views: list[dict[Text, Any]]
    changes: dict[Text, Any]
    score: Number | None
    scores: dict[Text, Number]
    curve: list[Interval]
    began: Number
    seconds: Number
    reason: Text = ""
    schedule: list[dict[Text, Any]] = []


class RaceRound(Part):
    """A round of a race."""

    seconds: Number
    keep: Count | None = None
    names: list[Name] = []
    full: bool = False


class RaceResult(Part):
    """What became of a candidate in a round."""

    round: Count
    state: Text
    steps: Count
    score: Number | None
    vectors: Text = ""
    seconds: Number = 0.0
    reason: Text = ""


class RaceAbout(Part):
    """A candidate in words."""

    kind: Text
    text: Text
    source: Text


class RaceOverhead(Part):
    """Seconds that a trial takes beside training."""

    seeing: Number = 0.0
    searching: Number = 0.0


class RaceFinal(Part):
    """A candidate at the end."""

    name: Name


class RaceData(Part):
    """The images of a race."""

    name: Text
    path: Text
    fingerprint: Text
    train: Count
    val: Count
    labelled: bool


class RaceFile(Document):
    """race.json of a race."""

    winner: Name | None
    settings: dict[Text, Any] = {}
    data: RaceData | None = None
    minutes: Number = 0.0
    about: dict[Name, RaceAbout] = {}
    trained: list[Name] = []
    threads: Count = 0
    at_a_time: Count = 1
    guess: Text = ""
    left_out: list[Name] = []
    overhead: RaceOverhead | None = None
    speeds: dict[Name, Number] = {}
    rounds: list[RaceRound] = []
    planned_minutes: Number = 0.0
    results: dict[Name, list[RaceResult]] = {}
    final: list[RaceFinal] = []
    told: list[Text] = []
    chosen_by: Text = "validation"
    finished: bool = False
    command: Text = ""
    software: dict[Text, Any] = {}


class ComparedRun(Part):
    """A run in a comparison."""

    name: Text
    recipe: Text | None
    flat: dict[Text, Number]


class Comparison(Document):
    """comparison.json over several runs."""

    runs: list[ComparedRun]
    baselines: dict[Text, dict[Text, Number]]


# Name of the file in docs/schemas/ → what it describes.
DOCUMENTS: dict[str, type[BaseModel]] = {
    "manifest": Manifest, "evaluation": Evaluation, "metrics-row": Row, "encoder": EncoderFile, "decoder": DecoderFile,
    "queries": OnnxFile,
    "checkpoint-manifest": CheckpointFile, "checkpoint-state": CheckpointState,
    "finetune-draws": Draws, "index-manifest": IndexFile,
    "embeddings-metadata": EmbeddingsFacts, "graph-metadata": GraphFacts, "map-metadata": MapFacts, "tags": TagsFile,
    "search": SearchFile,
    "tune-search": TuneFile, "tune-trial": TrialFile, "race": RaceFile, "files": Files, "comparison": Comparison,
}  # fmt: skip


def json_schemas() -> dict[str, dict[str, Any]]:
    """A JSON Schema for every file, by the name of the file that holds it in docs/schemas/."""
    return {f"{name}.json": model.model_json_schema() for name, model in DOCUMENTS.items()}


if __name__ == "__main__":
    import json
    import sys
    from pathlib import Path

    for file, schema in json_schemas().items():
        Path(sys.argv[1], file).write_text(json.dumps(schema, indent=2) + "\n")
