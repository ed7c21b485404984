"""What the parts of an experiment file are made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


class Spec(BaseModel):
    """A frozen part of an experiment; unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def as_input(self) -> dict[str, Any]:
        """JSON-ready fields for a key; absent options are left out, so that new ones do not move old keys."""
        return self.model_dump(mode="json", exclude_none=True)
