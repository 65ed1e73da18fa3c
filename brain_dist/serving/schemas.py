"""What the OpenAPI document says about the answers. The answers themselves come from :mod:`.documents`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ProblemDetails(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:brain-dist:unreadable"])
    title: str
    status: int
    detail: str


class Prediction(BaseModel):
    """What the model says about a slice, or (`frame` = `mean`) about all slices of a file."""

    frame: int | Literal["mean"] | None = Field(description="number of the slice; null if the file has only one")
    label: str | None = Field(description="the likeliest class")
    probability: float | None
    probabilities: dict[str, float | None]
    set: list[str] | None = Field(description="the classes that contain the true one with the model's `coverage`")
    ood_p: float | None = Field(description="share of validation patients at least as unlike the training")
    verdict: Literal["ok", "unsure", "not_like_training"] | None
    error: str | None = Field(description="why this slice has no answer")


class Answer(BaseModel):
    """The predictions of a file."""

    notice: str
    predictions: list[Prediction]


class Item(BaseModel):
    """The predictions of a file among several, or the problem with it."""

    name: str | None = Field(description="what the client calls the file")
    status: int = Field(description="the status that the file alone would have got")
    predictions: list[Prediction]
    problem: ProblemDetails | None


class Answers(BaseModel):
    """The predictions of several files, in their order."""

    notice: str
    items: list[Item]


class Explanation(BaseModel):
    """What the network saw of a slice, and where the score of each class came from; PNG files in base64."""

    notice: str
    frame: int | None
    image: str = Field(description="what the network saw")
    maps: dict[str, str] = Field(description="class → map, bright where the score came from; empty if there are none")


class ModelCard(BaseModel):
    """What is served."""

    notice: str
    version: str
    name: str
    classes: list[str]
    step: int | None
    weights: str | None = Field(description="sha256 of the weights")
    dataset_version: str
    input_size: int
    calibrated: bool
    coverage: float | None = Field(description="probability with which a set contains the true class")
    ood: dict[str, Any] | None
    maps: str | None = Field(description="the method of the maps of /v1/explain")
    limits: dict[str, float]
    speed: dict[str, float]
    card: str | None = Field(description="the model card, Markdown")


class State(BaseModel):
    """The state of the service."""

    status: Literal["ok", "ready", "draining"]
