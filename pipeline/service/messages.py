"""What is asked and answered by HTTP. Ids are text: browsers' numbers are not exact above 2^53."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

MOST_IDS = 256  # of a question
MOST_NEIGHBORS = 1000
MOST_NUMBERS = 1 << 16  # of a vector
MOST_NAMES = 1000  # of splits or labels to look among
DEFAULT_NEIGHBORS = 24
LARGEST_ID = 2**63 - 1

Id = Annotated[str, Field(pattern="^[0-9]{1,19}$", description="id of an indexed image, as text")]
Name = Annotated[str, Field(max_length=1000)]
Names = Annotated[list[Name], Field(max_length=MOST_NAMES)]
K = Annotated[int, Field(ge=1, le=MOST_NEIGHBORS, description="how many images to find")]


class Question(BaseModel):
    """Images or a vector to search for, and where to look."""

    model_config = ConfigDict(extra="forbid")

    like: Annotated[list[Id], Field(max_length=MOST_IDS, description="images that the results are to be like")] = []
    unlike: Annotated[list[Id], Field(max_length=MOST_IDS, description="and those they are not to be like")] = []
    vector: Annotated[list[FiniteFloat] | None, Field(max_length=MOST_NUMBERS, description="instead of images")] = None
    k: K = DEFAULT_NEIGHBORS
    splits: Annotated[Names, Field(description="only images of these splits; empty: of all")] = []
    labels: Annotated[Names, Field(description="only images with one of these labels; empty: whatever they have")] = []


class Item(BaseModel):
    """An indexed image."""

    id: str
    path: Annotated[str, Field(description="relative to the data's folder; file and key for parquet and shards")]
    label: str | int | None
    split: str


class Neighbor(Item):
    """An indexed image that was found."""

    rank: int
    score: Annotated[float, Field(description="cosine similarity, −1 to 1")]


class Answer(BaseModel):
    """What was found, best first; fewer than k where no more match."""

    run: str
    version: Annotated[str, Field(description="changes with the index")]
    neighbors: list[Neighbor]
    vector: Annotated[list[float] | None, Field(description="of an uploaded image: asks for it again")] = None


class RunSummary(BaseModel):
    """A run that is served."""

    name: str
    data: Annotated[str, Field(description="name of the data set")]
    images: int


class Label(BaseModel):
    """A class, or a number where classes have no names."""

    name: str
    images: int


class RunInformation(RunSummary):
    """What a run is searched by, and what its images are."""

    version: Annotated[str, Field(description="changes with the index")]
    dim: Annotated[int, Field(description="numbers in a vector")]
    searched_by: Annotated[list[str], Field(description="what makes the vectors")]
    splits: Annotated[dict[str, int], Field(description="images in each")]
    labels: list[Label]


class MapPoints(BaseModel):
    """Every image at a place in the plane, images that are alike near each other; all lists have the same length."""

    version: Annotated[str, Field(description="changes with the index")]
    ids: list[str]
    x: Annotated[list[float], Field(description="−1 to 1")]
    y: Annotated[list[float], Field(description="−1 to 1")]
    label: Annotated[list[int], Field(description="position in labels; −1 for none")]
    split: Annotated[list[int], Field(description="position in splits")]
    labels: list[str]
    splits: list[str]


class Tags(BaseModel):
    """What people have tagged: tag by id."""

    tags: dict[str, str]


class Tagging(BaseModel):
    """A tag for some images, in the place of what they had; null takes it away."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[list[Id], Field(min_length=1, max_length=MOST_NEIGHBORS)]
    tag: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")] | None


class Problem(BaseModel):
    """Why a request was refused."""

    error: str


class Status(BaseModel):
    """How the service is."""

    status: str
