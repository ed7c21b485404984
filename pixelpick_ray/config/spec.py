"""Base class and number types of the sections of an experiment file."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


class Spec(BaseModel):
    """Base of all sections of an experiment: immutable; rejects unknown keys and wrong types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def as_input(self) -> dict[str, Any]:
        """JSON-ready fields for a key, without those that are None, so that new options leave old keys unchanged."""
        return self.model_dump(mode="json", exclude_none=True)
