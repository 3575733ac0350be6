"""[data] of a run file: what is read, and by which tokenizer; `data` opens them."""

from dataclasses import dataclass

from farflung.learn.sources import EMBEDDED, Kind, SourceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """[data]: a source as `SourceConfig` has it, and the tokenizer."""

    source: str = EMBEDDED
    kind: Kind = "auto"
    text_field: str = "text"
    subset: str | None = None
    split: str = "train"
    tokenizer: str = "auto"
    """A folder or Hub id, `bytes`, `model` (that of model.path), or `learnt` from the data; auto: `model` where
    model.path is given, else `learnt`."""
    vocabulary_size: int = 1024
    """Of a learnt tokenizer."""

    @property
    def config(self) -> SourceConfig:
        """The source alone."""
        return SourceConfig(
            source=self.source, kind=self.kind, text_field=self.text_field, subset=self.subset, split=self.split
        )
