"""llama.cpp's own library, called from Python: tokens, logits, adapters, quantisation.

The functions and the few fields that are touched here have kept their place over the versions of
llama.h; where one has not, `default_values` notices before anything is called with it. Structures
are handed back as they came, whole, in a buffer that is larger than any of them: both ways of
passing them by value (a copy on the stack, or a pointer to one) allow that.

Source: include/llama.h of ggml-org/llama.cpp, read at v0.4.0.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A level of quantisation -> its number in llama.h (enum llama_ftype).
QUANTIZATIONS = {
    "F16": 1,
    "Q4_0": 2,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
}
BATCH_TOKENS = 512  # in one call
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class UnknownLibrary(Exception):
    """The library is none that these calls fit."""


class Opaque(ctypes.Structure):
    """A structure of llama.h that is passed by value, with room to spare."""

    _fields_ = (("bytes_", ctypes.c_ubyte * 1024),)

    def put(self, at_byte: int, kind: Any, value: int) -> None:
        ctypes.memmove(
            ctypes.addressof(self) + at_byte, ctypes.byref(kind(value)), ctypes.sizeof(kind)
        )

    def get(self, at_byte: int, kind: Any) -> int:
        return int(kind.from_buffer_copy(self, at_byte).value)


class Library:
    """libllama, loaded. One in a process."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, UnknownLibrary."""
        self.log: list[str] = []
        self.lib = lib = ctypes.CDLL(str(path))
        _declare(lib)
        # llama.cpp says much; the last lines explain a failure.
        self._keep = LOG(lambda level, text, _: self._said(level, text or b""))
        lib.llama_log_set(self._keep, None)
        _load_backends(path, lib)
        lib.llama_backend_init()
        context = lib.llama_context_default_params()
        ints = [context.get(at, ctypes.c_uint32) for at in (0, 4, 8)]
        if ints != [512, 2048, 512]:  # n_ctx, n_batch, n_ubatch
            raise UnknownLibrary(f"llama_context_params begins with {ints}")
        levels = lib.llama_model_quantize_default_params()
        numbers = [levels.get(at, ctypes.c_int32) for at in (0, 4)]
        if numbers[0] > 0 or numbers[1] not in range(64):  # nthread, ftype
            raise UnknownLibrary(f"llama_model_quantize_params begins with {numbers}")

    def _said(self, level: int, text: bytes) -> None:
        if level >= 3:  # warnings, errors
            self.log = [*self.log[-20:], text.decode("utf-8", "replace").rstrip()]

    def quantize(self, source: Path, target: Path, level: str, threads: int) -> None:
        """Write a smaller file. Raises RuntimeError with what llama.cpp said."""
        options = self.lib.llama_model_quantize_default_params()
        options.put(0, ctypes.c_int32, threads)
        options.put(4, ctypes.c_int32, QUANTIZATIONS[level])
        code = self.lib.llama_model_quantize(
            os.fsencode(source), os.fsencode(target), ctypes.byref(options)
        )
        if code != 0:
            raise RuntimeError(
                "; ".join(self.log[-3:]) or f"llama_model_quantize ended with {code}"
            )


class Session:
    """A GGUF file in memory, with a context of so many tokens."""

    def __init__(self, library: Library, path: Path, *, context: int, threads: int) -> None:
        """Raises RuntimeError with what llama.cpp said."""
        self.lib = lib = library.lib
        self.model = lib.llama_model_load_from_file(
            os.fsencode(path), lib.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError("; ".join(library.log[-3:]) or "llama.cpp cannot load the file")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = int(lib.llama_vocab_n_tokens(self.vocab))
        options = lib.llama_context_default_params()
        options.put(0, ctypes.c_uint32, context)
        self.context = lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("; ".join(library.log[-3:]) or "llama.cpp has no room for a context")
        lib.llama_set_n_threads(self.context, threads, threads)

    def close(self) -> None:
        """Give the memory back."""
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def use_adapter(self, path: Path) -> None:
        """Put a LoRA adapter on the model. Raises RuntimeError."""
        adapter = self.lib.llama_adapter_lora_init(self.model, os.fsencode(path))
        if not adapter:
            raise RuntimeError("llama.cpp cannot load the adapter")
        context = ctypes.c_void_p(self.context)
        if hasattr(self.lib, "llama_set_adapters_lora"):
            one, scale = (ctypes.c_void_p * 1)(adapter), (ctypes.c_float * 1)(1.0)
            code = self.lib.llama_set_adapters_lora(context, one, ctypes.c_size_t(1), scale)
        else:  # before 2026
            code = self.lib.llama_set_adapter_lora(
                context, ctypes.c_void_p(adapter), ctypes.c_float(1.0)
            )
        if code != 0:
            raise RuntimeError(f"llama.cpp cannot use the adapter (code {code})")

    def tokens(self, text: str, *, whole: bool) -> list[int]:
        """The tokens of a text; special ones in it count as such.

        Args:
            whole: Add what the tokenizer puts around a whole text, such as a token at its begin.
        """
        raw = text.encode("utf-8", "surrogatepass")
        room = (ctypes.c_int32 * (len(raw) + 8))()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), room, len(room), whole, True)
        if count < 0:
            raise RuntimeError("llama.cpp found more tokens than bytes")
        return list(room[:count])

    def ends(self, token: int) -> bool:
        """Whether llama.cpp ends an answer at this token."""
        return bool(self.lib.llama_vocab_is_eog(self.vocab, token))

    def forget(self) -> None:
        """Begin a new text."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def read(self, tokens: Sequence[int]) -> Any:
        """The logits behind the last of these tokens, which follow what was read before: V.

        Raises RuntimeError where the context is full.
        """
        import numpy

        for begin in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[begin : begin + BATCH_TOKENS]
            room = (ctypes.c_int32 * len(part))(*part)
            code = self.lib.llama_decode(
                self.context, self.lib.llama_batch_get_one(room, len(part))
            )
            if code != 0:
                raise RuntimeError(f"llama_decode ended with {code}")
        pointer = self.lib.llama_get_logits_ith(self.context, -1)
        return numpy.ctypeslib.as_array(pointer, shape=(self.size,)).copy()


def _declare(lib: Any) -> None:
    """Types of arguments and results. Raises UnknownLibrary if a function is missing."""
    pointer, number, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_backend_init": (None, []),
        "llama_log_set": (None, [LOG, pointer]),
        "llama_model_default_params": (Opaque, []),
        "llama_context_default_params": (Opaque, []),
        "llama_model_quantize_default_params": (Opaque, []),
        "llama_model_quantize": (ctypes.c_uint32, [text, text, pointer]),
        "llama_model_load_from_file": (pointer, [text, Opaque]),
        "llama_init_from_model": (pointer, [pointer, Opaque]),
        "llama_set_n_threads": (None, [pointer, number, number]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_vocab_is_eog": (ctypes.c_bool, [pointer, number]),
        "llama_tokenize": (
            number,
            [pointer, text, number, pointer, number, ctypes.c_bool, ctypes.c_bool],
        ),
        "llama_batch_get_one": (Opaque, [pointer, number]),
        "llama_decode": (number, [pointer, Opaque]),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [pointer, number]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_adapter_lora_init": (pointer, [pointer, text]),
        "llama_free": (None, [pointer]),
        "llama_model_free": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise UnknownLibrary(f"it has no {name}") from None
        function.restype, function.argtypes = result, arguments


def _load_backends(path: Path, lib: Any) -> None:
    """Load the parts that compute, where they are files of their own beside the library."""
    for other in [lib, *(_loaded(file) for file in sorted(path.parent.glob("libggml.*")))]:
        if other is not None and hasattr(other, "ggml_backend_load_all_from_path"):
            other.ggml_backend_load_all_from_path(os.fsencode(path.parent))
            return


def _loaded(path: Path) -> Any | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None
