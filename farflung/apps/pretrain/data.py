"""[data] of a run file: where the text comes from, which tokenizer reads it, and who gets which part."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from farflung.apps.pretrain.data_settings import DataSettings
from farflung.apps.runs.seats import Seat
from farflung.apps.runs.sites import RegionSettings
from farflung.learn.sources import SourceConfig, open_source
from farflung.learn.stream import Shard, Tokens, hold_out
from farflung.learn.tokenized import Report, load_tokens
from farflung.learn.tokenizer import learnt_tokenizer, open_tokenizer

LEARNT = "learnt"
MODEL = "model"


def source_of(region: RegionSettings, data: DataSettings) -> SourceConfig:
    """What a region reads."""
    return region.data or data.config


def choose_tokenizer(
    data: DataSettings, model: dict[str, Any], sources: Sequence[SourceConfig], cache_folder: Path
) -> PreTrainedTokenizerBase:
    """The tokenizer of a run; `sources` are all that its regions read.

    Raises:
        ValueError: there is none of that name, or `model` without a path.
    """
    name = data.tokenizer
    if name == "auto":
        name = MODEL if "path" in model else LEARNT
    if name == MODEL and "path" not in model:
        raise ValueError('data.tokenizer = "model" needs model.path: give one, or "learnt", "bytes" or a tokenizer')
    if name == LEARNT:
        return learnt_tokenizer([open_source(source) for source in sources], data.vocabulary_size, cache_folder)
    return open_tokenizer(str(model["path"]) if name == MODEL else name)


@dataclass(frozen=True, slots=True)
class Texts:
    """The tokens of every region: for training, and the ends held out for validation."""

    training: dict[str, Tokens]
    validation: dict[str, Tokens]

    @classmethod
    def load(
        cls,
        regions: Sequence[RegionSettings],
        data: DataSettings,
        tokenizer: PreTrainedTokenizerBase,
        *,
        sequence_length: int,
        num_validation_sequences: int,
        cache_folder: Path,
        report: Report = lambda _: None,
    ) -> "Texts":
        """Read (or find in the cache) what each region reads.

        Raises:
            ValueError: a source is missing or too small.
        """
        texts = cls({}, {})
        for region in regions:
            tokens = load_tokens(source_of(region, data), tokenizer, cache_folder, report)
            training, validation = hold_out(tokens, sequence_length, num_validation_sequences)
            texts.training[region.name], texts.validation[region.name] = training, validation
        return texts


def shards_of_region(regions: Sequence[RegionSettings], region: str, num_shards: int) -> list[int]:
    """The shards that a region's workers hold, out of those of the whole run: one for each worker of the run file, and
    the others, which wait for joiners, by the regions in turn."""
    owners = [one.name for one in regions for _ in one.speeds]
    owners += [regions[joiner % len(regions)].name for joiner in range(num_shards - len(owners))]
    return [shard for shard, owner in enumerate(owners) if owner == region]


def shard_of(seat: Seat, regions: Sequence[RegionSettings], num_shards: int) -> Shard:
    """The samples that a worker's stream is opened with, until its server or coordinator deals it others."""
    own = shards_of_region(regions, seat.region, num_shards)
    return Shard(seat.number if seat.number in own else own[0], num_shards)


def shard_within(shard: Shard, regions: Sequence[RegionSettings], region: RegionSettings) -> Shard:
    """Which part of a region's own data a shard of the run is: no other region draws from them."""
    if region.data is None:
        return shard
    own = shards_of_region(regions, region.name, shard.num_shards)
    return Shard(own.index(shard.index), len(own)) if shard.index in own else shard
