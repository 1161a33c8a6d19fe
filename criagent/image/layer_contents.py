# SPDX-License-Identifier: Apache-2.0
"""fsck of layers' contents: compares layers with their blobs, unpacked again, by `layer_trial`.

What was noted when a layer was unpacked costs little to compare, but has no content of files. Of a
layer that differs from it, this names the files.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from criagent.base.errors import AgentError
from criagent.image import audit
from criagent.image.content import ImageContent
from criagent.image.documents.digest import parse_digest
from criagent.image.layers import LayerUnpacker
from criagent.image.unpack.compare import Differences
from criagent.model.image import Layer, Snapshot

_SAMPLE = 8  # one layer in this many


class Contents(StrEnum):
    """Of which layers the content of every file is compared."""

    NONE = ""  # of those alone that differ from their row, to name the files
    SAMPLE = "sample"  # one in eight at random, at least one
    FULL = "full"


@dataclass(slots=True)
class Compared:
    """How many layers were compared, and why the others that should have been were not."""

    layers: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerContents:
    """Layers of the rows `state`. `unpackers` are by storage driver."""

    content: ImageContent
    unpackers: Mapping[str, LayerUnpacker]
    state: audit.State

    async def add_to(self, problems: dict[str, str], contents: Contents) -> Compared:
        """Complete the problems of layers, by `audit.key`, "" = none; lowest layers first.

        A layer over one that differs is left out: what it is compared with would differ as well.
        """
        compared = Compared()
        chosen = self._chosen(contents)
        for key, row in sorted(self.state.layers.items(), key=lambda item: item[1].number):
            problem = problems[key]
            if not problem and key not in chosen:
                continue
            found = await self._differences(row, problems)
            if not isinstance(found, str):
                compared.layers += 1
                if found.total:
                    problems[key] = f"{problem}: {found}" if problem else str(found)
            elif not problem:
                compared.left_out[f"layer {key}"] = found
        return compared

    def _chosen(self, contents: Contents) -> set[str]:
        every = list(self.state.layers)
        if contents is Contents.FULL:
            return set(every)
        if contents is Contents.SAMPLE and every:
            return set(random.sample(every, -(-len(every) // _SAMPLE)))
        return set()

    async def _differences(self, row: Snapshot, problems: Mapping[str, str]) -> Differences | str:
        """Those of one layer, or why it cannot be compared."""
        layers = self._chain(row)
        if not layers:
            return "no image has it"
        digest = layers[-1].digest
        for lower in layers[:-1]:
            if problems.get(audit.key_of(row.driver, lower.chain_id)):
                return f"a layer below it is damaged: {lower.digest}"
        async with self.content.claims.hold([digest]):
            if not self.content.files.has(parse_digest(digest)):
                return f"its blob {digest} is not kept (storage.keep_blobs)"
            try:
                return await self.unpackers[row.driver].differences(layers)
            except (AgentError, OSError) as exc:
                return str(exc)

    def _chain(self, row: Snapshot) -> tuple[Layer, ...]:
        """The layer with those below it, of any image that has it."""
        for image in self.state.images:
            for at, layer in enumerate(image.layers, 1):
                if layer.chain_id == row.key:
                    return image.layers[:at]
        return ()
