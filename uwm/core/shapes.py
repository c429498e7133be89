"""Shape annotations for signatures: jaxtyping's where it is installed, otherwise names that cost nothing.

A control node installs torch, numpy, einops and safetensors only, so jaxtyping must not be needed to run.
Letters used throughout the package: B batch, N tokens, S numbers per token, D width, K rows, T frames, A action size.
"""

try:
    from jaxtyping import Bool, Float, Int, UInt8
except ImportError:

    class _Unchecked:
        """Stands in for a jaxtyping dtype: `Float[Tensor, "B N"]` is then plain `Tensor`."""

        def __class_getitem__(cls, item):
            return item[0]

    Bool = Float = Int = UInt8 = _Unchecked

__all__ = ["Bool", "Float", "Int", "UInt8"]
