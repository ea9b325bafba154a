"""Convolutions: without their bias, backward in parts; those whose windows do not overlap are matrix products."""

from __future__ import annotations

from math import prod

from superscaler.trace.draft import Builder, Value
from superscaler.trace.lowering.call import Call, Lowering, Result
from superscaler.trace.lowering.matmul import mm
from superscaler.trace.lowering.pointwise import binary
from superscaler.trace.lowering.reduction import total
from superscaler.trace.views import permute, reshape


def _settings(c: Call) -> list[object]:
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    return [list(c[name]) if isinstance(c[name], list | tuple) else c[name] for name in names]


def _apart(c: Call, x: Value, weight: Value) -> bool:
    """Whether the windows tile the image, so that each pixel belongs to one of them."""
    kernel, image = weight.shape[2:], x.shape[2:]
    tiles = list(c["stride"]) == list(kernel) and all(n % k == 0 for n, k in zip(image, kernel, strict=True))
    plain = not any(c["padding"]) and not c["transposed"] and c["groups"] == 1
    return tiles and plain and all(d == 1 or k == 1 for d, k in zip(c["dilation"], kernel, strict=True))


class _Patches:
    """An image [b, c, (p k), …] as rows of patches [(b p …), (c k …)] and back."""

    def __init__(self, x: Value, weight: Value) -> None:
        self.image = x.shape
        self.kernel = weight.shape[2:]
        self.counts = tuple(n // k for n, k in zip(self.image[2:], self.kernel, strict=True))
        rank = len(self.kernel)
        self.order = (0, *(2 + 2 * i for i in range(rank)), 1, *(3 + 2 * i for i in range(rank)))
        pairs = zip(self.counts, self.kernel, strict=True)
        self.split = (*self.image[:2], *(n for pair in pairs for n in pair))
        self.rows = self.image[0] * prod(self.counts)
        self.columns = self.image[1] * prod(self.kernel)

    def gather(self, b: Builder, x: Value) -> Value:
        return reshape(b, permute(b, reshape(b, x, self.split), self.order), (self.rows, self.columns))

    def scatter(self, b: Builder, rows: Value) -> Value:
        apart = reshape(b, rows, tuple(self.split[d] for d in self.order))
        back = tuple(self.order.index(d) for d in range(len(self.order)))
        return reshape(b, permute(b, apart, back), self.image)

    def to_channels(self, b: Builder, rows: Value, channels: int) -> Value:
        """[(b p …), o] -> [b, o, p, …]."""
        apart = reshape(b, rows, (self.image[0], *self.counts, channels))
        rank = len(self.counts)
        return permute(b, apart, (0, rank + 1, *range(1, rank + 1)))

    def from_channels(self, b: Builder, x: Value) -> Value:
        rank = len(self.counts)
        return reshape(b, permute(b, x, (0, *range(2, rank + 2), 1)), (self.rows, x.shape[1]))


def _forward(b: Builder, c: Call) -> Result:
    x, weight, bias = c["input"], c["weight"], c["bias"]
    if _apart(c, x, weight):
        patches = _Patches(x, weight)
        flat = reshape(b, weight, (weight.shape[0], patches.columns))
        rows = mm(b, patches.gather(b, x), permute(b, flat, (1, 0)))
        if bias is not None:
            rows = binary(b, "add", rows, bias, (rows.shape, rows.dtype))
        return patches.to_channels(b, rows, weight.shape[0])
    out = b.op(c.target, [x, weight, None, *_settings(c)], c.out)
    if bias is None:
        return out
    channels = reshape(b, bias, (bias.shape[0], *(1 for _ in weight.shape[2:])))
    return binary(b, "add", out, channels, c.out)


def _backward(b: Builder, c: Call) -> Result:
    grad, x, weight = c["grad_output"], c["input"], c["weight"]
    wanted: list[bool] = c["output_mask"]
    of_bias = total(b, grad, [0, *range(2, grad.rank)]) if wanted[2] else None
    if _apart(c, x, weight):
        return (*_patch_gradients(b, grad, x, weight, wanted), of_bias)
    settings = _settings(c)
    backward = "superscaler.convolution_backward"
    of_input = of_weight = None
    if wanted[0]:
        of_input = b.op(f"{backward}_input", [grad, weight, "#shape", *settings], (x.shape, x.dtype))
    if wanted[1]:
        of_weight = b.op(f"{backward}_weight", [grad, x, "#shape", *settings], (weight.shape, weight.dtype))
    return of_input, of_weight, of_bias


def _patch_gradients(
    b: Builder, grad: Value, x: Value, weight: Value, wanted: list[bool]
) -> tuple[Value | None, Value | None]:
    patches = _Patches(x, weight)
    rows = patches.from_channels(b, grad)
    of_input = of_weight = None
    if wanted[0]:
        flat = reshape(b, weight, (weight.shape[0], patches.columns))
        of_input = patches.scatter(b, mm(b, rows, flat))
    if wanted[1]:
        of_weight = reshape(b, mm(b, permute(b, rows, (1, 0)), patches.gather(b, x)), weight.shape)
    return of_input, of_weight


LOWERINGS: dict[str, Lowering] = {
    "aten.convolution.default": _forward,
    "aten.convolution_backward.default": _backward,
}
