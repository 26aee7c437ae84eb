"""ONNX Runtime backend on the CPU, with the fused kernel or propagate.onnx for the soft masks."""

from __future__ import annotations

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import ENCODE, PROPAGATE, REFERENCES, Artifact
from corrflow.runtime.backends.base import CpuBackend
from corrflow.runtime.backends.bounded_session import open_session
from corrflow.runtime.backends.memory import MemoryRing, PackedRing
from corrflow.runtime.backends.resize import resize
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import STRIDE, TrackingSettings


class OnnxRuntimeBackend(CpuBackend):
    """`base.Backend` on the CPU. Features are [C, h, w] float32 arrays.

    fused: propagate with the fused kernel, otherwise with propagate.onnx
    bits:  bits of a feature channel in the fused kernel: 32, 16 or 8. The default is the fastest of 32 and 16 (scores
           within 2e-4 of float32), and of 8 for an artifact with an 8-bit encoder

    Raises InputError where the kernel was not built, or onnxruntime refuses a graph.
    """

    stride = STRIDE

    def __init__(self, artifact: Artifact, threads: int = 0, fused: bool = False, bits: int | None = None) -> None:
        import onnxruntime

        if fused and cpu.unavailable():
            raise InputError(cpu.unavailable())
        if bits not in (None, 8, 16, 32):
            raise InputError(f"expected 8, 16 or 32 bits, got {bits}")
        self.artifact, self.supports_runtime_search_params = artifact, fused
        self._bits = bits or cpu.fastest_bits(coarse=artifact.has_integer_encoder)
        self.name = (
            f"onnxruntime-cpu, fused {cpu.kernels()[0]} kernel on {self._bits} bits"
            if fused
            else "onnxruntime-cpu, ONNX function"
        )
        self._threads = threads
        self._packed: tuple[np.ndarray, cpu.PackedFeatures] | None = None
        try:
            self._encode = open_session(artifact.files[ENCODE], threads)
            self._propagate = None if fused else open_session(artifact.files[PROPAGATE], threads)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise InputError(
                f"{artifact.name}: onnxruntime {onnxruntime.__version__} refuses the graphs"
                f" ({str(error).splitlines()[0]}); export the artifact again or update onnxruntime"
            ) from error
        _expect_inputs(artifact.name, ENCODE, self._encode, {"frame"})
        self.supports_window_offsets = fused
        if self._propagate is not None:
            searched = {"query", "keys", "values"}
            self.supports_window_offsets = REFERENCES in {entry.name for entry in self._propagate.get_inputs()}
            _expect_inputs(
                artifact.name,
                PROPAGATE,
                self._propagate,
                searched | ({REFERENCES} if self.supports_window_offsets else set()),
            )

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> np.ndarray:
        """Encode a frame [H, W, 3] uint8, BGR, resized to (h, w) where given, to [C, ceil(h/4), ceil(w/4)] float32."""
        frame = frame if working is None else resize(frame, working)
        features = self._run(self._encode, {"frame": np.ascontiguousarray(frame[None])})[0]
        if features.shape[0] != self.artifact.channels:
            raise CorrflowError(
                f"{self.artifact.name}: expected {self.artifact.channels} feature channels, got {features.shape[0]}"
            )
        return features

    def new_memory(
        self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]
    ) -> MemoryRing | PackedRing:
        """Return an empty memory; its features are packed where the fused kernel searches in 16 or 8 bits."""
        if self._propagate is not None or self._bits == 32:
            return MemoryRing(settings, num_channels, cells, self.artifact.channels)
        return PackedRing(settings, num_channels, cells, self.artifact.channels, self._bits, self._pack)

    def propagate(self, query: np.ndarray, memory: MemoryRing | PackedRing, plan: SearchPlan) -> np.ndarray:
        """Return soft masks [N, h, w] float32 of features [C, h, w].

        Raises CorrflowError for window offsets that propagate.onnx does not support.
        """
        search = {"attributes": plan.params, "threads": self._threads, "references": plan.windows}
        if isinstance(memory, PackedRing):
            return cpu.packed_soft_copy(self._pack(query), memory.features, memory.soft_masks, **search)
        if self._propagate is None:
            return cpu.local_soft_copy(query[None], memory.features[None], memory.soft_masks[None], **search)[0]
        if self.supports_window_offsets:
            keys, values = memory.features, memory.soft_masks
            rows = {REFERENCES: np.array(plan.windows, np.int32)}
        else:
            if plan.moves:
                raise CorrflowError(
                    f"expected graphs that take references by index, got {self.name}; export {self.artifact.name} again"
                )
            keys, values = memory.stacked(plan.slots)
            rows = {}
        return self._run(self._propagate, {"query": query[None], "keys": keys[None], "values": values[None], **rows})[0]

    def _pack(self, features: np.ndarray) -> cpu.PackedFeatures:
        """Return packed features; the newest frame's are cached, because they are the query first and stored then."""
        if self._packed is None or self._packed[0] is not features:
            self._packed = features, cpu.pack(features, self._bits, self._threads)
        return self._packed[1]

    def close(self) -> None:
        """Release the sessions."""
        del self._encode, self._propagate

    @staticmethod
    def _run(session, inputs: dict[str, np.ndarray]) -> np.ndarray:
        try:
            return session.run(None, inputs)[0]
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise CorrflowError(f"onnxruntime failed: {str(error).splitlines()[0]}") from error


def _expect_inputs(artifact: str, name: str, session, expected: set[str]) -> None:
    got = {entry.name for entry in session.get_inputs()}
    if got != expected:
        raise InputError(
            f"{artifact}: expected {name} to take {sorted(expected)}, got {sorted(got)}; export the artifact again"
        )
