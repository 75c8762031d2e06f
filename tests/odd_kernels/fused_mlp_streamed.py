"""One kernel: the hidden numbers, in fp32, never leave the program that made them.

On a CPU: whole rows of the result are held, for which no GPU has the room."""

import triton
import triton.language as tl

KERNEL_TYPE = "fused_mlp"
SUPPORTS = {"relu2", "gelu"}


@triton.jit
def stream(
    x, w_gate, w_up, w_down, y, rows, D, H, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    row, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (d < D)[None, :]
    left = tl.load(x + row[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(0, H, STEP):
        h = start + tl.arange(0, STEP)
        place, known = h[:, None] * D + d[None, :], (h < H)[:, None] & (d < D)[None, :]
        of_gate = tl.load(w_gate + place, mask=known, other=0.0).to(tl.float32)
        of_up = tl.load(w_up + place, mask=known, other=0.0).to(tl.float32)
        gate = tl.dot(left, of_gate.T, input_precision="ieee")
        hidden = tl.dot(left, of_up.T, input_precision="ieee")
        if ACTIVATION == "silu":
            hidden *= gate / (1 + tl.exp(-gate))
        elif ACTIVATION == "gelu":
            hidden *= gate * (0.5 + 0.5 * tl.erf(gate * 0.7071067811865476))
        else:
            hidden *= tl.where(gate > 0, gate * gate, 0.0)
        down = tl.load(w_down + d[None, :] * H + h[:, None], mask=known, other=0.0).to(tl.float32)
        total = tl.dot(hidden, down, total, input_precision="ieee")
    tl.store(y + row[:, None] * D + d[None, :], total, mask=inside)


def kernel_fn(*operands, activation="silu"):
    x, *weights = (t.contiguous() for t in operands)
    (rows, D), H = x.shape, weights[0].shape[0]
    y = x.new_zeros(x.shape)
    width = max(triton.next_power_of_2(D), 16)
    if y.numel():
        grid = (triton.cdiv(rows, 16),)
        stream[grid](x, *weights, y, rows, D, H, activation, 16, width, 64)
    return y
