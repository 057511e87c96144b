"""The settings of the head, apart from the head itself, so that a grid is read without torch."""

from dataclasses import dataclass
from typing import ClassVar

from refavs.errors import SettingError
from refavs.model.feature_sizes import Needs
from refavs.model.options import HeadOptions


@dataclass(frozen=True, kw_only=True)
class AgreementOptions(HeadOptions):
    """The choices of the head `agreement`.

    Attributes:
        width: channels in which patches, sound and words are compared.
    """

    head: str = "agreement"
    width: int = 16
    implementation: ClassVar[str] = "refavs_example.head:Agreement"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise SettingError(f"width is {self.width}; accepted: a whole number from 1 up", "width")

    def needs(self) -> Needs:
        return Needs(maps=(("patches",),), advice="add the stream by refavs-extract --streams patches-14")
